"Autologging in a real kernel: the command, tracked cells, and figures that the inline backend shows."
from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from mlcycle.store import artifacts
from mlcycle.store.connect import Store, open_store
from tests.autolog.conftest import all_runs
from tests.ui.kernels import Kernel, shown, started

FIT = "from sklearn.linear_model import Ridge\nimport numpy as np\nX = np.arange(20.).reshape(-1, 1)\n"
PLOT = "import matplotlib.pyplot as plt\nplt.plot([1, 2, 3])\nplt.title('{}')\n"


@pytest.fixture
def kernel(tmp_path: Path) -> Iterator[Kernel]:
    (tmp_path / ".mlcycle").mkdir()
    with started(tmp_path) as (manager, client):
        found = Kernel(manager, client)
        assert found.run("%load_ext mlcycle\nimport mlcycle as mlc")[0] == "ok"
        yield found


def names(store: Store, number: int) -> list[str]:
    return [a.name for a in artifacts.listing(store, all_runs(store)[number]) if a.kind == "figure"]


def test_a_fit_that_makes_a_run_says_so_once(kernel: Kernel, tmp_path: Path) -> None:
    "One line with the run's name in the first cell that has such a fit; none for fits in a run, none for the fits after it."
    kernel.run("import os\nmlc.autolog()\n" + FIT)
    inside = "with mlc.run('around'):\n    Ridge().fit(X, X[:, 0])"
    texts = [shown(kernel.run(code)[1]) for code in (inside, "for i in range(3):\n    Ridge().fit(X, X[:, 0])", "Ridge().fit(X, X[:, 0])")]
    with open_store(tmp_path / ".mlcycle" / "mlcycle.db") as store:
        first = next(run for run in all_runs(store) if run.name.startswith("Ridge-"))
        assert [text.count("this fit of") for text in texts] == [0, 1, 0]
        assert f"fit of Ridge is the run {first.id[:8]}" in texts[1] and len(all_runs(store)) == 5


def test_in_a_notebook(kernel: Kernel, tmp_path: Path) -> None:
    "From the command to the figures of each kind of cell, and off again; what a cell shows is the same as without."
    status, outputs = kernel.run("%mlcycle autolog on")
    assert status == "ok" and "Autologging is on" in shown(outputs)
    assert kernel.run(FIT + "Ridge(alpha=2.0).fit(X, X[:, 0]);")[0] == "ok"
    with open_store(tmp_path / ".mlcycle" / "mlcycle.db") as store:  # the cell has ended, the kernel lives on
        assert "autologged/manifest.json" in [file.name for file in artifacts.listing(store, all_runs(store)[0])]
    status, outputs = kernel.run("%%track tracked\n" + PLOT.format("Shown at the end") + FIT + "Ridge().fit(X, X[:, 0]);")
    assert status == "ok" and sum("image/png" in o.get("data", {}) for o in outputs) == 1
    status, outputs = kernel.run("with mlc.run('block'):\n" + "".join(f"    {line}\n" for line in PLOT.format("In a block").splitlines()))
    assert status == "ok" and sum("image/png" in o.get("data", {}) for o in outputs) == 1
    body = (PLOT.format("By show") + "plt.show()").splitlines()
    status, outputs = kernel.run("with mlc.run('shown'):\n" + "".join(f"    {line}\n" for line in body))
    assert status == "ok" and sum("image/png" in o.get("data", {}) for o in outputs) == 1
    status, outputs = kernel.run(PLOT.format("After off") + "%mlcycle autolog off")
    assert status == "ok" and sum("image/png" in o.get("data", {}) for o in outputs) == 1
    assert kernel.run("Ridge().fit(X, X[:, 0]);")[0] == "ok"
    with open_store(tmp_path / ".mlcycle" / "mlcycle.db") as store:
        found = all_runs(store)
        assert [run.name.split("-")[0] for run in found] == ["Ridge", "tracked", "block", "shown"] and {r.status for r in found} == {"finished"}
        assert found[0].kind == "cell" and [names(store, i) for i in range(4)] == [
            [], ["figures/Shown-at-the-end.png"], ["figures/In-a-block.png"], ["figures/By-show.png"]]
