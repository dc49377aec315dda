"""Print a megabyte of plain text that comes with every Python: its own documentation.

    python examples/python_docs_to_text.py > python.txt

The text is that of `help()` and the docstrings of the standard library, without characters beyond
ASCII. What it says depends on the version of Python.
"""

import ast
import inspect
import sys
import sysconfig
from pathlib import Path
from pydoc_data.topics import topics

SIZE = 1_000_000

parts = list(topics.values())
for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            parts.append(inspect.cleandoc(ast.get_docstring(node) or ""))
paragraphs = [part.strip() for part in parts if len(part) > 100]
text = "\n\n".join(paragraphs).encode("ascii", "ignore").decode()
sys.stdout.write(text[:SIZE] + "\n")
