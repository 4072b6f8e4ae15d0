"xgboost and lightgbm themselves: estimators, native training, restoring. Skipped where they are not installed."
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import mlcycle as mlc
from mlcycle.store import artifacts, facts, metrics
from mlcycle.store import runs as store_runs
from mlcycle.store.connect import Store
from tests.autolog.conftest import all_runs

X, y = load_breast_cancer(return_X_y=True)


class Library:
    "One of the two, as far as the tests need to know."

    def __init__(self, name: str):
        self.name, self.module = name, pytest.importorskip(name, reason=f"needs {name}: pip install 'mlcycle[dev]'")

    def estimator(self, **options: Any) -> Any:
        kind = self.module.XGBClassifier if self.name == "xgboost" else self.module.LGBMClassifier
        return kind(n_jobs=1, **options, **({} if self.name == "xgboost" else {"verbose": -1}))

    def fit(self, model: Any) -> Any:
        return model.fit(X, y, eval_set=[(X, y)], **({"verbose": False} if self.name == "xgboost" else {}))

    def train(self, rounds: int, **options: Any) -> tuple[Any, dict[str, Any]]:
        "The booster, and the curve that the library keeps itself."
        kept: dict[str, Any] = {}
        if self.name == "xgboost":
            data = self.module.DMatrix(X, y)
            given = {"objective": "binary:logistic", "eval_metric": "logloss", "nthread": 1, "eta": 0.2}
            return self.module.train(given, data, rounds, evals=[(data, "seen")], evals_result=kept, verbose_eval=False, **options), kept
        data = self.module.Dataset(X, y)
        given = {"objective": "binary", "metric": "binary_logloss", "num_threads": 1, "learning_rate": 0.2, "verbose": -1}
        callbacks = [self.module.record_evaluation(kept)]
        return self.module.train(given, data, rounds, valid_sets=[data], valid_names=["seen"], callbacks=callbacks, **options), kept


@pytest.fixture(params=["xgboost", "lightgbm"])
def library(request: pytest.FixtureRequest) -> Library:
    return Library(request.param)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
def test_estimator_logs_each_iteration(library: Library, logged: Store) -> None:
    "An estimator's evaluation metrics are a curve, step by step what it keeps itself, with its params beside it."
    with mlc.run("boost", capture=False) as run:
        model = library.fit(library.estimator(n_estimators=7, max_depth=3))
    kept = model.evals_result_ if library.name == "lightgbm" else model.evals_result()
    for data, found in kept.items():
        for metric, values in found.items():
            assert [p.value for p in metrics.history(logged, run.run, f"{data}-{metric}")] == pytest.approx(list(values))
    assert run.params["n_estimators"] == 7 and facts.warnings(logged, run.run) == [] and len(all_runs(logged)) == 1
    assert model.get_params().get("callbacks") is None


def test_native_training(library: Library, logged: Store) -> None:
    "`train` called directly: params, each iteration as a step, and the booster on request."
    mlc.autolog(models=True)
    with mlc.run("native", capture=False) as run:
        booster, kept = library.train(9)
    metric, = kept["seen"]
    assert [p.value for p in metrics.history(logged, run.run, f"seen-{metric}")] == pytest.approx(kept["seen"][metric])
    assert run.params["num_boost_round"] == 9 and run.params[{"xgboost": "eta", "lightgbm": "learning_rate"}[library.name]] == 0.2
    stored, = (a for a in artifacts.listing(logged, run.run) if a.name.startswith("model/"))
    content = logged.blobs.read(stored.digest)
    if library.name == "xgboost":
        again = library.module.Booster(model_file=bytearray(content))
        data = library.module.DMatrix(X)
        assert np.array_equal(again.predict(data), booster.predict(data))
    else:
        assert np.array_equal(library.module.Booster(model_str=content.decode()).predict(X), booster.predict(X))
    library.train(2)
    assert all_runs(logged)[-1].name.startswith(f"{library.name}-train-") and facts.warnings(logged, run.run) == []


def test_inside_others(library: Library, logged: Store) -> None:
    "In a pipeline it is the pipeline's fit that is logged, in a search only the search and its candidates."
    make_pipeline(StandardScaler(), library.estimator(n_estimators=2)).fit(X, y)
    run, = all_runs(logged)
    assert run.name.startswith(type(library.estimator()).__name__)
    GridSearchCV(library.estimator(n_estimators=2), {"max_depth": [2, 3]}, cv=2).fit(X, y)
    children = store_runs.children(logged, all_runs(logged)[1])
    assert [facts.params(logged, child) for child in children] == [{"max_depth": 2}, {"max_depth": 3}] and len(all_runs(logged)) == 4


def test_restored(library: Library) -> None:
    "Off, every name of `train` is the function that it was, on the inside too."
    def seen() -> list[Any]:
        train = library.module.train
        return [train, library.module.sklearn.train, [c.cell_contents for c in train.__closure__ or ()]]

    before = seen()
    mlc.autolog()
    assert seen() != before
    mlc.autolog(False)
    assert seen() == before


def test_imported_before_or_after(library: Library, python: Callable[..., str]) -> None:
    "A `train` that was imported by name before, and one that is imported later, are both logged."
    late = f"import mlcycle as mlc\nmlc.autolog()\nfrom {library.name} import train\nimport {library.name} as lib\n"
    early = f"import {library.name} as lib\nfrom {library.name} import train\nimport mlcycle as mlc\nmlc.autolog()\n"
    data = ("train({'nthread': 1}, lib.DMatrix([[1.], [2.]], [0, 1]), 2)" if library.name == "xgboost"
            else "import numpy as np; train({'num_threads': 1, 'verbose': -1}, lib.Dataset(np.zeros((50, 1)), np.zeros(50)), 2)")
    for code in (early, late):
        assert python(code + data + f"\nprint(len(mlc.runs(\"tags.estimator == '{library.name}.Booster'\")))").strip().splitlines()[-1] in ("1", "2")
