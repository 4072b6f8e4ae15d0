"From exploring to a batch run, with two real kernels: the one that explores, and the one that executes the saved file."
from __future__ import annotations

from pathlib import Path

import nbformat
import pytest

from tests.ui.kernels import Kernel, shown

CELLS = {
    "load": "%load_ext mlcycle\n%params lr=0.1",
    "start": "%track start exploring -e churn",
    "data": "import mlcycle as mlc\noffset = 0",
    "fit": "score = lr + offset\nprint('score', score, object())\nmlc.log_metric('score', score)",
    "fold": "%%track fold\nmlc.log_metric('score', 0.5)",
    "stop": "%track stop",
    "run": "%mlcycle run this",
}


def save(path: Path, cells: dict[str, str], outputs: dict[str, str]) -> None:
    "As JupyterLab saves a notebook whose cells were executed."
    said = {cell: [nbformat.v4.new_output("stream", name="stdout", text=text)] for cell, text in outputs.items()}
    made = [nbformat.v4.new_code_cell(source, id=cell, execution_count=i, outputs=said.get(cell, []))
            for i, (cell, source) in enumerate(cells.items(), 1)]
    nbformat.write(nbformat.v4.new_notebook(cells=made), path)


def explore(kernel: Kernel, cells: dict[str, str]) -> dict[str, str]:
    "Run cells as a front end does; what they print."
    printed = {}
    for cell, source in cells.items():
        status, outputs = kernel.run(source, cell)
        assert status == "ok", (cell, outputs)
        printed[cell] = "".join(o["text"] for o in outputs if o.get("name") == "stdout")
    return {cell: text for cell, text in printed.items() if text}


def test_a_clean_notebook_gives_the_same(kernel: Kernel, tmp_path: Path) -> None:
    "Nothing hidden, nothing found; the saved notebook holds the very cell that runs it, and addresses do not count."
    cells = dict(CELLS)
    last = cells.pop("run")
    save(tmp_path / "nb.ipynb", CELLS, explore(kernel, cells))
    status, outputs = kernel.run(last, "run")
    said = shown(outputs)
    assert status == "ok" and "The batch run gives the same: 2 metrics and the outputs agree" in said, said
    assert "fold: score" in said and "<td" in shown(outputs, "text/html")


def test_hidden_state_is_found(kernel: Kernel, tmp_path: Path) -> None:
    "The exploring kernel changed a cell, ran it, and changed it back: metrics and outputs differ, and the history says which cell it was."
    cells = dict(CELLS)
    last = cells.pop("run")
    early = {cell: cells[cell] for cell in ("load", "start", "data")}
    printed = explore(kernel, early) | explore(kernel, {"data": "offset = 1"}) | explore(kernel, {c: cells[c] for c in ("fit", "fold", "stop")})
    save(tmp_path / "nb.ipynb", CELLS, printed)
    status, outputs = kernel.run(f"found = {last} -p lr=0.1\nfound.data['compared']['metrics'][0], found.data['compared']['outputs']", "run")
    said = shown(outputs)
    assert status == "ok" and "'here': 1.1, 'batch': 0.1, 'difference': -1.0" in said and "score 1.1" in said and "score 0.1" in said, said
    assert "-import mlcycle as mlc" in said and "+offset = 1" in said  # the file has another source than the kernel ran
    status, outputs = kernel.run("found")
    assert "cell 3 ran 2 times, with different sources" in shown(outputs) and "The batch run differs: 1 of 2 metrics" in shown(outputs)


def test_a_variable_that_only_the_kernel_has(kernel: Kernel, tmp_path: Path) -> None:
    "The classic: the cell that made it was deleted. The batch run fails, and the message says that it is hidden state."
    kernel.run("lost = 3", "gone")
    save(tmp_path / "nb.ipynb", {"use": "print(lost)"}, explore(kernel, {"use": "print(lost)"}))
    status, outputs = kernel.run("%mlcycle run this", "run", deleted=("gone",))
    assert status == "error" and "Hidden state: 'lost' is a variable of this kernel" in shown(outputs)
    assert "[2] ran" not in shown(outputs) and "used 'lost', which came from [2]; that cell has been deleted" in shown(outputs)


@pytest.mark.parametrize(("name", "says"), [("gone.ipynb", "Was the notebook renamed?"), ("console-1", "is not known")])
def test_a_notebook_that_is_not_known(kernel: Kernel, name: str, says: str) -> None:
    "A renamed notebook and a console: a message with the way out, no traceback."
    kernel.run(f"import os\nos.environ['JPY_SESSION_NAME'] = {name!r}")
    error = next(o for o in kernel.run("%mlcycle run this")[1] if o["type"] == "error")
    assert says in error["evalue"] and "%mlcycle run train.ipynb" in error["evalue"] and len(error["traceback"]) == 1
