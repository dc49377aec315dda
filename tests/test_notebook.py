"""The notebook is executed: its stored outputs are what it prints, with the original's data too."""

import json
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[1] / "examples" / "walkthrough.ipynb"

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")
pytest.importorskip("matplotlib")

pytestmark = pytest.mark.filterwarnings("ignore")  # of Jupyter's parts, about each other


@pytest.fixture
def execute(compiled, tmp_path, monkeypatch):
    """Return a function that executes a notebook on the compiled core."""
    monkeypatch.setenv("MICROGPT_BACKEND", "cython")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))  # nobody's own settings

    def execute(notebook):
        resources = {"metadata": {"path": str(tmp_path)}}
        nbclient.NotebookClient(notebook, timeout=300, resources=resources).execute()

    return execute


def outputs(notebook):
    """Return what each code cell prints and what it shows; of a bitmap only that there is one."""
    found = []
    for cell in notebook.cells:
        if cell.cell_type == "code":  # what is printed may come in several pieces
            printed = "".join(o.text for o in cell.outputs if o.output_type == "stream")
            shown = [o.data for o in cell.outputs if o.output_type != "stream"]
            found.append((printed, ["image/png" if "image/png" in s else dict(s) for s in shown]))
    return found


def test_the_stored_outputs_are_those_of_a_run(execute):
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    stored = outputs(notebook)
    execute(notebook)
    assert outputs(notebook) == stored
    assert all(printed or shown for printed, shown in stored[1:])  # all but the imports


def test_with_the_original_names_it_prints_what_the_original_prints(execute, reference):
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    cells = [cell for cell in notebook.cells if "mg.load_documents()" in cell.source]
    names = str(reference / "data" / "names.txt")
    assert len(cells) == 1
    cells[0].source = cells[0].source.replace("load_documents()", f"load_documents({names!r})")
    execute(notebook)
    out = "".join(printed for printed, _ in outputs(notebook))
    golden = json.loads((reference / "golden" / "default.json").read_text())
    assert "num docs: 32033\n" in out
    assert "vocab size: 27\n" in out
    assert "num params: 4192\n" in out
    samples = [line.split()[2] for line in out.splitlines() if line.startswith("sample")]
    assert samples == golden["samples"]
    assert len(samples) == 20


def test_it_has_eight_steps_and_no_errors():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    steps = [line.split()[1] for cell in notebook.cells if cell.cell_type == "markdown"
             for line in cell.source.splitlines() if line.startswith("## ")]  # fmt: skip
    assert steps == list("12345678")
    assert not [o for cell in notebook.cells for o in cell.get("outputs", ())
                if o.output_type == "error" or o.get("name") == "stderr"]  # fmt: skip
