/** The package's Value, for the expressions that a reader types. */

export class Value {
  grad = 0;
  label = "";

  constructor(
    public data: number,
    public op = "",
    public children: Value[] = [],
    public locals: number[] = [],
  ) {}
}

export const plus = (a: Value, b: Value) => new Value(a.data + b.data, "+", [a, b], [1, 1]);
export const times = (a: Value, b: Value) => new Value(a.data * b.data, "*", [a, b], [b.data, a.data]);
export const power = (a: Value, n: number) => new Value(a.data ** n, "**", [a], [n * a.data ** (n - 1)]);
export const exp = (a: Value) => new Value(Math.exp(a.data), "exp", [a], [Math.exp(a.data)]);
export const log = (a: Value) => new Value(Math.log(a.data), "log", [a], [1 / a.data]);
export const relu = (a: Value) => new Value(Math.max(0, a.data), "relu", [a], [a.data > 0 ? 1 : 0]);

/** All nodes below root, children first, in the order of the package's _topological_sort. */
export function sorted(root: Value): Value[] {
  const order: Value[] = [];
  const seen = new Set<Value>();
  const visit = (node: Value) => {
    if (seen.has(node)) return;
    seen.add(node);
    node.children.forEach(visit);
    order.push(node);
  };
  visit(root);
  return order;
}

/** One product of the chain rule: child.grad += local * upstream. */
export interface Contribution {
  child: Value;
  parent: Value;
  local: number;
  upstream: number;
  grad: number; // of the child afterwards
}

export function backward(root: Value): Contribution[] {
  const order = sorted(root);
  const contributions: Contribution[] = [];
  for (const node of order) node.grad = 0;
  root.grad = 1;
  for (const parent of order.reverse()) {
    parent.children.forEach((child, i) => {
      const local = parent.locals[i];
      child.grad += local * parent.grad;
      contributions.push({ child, parent, local, upstream: parent.grad, grad: child.grad });
    });
  }
  return contributions;
}

/** Read an expression of a, b, c, numbers, + - * / **, exp, log and relu. Throws a SyntaxError. */
export function parse(text: string, names: Record<string, Value>): Value {
  const tokens = text.match(/\*\*|\d+\.?\d*(?:e[+-]?\d+)?|\.\d+|[a-z]+|[^\s]/gi) ?? [];
  let at = 0;
  const take = (token: string) => tokens[at] === token && ++at > 0;
  const expect = (token: string) => {
    if (!take(token)) throw new SyntaxError(tokens[at] ?? "");
  };
  const total = (): Value => {
    let left = product();
    for (;;) {
      if (take("+")) left = plus(left, product());
      else if (take("-")) left = plus(left, times(product(), new Value(-1)));
      else return left;
    }
  };
  const product = (): Value => {
    let left = sign();
    for (;;) {
      if (take("*")) left = times(left, sign());
      else if (take("/")) left = times(left, power(sign(), -1));
      else return left;
    }
  };
  const sign = (): Value => (take("-") ? times(sign(), new Value(-1)) : raised());
  const raised = (): Value => {
    const base = atom();
    if (!take("**")) return base;
    const negative = take("-");
    const exponent = Number(tokens[at++]);
    if (Number.isNaN(exponent)) throw new SyntaxError(tokens[at - 1] ?? "");
    return power(base, negative ? -exponent : exponent);
  };
  const functions: Record<string, (a: Value) => Value> = { exp, log, relu };
  const atom = (): Value => {
    const token = tokens[at++];
    if (token === "(") {
      const inner = total();
      expect(")");
      return inner;
    }
    if (token !== undefined && Object.hasOwn(functions, token)) {
      expect("(");
      const inner = total();
      expect(")");
      return functions[token](inner);
    }
    if (token !== undefined && Object.hasOwn(names, token)) return names[token];
    if (token === undefined || Number.isNaN(Number(token))) throw new SyntaxError(token ?? "");
    return new Value(Number(token));
  };
  const result = total();
  if (at < tokens.length) throw new SyntaxError(tokens[at]);
  return result;
}
