/** Numbers as text, alike in the page and in the package's figures.py. */

/** A number: decimals. "g": 4 significant digits. "%": per cent with one decimal. "i": whole. */
export type Format = number | "g" | "%" | "i";

export function format(value: number, how: Format): string {
  if (!Number.isFinite(value)) return value > 0 ? "∞" : value < 0 ? "−∞" : "?";
  const text =
    how === "i"
      ? value.toFixed(0).replace(/\B(?=(\d{3})+$)/g, ",")
      : how === "%"
        ? `${(value * 100).toFixed(1)} %`
        : how === "g"
          ? value.toPrecision(4)
          : value.toFixed(how);
  return /^-[0.]*( %)?$/.test(text) ? text.slice(1) : text.replace("-", "−");
}
