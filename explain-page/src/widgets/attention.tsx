/** Section 8: which earlier tokens each token looks at, head by head. */

import { useSignal } from "@preact/signals";
import { format } from "../format";
import { useMark } from "../listing";
import { sum } from "../model";
import { Choice, Grid, Num, Origin, Switch, Token, Vector, Words, amount } from "../parts";
import { choosePosition, config, head, inputs, layer, lossOf, position, reading, step, textLoss, tokenName, trace, weights } from "../state";
import { t } from "../words";
import { StepSlider } from "./embedding";

const headDim = config.n_embd / config.n_head;

export function LayerChoice() {
  if (config.n_layer === 1) return null;
  return (
    <Choice
      label={t("layer.label")}
      options={Array.from({ length: config.n_layer }, (_, i) => t("layer.n", { n: i }))}
      chosen={layer.value}
      choose={(i) => (layer.value = i)}
    />
  );
}

const SHOWN = 32; // tokens in a table; of a longer text those up to the chosen one

function Weights({ of, key_, choose, compact }: { of: number; key_: number; choose(row: number, column: number): void; compact?: boolean }) {
  const rows = trace.value.layers[layer.value].weights[of];
  const first = Math.max(0, position.value + 1 - SHOWN);
  const names = inputs.value.slice(first, first + SHOWN).map((id) => <Token id={id} />);
  return (
    <>
      <Grid
        caption={t("attention.table", { head: of })}
        class={compact ? "small" : "wide"}
        rows={names}
        columns={names}
        chosen={[position.value - first, Math.max(0, key_ - first)]}
        choose={(row, column) => choose(row + first, column + first)}
        cell={(r, c) => {
          if (c > r) return null;
          const v = rows[r + first][c + first];
          return { v, f: 2, text: format(v, 2).replace(/^0/, ""), colour: amount(v) };
        }}
      />
      {rows.length > SHOWN && <p class="hint">{t("attention.shown", { shown: SHOWN, n: rows.length })}</p>}
    </>
  );
}

export function Heads() {
  const all = useSignal(false);
  const wanted = useSignal(0);
  const key = Math.min(wanted.value, position.value);
  const choose = (row: number, column: number) => {
    choosePosition(row);
    wanted.value = column;
  };
  const heads = Array.from({ length: config.n_head }, (_, i) => i);
  return (
    <>
      <LayerChoice />
      <Choice
        label={t("attention.heads")}
        options={[...heads.map((i) => t("attention.head", { head: i })), t("attention.all")]}
        chosen={all.value ? config.n_head : head.value}
        choose={(i) => {
          all.value = i === config.n_head;
          if (i < config.n_head) head.value = i;
        }}
      />
      <StepSlider />
      {all.value ? (
        <div class="panes">
          {heads.map((i) => (
            <div>
              <h3>{t("attention.head", { head: i })}</h3>
              <Weights of={i} key_={key} choose={(r, c) => (choose(r, c), (head.value = i))} compact />
            </div>
          ))}
        </div>
      ) : (
        <Weights of={head.value} key_={key} choose={choose} />
      )}
      <Origin of="page" />
      <CellInDetail query={position.value} keyAt={key} />
    </>
  );
}

/** How one weight comes about, and what the whole row does with it. */
function CellInDetail({ query, keyAt }: { query: number; keyAt: number }) {
  const { q, k, v, scores, weights: all, heads } = trace.value.layers[layer.value];
  const h = head.value;
  const slice = (row: ArrayLike<number>) => Array.from(row).slice(h * headDim, (h + 1) * headDim);
  const [a, b] = [slice(q[query]), slice(k[keyAt])];
  const products = a.map((value, i) => value * b[i]);
  const most = Math.max(...[...a, ...b, ...products].map(Math.abs));
  const row = all[h][query];
  useMark("attend", "return _softmax(");
  const lines: [string, number[]][] = [
    [t("attention.q", { token: tokenName(inputs.value[query]), position: query }), a],
    [t("attention.k", { token: tokenName(inputs.value[keyAt]), position: keyAt }), b],
    [t("attention.products"), products],
  ];
  return (
    <div class="detail" data-cell={`${query},${keyAt}`}>
      <h3>{t("attention.cell", { query, key: keyAt, head: h })}</h3>
      {lines.map(([name, numbers], i) => (
        <div class="named" data-row={i}>
          <h4>{name}</h4>
          <Vector row={numbers} most={most} f={3} />
        </div>
      ))}
      <p class="says">
        <Words
          k="attention.score"
          sum={<Num v={sum(products)} />}
          root={<Num v={Math.sqrt(headDim)} f={3} />}
          score={<span class="the-score"><Num v={scores[h][query][keyAt]} /></span>}
          weight={<b class="the-weight"><Num v={row[keyAt]} /></b>}
        />
      </p>
      <div class="scroll">
        <table class="plain row">
          <thead>
            <tr>
              <th>{t("attention.key")}</th>
              <th>{t("attention.score.name")}</th>
              <th>{t("attention.weight")}</th>
              <th>{t("attention.value")}</th>
            </tr>
          </thead>
          <tbody>
            {row.map((weight, s) => (
              <tr aria-current={s === keyAt}>
                <th scope="row">
                  <Token id={inputs.value[s]} /> <small>{s}</small>
                </th>
                <td>
                  <Num v={scores[h][query][s]} />
                </td>
                <td class="weight">
                  <Num v={weight} />
                </td>
                <td>
                  <Vector row={slice(v[s])} />
                </td>
              </tr>
            ))}
          </tbody>
          <tfoot>
            <tr>
              <th scope="row">{t("attention.sum")}</th>
              <td />
              <td>
                <Num v={sum(row)} f={6} />
              </td>
              <td>
                <Vector row={slice(heads[query])} />
              </td>
            </tr>
          </tfoot>
        </table>
      </div>
    </div>
  );
}

/** Switch heads off and watch the loss of the text. */
export function HeadSwitches() {
  const off = useSignal<ReadonlySet<string>>(new Set());
  const loss = lossOf(weights.value, reading.value.ids, off.value);
  const heads = Array.from({ length: config.n_layer * config.n_head }, (_, i) => [Math.floor(i / config.n_head), i % config.n_head]);
  return (
    <>
      <p class="controls" role="group" aria-label={t("attention.off")}>
        {heads.map(([l, h]) => {
          const name = `layer${l}.head${h}`;
          return (
            <Switch
              label={config.n_layer > 1 ? t("attention.layer.head", { layer: l, head: h }) : t("attention.head", { head: h })}
              on={!off.value.has(name)}
              set={(on) => {
                const next = new Set(off.value);
                if (on) next.delete(name);
                else next.add(name);
                off.value = next;
              }}
            />
          );
        })}
      </p>
      <p class="says" aria-live="polite">
        <Words
          k="attention.switched"
          loss={<b class="switched-loss"><Num v={loss} /></b>}
          all={<Num v={textLoss.value} />}
          change={<Num v={loss - textLoss.value} />}
        />
      </p>
      <Origin of={off.value.size || step.value !== null ? "you" : "page"} />
    </>
  );
}

