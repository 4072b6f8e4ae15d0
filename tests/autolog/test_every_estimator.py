"Every estimator that scikit-learn has: none of them makes autologging stumble."
from __future__ import annotations

import contextlib
import warnings
from typing import Any

from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression
from sklearn.utils import all_estimators

import mlcycle as mlc
from mlcycle.store import facts, metrics
from mlcycle.store.connect import Store
from tests.autolog.conftest import all_runs


def made(kind: type) -> Any:
    "With its defaults, or around a simple model."
    for given in ((), (LogisticRegression(),)):
        with contextlib.suppress(TypeError):
            return kind(*given)
    return None


def test_every_estimator(logged: Store) -> None:
    "A fit that works gives a finished run, one that does not a failed one; neither leaves a warning, whatever its params and attributes are."
    mlc.autolog(training_metrics=True)
    X, y = load_iris(return_X_y=True)
    worked = failed = 0
    for _, kind in all_estimators():
        if (estimator := made(kind)) is None:
            continue
        before = len(all_runs(logged))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                estimator.fit(X[::4], y[::4])
                done = "finished"
            except Exception:
                done = "failed"
        for run in all_runs(logged)[before:]:
            assert (run.status, facts.warnings(logged, run)) == (done, []), run.name
            worked, failed = worked + (done == "finished"), failed + (done == "failed")
            assert done == "failed" or "fit_seconds" in metrics.latest(logged, run)
        assert len(all_runs(logged)) - before in (0, 1)
    assert worked > 90 and failed > 5
