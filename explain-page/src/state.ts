/** What the reader has chosen. All sections show the same text, position, layer, head and step. */

import { batch, computed, signal } from "@preact/signals";
import { readData, unpack, weightsOf } from "./data";
import { type Weights, forward, losses, mean, softmax } from "./model";

export const data = readData();
export const config = data.config;
export const bos = data.vocab.bos;
export const trained = weightsOf(data.weights);

const idOf = new Map(data.vocab.chars.map((char, id) => [char, id]));

export interface Reading {
  text: string; // what is left after folding and refusing
  ids: number[]; // with BOS on both sides
  folded: boolean;
  refused: string[];
  cut: boolean;
}

/** Encode what was typed: fold upper case where the alphabet asks for it, refuse what is unknown. */
export function encode(given: string): Reading {
  const reading: Reading = { text: "", ids: [bos], folded: false, refused: [], cut: false };
  for (const char of given) {
    const known = idOf.has(char) ? char : char.toLowerCase();
    const id = idOf.get(known);
    if (id === undefined) {
      if (!reading.refused.includes(char)) reading.refused.push(char);
      continue;
    }
    reading.folded ||= known !== char;
    reading.text += known;
    reading.ids.push(id);
  }
  if (data.training.unit !== "stream" || reading.text === "") reading.ids.push(bos); // a stream goes on
  reading.cut = reading.ids.length - 1 > config.block_size;
  return reading;
}

export const tokenName = (id: number) => (id === bos ? "BOS" : visible(data.vocab.chars[id]));

/** Spaces and line ends can be seen. */
export function visible(char: string): string {
  return char === " " ? "␣" : char === "\n" ? "↵" : char === "\t" ? "⇥" : char;
}

export const given = signal(data.texts[0].text);
export const layer = signal(0);
export const head = signal(0);
export const step = signal<number | null>(null); // index of a snapshot; null: the model itself
export const temperature = signal(data.sampling.temperature);
export const section = signal("");
const START = 2; // a position with something to look back at
const wanted = signal(START); // a shorter text has fewer positions, and a longer one brings it back

export const reading = computed(() => encode(given.value));
export const inputs = computed(() => reading.value.ids.slice(0, -1).slice(0, config.block_size));
export const targets = computed(() => reading.value.ids.slice(1, inputs.value.length + 1));
export const position = computed(() => Math.min(wanted.value, inputs.value.length - 1));
export const choosePosition = (t: number) => (wanted.value = Math.max(0, t));

/** The snapshots, if the whole page can show them: of a large model they have no weights. */
export const snapshots = data.snapshots?.length && data.snapshots.every((it) => it.weights) ? data.snapshots : null;

const unpacked = new Map<number, Weights>();
export function weightsAt(snapshot: number): Weights {
  if (!unpacked.has(snapshot)) {
    unpacked.set(snapshot, unpack(snapshots![snapshot].weights!, data.weights));
  }
  return unpacked.get(snapshot)!;
}

export const weights = computed(() => (step.value === null ? trained : weightsAt(step.value)));
export const trace = computed(() => forward(weights.value, config, inputs.value));
export const probs = computed(() => trace.value.logits.map((row) => softmax(row)));
export const textLosses = computed(() => losses(trace.value.logits, reading.value.ids));
export const textLoss = computed(() => mean(textLosses.value));

/** The mean loss of ids under w. */
export function lossOf(w: Weights, ids: number[], off?: ReadonlySet<string>): number {
  const { logits } = forward(w, config, ids.slice(0, -1).slice(0, config.block_size), off);
  return mean(losses(logits, ids));
}

/** The state as the part of the address after "#": a section, then what differs from the start. */
export const address = computed(() => {
  const parts: [string, string | number | null][] = [
    ["text", given.value === data.texts[0].text ? null : given.value],
    ["position", wanted.value === START ? null : wanted.value],
    ["layer", layer.value || null],
    ["head", head.value || null],
    ["step", step.value === null ? null : snapshots![step.value].step],
    ["temperature", temperature.value === data.sampling.temperature ? null : temperature.value],
  ];
  const chosen = parts.filter(([, value]) => value !== null);
  return [section.value, ...chosen.map(([key, value]) => `${key}=${encodeURIComponent(value!)}`)].join(";");
});

/** Take the state from an address; what it does not name goes back to the start. */
export function goTo(hash: string): string {
  const [name, ...parts] = hash.replace(/^#/, "").split(";");
  const get = new Map(parts.map((part) => part.split("=", 2) as [string, string]));
  const number = (key: string, most: number, otherwise = 0) => {
    const value = Number(get.get(key) ?? otherwise);
    return Number.isInteger(value) && value >= 0 && value <= most ? value : otherwise;
  };
  batch(() => {
    given.value = get.has("text") ? decode(get.get("text")!) : data.texts[0].text;
    wanted.value = number("position", config.block_size - 1, START);
    layer.value = number("layer", config.n_layer - 1);
    head.value = number("head", config.n_head - 1);
    const snapshot = (snapshots ?? []).findIndex((s) => String(s.step) === get.get("step"));
    step.value = snapshot < 0 ? null : snapshot;
    const t = Number(get.get("temperature") ?? data.sampling.temperature);
    temperature.value = t >= 0 && t <= 3 ? t : data.sampling.temperature;
  });
  return name;
}

function decode(part: string): string {
  try {
    return decodeURIComponent(part);
  } catch {
    return part; // a "%" that somebody typed into the address
  }
}
