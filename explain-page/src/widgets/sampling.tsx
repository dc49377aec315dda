/** Section 11: drawing new documents, with Python's random numbers. */

import { computed, signal, useSignal } from "@preact/signals";
import { format } from "../format";
import { useMark } from "../listing";
import { sum } from "../model";
import { Bars, Context, Num, Origin, PositionChoice, Slider, Stepper, Switch, Token } from "../parts";
import { type Draw, type Drawing, Random, sample, weightsToDraw } from "../sampling";
import { bos, config, data, position, temperature, tokenName, trace, weights } from "../state";
import { t } from "../words";

const topK = signal<number | null>(data.sampling.top_k);
const how = computed<Drawing>(() => ({ temperature: temperature.value, topK: topK.value }));

/** What is drawn from at the selected position, under the chosen temperature and top-k. */
export function Distribution() {
  const logits = trace.value.logits[position.value];
  const greedy = how.value.temperature === 0;
  const dropped = greedy ? null : weightsToDraw(logits, how.value);
  const total = dropped && sum(dropped);
  const probs = dropped ? dropped.map((p) => p / total!) : Array.from(logits, (v) => (v === Math.max(...logits) ? 1 : 0));
  const order = probs.map((_, id) => id).sort((a, b) => logits[b] - logits[a]);
  const all = useSignal(false);
  const most = Math.max(...probs);
  return (
    <>
      <PositionChoice />
      <HowToDraw />
      <Bars
        label={t("sampling.distribution")}
        rows={order.slice(0, all.value ? undefined : 8).map((id) => ({ id, v: probs[id], share: probs[id] / most }))}
      />
      <p class="controls">
        <Switch label={t("softmax.all", { n: probs.length })} on={all.value} set={(on) => (all.value = on)} />
        <span class="largest">
          {t("sampling.largest")} <Num v={most} />
        </span>
      </p>
      <Origin of="page" />
    </>
  );
}

function HowToDraw() {
  return (
    <div class="controls">
      <Slider
        label={t("sampling.temperature")}
        min={0.05}
        max={3}
        step={0.05}
        value={Math.max(0.05, temperature.value)}
        set={(value) => (temperature.value = value)}
        text={t("sampling.temperature.text", { temperature: format(temperature.value, 2) })}
      >
        {format(temperature.value, 2)}
      </Slider>
      <Switch
        label={t("sampling.greedy")}
        on={temperature.value === 0}
        set={(on) => (temperature.value = on ? 0 : data.sampling.temperature || 0.5)}
      />
      <label>
        {t("sampling.topk")}{" "}
        <input
          type="number"
          min={1}
          max={config.vocab_size}
          value={topK.value ?? ""}
          placeholder={t("sampling.off")}
          onInput={(event) => {
            const k = Math.trunc(Number(event.currentTarget.value));
            topK.value = k >= 1 ? Math.min(k, config.vocab_size) : null;
          }}
        />
      </label>
    </div>
  );
}

const decode = (draws: Draw[]) => draws.filter(({ token }) => token !== bos).map(({ token }) => data.vocab.chars[token]).join("");

/** Draw one token after another: the bar of probabilities, and where the number falls. */
export function Generation() {
  const seed = useSignal(data.sampling.seed === null ? "" : String(data.sampling.seed));
  const replay = useSignal<number | null>(0);
  const at = useSignal(0);
  const { samples, top_k, temperature: recorded } = data.sampling;
  const listed = replay.value === null ? null : samples[replay.value];
  const [draws, names] = listed ? [replayed(listed.draws, { temperature: recorded, topK: top_k }), []] : drawn(seed.value);
  const step = Math.min(at.value, draws.length - 1);
  const now = draws[step];
  const context = [bos, ...draws.slice(0, step).map(({ token }) => token)];
  useMark("draw", now.u === null ? "return probs.index(max(probs))" : "rng.choices(");
  return (
    <>
      <HowToDraw />
      <p class="controls">
        <label>
          {t("sampling.seed")}{" "}
          <input
            inputMode="numeric"
            value={seed.value}
            placeholder={data.sampling.rng_state ? t("sampling.own") : "0"}
            onInput={(event) => {
              seed.value = event.currentTarget.value;
              replay.value = null;
              at.value = 0;
            }}
          />
        </label>
        <button type="button" class="go" onClick={() => ((replay.value = null), (at.value = 0))}>
          {t("sampling.generate")}
        </button>
        {listed && <span class="hint">{t("sampling.replaying", { text: listed.text })}</span>}
      </p>
      {names.length > 0 && (
        <ol class="names generated">
          {names.map((text) => (
            <li>{text}</li>
          ))}
        </ol>
      )}
      <div class="window">
        <Context ids={context} />
        <span class="arrow" aria-hidden="true">
          →
        </span>
        <span class="drawn">
          <Token id={now.token} />
        </span>
      </div>
      <Cumulative draw={now} />
      <Stepper
        label={t("sampling.stepper")}
        n={draws.length}
        at={step}
        go={(to) => (at.value = to)}
        says={
          now.u === null
            ? t("sampling.says.greedy", { token: tokenName(now.token) })
            : t(now.token === bos ? "sampling.says.end" : "sampling.says", {
                u: format(now.u, 4),
                token: tokenName(now.token),
                p: format(now.weights[now.token] / sum(now.weights), "%"),
              })
        }
      />
      <Origin of={listed ? "package" : "page"} />
      <h3>{t("sampling.listed", { temperature: format(recorded, 2) })}</h3>
      <ol class="names">
        {samples.map(({ text, known }, i) => (
          <li>
            <button type="button" aria-pressed={replay.value === i} onClick={() => ((replay.value = i), (at.value = 0))}>
              {text || "∅"}
            </button>{" "}
            {known !== null && <small>{t(known ? "dataset.known" : "dataset.new")}</small>}
          </li>
        ))}
      </ol>
    </>
  );
}

/** Python's generator for a seed; without one, that of the run, which goes on where it stopped. */
export function generator(seed: string): Random {
  const state = data.sampling.rng_state;
  if (seed.trim() === "" && state) return Random.from(state);
  return new Random(BigInt(/^-?\d+$/.test(seed.trim()) ? seed.trim() : 0));
}

/** The first documents that a seed gives, and the draws of the first of them. */
function drawn(seed: string): [Draw[], string[]] {
  const rng = generator(seed);
  const documents = Array.from({ length: 20 }, () => sample(weights.value, config, how.value, rng));
  return [documents[0], documents.map(decode)];
}

/** The draws of a sample of the package: its numbers, on this page's probabilities. */
function replayed(list: { u: number | null; token: number }[], drawing: Drawing): Draw[] {
  const numbers = list.map(({ u }) => u);
  const rng = { random: () => numbers.shift()! } as Random;
  return sample(weights.value, config, drawing, rng).slice(0, list.length);
}

/** All probabilities end to end; the drawn number points at one of them. */
function Cumulative({ draw: { weights: parts, u, token } }: { draw: Draw }) {
  const total = sum(parts);
  let left = 0;
  return (
    <svg class="cumulative" viewBox="0 0 660 54" role="img" aria-label={t("sampling.bar")}>
      {parts.map((p, id) => {
        const [x, width] = [(left / total) * 660, (p / total) * 660];
        left += p;
        return (
          <g class={`part ${id === token ? "here" : ""}`} data-token={id}>
            <rect x={x.toFixed(2)} y={16} width={width.toFixed(2)} height={26} class={`c${id % 7}`} />
            {width > 12 && (
              <text x={(x + width / 2).toFixed(1)} y={34} text-anchor="middle">
                {id === bos ? "■" : tokenName(id)}
              </text>
            )}
          </g>
        );
      })}
      {u !== null && <path class="needle" d={`M${u * 660},48l-5,6h10zM${u * 660},48V12`} data-v={u} />}
    </svg>
  );
}

