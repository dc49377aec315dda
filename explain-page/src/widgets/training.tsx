/** Section 10: the run of the training, one step of it, and Adam on one parameter. */

import { useSignal } from "@preact/signals";
import { useMemo } from "preact/hooks";
import { adamStep } from "../adam";
import { blockOf, numbersOf } from "../data";
import { format } from "../format";
import { useMark } from "../listing";
import { Num, Origin, Stepper, Token, Words } from "../parts";
import { Level, Plot, path } from "../plot";
import { data, lossOf, reading, step, tokenName, weightsAt, snapshots } from "../state";
import { type Key, t } from "../words";
import { StepSlider } from "./embedding";

export function LossCurve() {
  const history = data.history!;
  const losses = numbersOf(history.losses);
  const means = numbersOf(history.means);
  const steps = history.steps ?? Array.from(losses, (_, i) => history.first_step + i);
  const { uniform_loss, letter_loss, bigram_loss } = data.dataset;
  const shown = step.value === null ? null : snapshots![step.value].step;
  const lowest = Math.min(...Array.from(losses), bigram_loss ?? Infinity);
  const top = Math.max(...Array.from(losses), uniform_loss) * 1.03;
  const at = shown === null ? steps.length - 1 : steps.findIndex((s) => s >= Math.max(1, shown));
  return (
    <>
      <Plot
        label={t("training.curve")}
        x={[0, steps[steps.length - 1]]}
        y={[Math.max(0, Math.floor(lowest * 2) / 2 - 0.25), top]}
        xName={t("training.steps")}
        yName={t("training.loss")}
      >
        {(scales) => (
          <>
            <path class="raw" d={path(steps.map((s, i) => [s, losses[i]]), scales)} />
            <path class="line" d={path(steps.map((s, i) => [s, means[i]]), scales)} />
            <Level at={uniform_loss} name={t("loss.uniform", { n: data.config.vocab_size })} scales={scales} />
            {letter_loss != null && <Level at={letter_loss} name={t("loss.letters")} scales={scales} />}
            {bigram_loss != null && <Level at={bigram_loss} name={t("loss.bigrams")} scales={scales} />}
            {shown !== null && (
              <line class="cursor" x1={scales.x(shown)} x2={scales.x(shown)} y1={scales.y.range()[0]} y2={scales.y.range()[1]} />
            )}
          </>
        )}
      </Plot>
      <StepSlider />
      <p class="says curve">
        <Words
          k="training.at"
          step={<Num v={steps[at]} f="i" />}
          loss={<Num v={losses[at]} />}
          mean={<Num v={means[at]} />}
          window={history.window}
          lr={<Num v={data.training.lr * (1 - (steps[at] - 1) / data.training.steps)} f={5} />}
        />
      </p>
      <Origin of="package" />
    </>
  );
}

export function Snapshots() {
  return (
    <>
      <div class="scroll">
        <table class="plain snapshots">
          <thead>
            <tr>
              <th>{t("training.step")}</th>
              <th>{t("training.samples")}</th>
              <th>{t("training.text.loss", { text: reading.value.text })}</th>
            </tr>
          </thead>
          <tbody>
            {snapshots!.map(({ step: at, samples }, i) => (
              <tr aria-current={i === (step.value ?? snapshots!.length - 1)}>
                <th scope="row">
                  <button type="button" class="link" onClick={() => (step.value = i === snapshots!.length - 1 ? null : i)}>
                    {format(at, "i")}
                  </button>
                </th>
                <td>{samples.map((text) => <span class="name">{text}</span>)}</td>
                <td>
                  <Num v={lossOf(weightsAt(i), reading.value.ids)} />
                </td>
              </tr>
            ))}
          </tbody>
        </table>
      </div>
      <Origin of="package" />
    </>
  );
}

const ITERATION = ["document", "tokens", "losses", "mean", "backward", "update", "zero"] as const;
const CODE: Record<(typeof ITERATION)[number], [string, string]> = {
  document: ["step", "run._pack(step)"],
  tokens: ["pack", "tokens += [bos,"],
  losses: ["loss", "cross_entropy("],
  mean: ["loss", "cross_entropy("],
  backward: ["backward", "child._grad +="],
  update: ["adam", "p_new = "],
  zero: ["adam", '(p, "_grad", 0.0)'],
};

/** One step of the training, as it was recorded. */
export function Iteration() {
  const adam = data.adam!;
  const at = useSignal(0);
  const name = ITERATION[at.value];
  const text = adam.documents.map((document) => document.text).join("”, “");
  const losses = adam.losses.flat();
  const targets = adam.documents.flatMap(({ ids }, i) => ids.slice(1, adam.losses[i].length + 1));
  const most = Math.max(...losses);
  const grads = adam.grad.map(numbersOf);
  const nonzero = grads.reduce((total, numbers) => total + numbers.filter((v) => v !== 0).length, 0);
  useMark(CODE[name][0], CODE[name][1]);
  return (
    <>
      <Stepper
        label={t("training.iteration")}
        n={ITERATION.length}
        at={at.value}
        go={(to) => (at.value = to)}
        says={t(`training.says.${name}` as Key, {
          step: format(adam.step + 1, "i"),
          text,
          n: losses.length,
          loss: format(adam.loss, 4),
          nonzero: format(nonzero, "i"),
          params: format(data.config.num_params, "i"),
          lr: format(adam.lr, "g"),
        })}
      />
      {at.value === 1 &&
        adam.documents.map(({ ids }) => (
          <p class="window">
            {ids.map((id) => (
              <Token id={id} />
            ))}
          </p>
        ))}
      {(at.value === 2 || at.value === 3) && (
        <table class="bars losses" aria-label={t("training.losses")}>
          <tbody>
            {losses.map((loss, i) => (
              <tr>
                <th scope="row">
                  <Token id={targets[i]} />
                </th>
                <td class="bar" style={{ "--p": +(loss / most).toFixed(4) }} />
                <td>
                  <Num v={loss} />
                </td>
              </tr>
            ))}
          </tbody>
          {at.value === 3 && (
            <tfoot>
              <tr>
                <th scope="row">{t("training.mean")}</th>
                <td />
                <td>
                  <Num v={adam.loss} />
                </td>
              </tr>
            </tfoot>
          )}
        </table>
      )}
      <Origin of="package" />
    </>
  );
}

/** The recorded numbers, and how far the page's own step is from the package's at most. */
function allParameters() {
  const adam = data.adam!;
  const [p, grad, m, v, after] = [adam.p, adam.grad, adam.m, adam.v, adam.p_after].map((tensors) => tensors.map(blockOf));
  let largest = 0;
  p.forEach((block, a) =>
    block.forEach((numbers, b) => {
      for (let c = 0; c < numbers.length; c++) {
        const { result } = adamStep(numbers[c], grad[a][b][c], m[a][b][c], v[a][b][c], adam);
        largest = Math.max(largest, Math.abs(result - after[a][b][c]));
      }
    }),
  );
  return { blocks: { p, grad, m, v }, largest };
}

/** Adam on one parameter, with the numbers of the recorded step. */
export function AdamLens() {
  const adam = data.adam!;
  const { blocks, largest } = useMemo(allParameters, []);
  const steepest = (k: number) => {
    let best: [number, number] = [0, 0];
    blocks.grad[k].forEach((row, i) => Array.from(row).forEach((g, j) => {
      if (Math.abs(g) > Math.abs(blocks.grad[k][best[0]][best[1]])) best = [i, j];
    }));
    return best;
  };
  const matrix = useSignal(0);
  const row = useSignal(steepest(0)[0]);
  const column = useSignal(steepest(0)[1]);
  const factor = useSignal(1);
  const k = matrix.value;
  const [rows, columns] = data.weights[k].shape;
  const [i, j] = [Math.min(row.value, rows - 1), Math.min(column.value, columns - 1)];
  const { p, grad, m, v } = blocks;
  const rates = { ...adam, lr: adam.lr * factor.value };
  const now = adamStep(p[k][i][j], grad[k][i][j], m[k][i][j], v[k][i][j], rates);
  const lines: [Key, string, number][] = [
    ["adam.g", "p._grad", grad[k][i][j]],
    ["adam.m", "m_new = ", now.mNew],
    ["adam.v", "v_new = ", now.vNew],
    ["adam.mhat", "m_hat, v_hat = ", now.mHat],
    ["adam.vhat", "m_hat, v_hat = ", now.vHat],
    ["adam.change", "p_new = ", now.change],
    ["adam.old", "p_new = ", p[k][i][j]],
    ["adam.new", "p_new = ", now.result],
  ];
  const number = (key: "autograd.row" | "autograd.column", value: number, most: number, set: (value: number) => void) => (
    <label>
      {t(key)}{" "}
      <input type="number" min={0} max={most - 1} value={value} onInput={(event) => set(Math.max(0, Math.min(most - 1, Math.trunc(Number(event.currentTarget.value)))))} />
    </label>
  );
  return (
    <>
      <p class="controls">
        <label>
          {t("autograd.matrix")}{" "}
          <select value={k} onChange={(event) => {
            matrix.value = Number(event.currentTarget.value);
            [row.value, column.value] = steepest(matrix.value);
          }}>
            {data.weights.map(({ name }, index) => (
              <option value={index}>{name}</option>
            ))}
          </select>
        </label>
        {number("autograd.row", i, rows, (value) => (row.value = value))}
        {number("autograd.column", j, columns, (value) => (column.value = value))}
        <span class="hint">{data.weights[k].name === "wte" || data.weights[k].name === "lm_head" ? tokenName(i) : ""}</span>
      </p>
      <p class="controls" role="group" aria-label={t("adam.lr")}>
        {[0.1, 1, 10].map((by) => (
          <button type="button" aria-pressed={factor.value === by} onClick={() => (factor.value = by)}>
            {t("adam.lr.by", { by })}
          </button>
        ))}
      </p>
      <table class="plain adam">
        <tbody>
          {lines.map(([key, , value]) => (
            <tr data-line={key}>
              <th scope="row">{t(key)}</th>
              <td>
                <Num v={value} f="g" />
              </td>
            </tr>
          ))}
        </tbody>
      </table>
      <p class="says">
        <Words k="adam.all" n={<Num v={data.config.num_params} f="i" />} difference={<span class="adam-difference" data-v={largest}>{largest === 0 ? "0" : largest.toExponential(1)}</span>} />
      </p>
      <Origin of={factor.value === 1 ? "page" : "you"} />
    </>
  );
}

