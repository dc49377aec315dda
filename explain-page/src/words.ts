/** The words of the script, in the language of the page; {name} stands for a value. */

import type strings from "../../src/microgpt/explainer/strings.en.json";
import { readWords } from "./data";

export type Key = keyof (typeof strings)["script"];

const words = readWords();

export function t(key: Key, values: Record<string, string | number> = {}): string {
  return words[key].replace(/\{(\w+)\}/g, (_, name: string) => String(values[name]));
}
