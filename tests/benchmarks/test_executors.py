"How well many short runs use a machine, and what a cluster adds to each."
from __future__ import annotations

import statistics
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import nbformat
import psutil
import pytest

import mlcycle as mlc
from mlcycle.notebooks.sweep.executors import cores
from mlcycle.notebooks.sweep.runner import run_many
from mlcycle.notebooks.warm.pool import close_all
from mlcycle.store.connect import Store
from tests.benchmarks.conftest import Race
from tests.executors.conftest import cluster  # noqa: F401

FIT = """import numpy as np
from sklearn.datasets import load_breast_cancer
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import scale

import mlcycle as mlc"""


@pytest.fixture
def store(tmp_path: Path) -> Store:
    "The store that the kernels log to."
    return mlc.connect(tmp_path / "store" / "mlcycle.db")


def write(path: Path, *cells: str) -> Path:
    "A notebook with one parameter."
    first = nbformat.v4.new_code_cell("seed = 1", id="parameters", metadata={"tags": ["parameters"]})
    rest = [nbformat.v4.new_code_cell(source, id=f"c{i}") for i, source in enumerate(cells)]
    nbformat.write(nbformat.v4.new_notebook(cells=[rest[0], first, *rest[1:]]), path)
    return path


def idle() -> float:
    "Seconds that the machine's processors had nothing to do so far."
    times = psutil.cpu_times()
    return times.idle + getattr(times, "iowait", 0.0)


def test_local_keeps_the_cores_busy(benchmark: Any, race: Race, store: Store, tmp_path: Path) -> None:
    "200 short runs, as many at once as there are processors: how much of them is used."
    path = write(tmp_path / "fit.ipynb", FIT, "X, y = load_breast_cancer(return_X_y=True)\nX = scale(X)\n"
                 "model = LogisticRegression(max_iter=200, random_state=seed).fit(X, y)\nmlc.log_metric('accuracy', model.score(X, y))")
    count, shares, times = race.size(200, 2), [], []

    def round_() -> None:
        began, unused = time.perf_counter(), idle()
        assert run_many(path, {"seed": list(range(count))}, store=store, progress=False).status == "finished"
        times.append(time.perf_counter() - began)
        shares.append(1 - (idle() - unused) / (times[-1] * cores()))  # on a quiet machine

    close_all()
    benchmark.pedantic(round_, rounds=5 if race.timed else 1, iterations=1)
    if race.timed:
        each, first, share = 1e3 * statistics.median(times) / count, 1e3 * times[0] / count, statistics.median(shares)
        race.note(f"{count} short runs, {cores()} at once", f"{each:.0f} ms a run", "", f"{share:.0%} of the cores", ">= 90%", share >= 0.9)
        race.note("the first round of these, which imports", f"{first:.0f} ms a run", "", f"{shares[0]:.0%} of the cores", "shown", None)


def test_dask_adds_little(benchmark: Any, race: Race, store: Store, tmp_path: Path, cluster: Any) -> None:  # noqa: F811
    "The same runs through a cluster of as many workers on this machine, in turn with local ones."
    if not find_spec("distributed"):
        pytest.skip("needs dask.distributed")
    path, count = write(tmp_path / "short.ipynb", "import mlcycle as mlc", "mlc.log_metric('seed', seed)"), race.size(20, 2)
    made, local, dask = cluster(cores()), [], []

    def one(executor: str, times: list[float]) -> None:
        began = time.perf_counter()
        assert run_many(path, {"seed": list(range(count))}, executor=executor, jobs=cores(), store=store, progress=False).status == "finished"
        times.append((time.perf_counter() - began) / count * cores())

    def round_() -> None:
        one("local", local)
        one(made.executor, dask)

    round_()  # imports are done once for all
    local.clear()
    dask.clear()
    benchmark.pedantic(round_, rounds=3 if race.timed else 1, iterations=1)
    if race.timed:
        ours, raw = 1e3 * statistics.median(dask), 1e3 * statistics.median(local)
        race.note(f"a run by Dask, of {count}", f"{ours:.0f} ms", f"{raw:.0f} ms", f"{ours - raw:.0f} ms", "<= 50 ms", ours - raw <= 50)
