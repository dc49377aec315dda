/**
 * The GPT of the package's model.py on plain numbers: tokens in, logits out, every block on the
 * way kept. The operations and their order are those of the package's Python core.
 */

export type Row = ArrayLike<number>;
export type Block = Row[];

export interface Config {
  vocab_size: number;
  n_layer: number;
  n_embd: number;
  n_head: number;
  block_size: number;
}

/** What the reader has switched off: "norm0", "layer0.attn_norm", "layer0.attn_residual", "layer0.head2", ... */
export type Off = ReadonlySet<string>;
export type Weights = Record<string, Block>;

export interface LayerTrace {
  input: Block;
  norm: Block;
  q: Block;
  k: Block;
  v: Block;
  scores: number[][][]; // [head][query][key], keys up to the query only
  weights: number[][][];
  heads: Block;
  proj: Block;
  attnOut: Block;
  mlpNorm: Block;
  fc1: Block;
  hidden: Block;
  fc2: Block;
  mlpOut: Block;
}

export interface Trace {
  tokens: Block;
  positions: Block;
  embedding: Block;
  norm: Block;
  layers: LayerTrace[];
  logits: number[][];
}

const NOTHING: Off = new Set();

export function sum(numbers: Row): number {
  let total = 0;
  for (let i = 0; i < numbers.length; i++) total += numbers[i];
  return total;
}

export function dot(a: Row, b: Row): number {
  let total = 0;
  for (let i = 0; i < a.length; i++) total += a[i] * b[i];
  return total;
}

export function linear(x: Block, w: Block): number[][] {
  return x.map((row) => w.map((weights) => dot(row, weights)));
}

export function add(a: Block, b: Block): number[][] {
  return a.map((row, i) => Array.from(row, (value, j) => value + b[i][j]));
}

export function rmsnorm(x: Block): number[][] {
  return x.map((row) => {
    const scale = (dot(row, row) / row.length + 1e-5) ** -0.5;
    return Array.from(row, (value) => value * scale);
  });
}

export function softmax(row: Row, temperature = 1): number[] {
  const largest = Math.max(...Array.from(row));
  const exps = Array.from(row, (value) => Math.exp((value - largest) / temperature));
  const total = sum(exps);
  return exps.map((e) => e / total);
}

/** -log(softmax(row)[target]) by log-sum-exp, so that it is never log(0). */
export function crossEntropy(row: Row, target: number): number {
  const largest = Math.max(...Array.from(row));
  const total = sum(Array.from(row, (value) => Math.exp(value - largest)));
  return Math.log(total) - (row[target] - largest);
}

export function forward(w: Weights, config: Config, tokens: number[], off = NOTHING): Trace {
  const norm = (name: string, x: Block) => (off.has(name) ? x : rmsnorm(x));
  const residual = (name: string, x: Block, skip: Block) => (off.has(name) ? x : add(x, skip));
  const token = tokens.map((id) => w.wte[id]);
  const position = tokens.map((_, t) => w.wpe[t]);
  const embedding = add(token, position);
  let x: Block = norm("norm0", embedding);
  const trace: Trace = { tokens: token, positions: position, embedding, norm: x, layers: [], logits: [] };
  for (let i = 0; i < config.n_layer; i++) {
    const layer = `layer${i}.`;
    const input = x;
    // 1) Multi-head attention
    x = norm(layer + "attn_norm", x);
    const attnNorm = x;
    const [q, k, v] = ["q", "k", "v"].map((name) => linear(x, w[layer + "attn_w" + name]));
    const { scores, weights, heads } = attention(q, k, v, config.n_head, (h) => off.has(`${layer}head${h}`));
    const proj = linear(heads, w[layer + "attn_wo"]);
    const attnOut = residual(layer + "attn_residual", proj, input);
    // 2) MLP
    const mlpNorm = norm(layer + "mlp_norm", attnOut);
    const fc1 = linear(mlpNorm, w[layer + "mlp_fc1"]);
    const hidden = fc1.map((row) => row.map((value) => (value > 0 ? value : 0)));
    const fc2 = linear(hidden, w[layer + "mlp_fc2"]);
    x = residual(layer + "mlp_residual", fc2, attnOut);
    trace.layers.push({
      input, norm: attnNorm, q, k, v, scores, weights, heads, proj, attnOut, mlpNorm, fc1, hidden, fc2, mlpOut: x,
    });
  }
  trace.logits = linear(x, w.lm_head);
  return trace;
}

/** Each row of q looks back at the keys up to its own; a head works on its own slice of columns. */
function attention(q: Block, k: Block, v: Block, nHead: number, isOff: (head: number) => boolean) {
  const columns = q[0].length;
  const size = columns / nHead;
  const scores: number[][][] = [];
  const weights: number[][][] = [];
  const heads = q.map(() => new Array<number>(columns).fill(0));
  for (let h = 0; h < nHead; h++) {
    const slice = (row: Row) => Array.prototype.slice.call(row, h * size, (h + 1) * size) as number[];
    scores.push(q.map((query, t) => k.slice(0, t + 1).map((key) => dot(slice(query), slice(key)) / size ** 0.5)));
    weights.push(scores[h].map((row) => softmax(row)));
    if (isOff(h)) continue;
    weights[h].forEach((row, t) => {
      for (let j = h * size; j < (h + 1) * size; j++) {
        row.forEach((weight, s) => (heads[t][j] += weight * v[s][j]));
      }
    });
  }
  return { scores, weights, heads };
}

/** The loss at each position: how surprising the next token of ids was. */
export function losses(logits: Block, ids: number[]): number[] {
  return logits.map((row, t) => crossEntropy(row, ids[t + 1]));
}

export function mean(numbers: Row): number {
  return sum(numbers) / numbers.length;
}
