"`%params` where it counts: in a kernel, in a batch run of the saved notebook, and in the file itself."
from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from mlcycle.errors import NotebookFormatError, ParameterError
from mlcycle.notebooks.execute.runner import run_notebook
from mlcycle.store.connect import open_store
from tests.ui.kernels import Kernel, shown

LINE = '%load_ext mlcycle\n%params lr=0.1 depth: int = 6 model="hgb"  # what to try'


def notebook(path: Path, *cells: str) -> Path:
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source, id=f"c{i}") for i, source in enumerate(cells)]), path)
    return path


def test_in_a_kernel_the_line_sets_the_variables(kernel: Kernel) -> None:
    "With the types as written; a dict's braces are not taken for IPython's own; in a session they are recorded."
    kernel.run("%track start exploring -e churn --out session")
    status, outputs = kernel.run("""%params lr=0.1 depth: int = 6 model="hgb" grid={'a': [1]}""")
    assert status == "ok" and "depth" in shown(outputs) and "<td" in shown(outputs, "text/html")
    assert shown(kernel.run("lr, depth, model, grid")[1]) == "(0.1, 6, 'hgb', {'a': [1]})"
    assert shown(kernel.run("sorted(session.params)")[1]) == "['depth', 'grid', 'lr', 'model']"
    status, outputs = kernel.run("%params depth: int = 'deep'")
    error = next(o for o in outputs if o["type"] == "error")
    assert status == "error" and "expects int" in error["evalue"] and len(error["traceback"]) == 1
    assert shown(kernel.run("depth")[1]) == "6"


def test_the_cell_can_become_plain_assignments(kernel: Kernel) -> None:
    "What a kernel can do to a document: replace the source of the cell that runs."
    kernel.client.execute("%params --cell lr=0.1 model='hgb'")
    payload = kernel.client.get_shell_msg(timeout=120)["content"]["payload"]
    assert payload == [{"source": "set_next_input", "text": "lr = 0.1\nmodel = 'hgb'", "replace": True}]


def test_a_batch_run_gives_others(tmp_path: Path) -> None:
    "The line is the declaration: types are checked before a kernel starts, and what is given wins over the line."
    path = notebook(tmp_path / "train.ipynb", LINE, "import mlcycle as mlc\nmlc.log_metric('product', lr * depth)")
    with open_store(tmp_path / "runs.db") as store:
        with pytest.raises(ParameterError, match="depth"):
            run_notebook(path, {"depth": "deep"}, store=store, progress=False)
        done = run_notebook(path, {"lr": 0.5}, store=store, progress=False)
        assert done.metrics == {"product": 3.0} and done.params == {"lr": 0.5, "depth": 6, "model": "hgb"}
    with pytest.raises(NotebookFormatError, match="2 cells declare"):
        run_notebook(notebook(tmp_path / "two.ipynb", LINE, "%params seed=0"), progress=False)


def test_the_file_can_be_given_the_tag(tmp_path: Path) -> None:
    "For Papermill by itself: the command turns the line into a tagged cell, which Papermill reads and overrides; the rest of the file stays."
    path = notebook(tmp_path / "train.ipynb", "# Churn", LINE, "print(lr * depth)")
    before = json.loads(path.read_text())
    done = subprocess.run([sys.executable, "-m", "mlcycle", "params", str(path), "--write", "--json"], capture_output=True, text=True, check=True)
    assert [(p["name"], p["type"]) for p in json.loads(done.stdout)] == [("lr", "float"), ("depth", "int"), ("model", "str")]
    after = json.loads(path.read_text())
    assert after["cells"][1]["metadata"] == {"tags": ["parameters"]} and "%params" not in "".join(after["cells"][1]["source"])
    assert (after["cells"][0], after["cells"][2], after["metadata"]) == (before["cells"][0], before["cells"][2], before["metadata"])
    import papermill

    executed = papermill.execute_notebook(path, None, {"lr": 0.5}, progress_bar=False, kernel_name="python3", language="python")
    assert executed.cells[-1].outputs[0].text == "3.0\n"
