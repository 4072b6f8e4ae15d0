"What autologging adds to a fit, side by side with the same fit without it."
from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.base import BaseEstimator
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV

import mlcycle as mlc
from mlcycle.store.connect import Store
from mlcycle.track.autolog.options import Options, options, set_options
from tests.benchmarks.conftest import Race


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    "Autologging, wrapped around everything and on only where a round says so."
    mlc.autolog()
    set_options(None)
    yield mlc.connect(tmp_path / "store" / "mlcycle.db")
    set_options(Options())
    mlc.autolog(False)


class Autologged:
    "A block with autologging on, with its switch and nothing else in the measured time."

    def __enter__(self) -> None:
        set_options(Options())
        assert options() is not None

    def __exit__(self, *exc: Any) -> None:
        set_options(None)


@pytest.mark.parametrize("where", ["a run of its own", "in a run"])
def test_fit(race: Race, store: Store, where: str) -> None:
    "A forest of about 0.2 s, in a run of its own that begins and ends, and in the user's run."
    rng, trees = np.random.default_rng(0), 10
    X = rng.normal(size=(race.size(6000, 100), 20))
    y = (X[:, 0] + rng.normal(size=len(X)) > 0).astype(int)

    def fit() -> None:
        RandomForestClassifier(trees, random_state=0).fit(X, y)

    if race.timed:
        begin = time.perf_counter()
        fit()
        trees = max(10, int(trees * 0.22 / (time.perf_counter() - begin)))

    def ours() -> None:
        with Autologged():
            if where == "in a run":
                with mlc.run("forest", capture=False):
                    fit()
            else:
                fit()

    def raw() -> None:
        if where == "in a run":
            with mlc.run("forest", capture=False):
                fit()
        else:
            fit()

    ours()
    race.run(f"autologged fit of 0.2 s, {where}", ours, raw, rounds=25, bound=1.05, ratio=True)


class Nothing(BaseEstimator):
    "A fit that takes no time."

    def fit(self, X: Any, y: Any = None) -> Nothing:
        return self


@pytest.mark.parametrize("rows", [1_000, 1_000_000])
def test_overhead(race: Race, store: Store, rows: int) -> None:
    "What is added, in itself, in the user's run: the same whatever the size of the data (whose digest is asked for neither time)."
    rows = race.size(rows, 10)
    X, y = np.zeros((rows, 20)), np.zeros(rows, dtype="int64")
    model = Nothing()

    def ours() -> None:
        set_options(Options(datasets=False))
        with mlc.run("nothing", capture=False):
            model.fit(X, y)
        set_options(None)

    def raw() -> None:
        with mlc.run("nothing", capture=False):
            model.fit(X, y)

    race.run(f"autologging itself, {rows:,} rows", ours, raw, rounds=50, bound=5, less=True)


def test_search(race: Race, store: Store) -> None:
    "A search of 500 candidates and 5 folds: all of them as child runs."
    from mlcycle.store.runs import children
    from mlcycle.track.autolog.logs import Log
    from mlcycle.track.autolog.searches import log_search
    from mlcycle.track.begin import start

    count, rng = race.size(500, 3), np.random.default_rng(0)
    search = GridSearchCV(LogisticRegression(), {"C": list(range(1, count + 1))}, cv=5)
    splits = {f"split{i}_test_score": rng.random(count) for i in range(5)}
    times = {f"{kind}_{what}_time": rng.random(count) for kind in ("mean", "std") for what in ("fit", "score")}
    search.cv_results_ = {"params": [{"C": i, "solver": "lbfgs", "max_iter": 100} for i in range(count)], **splits, **times,
                          "mean_test_score": rng.random(count), "std_test_score": rng.random(count), "rank_test_score": np.arange(1, count + 1)}
    runs = [start(store=store, capture=False) for _ in range(12)]
    todo = iter(runs)
    race.run(f"{count} candidates as child runs", lambda: log_search(Log(next(todo), own=True), search), rounds=11, bound=1000)
    assert len(children(store, runs[0].run)) == count
