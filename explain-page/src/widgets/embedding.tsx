/** Section 7: the vectors of tokens and positions. */

import { useSignal } from "@preact/signals";
import { format } from "../format";
import { type Block, type Row, dot } from "../model";
import { Grid, Num, Origin, PositionChoice, Slider, Token, Vector, Words, signed } from "../parts";
import { choosePosition, config, data, given, inputs, position, reading, step, tokenName, trace, trained, weights, snapshots } from "../state";
import { t } from "../words";

/** Choose the weights of an earlier step; all sections follow. */
export function StepSlider() {
  if (!snapshots) return <p class="hint">{t("step.none")}</p>;
  const last = snapshots.length - 1;
  const at = step.value ?? last;
  const text = t("step.text", { step: snapshots[at].step });
  return (
    <Slider
      label={t("step.label")}
      min={0}
      max={last}
      step={1}
      value={at}
      set={(value) => (step.value = value === last ? null : value)}
      text={text}
    />
  );
}

export function Sum() {
  const { tokens, positions, embedding, norm } = trace.value;
  const at = position.value;
  const id = inputs.value[at];
  const most = Math.max(...[tokens[at], positions[at], embedding[at]].flatMap((row) => Array.from(row, Math.abs)));
  const twin = inputs.value.findIndex((other, i) => other === id && i !== at);
  const rows: [string, Row][] = [
    [t("embedding.token", { token: tokenName(id) }), tokens[at]],
    [t("embedding.position", { position: at }), positions[at]],
    [t("embedding.sum"), embedding[at]],
  ];
  return (
    <>
      <PositionChoice />
      <StepSlider />
      <div class="scroll sum">
        {rows.map(([name, row], i) => (
          <div class="named" data-row={i}>
            <h3>{["", "+ ", "= "][i] + name}</h3>
            <Vector row={row} most={most} />
          </div>
        ))}
        <div class="named" data-row="3">
          <h3>{t("embedding.norm")}</h3>
          <Vector row={norm[at]} />
        </div>
      </div>
      <p class="says">
        {t("embedding.rms")} <Num v={Math.sqrt(dot(norm[at], norm[at]) / config.n_embd)} f={6} />.{" "}
        {twin >= 0 && (
          <>
            <Words k="embedding.twin" token={<Token id={id} />} other={twin} position={at} />{" "}
            <button type="button" class="link" onClick={() => choosePosition(twin)}>
              {t("embedding.twin.go", { other: twin })}
            </button>
          </>
        )}
      </p>
      <p class="controls">
        <button type="button" onClick={() => (given.value = [...reading.value.text].reverse().join(""))}>
          {t("embedding.reverse", { text: [...reading.value.text].reverse().join("") })}
        </button>
      </p>
      <Origin of="page" />
    </>
  );
}

export const cosine = (a: Row, b: Row) => dot(a, b) / Math.sqrt(dot(a, a) * dot(b, b) || 1);

export function Cosines() {
  const wte = weights.value.wte;
  const names = Array.from({ length: config.vocab_size }, (_, id) => tokenName(id));
  const [first, second] = data.embedding?.vowels ?? [];
  const chosen = useSignal<[number, number]>([first ?? 0, second ?? 1]);
  const [a, b] = chosen.value;
  return (
    <>
      <Grid
        caption={t("embedding.cosines")}
        class="small"
        rows={names}
        columns={names}
        chosen={chosen.value}
        choose={(r, c) => (chosen.value = [r, c])}
        cell={(r, c) => {
          const v = cosine(wte[r], wte[c]);
          return { v, f: 2, text: format(v, 1).replace("0.", "."), colour: signed(v) };
        }}
      />
      <p class="says">
        <Words k="embedding.cosine" a={<Token id={a} />} b={<Token id={b} />} cosine={<Num v={cosine(wte[a], wte[b])} />} />
      </p>
      <Origin of="page" />
    </>
  );
}

/** The two directions in which the trained vectors differ most, from the package's points. */
function axes(points: [number, number][]): { mean: number[]; axes: number[][] } {
  const rows = trained.wte;
  const columns = Array.from({ length: config.n_embd }, (_, j) => j);
  const mean = columns.map((j) => rows.reduce((total, row) => total + row[j], 0) / rows.length);
  const axis = (k: 0 | 1) => {
    const length = points.reduce((total, point) => total + point[k] ** 2, 0);
    return columns.map((j) => rows.reduce((total, row, i) => total + (row[j] - mean[j]) * points[i][k], 0) / (length || 1));
  };
  return { mean, axes: [axis(0), axis(1)] };
}

export function Map2D() {
  const { points, vowels } = data.embedding!;
  const { mean, axes: directions } = axes(points);
  const project = (rows: Block) => rows.map((row) => directions.map((axis) => dot(axis, Array.from(row, (v, j) => v - mean[j]))));
  const now = step.value === null ? points : project(weights.value.wte);
  const reach = Math.max(...points.flat().map(Math.abs)) * 1.08;
  const [width, height] = [660, 420];
  const x = (v: number) => width / 2 + (v / reach) * (width / 2 - 14);
  const y = (v: number) => height / 2 - (v / reach) * (height / 2 - 14);
  const id = inputs.value[position.value];
  return (
    <>
      <StepSlider />
      <svg class="plot map" viewBox={`0 0 ${width} ${height}`} role="img" aria-label={t("embedding.map")}>
        <path class="axes" d={`M0,${height / 2}H${width}M${width / 2},0V${height}`} />
        {now.map(([a, b], i) => (
          <g
            class={`${vowels.includes(i) ? "vowel" : ""} ${i === id ? "here" : ""}`}
            transform={`translate(${x(a).toFixed(1)} ${y(b).toFixed(1)})`}
            data-token={i}
          >
            <circle r={13} />
            <text y={5} text-anchor="middle">
              {tokenName(i)}
            </text>
          </g>
        ))}
      </svg>
      <Origin of={step.value === null ? "package" : "page"} />
    </>
  );
}
