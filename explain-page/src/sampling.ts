/** Python's random.Random and the package's sampling: the same seed gives the same names. */

import { type Config, type Row, type Weights, forward, softmax, sum } from "./model";

/** The Mersenne Twister MT19937 (Matsumoto and Nishimura 1998), seeded as CPython seeds it. */
export class Random {
  private words = new Uint32Array(624);
  private index = 624;

  constructor(seed: number | bigint) {
    let rest = BigInt(seed) < 0n ? -BigInt(seed) : BigInt(seed);
    const key: number[] = [];
    do {
      key.push(Number(rest & 0xffffffffn));
      rest >>= 32n;
    } while (rest);
    const w = this.words;
    w[0] = 19650218;
    for (let i = 1; i < 624; i++) w[i] = Math.imul(1812433253, w[i - 1] ^ (w[i - 1] >>> 30)) + i;
    let i = 1;
    const mixed = (factor: number) => w[i] ^ Math.imul(w[i - 1] ^ (w[i - 1] >>> 30), factor);
    const next = () => {
      if (++i < 624) return;
      w[0] = w[623];
      i = 1;
    };
    for (let n = 0; n < Math.max(624, key.length); n++, next()) {
      w[i] = mixed(1664525) + key[n % key.length] + (n % key.length);
    }
    for (let n = 0; n < 623; n++, next()) w[i] = mixed(1566083941) - i;
    w[0] = 0x80000000;
  }

  /** Go on from the 624 words and the index of random.Random.getstate()[1]. */
  static from(state: number[]): Random {
    const random = new Random(0);
    random.words.set(state.slice(0, 624));
    random.index = state[624];
    return random;
  }

  private word(): number {
    const w = this.words;
    if (this.index === 624) {
      for (let i = 0; i < 624; i++) {
        const y = (w[i] & 0x80000000) | (w[(i + 1) % 624] & 0x7fffffff);
        w[i] = w[(i + 397) % 624] ^ (y >>> 1) ^ (y & 1 ? 0x9908b0df : 0);
      }
      this.index = 0;
    }
    let y = w[this.index++];
    y ^= y >>> 11;
    y ^= (y << 7) & 0x9d2c5680;
    y ^= (y << 15) & 0xefc60000;
    return (y ^ (y >>> 18)) >>> 0;
  }

  /** A number in [0, 1) with 53 random bits. */
  random(): number {
    return ((this.word() >>> 5) * 67108864 + (this.word() >>> 6)) / 9007199254740992;
  }
}

/** How to draw: temperature 0 is greedy; topK keeps this many of the likeliest tokens. */
export interface Drawing {
  temperature: number;
  topK: number | null;
}

/** The probabilities that a token is drawn from: those that topK drops become 0. */
export function weightsToDraw(logits: Row, { temperature, topK }: Drawing): number[] {
  const probs = softmax(logits, temperature);
  if (topK === null) return probs;
  const likely = probs.map((_, i) => i).sort((a, b) => probs[b] - probs[a]);
  const kept = new Set(likely.slice(0, topK));
  return probs.map((p, i) => (kept.has(i) ? p : 0));
}

/** One draw: the number u in [0, 1), and the token on whose part of the bar u * total falls. */
export interface Draw {
  weights: number[];
  u: number | null;
  token: number;
}

export function draw(logits: Row, how: Drawing, rng: Random): Draw {
  if (how.temperature === 0) {
    const token = Array.from(logits).indexOf(Math.max(...Array.from(logits)));
    return { weights: Array.from(logits, (_, i) => (i === token ? 1 : 0)), u: null, token };
  }
  const weights = weightsToDraw(logits, how);
  const u = rng.random();
  let [token, reached] = [0, weights[0]];
  while (token < weights.length - 1 && u * sum(weights) >= reached) reached += weights[++token];
  return { weights, u, token };
}

/** One new document, token by token, until BOS or block_size characters. */
export function sample(w: Weights, config: Config, how: Drawing, rng: Random, start: number[] = []): Draw[] {
  const bos = config.vocab_size - 1;
  const tokens = [bos, ...start];
  const draws: Draw[] = [];
  while (tokens.length <= config.block_size) {
    const { logits } = forward(w, config, tokens);
    draws.push(draw(logits[logits.length - 1], how, rng));
    const token = draws[draws.length - 1].token;
    if (token === bos) break;
    tokens.push(token);
  }
  return draws;
}
