/** Section 1: which letter follows which, in the data and in the model. */

import { useSignal } from "@preact/signals";
import { format } from "../format";
import { Grid, Num, Origin, Token, Words, amount } from "../parts";
import { bos, config, data, tokenName, weights } from "../state";
import { forward, softmax } from "../model";
import { t } from "../words";

const size = config.vocab_size;

export function Bigrams() {
  const { bigrams, bigram_totals: totals } = data.dataset;
  const counts = new Map(bigrams.map(([a, b, count]) => [a * size + b, count]));
  const chosen = useSignal<[number, number]>(firstPair());
  const [a, b] = chosen.value;
  const share = (r: number, c: number) => (counts.get(r * size + c) ?? 0) / (totals[r] || 1);
  const most = Math.max(...bigrams.map(([r, c]) => share(r, c)));
  const names = Array.from({ length: size }, (_, id) => tokenName(id));
  const logits = forward(weights.value, config, a === bos ? [bos] : [bos, a]).logits.at(-1)!;
  return (
    <>
      <Grid
        caption={t("dataset.bigrams")}
        class="small"
        rows={names}
        columns={names}
        chosen={chosen.value}
        choose={(r, c) => (chosen.value = [r, c])}
        cell={(r, c) => {
          const v = share(r, c);
          return { v, f: "%", text: v ? format(100 * v, v < 0.0995 ? 1 : 0) : "", colour: amount(Math.sqrt(v / most)) };
        }}
      />
      <p class="says" data-pair={`${a},${b}`}>
        <Words
          k={a === bos ? "dataset.pair.first" : "dataset.pair"}
          a={<Token id={a} />}
          b={<Token id={b} />}
          count={<Num v={counts.get(a * size + b) ?? 0} f="i" />}
          total={<Num v={totals[a]} f="i" />}
          share={<Num v={share(a, b)} f="%" />}
          model={<Num v={softmax(logits)[b]} f="%" />}
        />
      </p>
      <Origin of="page" />
    </>
  );
}

function firstPair(): [number, number] {
  const ids = data.texts[0].ids;
  return ids.length > 3 ? [ids[1], ids[2]] : [bos, ids[1]];
}

export function Search() {
  const name = useSignal("");
  const { first, random } = data.dataset;
  const examples = [...(first ?? []), ...(random ?? [])];
  const found = examples.includes(name.value.trim());
  return (
    <>
      <p class="controls">
        <label>
          {t("dataset.search")}{" "}
          <input value={name.value} onInput={(event) => (name.value = event.currentTarget.value)} />
        </label>
        <output>{name.value.trim() && t(found ? "dataset.found" : "dataset.missing", { n: examples.length })}</output>
      </p>
    </>
  );
}
