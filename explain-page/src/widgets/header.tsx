/** Section 0: the text box that follows the reader, what the model expects, the badge. */

import { checkAll } from "../check";
import { Num, Origin, PositionChoice, Token } from "../parts";
import { data, given, inputs, position, choosePosition, probs, reading, step, targets, snapshots } from "../state";
import { t } from "../words";

export function ReadingBar() {
  const { folded, refused, cut } = reading.value;
  return (
    <>
      <div class="row">
        <label for="text">{t("text.label")}</label>
        <input
          id="text"
          value={given.value}
          onInput={(event) => (given.value = event.currentTarget.value)}
          autocomplete="off"
          autocapitalize="off"
          spellcheck={false}
          aria-describedby="text-notes"
        />
        <PositionChoice />
        {step.value !== null && (
          <button type="button" class="follow" onClick={() => (step.value = null)}>
            {t("text.step", { step: snapshots![step.value].step })}
          </button>
        )}
      </div>
      <p id="text-notes" class="notes" role="status">
        {[
          folded && t("text.folded"),
          refused.length > 0 && t("text.refused", { chars: refused.map((char) => `“${char}”`).join(", ") }),
          cut && t("text.cut", { block: data.config.block_size }),
        ]
          .filter(Boolean)
          .join(" ")}
      </p>
    </>
  );
}

/** The likeliest three tokens at each position, and the one that comes next. */
export function Predictions() {
  return (
    <>
      <ul class="predictions">
        {inputs.value.map((id, i) => {
          const row = probs.value[i];
          const target = targets.value[i];
          const order = row.map((_, token) => token).sort((a, b) => row[b] - row[a]);
          const rank = order.indexOf(target);
          const shown = rank < 3 ? order.slice(0, 3) : [...order.slice(0, 3), target];
          return (
            <li aria-current={i === position.value} onClick={() => choosePosition(i)}>
              <p>
                <small>{t("predictions.after")}</small> <Token id={id} />
              </p>
              <table>
                <tbody>
                  {shown.map((token) => (
                    <tr class={token === target ? "target" : undefined} data-token={token}>
                      <th scope="row">
                        <Token id={token} />
                        {token === target && <span class="hidden"> {t("target")}</span>}
                      </th>
                      <td class="bar" style={{ "--p": +row[token].toFixed(4) }}>
                        <Num v={row[token]} f="%" />
                      </td>
                    </tr>
                  ))}
                </tbody>
              </table>
              {rank >= 3 && <small>{t("predictions.rank", { rank: rank + 1 })}</small>}
            </li>
          );
        })}
      </ul>
      <Origin of="page" />
    </>
  );
}

export function Examples() {
  return (
    <p class="controls">
      {data.texts.map(({ text }) => (
        <button type="button" aria-pressed={given.value === text} onClick={() => (given.value = text)}>
          {text}
        </button>
      ))}
    </p>
  );
}

export function Badge() {
  const results = checkAll();
  const wrong = results.filter((result) => !result.ok);
  const largest = Math.max(...results.map((result) => result.difference));
  return (
    <a class={`badge ${wrong.length ? "wrong" : "right"}`} href="#check" data-ok={wrong.length === 0}>
      {wrong.length
        ? t("badge.wrong", { what: wrong.map((result) => result.text).join(", ") })
        : t("badge.right", { n: results.length, difference: largest === 0 ? "0" : largest.toExponential(1) })}
    </a>
  );
}
