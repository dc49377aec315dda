/** Section 3: guess the next letter, before the model shows its guess. */

import { useSignal } from "@preact/signals";
import { Context, Num, Origin, Stepper, Token, Words } from "../parts";
import { choosePosition, config, inputs, position, probs, reading, targets, tokenName } from "../state";
import { t } from "../words";

/** The place of a token in the order of probabilities, from 1. */
export const rankOf = (row: number[], token: number) => 1 + row.filter((p, i) => p > row[token] || (p === row[token] && i < token)).length;

export function Game() {
  const guesses = useSignal<{ text: string; made: Map<number, number> }>({ text: "", made: new Map() });
  const text = reading.value.text;
  const made = guesses.value.text === text ? guesses.value.made : new Map<number, number>();
  const at = position.value;
  const target = targets.value[at];
  const guessed = made.get(at);
  const guess = (token: number) => (guesses.value = { text, made: new Map(made).set(at, token) });
  const row = probs.value[at];
  const first = row.indexOf(Math.max(...row));
  const yours = [...made].filter(([i, token]) => targets.value[i] === token).length;
  const models = targets.value.filter((token, i) => rankOf(probs.value[i], token) === 1).length;
  return (
    <>
      <div class="window">
        <Context ids={inputs.value.slice(0, at + 1)} />
        <span class="arrow" aria-hidden="true">
          →
        </span>
        {guessed === undefined ? <span class="token unknown">?</span> : <span class="goal"><Token id={target} /></span>}
      </div>
      <Stepper
        label={t("prediction.stepper")}
        n={inputs.value.length}
        at={at}
        go={choosePosition}
        says={t("prediction.says", { n: at + 1 })}
      />
      {guessed === undefined ? (
        <p class="controls guess">
          <label>
            {t("prediction.guess")}{" "}
            <select value="" onChange={(event) => event.currentTarget.value && guess(Number(event.currentTarget.value))}>
              <option value="">?</option>
              {Array.from({ length: config.vocab_size }, (_, id) => (
                <option value={id}>{tokenName(id)}</option>
              ))}
            </select>
          </label>
          <button type="button" onClick={() => guess(-1)}>
            {t("prediction.reveal")}
          </button>
        </p>
      ) : (
        <p class="says">
          <Words
            k={guessed === target ? "prediction.right" : guessed < 0 ? "prediction.shown" : "prediction.wrong"}
            target={<Token id={target} />}
            first={<Token id={first} />}
            p={<Num v={row[target]} f="%" />}
            rank={<Num v={rankOf(row, target)} f="i" />}
          />
        </p>
      )}
      <p class="score">
        <Words
          k="prediction.score"
          you={<Num v={yours} f="i" />}
          made={<Num v={[...made.values()].filter((token) => token >= 0).length} f="i" />}
          model={<Num v={models} f="i" />}
          n={<Num v={inputs.value.length} f="i" />}
        />
      </p>
      <Origin of="page" />
    </>
  );
}

export function Pairs() {
  return (
    <div class="scroll">
      <table class="plain pairs">
        <thead>
          <tr>
            <th>{t("prediction.context")}</th>
            <th>{t("prediction.target")}</th>
            <th>{t("prediction.p")}</th>
            <th>{t("prediction.rank")}</th>
          </tr>
        </thead>
        <tbody>
          {inputs.value.map((_, i) => (
            <tr aria-current={i === position.value} onClick={() => choosePosition(i)}>
              <td class="window">
                <Context ids={inputs.value.slice(0, i + 1)} />
              </td>
              <td>
                <span class="goal">
                  <Token id={targets.value[i]} />
                </span>
              </td>
              <td>
                <Num v={probs.value[i][targets.value[i]]} />
              </td>
              <td>
                <Num v={rankOf(probs.value[i], targets.value[i])} f="i" />
              </td>
            </tr>
          ))}
        </tbody>
      </table>
    </div>
  );
}
