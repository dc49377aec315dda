/** Section 2: characters and their ids. */

import { Num, Origin, tokenColour } from "../parts";
import { bos, data, given, inputs, reading, tokenName } from "../state";
import { t } from "../words";

export function TokenBoxes() {
  const { ids, text } = reading.value;
  return (
    <>
      <ol class="boxes">
        {ids.map((id, i) => (
          <li class={`${tokenColour(id)} ${i > inputs.value.length ? "beyond" : ""}`} data-token={id}>
            <b>{tokenName(id)}</b>
            <Num v={id} f="i" />
          </li>
        ))}
      </ol>
      <p class="decode">
        {t("tokens.decode")} <code>{text}</code>
      </p>
      <Origin of="page" />
    </>
  );
}

export function Vocabulary() {
  return (
    <ul class="boxes vocabulary">
      {data.vocab.chars.slice(0, 200).map((char, id) => (
        <li class={tokenColour(id)}>
          <button type="button" onClick={() => (given.value += char)}>
            <span class="hidden">{t("tokens.append")} </span>
            <b>{tokenName(id)}</b> <span>{id}</span>
          </button>
        </li>
      ))}
      <li class="bos">
        <b>BOS</b>
        <span>{bos}</span>
      </li>
    </ul>
  );
}

