/** Section 6: the chain rule step by step, on an expression and on the reader's own loss. */

import { useSignal } from "@preact/signals";
import { format } from "../format";
import { type Node, Picture, layOut } from "../graph";
import { useMark } from "../listing";
import { Choice, Num, Origin, Slider, Stepper, Words } from "../parts";
import { Plot, path } from "../plot";
import { blockOf } from "../data";
import { type Weights } from "../model";
import { data, lossOf, tokenName, trained } from "../state";
import { Value, backward, parse } from "../value";
import { t } from "../words";

/** A step of a pass: what it says, and what can be seen after it. */
interface Pass {
  nodes: Omit<Node, "data" | "grad">[];
  data: number[]; // of each node
  inner: number[]; // nodes in the order of the forward pass
  products: { child: number; parent: number; local: number; upstream: number; grad: number }[];
  rootGrad: number;
  root: number;
}

export function PassStepper({ pass, label, start }: { pass: Pass; label: string; start: number }) {
  const { nodes, inner, products, root } = pass;
  const n = inner.length + 1 + products.length;
  const at = useSignal(start < 0 ? n - 1 : start);
  const step = Math.min(at.value, n - 1);
  const forward = step < inner.length;
  const product = step > inner.length ? products[step - inner.length - 1] : null;
  const computed = new Set(forward ? inner.slice(0, step + 1) : inner);
  const grads = new Map<number, number>();
  if (!forward) grads.set(root, pass.rootGrad);
  for (const { child, grad } of products.slice(0, Math.max(0, step - inner.length))) grads.set(child, grad);
  const name = (id: number) => nodes[id].label || nodes[id].op;
  const here = new Set(forward ? [inner[step], ...nodes[inner[step]].children] : product ? [product.child, product.parent] : [root]);
  useMark("backward", forward ? null : product ? "child._grad +=" : "self._grad = 1.0");
  useMark("mul", forward && nodes[inner[step]]?.op === "*" ? "_node(" : null);
  useMark("add", forward && nodes[inner[step]]?.op === "+" ? "_node(" : null);
  const g = (v: number) => format(v, "g");
  const says = forward
    ? t("autograd.forward", { name: name(inner[step]), value: g(pass.data[inner[step]]) })
    : product
      ? t("autograd.product", {
          child: name(product.child),
          parent: name(product.parent),
          local: g(product.local),
          upstream: g(product.upstream),
          product: g(product.local * product.upstream),
          grad: g(product.grad),
        })
      : t("autograd.root", { name: name(root), grad: g(pass.rootGrad) });
  return (
    <>
      <Picture
        label={label}
        here={here}
        nodes={nodes.map((node, id) => ({
          ...node,
          data: node.children.length === 0 || computed.has(id) ? pass.data[id] : null,
          grad: grads.get(id) ?? null,
        }))}
      />
      <Stepper label={label} n={n} at={step} go={(to) => (at.value = to)} says={says} />
    </>
  );
}

function passOf(root: Value): Pass {
  const nodes = layOut(root);
  const id = new Map(nodes.map((node) => [node.value, node.id]));
  return {
    nodes,
    data: nodes.map((node) => node.value.data),
    inner: nodes.filter((node) => node.children.length).map((node) => node.id),
    products: backward(root).map((c) => ({ ...c, child: id.get(c.child)!, parent: id.get(c.parent)! })),
    rootGrad: 1,
    root: id.get(root)!,
  };
}

export function Expression() {
  const text = useSignal("a * b + a");
  const values = useSignal({ a: 2, b: 3, c: 1 });
  const names = Object.fromEntries(
    Object.entries(values.value).map(([name, value]) => {
      const leaf = new Value(value);
      leaf.label = name;
      return [name, leaf];
    }),
  );
  let root: Value | null = null;
  let problem = "";
  try {
    root = parse(text.value, names);
  } catch (error) {
    if (!(error instanceof SyntaxError)) throw error;
    problem = t("autograd.syntax", { token: error.message || t("autograd.end") });
  }
  const pass = root && passOf(root);
  if (root && text.value === "a * b + a") {
    root.label = "L";
    root.children[0].label = "c";
    pass!.nodes.forEach((node) => (node.label = (node as unknown as { value: Value }).value.label));
  }
  if (pass && !pass.data.every(Number.isFinite)) problem = t("autograd.domain");
  const used = ["a", "b", "c"].filter((name) => new RegExp(`\\b${name}\\b`).test(text.value));
  const own = text.value !== "a * b + a" || values.value.a !== 2 || values.value.b !== 3;
  return (
    <>
      <p class="controls">
        <label>
          {t("autograd.expression")} <input class="wide" value={text.value} onInput={(event) => (text.value = event.currentTarget.value)} spellcheck={false} />
        </label>
        {used.map((name) => (
          <label>
            {name} ={" "}
            <input
              type="number"
              step="0.5"
              value={values.value[name as "a"]}
              onInput={(event) => (values.value = { ...values.value, [name]: Number(event.currentTarget.value) })}
            />
          </label>
        ))}
      </p>
      {problem ? (
        <p class="alarm" role="alert">
          {problem}
        </p>
      ) : (
        <PassStepper pass={pass!} label={t("autograd.graph")} start={own ? -1 : 5} />
      )}
      <Origin of={own ? "you" : "page"} />
    </>
  );
}

/** One of the graphs that the package cut out of the loss of the first text. */
export function Slices() {
  const graphs = data.graphs.filter((graph) => graph.id !== "expression");
  const chosen = useSignal(0);
  const graph = graphs[chosen.value];
  const grads = new Map(graph.nodes.map((node) => [node.id, 0]));
  const rootGrad = graph.nodes[graph.root].grad;
  grads.set(graph.root, rootGrad);
  const products: Pass["products"] = [];
  for (const parent of graph.order) {
    graph.nodes[parent].children.forEach((child, i) => {
      const local = graph.nodes[parent].locals[i];
      grads.set(child, grads.get(child)! + local * grads.get(parent)!);
      products.push({ child, parent, local, upstream: grads.get(parent)!, grad: grads.get(child)! });
    });
  }
  const pass: Pass = {
    nodes: graph.nodes,
    data: graph.nodes.map((node) => node.data),
    inner: graph.order.slice().reverse(),
    products,
    rootGrad,
    root: graph.root,
  };
  return (
    <>
      <Choice
        label={t("autograd.slices")}
        options={graphs.map(({ id }) => t(`autograd.${id}` as "autograd.score"))}
        chosen={chosen.value}
        choose={(i) => (chosen.value = i)}
      />
      <PassStepper key={graph.id} pass={pass} label={t(`autograd.${graph.id}` as "autograd.score")} start={-1} />
      <Origin of="package" />
    </>
  );
}

const grads = data.grads.data && Object.fromEntries(data.weights.map(({ name }, i) => [name!, blockOf(data.grads.data![i])]));

/** Weights with one number moved; the others are shared. */
function nudged(name: string, row: number, column: number, by: number): Weights {
  const changed = Array.from(trained[name][row]);
  changed[column] += by;
  return { ...trained, [name]: trained[name].map((own, i) => (i === row ? changed : own)) };
}

/** The number of a token vector on which the loss depends most. */
function steepest(): [number, number] {
  let [best, most]: [[number, number], number] = [[0, 0], 0];
  grads!.wte.forEach((row, i) =>
    Array.from(row).forEach((grad, j) => {
      if (Math.abs(grad) > most) [most, best] = [Math.abs(grad), [i, j]];
    }),
  );
  return best;
}

export function Nudge() {
  const start = steepest();
  const name = useSignal("wte");
  const row = useSignal(start[0]);
  const column = useSignal(start[1]);
  const by = useSignal(0.05);
  const { ids, text } = data.texts[data.grads.text];
  const [rows, columns] = data.weights.find((tensor) => tensor.name === name.value)!.shape;
  const [i, j] = [Math.min(row.value, rows - 1), Math.min(column.value, columns - 1)];
  const loss = (delta: number) => lossOf(nudged(name.value, i, j, delta), ids);
  const h = 1e-5;
  const difference = (loss(h) - loss(-h)) / (2 * h);
  const grad = grads![name.value][i][j];
  const points = Array.from({ length: 41 }, (_, k) => (k - 20) / 200).map((delta) => [delta, loss(delta)] as [number, number]);
  const here = loss(0);
  const reach = Math.max(...points.map(([, value]) => Math.abs(value - here)), Math.abs(grad) * 0.1, 1e-6) * 1.1;
  const of = name.value === "wte" || name.value === "lm_head" ? tokenName(i) : name.value === "wpe" ? t("position.n", { n: i }) : "";
  const number = (key: "autograd.row" | "autograd.column", value: number, most: number, set: (value: number) => void) => (
    <label>
      {t(key)}{" "}
      <input type="number" min={0} max={most - 1} value={value} onInput={(event) => set(Math.max(0, Math.min(most - 1, Math.trunc(Number(event.currentTarget.value)))))} />
    </label>
  );
  return (
    <>
      <p class="controls">
        <label>
          {t("autograd.matrix")}{" "}
          <select value={name.value} onChange={(event) => (name.value = event.currentTarget.value)}>
            {data.weights.map((tensor) => (
              <option>{tensor.name}</option>
            ))}
          </select>
        </label>
        {number("autograd.row", i, rows, (value) => (row.value = value))}
        {number("autograd.column", j, columns, (value) => (column.value = value))}
        <span class="hint">{of}</span>
      </p>
      <Slider
        label={t("autograd.by")}
        min={-0.1}
        max={0.1}
        step={0.001}
        value={by.value}
        set={(value) => (by.value = value)}
        text={`${format(by.value, 3)}`}
      />
      <Plot
        label={t("autograd.nudge")}
        x={[-0.1, 0.1]}
        y={[here - reach, here + reach]}
        xName={t("autograd.by")}
        yName={t("autograd.text.loss", { text })}
        decimals={reach > 0.05 ? 2 : reach > 0.0005 ? 4 : 6}
      >
        {(scales) => (
          <>
            <path class="line" d={path(points, scales)} />
            <path class="tangent" d={path([[-0.1, here - 0.1 * grad], [0.1, here + 0.1 * grad]], scales)} />
            <g class="you" transform={`translate(${scales.x(by.value)} ${scales.y(loss(by.value))})`}>
              <circle r={6} />
            </g>
          </>
        )}
      </Plot>
      <p class="says nudge">
        <Words
          k="autograd.nudged"
          value={<Num v={trained[name.value][i][j]} />}
          before={<Num v={here} f={6} />}
          after={<Num v={loss(by.value)} f={6} />}
          grad={<span class="package-grad"><Num v={grad} f={8} /></span>}
          difference={<span class="page-grad"><Num v={difference} f={8} /></span>}
        />
      </p>
      <Origin of="you" />
    </>
  );
}

