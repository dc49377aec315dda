/**
 * Put the widgets in the place of the still pictures and tables that the package wrote. Without
 * this script, or with data that it cannot read, those stay.
 */

import "./problem";
import { effect } from "@preact/signals";
import { type ComponentType, render } from "preact";
import { Badge, Examples, Predictions, ReadingBar } from "./widgets/header";
import { Bigrams, Search } from "./widgets/dataset";
import { TokenBoxes, Vocabulary } from "./widgets/tokens";
import { Game, Pairs } from "./widgets/prediction";
import { Logits } from "./widgets/softmax";
import { Curve, LossTable } from "./widgets/loss";
import { Expression, Nudge, Slices } from "./widgets/autograd";
import { Cosines, Map2D, Sum } from "./widgets/embedding";
import { HeadSwitches, Heads } from "./widgets/attention";
import { StageSwitches, Stages } from "./widgets/pipeline";
import { AdamLens, Iteration, LossCurve, Snapshots } from "./widgets/training";
import { Distribution, Generation, generator } from "./widgets/sampling";
import { SizeSliders } from "./widgets/efficiency";
import { Checks, Downloads } from "./widgets/check";
import { forward } from "./model";
import { sample } from "./sampling";
import { address, config, data, encode, goTo, section, trained } from "./state";

const WIDGETS: Record<string, ComponentType> = {
  badge: Badge, bar: ReadingBar, examples: Examples, predictions: Predictions,
  bigrams: Bigrams, search: Search,
  tokens: TokenBoxes, vocabulary: Vocabulary,
  game: Game, pairs: Pairs,
  logits: Logits,
  curve: Curve, losses: LossTable,
  expression: Expression, slices: Slices, nudge: Nudge,
  sum: Sum, cosines: Cosines, map: Map2D,
  heads: Heads, "head-switches": HeadSwitches,
  stages: Stages, "stage-switches": StageSwitches,
  "loss-curve": LossCurve, snapshots: Snapshots, iteration: Iteration, adam: AdamLens,
  distribution: Distribution, generation: Generation,
  sizes: SizeSliders,
  checks: Checks, downloads: Downloads,
}; // prettier-ignore

function start() {
  if (data.weights.length === 0) return; // a model too large for the page is shown as it is
  if (location.hash) goTo(location.hash);
  for (const place of document.querySelectorAll<HTMLElement>("[data-widget]")) {
    const Widget = WIDGETS[place.dataset.widget!];
    place.replaceChildren();
    render(<Widget />, place);
  }
  document.body.classList.add("js");
  const narrow = matchMedia("(max-width: 899px)").matches;
  for (const source of document.querySelectorAll<HTMLDetailsElement>("details.source")) source.open = !narrow;
  addEventListener("beforeprint", () => {
    for (const folded of document.querySelectorAll("details")) folded.open = true;
  });
  followReader();
}

/** Keep the section in the list of sections and the state in the address. */
function followReader() {
  const sections = Array.from(document.querySelectorAll<HTMLElement>("main section[id]"));
  const seen = new IntersectionObserver(
    (entries) => {
      for (const { isIntersecting, target } of entries) if (isIntersecting) section.value = target.id;
    },
    { rootMargin: "-30% 0px -65% 0px" },
  );
  for (const it of sections) seen.observe(it);
  effect(() => {
    for (const link of document.querySelectorAll("nav a")) {
      if (link.getAttribute("href") === `#${section.value}`) link.setAttribute("aria-current", "true");
      else link.removeAttribute("aria-current");
    }
  });
  addEventListener("hashchange", () => {
    const name = goTo(location.hash);
    document.getElementById(name)?.scrollIntoView();
  });
  for (const link of document.querySelectorAll<HTMLAnchorElement>('a[href^="#"]')) {
    link.addEventListener("click", (event) => {
      event.preventDefault(); // the state in the address stays
      document.getElementById(link.hash.slice(1))?.scrollIntoView();
    });
  }
  if (location.protocol === "about:") return; // inside a notebook there is no address
  const name = location.hash.slice(1).split(";")[0];
  if (name) document.getElementById(name)?.scrollIntoView();
  let later = 0;
  effect(() => {
    const hash = `#${address.value}`;
    clearTimeout(later);
    later = setTimeout(() => hash !== location.hash && history.replaceState(null, "", hash), 200);
  });
}

/** For the reader's console: microgpt.logits("emma"), microgpt.sample(42, 0.5, 10). Seed "": the run's own generator. */
const api = {
  data,
  logits(text: string): number[][] {
    return forward(trained, config, encode(text).ids.slice(0, -1).slice(0, config.block_size)).logits;
  },
  sample(seed: number | bigint | "", temperature = 0.5, n = 20, topK: number | null = null): string[] {
    const rng = generator(String(seed));
    const documents = Array.from({ length: n }, () => sample(trained, config, { temperature, topK }, rng));
    return documents.map((draws) => draws.map(({ token }) => data.vocab.chars[token] ?? "").join(""));
  },
};
Object.assign(globalThis, { microgpt: api });

start();
