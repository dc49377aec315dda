/** Section 5: the surprise at each letter. */

import { useSignal } from "@preact/signals";
import { format } from "../format";
import { Num, Origin, Slider, Token, Words } from "../parts";
import { Level, Plot, path } from "../plot";
import { choosePosition, data, inputs, position, probs, targets, textLoss, textLosses, tokenName } from "../state";
import { t } from "../words";

const CURVE: [number, number][] = Array.from({ length: 200 }, (_, i) => {
  const p = Math.exp((-7 * (199 - i)) / 199);
  return [p, -Math.log(p)];
});

/** Positions from the top of the chart down, each with the shift that keeps its label readable. */
function labelled(losses: number[], y: (loss: number) => number): [number, number][] {
  const order = losses.map((_, i) => i).sort((a, b) => losses[b] - losses[a]);
  let last = -Infinity;
  return order.map((i) => {
    const own = y(losses[i]);
    last = Math.max(own - 5, last + 13);
    return [i, last - own];
  });
}

export function Curve() {
  const p = useSignal(0.5);
  const { uniform_loss, letter_loss, bigram_loss } = data.dataset;
  const levels: [number | undefined, string][] = [
    [uniform_loss, t("loss.uniform", { n: data.config.vocab_size })],
    [letter_loss, t("loss.letters")],
    [bigram_loss, t("loss.bigrams")],
  ];
  const top = Math.max(5, ...textLosses.value) * 1.08;
  return (
    <>
      <Plot label={t("loss.curve")} x={[0, 1]} y={[0, top]} xName={t("loss.x")} yName={t("loss.y")}>
        {(scales) => (
          <>
            {levels.map(([at, name]) => at != null && <Level at={at} name={name} scales={scales} />)}
            <path class="line" d={path(CURVE.filter(([, loss]) => loss <= top), scales)} />
            {labelled(textLosses.value, scales.y).map(([i, dy]) => {
              const loss = textLosses.value[i];
              const at = probs.value[i][targets.value[i]];
              return (
                <g
                  class={`point ${i === position.value ? "here" : ""}`}
                  transform={`translate(${scales.x(at)} ${scales.y(loss)})`}
                  onClick={() => choosePosition(i)}
                >
                  <circle r={5} />
                  <text x={9} y={dy}>
                    {i}: {tokenName(targets.value[i])}
                  </text>
                </g>
              );
            })}
            <g class="you" transform={`translate(${scales.x(p.value)} ${scales.y(-Math.log(p.value))})`}>
              <circle r={6} />
            </g>
          </>
        )}
      </Plot>
      <Slider
        label={t("loss.p")}
        min={0.01}
        max={1}
        step={0.01}
        value={p.value}
        set={(value) => (p.value = value)}
        text={t("loss.text", { p: format(p.value, 2), loss: format(-Math.log(p.value), 3) })}
      >
        <span class="yours">
          −log(<Num v={p.value} f={2} />) = <Num v={-Math.log(p.value)} f={3} />
        </span>
      </Slider>
    </>
  );
}

export function LossTable() {
  return (
    <>
      <div class="scroll">
        <table class="plain">
          <thead>
            <tr>
              <th>{t("loss.position")}</th>
              <th>{t("loss.read")}</th>
              <th>{t("loss.target")}</th>
              <th>{t("loss.probability")}</th>
              <th>{t("loss.loss")}</th>
            </tr>
          </thead>
          <tbody>
            {textLosses.value.map((loss, i) => (
              <tr aria-current={i === position.value} onClick={() => choosePosition(i)}>
                <th scope="row">POS{i}</th>
                <td>
                  <Token id={inputs.value[i]} />
                </td>
                <td>
                  <Token id={targets.value[i]} />
                </td>
                <td>
                  <Num v={probs.value[i][targets.value[i]]} />
                </td>
                <td class="loss">
                  <Num v={loss} />
                </td>
              </tr>
            ))}
          </tbody>
        </table>
      </div>
      <p class="says example">
        {t("loss.here", { position: position.value })} −log(
        <Num v={probs.value[position.value][targets.value[position.value]]} />) ={" "}
        <Num v={textLosses.value[position.value]} />
      </p>
      <p class="says mean">
        <Words k="loss.mean" mean={<b><Num v={textLoss.value} /></b>} perplexity={<Num v={Math.exp(textLoss.value)} f={2} />} />
      </p>
      <Origin of="page" />
    </>
  );
}
