"What running a notebook costs with forked kernels and shared cells, side by side with plain Papermill and with the same work in one process."
from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nbformat
import papermill
import psutil
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from mlcycle.notebooks.execute.runner import run_notebook
from mlcycle.notebooks.sweep.runner import run_many
from mlcycle.notebooks.sweep.shared_cells import sharing
from mlcycle.notebooks.warm.pool import close_all
from mlcycle.store.connect import Store
from tests.benchmarks.conftest import Race

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="kernels are forked on Linux only")
PARAMETERS = {"tags": ["parameters"]}
FIT = ["C = 1.0\nmax_iter = 200\nseed = 0",
       "import numpy as np\nimport pandas as pd\nimport sklearn\nimport matplotlib.pyplot as plt\nfrom sklearn.datasets import load_breast_cancer\n"
       "from sklearn.linear_model import LogisticRegression\nfrom sklearn.model_selection import train_test_split\n"
       "from sklearn.pipeline import make_pipeline\n"
       "from sklearn.preprocessing import StandardScaler",
       "X, y = load_breast_cancer(return_X_y=True)\nXa, Xb, ya, yb = train_test_split(X, y, random_state=seed)",
       "m = make_pipeline(StandardScaler(), LogisticRegression(C=C, max_iter=max_iter)).fit(Xa, ya)", "acc = float(m.score(Xb, yb))\nprint(acc)"]


@pytest.fixture
def written(tmp_path: Path) -> Callable[..., Path]:
    "`written(*cells)`: a notebook in a file; the first cell that assigns is its parameters."
    yield lambda *cells, parameters=0: _write(tmp_path / "train.ipynb", cells, parameters)
    close_all()


def _write(path: Path, cells: tuple[str, ...], parameters: int) -> Path:
    kernel = {"kernelspec": {"name": "python3", "language": "python", "display_name": "Python 3"}, "language_info": {"name": "python"}}
    nbformat.write(new_notebook(cells=[new_code_cell(cell, metadata=PARAMETERS if i == parameters else {}) for i, cell in enumerate(cells)],
                                metadata=kernel), path)
    return path


@pytest.mark.parametrize(("name", "cells", "bound"), [("empty", ["pass"], 0.25), ("ten cells", [f"x{i} = {i}" for i in range(10)], 0.3),
                                                      ("fitting", FIT, 0.12)])
def test_one_run(race: Race, local: Store, written: Callable[..., Path], tmp_path: Path, name: str, cells: list[str], bound: float) -> None:
    "A tracked run in a forked kernel, against Papermill by itself."
    path = written(*cells)
    logging.getLogger("papermill").setLevel(logging.CRITICAL)

    def ours() -> None:
        assert run_notebook(path, store=local, progress=False).status == "finished"

    def theirs() -> None:
        papermill.execute_notebook(str(path), str(tmp_path / "out.ipynb"), progress_bar=False)

    ours()
    race.run(f"{name} notebook, against Papermill", ours, theirs, rounds=9, bound=bound, ratio=True)


@pytest.mark.parametrize("fits", [16, 8])
def test_a_study_that_loads_once(race: Race, local: Store, written: Callable[..., Path], fits: int) -> None:
    "A hundred runs of 0.1 s (or half), two at a time, whose data takes 5 s to load, against loading it once and doing the rest in this process."
    trials, load = race.size(100, 4), race.size(5.0, 0.1)
    prepare = (f"import time\nimport numpy as np\nfrom sklearn.linear_model import LogisticRegression\ntime.sleep({load})\n"
               "X = np.random.default_rng(0).normal(size=(4000, 40))\ny = (X[:, 0] > 0).astype(int)")
    train = f"for _ in range({fits}):\n    score = LogisticRegression(C=C, max_iter=500).fit(X, y).score(X, y)"
    path = written(prepare, "C = 1.0", train, parameters=1)

    def ours() -> None:
        done = run_many(path, {"C": [1.0 + i for i in range(trials)]}, jobs=2, store=local, progress=False)
        assert done.status == "finished" and not done.warnings

    def floor() -> None:
        space: dict[str, object] = {}
        exec(prepare, space)
        for i in range(trials):
            exec(train, {**space, "C": 1.0 + i})

    race.run(f"study of {trials} runs ({fits} fits each), data shared, against once and in process", ours, floor, rounds=3, bound=1.2, ratio=True)


def test_memory_of_shared_data(race: Race, local: Store, written: Callable[..., Path]) -> None:
    "Eight runs at once over a DataFrame of 1 GB take 1.5 GB in all."
    rows = race.size(12_500_000, 100_000)
    load = f"import numpy as np, pandas as pd\ndata = pd.DataFrame(np.ones(({rows}, 10)))"
    path = written(load, "factor = 1", "total = data[0].sum() * factor", "import time; time.sleep(5)", parameters=1)
    with sharing(path, store=local) as (shared, reason), ThreadPoolExecutor(8) as eight:
        assert shared is not None, reason
        waiting = [eight.submit(run_notebook, path, {"factor": i}, shared=shared, store=local, progress=False) for i in range(8)]
        most, keeper = 0.0, psutil.Process(shared.checkpoint.pid)
        while not all(each.done() for each in waiting):
            kernels = keeper.children()
            if len(kernels) == 8:
                try:
                    most = max(most, sum(each.memory_full_info().pss for each in (keeper, *kernels)) / 1e9)
                except psutil.Error:
                    continue
            time.sleep(0.2)
    if race.timed:
        race.note("memory of eight runs over 1 GB", f"{most:.2f} GB", "", f"{most:.2f} GB", "<= 1.5 GB", 0 < most <= 1.5)
    race.benchmark(lambda: None)  # memory is what is measured
    assert all(each.result().status == "finished" for each in waiting)


def test_a_second_run_from_a_shell(race: Race, written: Callable[..., Path], tmp_path: Path) -> None:
    "`mlcycle run` once a process waits for it, against the command `papermill`, of a notebook that imports pandas and scikit-learn."
    path = written(*FIT)
    (tmp_path / ".git").mkdir()
    runtime = tempfile.mkdtemp(dir="/tmp")  # a socket's name must be short
    env = {name: value for name, value in os.environ.items() if name != "CI" and not name.startswith("MLCYCLE_")} | {"XDG_RUNTIME_DIR": runtime}

    def command(*words: str) -> str:
        return subprocess.run([sys.executable, "-m", *words], cwd=tmp_path, env=env, check=True, capture_output=True, text=True).stdout

    def waits() -> bool:
        return any(state["ready"] and state["imports"] for state in json.loads(command("mlcycle", "warm", "--json")))

    try:
        command("mlcycle", "run", path.name)
        while race.timed and not waits():
            time.sleep(0.1)
        race.run("second `mlcycle run` in a shell, against `papermill`", lambda: command("mlcycle", "run", path.name),
                 lambda: command("papermill", path.name, "out.ipynb", "--no-progress-bar"), rounds=5, unit="s", bound=0.2, ratio=True)
    finally:
        command("mlcycle", "warm", "stop")
        shutil.rmtree(runtime, ignore_errors=True)
