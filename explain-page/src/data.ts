/** The data of the page, as schema.json describes it; read once from the document. */

import type { Block, Config, Weights } from "./model";

export interface Tensor {
  name?: string;
  shape: number[];
  dtype: "F64" | "F32";
  data: string;
}

export interface GraphNode {
  id: number;
  op: string;
  label: string;
  data: number;
  grad: number;
  children: number[];
  locals: number[];
  x: number;
  y: number;
  folded: number;
}

export interface Graph {
  id: string;
  nodes: GraphNode[];
  root: number;
  order: number[];
}

export interface Sample {
  text: string;
  known: boolean | null;
  draws: { u: number | null; token: number }[];
}

export interface Dataset {
  name: string;
  present: boolean;
  unit: string;
  count: number;
  distinct: number | null;
  first: string[] | null;
  random: string[] | null;
  bigrams: [number, number, number][];
  bigram_totals: number[];
  letters: number[];
  uniform_loss: number;
  letter_loss: number;
  bigram_loss: number;
}

export interface Data {
  schema: number;
  meta: {
    package: string;
    file: string | null;
    sha256: string | null;
    command: string;
    tolerance: number;
    number_type: string;
  };
  config: Config & { num_params: number };
  vocab: { chars: string[]; bos: number };
  training: { steps: number; lr: number; step: number; seed: number; unit: string };
  dataset: Dataset;
  weights: Tensor[];
  texts: { text: string; ids: number[]; loss: number; losses: number[] }[];
  grads: { text: number; nonzero: number; data: Tensor[] | null };
  graphs: Graph[];
  adam: {
    source: "record" | "text";
    step: number;
    lr: number;
    beta1: number;
    beta2: number;
    eps: number;
    documents: { ids: number[]; text: string }[];
    losses: number[][];
    loss: number;
    p: Tensor[];
    grad: Tensor[];
    m: Tensor[];
    v: Tensor[];
    p_after: Tensor[];
  } | null;
  history: {
    count: number;
    first_step: number;
    steps: number[] | null;
    losses: Tensor;
    means: Tensor;
    window: number;
    thinned: boolean;
  } | null;
  snapshots: { step: number; weights: Tensor | null; samples: string[]; losses: number[] }[] | null;
  sampling: {
    seed: number | null;
    temperature: number;
    top_k: number | null;
    rng_state: number[] | null;
    samples: Sample[];
  };
  embedding: { points: [number, number][]; explained: [number, number]; vowels: number[] } | null;
  checks: { text: string; ids: number[]; positions: number[]; logits: Tensor }[];
}

export function numbersOf(tensor: Tensor): Float64Array {
  const bytes = Uint8Array.from(atob(tensor.data), (char) => char.charCodeAt(0));
  const view = new DataView(bytes.buffer);
  const size = tensor.dtype === "F64" ? 8 : 4;
  const numbers = new Float64Array(bytes.length / size);
  for (let i = 0; i < numbers.length; i++) {
    numbers[i] = size === 8 ? view.getFloat64(8 * i, true) : view.getFloat32(4 * i, true);
  }
  return numbers;
}

export function rowsOf(numbers: Float64Array, columns: number): Block {
  const rows: Block = [];
  for (let i = 0; i < numbers.length; i += columns) rows.push(numbers.subarray(i, i + columns));
  return rows;
}

export function blockOf(tensor: Tensor): Block {
  return rowsOf(numbersOf(tensor), tensor.shape[1]);
}

export function weightsOf(tensors: Tensor[]): Weights {
  return Object.fromEntries(tensors.map((tensor) => [tensor.name!, blockOf(tensor)]));
}

/** Cut the parameters of a snapshot, which stand one after another, into the matrices of like. */
export function unpack(flat: Tensor, like: Tensor[]): Weights {
  const numbers = numbersOf(flat);
  let start = 0;
  return Object.fromEntries(
    like.map(({ name, shape: [rows, columns] }) => {
      const part = numbers.subarray(start, (start += rows * columns));
      return [name!, rowsOf(part, columns)];
    }),
  );
}

function read<T>(id: string): T {
  return JSON.parse(document.getElementById(id)!.textContent!) as T;
}

export const readData = () => read<Data>("data");
export const readWords = () => read<Record<string, string>>("words");
