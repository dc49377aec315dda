/** Section 9: one token's way through the whole model. */

import { useSignal } from "@preact/signals";
import { useMark } from "../listing";
import { type Row, dot, mean } from "../model";
import { Choice, Num, Origin, PositionChoice, Stepper, Switch, Vector, Words } from "../parts";
import { config, layer, lossOf, position, reading, textLoss, tokenName, trace, weights, inputs } from "../state";
import { type Key, t } from "../words";
import { LayerChoice } from "./attention";

interface Stage {
  name: string; // its key in the strings
  row: Row;
  code: string; // a line of GPT.forward that has it
  nth?: number;
  from?: [Key, Row][]; // what it is computed from, if that is not the stage before
}

const INSIDE = new Set(["attn_norm", "q", "k", "v", "heads", "proj", "mlp_norm", "fc1", "relu", "fc2"]);

/** What the vector of a token is after each operation, in the order of GPT.forward. */
export function stagesOf(at: number, l: number): Stage[] {
  const { tokens, positions, embedding, norm, layers, logits } = trace.value;
  const it = layers[l];
  const normed: [Key, Row][] = [["pipeline.attn_norm", it.norm[at]]];
  return [
    { name: "token", row: tokens[at], code: 'embedding(w["wte"]' },
    { name: "embedding", row: embedding[at], code: "self.position_embedding(", from: [["pipeline.token", tokens[at]], ["pipeline.position", positions[at]]] },
    { name: "norm", row: norm[at], code: "x = rmsnorm(x)" },
    ...(l > 0 ? [{ name: "input", row: it.input[at], code: "for i in range" }] : []),
    { name: "attn_norm", row: it.norm[at], code: "x = rmsnorm(x)", nth: 1 },
    { name: "q", row: it.q[at], code: "q = linear(" },
    { name: "k", row: it.k[at], code: "k = linear(", from: normed },
    { name: "v", row: it.v[at], code: "v = linear(", from: normed },
    { name: "heads", row: it.heads[at], code: "x = attention(" },
    { name: "proj", row: it.proj[at], code: "attn_wo" },
    { name: "attn_out", row: it.attnOut[at], code: "attn_wo", from: [["pipeline.before", it.input[at]], ["pipeline.proj", it.proj[at]]] },
    { name: "mlp_norm", row: it.mlpNorm[at], code: "x = rmsnorm(x)", nth: 2 },
    { name: "fc1", row: it.fc1[at], code: "mlp_fc1" },
    { name: "relu", row: it.hidden[at], code: "mlp_fc1" },
    { name: "fc2", row: it.fc2[at], code: "mlp_fc2" },
    { name: "mlp_out", row: it.mlpOut[at], code: "mlp_fc2", from: [["pipeline.before", it.attnOut[at]], ["pipeline.fc2", it.fc2[at]]] },
    ...(l < config.n_layer - 1 ? [] : [{ name: "logits", row: logits[at], code: "lm_head" }]),
  ];
}

export function Stages() {
  const chosen = useSignal(9); // the first "add"
  const stages = stagesOf(position.value, layer.value);
  const at = Math.min(chosen.value, stages.length - 1);
  const { name, row, code, nth, from } = stages[at];
  const before = stages[Math.max(0, at - 1)];
  const sources = from ?? (at && name !== "input" ? ([[`pipeline.${before.name}`, before.row]] as [Key, Row][]) : []);
  useMark("forward", code, nth);
  const numbers = Array.from(row);
  const zeros = numbers.filter((v) => v === 0).length;
  return (
    <>
      <LayerChoice />
      <PositionChoice />
      <Stepper
        label={t("pipeline.stepper", { token: tokenName(inputs.value[position.value]) })}
        n={stages.length}
        at={at}
        go={(to) => (chosen.value = to)}
        says={t(`pipeline.says.${name}` as Key)}
      />
      <div class="pipeline">
        <Choice
          class="choice stages"
          label={t("pipeline.stages")}
          chosen={at}
          choose={(to) => (chosen.value = to)}
          options={stages.map((stage) => (
            <span data-stage={stage.name} class={INSIDE.has(stage.name) ? "inside" : undefined}>
              <span>{t(`pipeline.${stage.name}` as Key)}</span> <small>{stage.row.length}</small>
            </span>
          ))}
        />
        <div class="stage" data-stage={name}>
          {sources.map(([key, numbers], i) => (
            <div class="scroll source-row" data-from={i}>
              <h4>{t(key)}</h4>
              <Vector row={numbers} columns={8} />
            </div>
          ))}
          <div class="scroll result-row">
            <h3>{t(`pipeline.${name}` as Key)}</h3>
            <Vector row={row} columns={8} />
          </div>
          <p class="says">
            <Words
              k="pipeline.stats"
              n={<Num v={numbers.length} f="i" />}
              mean={<Num v={mean(row)} f={3} />}
              rms={<Num v={Math.sqrt(dot(row, row) / row.length)} f={3} />}
              zeros={<span class="zeros"><Num v={zeros} f="i" /></span>}
            />
          </p>
        </div>
      </div>
      <Origin of="page" />
    </>
  );
}

/** Leave out a residual connection or a normalization, and watch the loss of the text. */
export function StageSwitches() {
  const off = useSignal<ReadonlySet<string>>(new Set());
  const parts = ["norm0"];
  for (let i = 0; i < config.n_layer; i++) {
    for (const part of ["attn_norm", "attn_residual", "mlp_norm", "mlp_residual"]) parts.push(`layer${i}.${part}`);
  }
  const loss = lossOf(weights.value, reading.value.ids, off.value);
  return (
    <>
      <p class="controls" role="group" aria-label={t("pipeline.off")}>
        {parts.map((name) => (
          <Switch
            label={(config.n_layer > 1 ? `${name.split(".").slice(0, -1).join("")} ` : "") + t(`pipeline.off.${name.split(".").at(-1)}` as Key)}
            on={!off.value.has(name)}
            set={(on) => {
              const next = new Set(off.value);
              if (on) next.delete(name);
              else next.add(name);
              off.value = next;
            }}
          />
        ))}
      </p>
      <p class="says" aria-live="polite">
        <Words
          k="pipeline.switched"
          loss={<b class="switched-loss"><Num v={loss} /></b>}
          all={<Num v={textLoss.value} />}
          change={<Num v={loss - textLoss.value} />}
        />
      </p>
      <Origin of={off.value.size ? "you" : "page"} />
    </>
  );
}
