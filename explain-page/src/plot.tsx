/** A chart with two axes. What it shows stands in a table or a sentence beside it too. */

import { type ScaleLinear, scaleLinear } from "d3-scale";
import { line } from "d3-shape";
import type { ComponentChildren } from "preact";
import { format } from "./format";

export interface Scales {
  x: ScaleLinear<number, number>;
  y: ScaleLinear<number, number>;
}

export interface PlotProps {
  label: string;
  x: [number, number];
  y: [number, number];
  xName: string;
  yName: string;
  decimals?: number;
  children(scales: Scales): ComponentChildren;
}

const WIDTH = 660;
const HEIGHT = 300;
const MARGIN = { left: 46, right: 12, top: 22, bottom: 40 };

export function Plot({ label, x: xs, y: ys, xName, yName, decimals = 1, children }: PlotProps) {
  const x = scaleLinear(xs, [MARGIN.left, WIDTH - MARGIN.right]);
  const y = scaleLinear(ys, [HEIGHT - MARGIN.bottom, MARGIN.top]);
  return (
    <svg class="plot" viewBox={`0 0 ${WIDTH} ${HEIGHT}`} role="img" aria-label={label}>
      {y.ticks(6).map((tick) => (
        <g class="tick">
          <line x1={MARGIN.left} x2={WIDTH - MARGIN.right} y1={y(tick)} y2={y(tick)} />
          <text x={MARGIN.left - 6} y={y(tick) + 4} text-anchor="end">
            {format(tick, decimals)}
          </text>
        </g>
      ))}
      {x.ticks(6).map((tick) => (
        <text class="tick" x={x(tick)} y={HEIGHT - MARGIN.bottom + 18} text-anchor="middle">
          {x.tickFormat(6)(tick).replace("−", "−")}
        </text>
      ))}
      <text class="name" x={WIDTH - MARGIN.right} y={HEIGHT - 6} text-anchor="end">
        {xName}
      </text>
      <text class="name" x={0} y={12}>
        {yName}
      </text>
      {children({ x, y })}
    </svg>
  );
}

export const path = (points: [number, number][], { x, y }: Scales) =>
  line<[number, number]>()
    .x((p) => +x(p[0]).toFixed(1))
    .y((p) => +y(p[1]).toFixed(1))(points)!;

/** A dashed level with its name at the right. */
export function Level({ at, name, scales: { x, y } }: { at: number; name: string; scales: Scales }) {
  const [left, right] = x.range();
  return (
    <g class="level">
      <line x1={left} x2={right} y1={y(at)} y2={y(at)} />
      <text x={right} y={y(at) - 4} text-anchor="end">
        {name}
      </text>
    </g>
  );
}
