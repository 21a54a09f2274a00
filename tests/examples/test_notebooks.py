"""The notebooks: fit to be read as they are saved, and run anew from top to bottom.

`python tests/examples/test_notebooks.py` runs them and saves them with what they show.
"""

import re
from pathlib import Path
from tempfile import TemporaryDirectory

import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[2] / "examples" / "notebooks"
MOST_BYTES = 600_000
SMALL = {
    "pipeline": {
        "STOP_STEPS = [5, 15, 25, 35, 45, 50]": "STOP_STEPS = [1, 2, 3, 4, 5, 6]",
        "STOP_STEPS = [15, 25, 35, 45]": "STOP_STEPS = [1, 2, 3, 4]",
        "stop_step in (20, 30, 40)": "stop_step in (2, 3, 4)",
    },
    "detector": {
        '"train": 70, "validation": 50, "test": 100': '"train": 20, "validation": 10, "test": 20',
        "epochs=10": "epochs=2",
    },
}
"""Notebooks, and what stands in place of what when the tests run one."""
ABSOLUTE_PATH = re.compile(r"(?<![\w.</:])(?:/|~/|[A-Za-z]:\\)\w[\w.-]*[/\\]|site-packages")


def read(name: str):
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def run(notebook, place: str | Path) -> None:
    """Run a notebook in the folder `place`, and put what it shows into its cells."""
    resources = {"metadata": {"path": str(place)}}
    options = {"timeout": 300, "kernel_name": "python3", "record_timing": False, "coalesce_streams": True}
    NotebookClient(notebook, resources=resources, **options).execute()


def code_cells(notebook) -> list:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def shown(cell) -> list:
    """What a cell shows: the name of a stream, or the kinds of media of anything else."""
    return [output.get("name") or sorted(output.data) for output in cell.outputs]


def words(cell) -> str:
    """All that a cell says, but for its pictures."""
    said = [cell.source]
    for output in cell.get("outputs", ()):
        media = output.get("data", {"text/plain": output.get("text", "")})
        said += [text for kind, text in media.items() if kind.startswith("text/")]
    return "\n".join(said)


def test_every_notebook_is_tested():
    assert {path.stem for path in FOLDER.glob("*.ipynb")} == set(SMALL)
    for name, instead in SMALL.items():
        code = "".join(cell.source for cell in code_cells(read(name)))
        assert all(code.count(found) == 1 for found in instead)


@pytest.mark.parametrize("name", SMALL)
def test_saved_notebook_can_be_read_as_it_is(name):
    notebook = read(name)
    nbformat.validate(notebook)
    assert (FOLDER / f"{name}.ipynb").stat().st_size <= MOST_BYTES
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 3
    assert not any(output.output_type == "error" or output.get("name") == "stderr" for output in outputs)
    assert not any("execution" in cell.metadata for cell in notebook.cells)  # the hours at which the cells were run
    assert [found[0] for cell in notebook.cells for found in ABSOLUTE_PATH.finditer(words(cell))] == []


@pytest.mark.parametrize("name", SMALL)
def test_notebook_uses_nothing_but_exports(name):
    source = "\n".join(cell.source for cell in read(name).cells)
    imports = re.findall(r"^(?:from|import) (sona_pipeline\S*)", source, re.M)
    assert imports and set(imports) == {"sona_pipeline"}


@pytest.mark.parametrize("name", SMALL)
def test_notebook_runs_from_top_to_bottom_and_leaves_nothing_behind(name, tmp_path, monkeypatch):
    monkeypatch.delenv("MPLBACKEND", raising=False)  # the kernel has one of its own
    monkeypatch.setenv("ORT_DISABLE_TELEMETRY", "1")  # diffusers imports onnxruntime, which would leave a file
    places = {variable: tmp_path / variable for variable in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "TMPDIR", "work")}
    for variable, place in places.items():
        place.mkdir()
        monkeypatch.setenv(variable, str(place))
    notebook = read(name)
    saved = [shown(cell) for cell in code_cells(notebook)]
    for cell in code_cells(notebook):
        for found, other in SMALL[name].items():
            cell.source = cell.source.replace(found, other)
    run(notebook, places["work"])
    assert [shown(cell) for cell in code_cells(notebook)] == saved
    assert not any(places["work"].iterdir())
    assert not any(places["TMPDIR"].iterdir())


if __name__ == "__main__":
    for name in SMALL:
        notebook = read(name)
        with TemporaryDirectory() as place:
            run(notebook, place)
        nbformat.write(notebook, FOLDER / f"{name}.ipynb")
