"""How both cores show a Matrix: as text, and as the table of a notebook."""

from __future__ import annotations

TYPE_CHECKING = False  # typing would take most of the time of the import
if TYPE_CHECKING:
    from typing import Any

LONGEST = 100  # characters of a text
MOST = 12  # rows and columns of a table


def text(matrix: Any) -> str:
    """Return the expression that makes a small Matrix; of another one, the shape."""
    (rows, cols), name = matrix.shape, type(matrix).__name__
    if rows * cols <= LONGEST:
        dtype = "" if matrix.dtype == "float64" else f", {matrix.dtype!r}"
        expression = f"{name}.of({matrix.tolist()}{dtype})"
        if len(expression) <= LONGEST:
            return expression
    return f"<{name} {rows} x {cols}>"


def html(matrix: Any) -> str:
    """Return a table of the numbers, to four digits; a large one ends with dots."""
    rows, cols = matrix.shape
    lines = [[f"{number:.4g}" for number in row[:MOST]] for row in matrix.tolist()[:MOST]]
    if cols > MOST:
        lines = [[*line, "…"] for line in lines]
    if rows > MOST:
        lines.append(["…"] * len(lines[0]))
    body = "".join("<tr>" + "".join(f"<td>{x}</td>" for x in line) + "</tr>" for line in lines)
    return f"<table><caption>Matrix {rows} x {cols}</caption><tbody>{body}</tbody></table>"
