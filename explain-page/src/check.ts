/** The page checks itself: its own forward pass against the logits that the package computed. */

import { numbersOf } from "./data";
import { forward } from "./model";
import { config, data, trained } from "./state";

export interface Result {
  text: string;
  compared: number;
  difference: number;
  ok: boolean;
}

export function checkAll(): Result[] {
  return data.checks.map(({ text, ids, positions, logits }) => {
    const expected = numbersOf(logits);
    const own = forward(trained, config, ids.slice(0, -1).slice(0, config.block_size)).logits;
    let difference = 0;
    positions.forEach((position, i) => {
      own[position].forEach((value, token) => {
        const distance = Math.abs(value - expected[i * config.vocab_size + token]);
        difference = Math.max(difference, Number.isNaN(distance) ? Infinity : distance);
      });
    });
    return { text, compared: expected.length, difference, ok: difference <= data.meta.tolerance };
  });
}
