/** Section 4: logits, what softmax does to them line by line, and where it can overflow. */

import { useSignal } from "@preact/signals";
import { format } from "../format";
import { useMark } from "../listing";
import { sum } from "../model";
import { Bars, Num, Origin, PositionChoice, Stepper, Switch, Token, Words } from "../parts";
import { position, targets, tokenName, trace } from "../state";
import { t } from "../words";

interface Softmax {
  largest: number;
  shifted: number[];
  exps: number[];
  total: number;
  result: number[];
}

/** softmax with its intermediate values; null where Python's exp would overflow. */
export function softmaxSteps(logits: number[], subtract: boolean): Softmax | null {
  const largest = Math.max(...logits);
  const shifted = subtract ? logits.map((value) => value - largest) : logits;
  const exps = shifted.map(Math.exp);
  if (exps.some((e) => e === Infinity)) return null;
  const total = sum(exps);
  return { largest, shifted, exps, total, result: exps.map((e) => e / total) };
}

const LINES = ["largest = ", "shifted = [value - ", "exps = ", "total = ", "return ["] as const;

export function Logits() {
  const changes = useSignal<{ of: number[]; by: Map<number, number> }>({ of: [], by: new Map() });
  const all = useSignal(false);
  const subtract = useSignal(true);
  const at = useSignal(2);
  const own = trace.value.logits[position.value];
  const by = changes.value.of === own ? changes.value.by : new Map<number, number>();
  const logits = own.map((value, id) => by.get(id) ?? value);
  const steps = softmaxSteps(logits, subtract.value);
  useMark("softmax", at.value === 1 && !subtract.value ? null : LINES[at.value]);
  const set = (id: number, value: number) => (changes.value = { of: own, by: new Map(by).set(id, value) });
  const order = own.map((_, id) => id).sort((a, b) => own[b] - own[a]);
  const shown = all.value ? order : order.slice(0, 8);
  const changed = by.size > 0 || !subtract.value;
  const top = logits.indexOf(Math.max(...logits));
  return (
    <>
      <PositionChoice />
      <p class="controls">
        <Switch label={t("softmax.subtract")} on={subtract.value} set={(on) => (subtract.value = on)} />
        <button type="button" onClick={() => set(top, 710)}>
          {t("softmax.push")}
        </button>
        <button
          type="button"
          onClick={() => (changes.value = { of: own, by: new Map(own.map((value, id) => [id, (by.get(id) ?? value) + 1])) })}
        >
          {t("softmax.shift")}
        </button>
        <button type="button" disabled={!changed} onClick={() => ((changes.value = { of: [], by: new Map() }), (subtract.value = true))}>
          {t("softmax.reset")}
        </button>
      </p>
      {steps === null && (
        <p class="alarm" role="alert">
          {t("softmax.overflow", { logit: format(logits[top], "g") })}
        </p>
      )}
      <table class="bars sliders" aria-label={t("softmax.table")}>
        <thead>
          <tr>
            <th scope="col">{t("softmax.token")}</th>
            <th scope="col">{t("softmax.logit")}</th>
            <td />
            <th scope="col" colSpan={2}>
              {t("softmax.probability")}
            </th>
          </tr>
        </thead>
        <tbody>
          {shown.map((id) => (
            <tr class={id === targets.value[position.value] ? "target" : undefined} data-token={id}>
              <th scope="row">
                <Token id={id} />
              </th>
              <td class="logit">
                <Num v={logits[id]} f={3} />
              </td>
              <td>
                <input
                  type="range"
                  min={-12}
                  max={12}
                  step="any"
                  value={logits[id]}
                  aria-label={t("softmax.slider", { token: tokenName(id) })}
                  aria-valuetext={format(logits[id], 3)}
                  onInput={(event) => set(id, Number(event.currentTarget.value))}
                />
              </td>
              <td class="bar" style={{ "--p": steps ? +steps.result[id].toFixed(4) : 0 }} />
              <td class="probability">{steps ? <Num v={steps.result[id]} /> : "–"}</td>
            </tr>
          ))}
        </tbody>
      </table>
      <p class="controls">
        <Switch label={t("softmax.all", { n: own.length })} on={all.value} set={(on) => (all.value = on)} />
        <span>
          {t("softmax.sum")} {steps ? <span class="total"><Num v={sum(steps.result)} f={12} /></span> : "–"}
        </span>
      </p>
      {steps && (
        <p class="says formula">
          <Words
            k="softmax.formula"
            token={<Token id={targets.value[position.value]} />}
            logit={<Num v={logits[targets.value[position.value]]} f={3} />}
            largest={<Num v={subtract.value ? steps.largest : 0} f={3} />}
            total={<Num v={steps.total} f={3} />}
            p={<Num v={steps.result[targets.value[position.value]]} />}
          />
        </p>
      )}
      <Origin of={changed ? "you" : "page"} />
      <Stepper
        label={t("softmax.stepper")}
        n={5}
        at={at.value}
        go={(step) => (at.value = step)}
        says={t(subtract.value || at.value !== 1 ? (`softmax.line${at.value}` as "softmax.line0") : "softmax.line1.off")}
      />
      {steps && (
        <div class="code-values">
          {at.value === 0 && <Num v={steps.largest} />}
          {at.value === 3 && <Num v={steps.total} />}
          {at.value !== 0 && at.value !== 3 && (
            <Bars
              label={LINES[at.value]}
              rows={shown.map((id) => {
                const row = at.value === 1 ? steps.shifted : at.value === 2 ? steps.exps : steps.result;
                return { id, v: row[id], share: at.value === 1 ? 0 : row[id] / Math.max(...row) };
              })}
            />
          )}
        </div>
      )}
    </>
  );
}

