/** Section 13: the checks that the page made of itself, and the data to take away. */

import { useSignal } from "@preact/signals";
import { useEffect } from "preact/hooks";
import { checkAll } from "../check";
import { Num, Origin } from "../parts";
import { data } from "../state";
import { t } from "../words";

export function Checks() {
  const embedded = data.weights.reduce((total, { shape: [rows, columns] }) => total + rows * columns, 0);
  return (
    <>
      <div class="scroll">
        <table class="plain checks">
          <thead>
            <tr>
              <th>{t("check.text")}</th>
              <th>{t("check.compared")}</th>
              <th>{t("check.difference")}</th>
              <th>{t("check.result")}</th>
            </tr>
          </thead>
          <tbody>
            {checkAll().map(({ text, compared, difference, ok }) => (
              <tr class={ok ? "ok" : "wrong"}>
                <th scope="row">{text}</th>
                <td>
                  <Num v={compared} f="i" />
                </td>
                <td data-v={difference}>{difference === 0 ? "0" : difference.toExponential(1)}</td>
                <td>{t(ok ? "check.ok" : "check.wrong")}</td>
              </tr>
            ))}
          </tbody>
        </table>
      </div>
      <p class="says">
        {t("check.parameters")} <span class="embedded"><Num v={embedded} f="i" /></span>.
      </p>
      <Origin of="page" />
    </>
  );
}

function download(name: string, type: string, text: string) {
  const link = document.createElement("a");
  link.href = `data:${type};charset=utf-8,${encodeURIComponent(text)}`;
  link.download = name;
  link.click();
}

/** A table as CSV: the full numbers, not the rounded ones. */
export function csvOf(table: HTMLTableElement): string {
  const quote = (text: string) => (/[",\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
  const full = (cell: Element) => {
    const number = cell.hasAttribute("data-v") ? cell : cell.querySelector("[data-v]");
    return quote(number?.getAttribute("data-v") ?? cell.textContent!.trim());
  };
  return Array.from(table.rows, (row) => Array.from(row.cells, full).join(",")).join("\n") + "\n";
}

interface Listed {
  name: string;
  table: HTMLTableElement;
}

/** The tables of the page as they stand, each with its section and its label. */
function allTables(): Listed[] {
  return Array.from(document.querySelectorAll<HTMLTableElement>("main section table"), (table) => {
    const section = table.closest("section")!;
    const label = table.getAttribute("aria-label") ?? table.closest("figure")?.querySelector("figcaption")?.textContent ?? "";
    return { name: `${section.querySelector("h1, h2")!.textContent!.trim()}: ${label.trim().slice(0, 60)}`, table };
  });
}

export function Downloads() {
  const tables = useSignal<Listed[]>([]);
  const chosen = useSignal(0);
  const list = () => (tables.value = allTables());
  useEffect(() => void list(), []);
  return (
    <p class="controls">
      <button type="button" onClick={() => download("microgpt.json", "application/json", document.getElementById("data")!.textContent!)}>
        {t("check.json")}
      </button>
      <label>
        {t("check.table")}{" "}
        <select value={chosen.value} onFocus={list} onChange={(event) => (chosen.value = Number(event.currentTarget.value))}>
          {tables.value.map(({ name }, i) => (
            <option value={i}>{name}</option>
          ))}
        </select>
      </label>
      <button
        type="button"
        disabled={tables.value.length === 0}
        onClick={() => {
          const { table } = list()[chosen.value];
          download(`${table.closest("section")!.id}.csv`, "text/csv", csvOf(table));
        }}
      >
        {t("check.csv")}
      </button>
    </p>
  );
}
