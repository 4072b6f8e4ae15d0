"Autologging records what was fitted, with the weights that it was fitted with, and one value that cannot be had loses no other."
from __future__ import annotations

import warnings

import numpy as np
import pytest
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.linear_model import LogisticRegression, Ridge, SGDClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.tree import DecisionTreeClassifier

import mlcycle as mlc
from mlcycle.store import facts, metrics
from mlcycle.store.connect import Store
from tests.autolog.conftest import all_runs

rng = np.random.default_rng(0)
X = rng.normal(size=(60, 2))
y = X[:, 0] + rng.normal(size=60)
flags = (y > 0).astype(int)


def test_training_metrics_use_the_weights_of_the_fit(logged: Store) -> None:
    "By name, by position, and to a step of a pipeline inside of another."
    mlc.autolog(training_metrics=True)
    weight = np.where(np.arange(60) < 30, 100.0, 0.01)
    Ridge().fit(X, y, sample_weight=weight)
    Ridge().fit(X, y, weight)
    make_pipeline(Ridge()).fit(X, y, ridge__sample_weight=weight)
    make_pipeline(make_pipeline(Ridge())).fit(X, y, pipeline__ridge__sample_weight=weight)
    Ridge().fit(X=X, y=y)
    scores = [metrics.latest(logged, run)["training_r2"] for run in all_runs(logged)]
    assert np.allclose(scores[:4], scores[0]) and not np.isclose(scores[4], scores[0])


class Odd(RegressorMixin, BaseEstimator):
    "An estimator with a param and a result that cannot be stored."

    def __init__(self, alpha: float = 1.0, odd: object = None):
        self.alpha, self.odd = alpha, odd

    def fit(self, X: object, y: object) -> Odd:
        self.n_iter_, self.loss_curve_ = 3, [0.5, 0.25]
        return self

    @property
    def loss_(self) -> float:
        raise RuntimeError("no loss")

    def predict(self, X: np.ndarray) -> np.ndarray:
        return np.full(len(X), np.inf)  # which no error can be computed of


def test_one_value_that_cannot_be_had_loses_no_other(logged: Store) -> None:
    "One class has no log loss; an endless prediction has no error; the rest is there, and what is not is a warning."
    mlc.autolog(training_metrics=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        DecisionTreeClassifier().fit(np.zeros((5, 1)), np.zeros(5))
        Odd().fit(X, y)
    one_class, odd = all_runs(logged)
    assert {"training_accuracy", "training_precision", "training_recall", "training_f1"} <= set(metrics.latest(logged, one_class))
    values = metrics.latest(logged, odd)
    assert {"fit_seconds", "n_iter", "loss_curve"} <= set(values) and facts.params(logged, odd) == {"alpha": 1.0, "odd": None}
    assert "training_r2" not in values and any("training_r2" in warning for warning in facts.warnings(logged, odd))


def test_what_was_fitted_stands_beside_a_param_of_the_same_name(logged: Store) -> None:
    "A notebook's C stays, and the C that was fitted is recorded too; where both agree there is one."
    with mlc.run("a", "e", {"C": 0.5, "max_iter": 500}, capture=False) as run:
        LogisticRegression(C=10.0, max_iter=500).fit(X, flags)
    recorded = run.params
    assert (recorded["C"], recorded["LogisticRegression__C"], recorded["max_iter"]) == (0.5, 10.0, 500)
    assert "LogisticRegression__max_iter" not in recorded


def test_params_that_the_fit_chooses_are_recorded_as_fitted(logged: Store) -> None:
    "XGBClassifier finds its objective when it sees the classes."
    xgboost = pytest.importorskip("xgboost")
    xgboost.XGBClassifier(n_estimators=2).fit(X, np.arange(60) % 3)
    with mlc.run("own", "e", {"objective": "mine"}, capture=False) as run:
        xgboost.XGBClassifier(n_estimators=2).fit(X, np.arange(60) % 3)
    assert facts.params(logged, all_runs(logged)[0])["objective"] == "multi:softprob"
    assert (run.params["objective"], run.params["XGBClassifier__objective"]) == ("mine", "multi:softprob")


def test_fits_in_parts_are_one_run(logged: Store) -> None:
    "A loop over batches: params once, the loss of each batch; without a run around it the first one says what to do."
    model = MLPClassifier(4, random_state=0)
    with mlc.run("batches", "e", capture=False) as run:
        for _ in range(3):
            model.partial_fit(X, flags, classes=[0, 1])
    assert run.params["hidden_layer_sizes"] == 4 and len(mlc.history(run, "loss")) == 3
    outside = SGDClassifier(random_state=0)
    for _ in range(3):
        outside.partial_fit(X, flags, classes=[0, 1])
    assert [r.name.partition("-")[0].partition(" ")[0] for r in all_runs(logged)][:1] == ["batches"] and len(all_runs(logged)) == 2
    assert any("no run was open" in warning for warning in facts.warnings(logged, all_runs(logged)[1]))
    with mlc.run("later", "e", capture=False) as later:
        model.partial_fit(X, flags)
    assert later.params["hidden_layer_sizes"] == 4 and len(mlc.history(later, "loss")) == 1 and len(mlc.history(run, "loss")) == 3
