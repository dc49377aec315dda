/** The parts that widgets are made of: numbers, tokens, bars, grids, steppers. */

import type { ComponentChildren, TargetedKeyboardEvent, TargetedMouseEvent } from "preact";
import { useEffect, useId, useRef } from "preact/hooks";
import { type Format, format } from "./format";
import type { Row } from "./model";
import { bos, choosePosition, inputs, position, tokenName } from "./state";
import { type Key, t } from "./words";

/** A number for the reader, and in full for whoever checks it. */
export function Num({ v, f = 4 }: { v: number; f?: Format }) {
  return (
    <span class="v" data-v={v} data-f={f}>
      {format(v, f)}
    </span>
  );
}

export function Token({ id }: { id: number }) {
  return <span class={`token ${tokenColour(id)}`}>{tokenName(id)}</span>;
}

const CONTEXT = 16; // tokens of a context that are shown

/** The last tokens of a context. */
export function Context({ ids }: { ids: number[] }) {
  return (
    <>
      {ids.length > CONTEXT && "… "}
      {ids.slice(-CONTEXT).map((id) => (
        <Token id={id} />
      ))}
    </>
  );
}

export const tokenColour = (id: number) => (id === bos ? "bos" : `c${id % 7}`);

/** Where the numbers of a widget come from. */
export function Origin({ of }: { of: "package" | "page" | "you" }) {
  return (
    <p class={`origin ${of}`} data-origin={of}>
      {t(`origin.${of}`)}
    </p>
  );
}

export const clamp = (value: number, most: number) => Math.max(0, Math.min(most, value));

/** The index that a key moves to in a list of n, or null for other keys. */
export function moved(key: string, index: number, n: number): number | null {
  const to: Record<string, number> = {
    ArrowRight: index + 1,
    ArrowDown: index + 1,
    ArrowLeft: index - 1,
    ArrowUp: index - 1,
    Home: 0,
    End: n - 1,
  };
  return key in to ? clamp(to[key], n - 1) : null;
}

export interface ChoiceProps {
  label: string;
  options: ComponentChildren[];
  chosen: number;
  choose(index: number): void;
  class?: string;
}

/** One of several: a single tab stop, arrow keys within. */
export function Choice({ label, options, chosen, choose, class: name = "choice" }: ChoiceProps) {
  const group = useRef<HTMLDivElement>(null);
  const onKeyDown = (event: TargetedKeyboardEvent<HTMLDivElement>) => {
    const to = moved(event.key, chosen, options.length);
    if (to === null) return;
    event.preventDefault();
    choose(to);
    (group.current!.children[to] as HTMLElement).focus();
  };
  return (
    <div class={name} role="radiogroup" aria-label={label} ref={group} onKeyDown={onKeyDown}>
      {options.map((option, i) => (
        <button
          type="button"
          role="radio"
          aria-checked={i === chosen}
          tabIndex={i === chosen ? 0 : -1}
          onClick={() => choose(i)}
        >
          {option}
        </button>
      ))}
    </div>
  );
}

/** The tokens that the model reads; the chosen one is the position that all sections show. */
export function PositionChoice() {
  return (
    <Choice
      class="choice tokens"
      label={t("position.label")}
      options={inputs.value.map((id, i) => [<Token id={id} />, <small>{i}</small>])}
      chosen={position.value}
      choose={choosePosition}
    />
  );
}

/** A row of signed bars with their numbers; most is the length of the longest bar. */
export function Vector({ row, most, f = 2, columns = 16 }: { row: Row; most?: number; f?: Format; columns?: number }) {
  const numbers = Array.from(row);
  const longest = most ?? (Math.max(...numbers.map(Math.abs)) || 1);
  return (
    <div class={`vector ${f === 3 ? "long" : ""}`} style={{ "--n": Math.min(columns, numbers.length) }}>
      {numbers.map((v) => (
        <span style={{ "--v": +(v / longest).toFixed(3) }} data-v={v} data-f={f}>
          {format(v, f)}
        </span>
      ))}
    </div>
  );
}

export interface BarRow {
  id: number; // a token
  v: number;
  share: number; // of the bar's whole length
  f?: Format;
  mark?: "target" | "chosen";
  note?: ComponentChildren;
}

/** Tokens with a bar and a number each. */
export function Bars({ rows, label }: { rows: BarRow[]; label: string }) {
  return (
    <table class="bars" aria-label={label}>
      <tbody>
        {rows.map(({ id, v, share, f = 4, mark, note }) => (
          <tr class={mark} data-token={id}>
            <th scope="row">
              <Token id={id} />
            </th>
            <td class="bar" style={{ "--p": +share.toFixed(4) }} />
            <td>
              <Num v={v} f={f} />
              {mark === "target" && <span class="hidden"> {t("target")}</span>}
            </td>
            {note !== undefined && <td>{note}</td>}
          </tr>
        ))}
      </tbody>
    </table>
  );
}

/** The colour of an amount from 0 to 1, and of a signed share from -1 to 1: classes of page.css. */
export const amount = (share: number) => `a${Math.round(15 * Math.max(0, Math.min(1, share)))}`;
export const signed = (share: number) => `s${Math.round(7 * Math.max(-1, Math.min(1, share))) + 7}`;

export interface Cell {
  v: number;
  text: string;
  colour: string;
  f?: Format;
}

export interface GridProps {
  caption: string;
  rows: ComponentChildren[];
  columns: ComponentChildren[];
  cell(row: number, column: number): Cell | null; // null: nothing stands there
  chosen: [number, number];
  choose(row: number, column: number): void;
  class?: string;
}

/** A table of coloured cells: one tab stop, arrow keys, Home and End within the row. */
export function Grid({ caption, rows, columns, cell, chosen, choose, class: name = "" }: GridProps) {
  const table = useRef<HTMLTableElement>(null);
  const select = (r: number, c: number) => {
    if (cell(r, c) === null) return;
    choose(r, c);
    table.current!.querySelector<HTMLElement>(`[data-at="${r},${c}"]`)?.focus();
  };
  const onKeyDown = (event: TargetedKeyboardEvent<HTMLTableElement>) => {
    const [r, c] = chosen;
    const to: Record<string, [number, number]> = {
      ArrowRight: [r, c + 1],
      ArrowLeft: [r, c - 1],
      ArrowDown: [r + 1, c],
      ArrowUp: [r - 1, c],
      Home: [r, 0],
      End: [r, columns.length - 1],
    };
    if (!(event.key in to)) return;
    event.preventDefault();
    let [row, column] = to[event.key];
    row = clamp(row, rows.length - 1);
    column = clamp(column, columns.length - 1);
    if (event.key === "End" || event.key === "ArrowUp") {
      while (column > 0 && cell(row, column) === null) column--;
    }
    select(row, column);
  };
  const onClick = (event: TargetedMouseEvent<HTMLTableElement>) => {
    const at = (event.target as HTMLElement).closest<HTMLElement>("[data-at]")?.dataset.at;
    if (at) select(...(at.split(",").map(Number) as [number, number]));
  };
  return (
    <div class="scroll">
      <table class={`grid ${name}`} role="grid" aria-label={caption} ref={table} onKeyDown={onKeyDown} onClick={onClick}>
        <thead>
          <tr>
            <td />
            {columns.map((column) => (
              <th scope="col">{column}</th>
            ))}
          </tr>
        </thead>
        <tbody>
          {rows.map((row, r) => (
            <tr>
              <th scope="row">{row}</th>
              {columns.map((_, c) => {
                const it = cell(r, c);
                if (it === null) return <td class="none" />;
                const here = r === chosen[0] && c === chosen[1];
                return (
                  <td
                    class={it.colour}
                    role="gridcell"
                    aria-selected={here}
                    tabIndex={here ? 0 : -1}
                    data-at={`${r},${c}`}
                    data-v={it.v}
                    data-f={it.f}
                  >
                    {it.text}
                  </td>
                );
              })}
            </tr>
          ))}
        </tbody>
      </table>
    </div>
  );
}

export interface StepperProps {
  label: string;
  n: number;
  at: number;
  go(step: number): void;
  says: string; // what happens at this step, in a sentence
  children?: ComponentChildren;
}

/** Steps that a slider, its arrow keys and two buttons go through; nothing plays by itself. */
export function Stepper({ label, n, at, go, says, children }: StepperProps) {
  const pressed = useRef(false); // only a step that was asked for is announced
  useEffect(() => {
    if (pressed.current) document.getElementById("live")!.textContent = says;
    pressed.current = false;
  }, [at]);
  const press = (to: number) => {
    pressed.current = true;
    go(to);
  };
  return (
    <div class="stepper">
      <div class="controls">
        <button type="button" tabIndex={-1} disabled={at === 0} onClick={() => press(at - 1)}>
          {t("stepper.back")}
        </button>
        <button type="button" tabIndex={-1} class="go" disabled={at === n - 1} onClick={() => press(at + 1)}>
          {t("stepper.next")}
        </button>
        <input
          type="range"
          min={0}
          max={n - 1}
          value={at}
          aria-label={label}
          aria-valuetext={`${at + 1} / ${n}. ${says}`}
          onInput={(event) => go(Number(event.currentTarget.value))}
        />
        <span class="count">
          {at + 1} / {n}
        </span>
        {children}
      </div>
      <p class="says">{says}</p>
    </div>
  );
}

export interface SliderProps {
  label: ComponentChildren;
  min: number;
  max: number;
  step: number;
  value: number;
  set(value: number): void;
  text: string;
  children?: ComponentChildren;
}

export function Slider({ label, min, max, step, value, set, text, children }: SliderProps) {
  const id = useId();
  return (
    <div class="slider">
      <label for={id}>{label}</label>
      <input
        id={id}
        type="range"
        min={min}
        max={max}
        step={step}
        value={value}
        aria-valuetext={text}
        onInput={(event) => set(Number(event.currentTarget.value))}
      />
      <output for={id}>{children ?? text}</output>
    </div>
  );
}

export function Switch({ label, on, set }: { label: ComponentChildren; on: boolean; set(on: boolean): void }) {
  return (
    <label class="switch">
      <input type="checkbox" checked={on} onChange={(event) => set(event.currentTarget.checked)} />
      {label}
    </label>
  );
}

/** A sentence of strings.en.json with elements in the place of {names}. */
export function Words({ k, ...values }: { k: Key } & Record<string, ComponentChildren>) {
  const parts = t(k, Object.fromEntries(Object.keys(values).map((name) => [name, `\u0000${name}\u0000`])));
  return <>{parts.split("\u0000").map((part, i) => (i % 2 ? values[part] : part))}</>;
}
