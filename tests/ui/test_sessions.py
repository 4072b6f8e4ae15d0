"Runs over several cells, in a real kernel: only there do events, cell ids, and the end of the process meet."
from __future__ import annotations

import json
from pathlib import Path

import nbformat
import pytest

from mlcycle.notebooks.execute.runner import run_notebook
from mlcycle.store import artifacts, facts, runs
from mlcycle.store.connect import Store, open_store
from tests.ui.kernels import Kernel, shown

STOCK_KERNEL = True  # it is shut down, restarted and killed


@pytest.fixture
def store(tmp_path: Path) -> Store:
    "The store of the kernel, from outside."
    (tmp_path / ".mlcycle").mkdir(exist_ok=True)
    with open_store(tmp_path / ".mlcycle" / "mlcycle.db") as opened:
        yield opened


def save(path: Path, cells: dict[str, str]) -> None:
    "A notebook file of code cells, by id."
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source, id=cell) for cell, source in cells.items()]), path)


CELLS = {"load": "%load_ext mlcycle", "start": "%track start exploring -e churn -t team=risk -p seed=0", "data": "import mlcycle as mlc\nx = 1",
         "fit": "mlc.log_metric('auc', 0.9)", "look": "%mlcycle runs", "stop": "%track stop"}


def test_a_clean_session(kernel: Kernel, store: Store, tmp_path: Path) -> None:
    "Cells run once, from top to bottom: one run that later cells log to, with the record of its cells."
    save(tmp_path / "nb.ipynb", CELLS)
    for cell, source in CELLS.items():
        status, outputs = kernel.run(source, cell)
        assert status == "ok", (cell, outputs)
    assert "Session: clean" in shown(outputs)
    run = runs.resolve(store, "exploring")
    assert run.status == "finished" and facts.params(store, run) == {"seed": 0}
    assert facts.tags(store, run) == {"team": "risk", "session": "clean"}
    record = json.loads(store.blobs.read(artifacts.get(store, run, "session/cells.json").digest))
    assert [(c["order"], c["cell"], c["status"], c["source"]) for c in record] == [(1, "data", "ok", CELLS["data"]), (2, "fit", "ok", CELLS["fit"])]
    kept = nbformat.reads(store.blobs.read(artifacts.get(store, run, "session/notebook.ipynb").digest).decode(), 4)
    nbformat.validate(kept)
    assert [c.source for c in kept.cells[1:]] == [CELLS["data"], CELLS["fit"]]
    assert kernel.run("mlc.log_metric('auc', 1)", "after")[0] == "error"


def test_hidden_state_is_seen(kernel: Kernel, store: Store, tmp_path: Path) -> None:
    "A cell run again, one run above another, a name that its cell no longer defines, a deleted cell: each is named by its place."
    save(tmp_path / "nb.ipynb", {"load": "%load_ext mlcycle", "a": "y = 3", "b": "x = 1", "c": "x + y", "d": "z = 5", "e": "z"})
    kernel.run("%track start exploring -e churn", "start")
    for cell, source in (("d", "z = 5"), ("b", "x = 1"), ("a", "y = 2"), ("a", "y = 3"), ("b", "w = 1"), ("c", "x + y")):
        assert kernel.run(source, cell)[0] == "ok"
    kernel.run("z", "e", deleted=("d",))
    said = kernel.run("%track stop", "stop")[1]
    why = facts.tags(store, runs.resolve(store, "exploring"))["session.why"]
    assert facts.tags(store, runs.resolve(store, "exploring"))["session"] == "hidden state"
    assert why.split("; ") == [
        "cell 3 ran 2 times, with different sources", "cell 2 ran 2 times, with different sources", "cell 3 ran after cell 5, which stands below it",
        "cell 2 ran after cell 5, which stands below it", "cell 4 ran after cell 5, which stands below it",
        "cell 4 used 'x', which came from cell 3", "that cell later ran without defining it",
        "cell 6 used 'z', which came from cell 5", "that cell has been deleted"]
    assert "Run from top to bottom, the notebook may give something else" in shown(said)


def test_blocks_and_threads_within_a_session(kernel: Kernel, store: Store) -> None:
    "A tracked cell is a part of the session; a thread and a task without a run of their own log to it."
    kernel.run("import mlcycle as mlc, threading, asyncio\n%track start exploring -e churn --out session")
    kernel.run("%%track fold\nmlc.log_metric('auc', 0.8)")
    kernel.run("t = threading.Thread(target=lambda: mlc.log_metric('threaded', 1)); t.start(); t.join()\n"
               "async def work(): mlc.log_metric('task', 2)\nawait asyncio.gather(work())")
    kernel.run("with mlc.run('block'):\n    mlc.log_metric('auc', 0.7)")
    assert "exploring" in (said := shown(kernel.run("%track status")[1])) and "running" in said and "%%track fold" in said
    status, outputs = kernel.run("%track start again")
    assert status == "error" and "End it with %track stop first" in next(o["evalue"] for o in outputs if o["type"] == "error")
    kernel.run("%track stop")
    run = runs.resolve(store, "exploring")
    assert {c.name: c.parent for c in runs.children(store, run)} == {"fold": run.id, "block": run.id}
    assert shown(kernel.run("session.metrics, session.run.status")[1]) == "({'task': 2.0, 'threaded': 1.0}, 'finished')"


@pytest.mark.parametrize(("how", "status"), [("shutdown", "cancelled"), ("restart", "cancelled"), ("kill", "lost")])
def test_the_kernel_ends_in_the_middle(kernel: Kernel, store: Store, how: str, status: str) -> None:
    "A shutdown or restart ends the run; a kill leaves it lost. The cells up to then are there in any case."
    kernel.run("%track start exploring -e churn", "start")
    kernel.run("import mlcycle as mlc\nmlc.log_metric('auc', 0.9)", "fit")
    if how == "restart":
        kernel.manager.restart_kernel(now=False)
    else:
        kernel.manager.shutdown_kernel(now=how == "kill")
    run = runs.resolve(store, "exploring")
    assert run.status == status and (status == "lost" or run.reason == "the kernel ended before %track stop")
    record = json.loads(store.blobs.read(artifacts.get(store, run, "session/cells.json").digest))
    assert [c["cell"] for c in record] == ["fit"]


def test_in_a_batch_run_the_session_is_the_run(tmp_path: Path, store: Store) -> None:
    "The same notebook, executed as a whole: one run with the metrics, not an empty one with a child."
    save(tmp_path / "nb.ipynb", CELLS)
    done = run_notebook(tmp_path / "nb.ipynb", store=store, progress=False)
    run = runs.get(store, done.run)
    assert done.metrics == {"auc": 0.9} and runs.children(store, run) == [] and facts.tags(store, run)["team"] == "risk"
