/** A graph of scalar operations: leaves at the left, the result at the right. */

import { format } from "./format";
import { t } from "./words";
import type { Value } from "./value";
import { sorted } from "./value";

export interface Node {
  id: number;
  op: string;
  label: string;
  data: number | null; // null: not computed yet
  grad: number | null;
  children: number[];
  x: number;
  y: number;
}

const STEP = { x: 188, y: 66 };
const BOX = { width: 140, height: 54 };

export function Picture({ nodes, here, label }: { nodes: Node[]; here: ReadonlySet<number>; label: string }) {
  const low = Math.min(...nodes.map((node) => node.y));
  const place = (node: Node) => [node.x * STEP.x + 4, (node.y - low) * STEP.y + 4] as const;
  const width = Math.max(...nodes.map((node) => place(node)[0])) + BOX.width + 4;
  const height = Math.max(...nodes.map((node) => place(node)[1])) + BOX.height + 4;
  const byId = new Map(nodes.map((node) => [node.id, node]));
  return (
    <div class="scroll">
      <svg class="graph" width={width} height={height} viewBox={`0 0 ${width} ${height}`} role="img" aria-label={label}>
        {nodes.flatMap((node) =>
          node.children.map((id) => {
            const [x1, y1] = place(byId.get(id)!);
            const [x2, y2] = place(node);
            const [from, to] = [x1 + BOX.width, x2];
            const middle = to - Math.min((to - from) / 2, 24); // a long one stays level until it is past the others
            const [a, b] = [y1 + BOX.height / 2, y2 + BOX.height / 2];
            return <path class={here.has(node.id) && here.has(id) ? "here" : ""} d={`M${from},${a}C${middle},${a} ${middle},${b} ${to},${b}`} />;
          }),
        )}
        {nodes.map((node) => {
          const [x, y] = place(node);
          return (
            <g class={`node ${here.has(node.id) ? "here" : ""}`} transform={`translate(${x} ${y})`} data-node={node.id}>
              <rect width={BOX.width} height={BOX.height} />
              <text x={8} y={15} class="name">
                {[node.label, node.op && `( ${node.op} )`].filter(Boolean).join(" ")}
              </text>
              {node.data !== null && (
                <text x={8} y={31} data-v={node.data} data-f="g">
                  {t("graph.data")} {format(node.data, "g")}
                </text>
              )}
              {node.grad !== null && (
                <text x={8} y={46} class="grad" data-v={node.grad} data-f="g">
                  {t("graph.grad")} {format(node.grad, "g")}
                </text>
              )}
            </g>
          );
        })}
      </svg>
    </div>
  );
}

/** Place the nodes of an expression: the layer is the longest way from a leaf. */
export function layOut(root: Value): (Omit<Node, "data" | "grad"> & { value: Value })[] {
  const order = sorted(root);
  const layer = new Map<Value, number>();
  for (const node of order) layer.set(node, Math.max(-1, ...node.children.map((child) => layer.get(child)!)) + 1);
  const filled = new Map<number, number>();
  const size = (x: number) => order.filter((node) => layer.get(node) === x).length;
  return order.map((value, id) => {
    const x = layer.get(value)!;
    const row = filled.get(x) ?? 0;
    filled.set(x, row + 1);
    return {
      id,
      value,
      op: value.op,
      label: value.label || (value.op ? "" : format(value.data, "g")),
      children: value.children.map((child) => order.indexOf(child)),
      x,
      y: row - (size(x) - 1) / 2,
    };
  });
}
