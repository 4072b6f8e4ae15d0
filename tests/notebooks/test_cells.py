"Cells that a run leaves out: decided in the real kernel, shown in what is kept, and never silently."
from __future__ import annotations

import json

import pytest

from mlcycle.errors import NotebookFormatError, NotebookRunError
from mlcycle.notebooks.execute.runner import run_notebook


def test_tags_decide_what_runs(project):
    "Conditions see variables and parameters as they are just before the cell and leave no trace; what is left out does not count as left to run."
    project.write({"source": "fast = True", "tags": ["parameters"]},
                  {"source": "raise ValueError('only by hand')", "tags": ["only-interactive"]},
                  "n = 3", {"source": "n = 99", "tags": ["skip-if: n > 2 and fast"]},
                  {"source": "print(n, len(In))", "tags": ["skip-if:n>50"]},
                  "import sys; sys.exit(0)", {"source": "raise ValueError('never')", "tags": ["skip"]}, name="train.ipynb")
    done = run_notebook("train.ipynb", {"fast": True})
    times = {cell["id"]: cell["status"] for cell in json.loads(project.artifact(done.run, "notebook/cells.json"))}
    assert times == {"c1": "completed", "injected-parameters": "completed", "c2": "skipped", "c3": "completed", "c4": "skipped", "c5": "completed",
                     "c6": "completed", "c7": "pending"}  # the run was over by then
    cells = {cell["id"]: cell for cell in project.executed(done.run)["cells"]}
    assert cells["c4"]["metadata"]["mlcycle"] == {"skipped": "skip-if: n > 2 and fast"} and cells["c4"]["execution_count"] is None
    assert cells["c2"]["metadata"]["mlcycle"] == {"skipped": "only-interactive"} and "mlcycle" not in cells["c5"]["metadata"]
    assert cells["c5"]["outputs"][0]["text"] == ["3 5\n"] and cells["c5"]["execution_count"] == 4  # five inputs: an empty one and four cells
    (project.folder / "again.ipynb").write_bytes(project.artifact(done.run, "notebook/executed.ipynb"))
    again = run_notebook("again.ipynb", {"fast": False})  # an executed notebook is a notebook: what it says of its last run counts for nothing
    cells = {cell["id"]: cell for cell in project.executed(again.run)["cells"]}
    assert "mlcycle" not in cells["c4"]["metadata"] and cells["c5"]["metadata"]["mlcycle"] == {"skipped": "skip-if: n>50"}


def test_a_condition_that_raises_fails_the_run(project):
    "Neither executed nor left out on a guess: the run fails, and says which condition it was."
    project.write("x = 1", {"source": "open('ran', 'w')", "tags": ["skip-if: missing > 3"]})
    with pytest.raises(NotebookRunError) as error:
        run_notebook("train.ipynb")
    result = error.value.result
    assert result.reason == "the condition of cell 2 (skip-if: missing > 3) raised NameError: name 'missing' is not defined"
    assert (result.status, result.cell, result.error.type) == ("failed", 2, "NameError") and not (project.folder / "ran").exists()
    shown = project.executed(result.run)["cells"][1]
    assert shown["outputs"][0]["ename"] == "NameError" and shown["metadata"]["papermill"]["status"] == "failed"
    done = project.papermill("train.ipynb", "out.ipynb")
    assert done.returncode == 1 and "NameError" in done.stderr and "skip-if: missing > 3" in done.stderr


def test_conditions_are_refused_before_anything_runs(project):
    "What is no Python expression, and any condition for a kernel that speaks another language: no run is made of it."
    project.write("x = 1", {"source": "y = 2", "tags": ["skip-if: x ="]})
    with pytest.raises(NotebookFormatError, match="Cell 2 is tagged skip-if: x =, which is no Python expression"):
        run_notebook("train.ipynb")
    done = project.papermill("train.ipynb", "out.ipynb")
    assert done.returncode == 1 and "no Python expression" in done.stderr
    assert project.runs() == []


def test_a_condition_is_bound_by_the_limits(project):
    "A condition that never comes back is interrupted as a cell would be."
    project.write("import time", {"source": "y = 2", "tags": ["skip-if: time.sleep(60)"]})
    with pytest.raises(NotebookRunError) as error:
        run_notebook("train.ipynb", cell_timeout=1.0)
    assert error.value.result.reason == "cell 2 took longer than 1 s"
