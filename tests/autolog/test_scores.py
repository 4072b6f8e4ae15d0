"Scores that a notebook computes after a fit, in the run of the fit."
from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn import metrics as sk
from sklearn.datasets import load_breast_cancer, load_diabetes, load_iris
from sklearn.dummy import DummyClassifier
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, mean_absolute_error, roc_auc_score
from sklearn.model_selection import GridSearchCV, cross_val_score, train_test_split
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import mlcycle as mlc
from mlcycle.data.datasets import describe
from mlcycle.entities import Run
from mlcycle.store import artifacts, facts, inputs, metrics
from mlcycle.store.connect import Store
from tests.autolog.conftest import all_runs

X, y = load_breast_cancer(return_X_y=True, as_frame=True)
X_train, X_test, y_train, y_test = train_test_split((X - X.mean()) / X.std(), y, random_state=0)


def evaluations(store: Store, run: Run) -> dict[str, Any]:
    "Name of the data to what can be drawn."
    return {file.name: json.loads(store.blobs.read(file.digest)) for file in artifacts.listing(store, run) if file.kind == "evaluation"}


def test_scores_after_the_run(logged: Store) -> None:
    "Scores and metrics land in the run of the model that answered, with the value that the user saw, named for the data; a second time adds nothing."
    models = [make_pipeline(StandardScaler(), LogisticRegression(C=c)).fit(X_train, y_train) for c in (0.001, 1.0)]
    assert [run.status for run in all_runs(logged)] == ["finished"] * 2
    for _ in range(2):
        seen = [{"test_accuracy": model.score(X_test, y_test), "test_roc_auc": roc_auc_score(y_test, model.predict_proba(X_test)[:, 1]),
                 "test_f1_macro": f1_score(y_test, model.predict(X_test), average="macro"),
                 "test_fbeta_beta_2": sk.fbeta_score(y_test, model.predict(X_test), beta=2), "training_accuracy": model.score(X_train, y_train)}
                for model in models]
    for run, model, values in zip(all_runs(logged), models, seen, strict=True):
        kept = metrics.latest(logged, run)
        assert {name: kept[name] for name in values} == values and facts.warnings(logged, run) == []
        assert [len(metrics.history(logged, run, name)) for name in values] == [1] * len(values)
        test = evaluations(logged, run)["evaluation/test.json"]
        assert test["rows"] == len(y_test) and test["confusion"]["counts"] == confusion_matrix(y_test, model.predict(X_test)).tolist()
        roc, = test["roc"]
        assert np.trapezoid(roc["y"], roc["x"]) == pytest.approx(values["test_roc_auc"], abs=2e-3) and roc["label"] == "1"
    assert len(all_runs(logged)) == 2  # a score makes no run


def test_a_score_alone(logged: Store) -> None:
    "`score` of a pipeline gives all curves, without another metric; the answers of a network are views of views."
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it has not converged
        model = make_pipeline(StandardScaler(), MLPClassifier(5, max_iter=20, random_state=0)).fit(X_train, y_train)
    model.score(X_test, y_test)
    area = roc_auc_score(y_test, model.predict_proba(X_test)[:, 1])
    run, = all_runs(logged)
    test = evaluations(logged, run)["evaluation/test.json"]
    assert test["confusion"]["counts"] == confusion_matrix(y_test, model.predict(X_test)).tolist() and {"roc", "precision_recall"} <= set(test)
    assert metrics.latest(logged, run)["test_roc_auc"] == area


def test_what_is_not_known_is_not_logged(logged: Store) -> None:
    "Changed answers, another model's, and what cross-validation scores inside; the wrong order of arguments is put right."
    model = LogisticRegression().fit(X_train, y_train)
    mlc.autolog(False)
    stranger = LogisticRegression(C=2).fit(X_train, y_train)
    mlc.autolog()
    run, = all_runs(logged)
    before = metrics.latest(logged, run)
    accuracy_score(y_test, model.predict_proba(X_test)[:, 1] > 0.3)
    accuracy_score(y_test, stranger.predict(X_test))
    stranger.score(X_test, y_test)
    assert metrics.latest(logged, run) == before
    holdout = X_test[:50]
    value = accuracy_score(model.predict(holdout), y_test[:50])
    assert metrics.latest(logged, run) == before | {"holdout_accuracy": value}
    cross_val_score(model, X_train, y_train, cv=2)
    assert metrics.latest(logged, run) == before | {"holdout_accuracy": value}


def test_every_kind_of_answer(logged: Store) -> None:
    "Several classes have a curve each, a regressor residuals, a search the name of its scoring."
    iris, species = load_iris(return_X_y=True)
    LogisticRegression(max_iter=300).fit(iris, species).score(iris[::2], species[::2])
    diabetes, progress = load_diabetes(return_X_y=True)
    ridge = Ridge().fit(diabetes[:300], progress[:300])
    y_late = progress[300:]
    error = mean_absolute_error(y_late, ridge.predict(diabetes[300:]))
    search = GridSearchCV(LogisticRegression(), {"C": [0.1, 1]}, scoring="roc_auc", cv=2).fit(X_train, y_train)
    value = search.score(X_test, y_test)
    flowers, numbers, searched = [run for run in all_runs(logged) if run.parent is None]
    unnamed = evaluations(logged, flowers)["evaluation/data.json"]
    assert [curve["label"] for curve in unnamed["roc"]] == ["0", "1", "2"] and np.sum(unnamed["confusion"]["counts"]) == 75
    assert metrics.latest(logged, numbers)["late_mean_absolute_error"] == error
    residuals = evaluations(logged, numbers)["evaluation/late.json"]["residuals"]
    assert np.allclose(sorted(np.array(residuals["x"]) + residuals["y"]), sorted(y_late), atol=1e-2)
    assert metrics.latest(logged, searched)["test_roc_auc"] == value


def test_the_data_of_a_score_is_noted_beside_that_of_the_fit(logged: Store) -> None:
    "Once, by the digest of what was scored, whoever scored it; nothing of large data, and no score is lost to data that has no digest."
    model = LogisticRegression().fit(X_train, y_train)
    for _ in range(2):
        model.score(X_test, y_test)
        roc_auc_score(y_test, model.predict_proba(X_test)[:, 1])
    model.score(X_train, y_train)
    late, y_late = X_test[:40].copy(), y_test[:40].copy()
    accuracy_score(y_late, model.predict(late))
    [run] = all_runs(logged)
    noted = [(dataset.role, dataset.name, dataset.digest) for dataset in inputs.listing(logged, run) if dataset.role == "test"]
    wanted = {"X_test": X_test, "y_test": y_test, "late": late, "y_late": y_late}
    assert sorted(noted) == sorted(("test", name, describe(data).digest) for name, data in wanted.items())
    mlc.autolog(datasets=True)
    odd = np.array([[lambda: 1]], dtype=object)
    anything = DummyClassifier(strategy="constant", constant=1).fit(X_train, y_train)
    assert anything.score(odd, np.array([1])) == 1.0
    assert metrics.latest(logged, all_runs(logged)[-1])["odd_score"] == 1.0
    mlc.autolog()


def test_the_users_call_never_fails(logged: Store, tmp_path: Path) -> None:
    "A wrong call raises what it raises; where the store is gone the score is still the score, and it is said."
    model = LogisticRegression().fit(X_train, y_train)
    with pytest.raises(ValueError, match="inconsistent numbers"):
        accuracy_score(y_test[:10], model.predict(X_test))
    with pytest.raises(TypeError):
        model.score(X_test)
    right = model.score(X_test, y_test)
    logged.close()
    (tmp_path / "store").rename(tmp_path / "away")
    (tmp_path / "store").touch()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert model.score(X_test[:-1], y_test[:-1]) == accuracy_score(y_test[:-1], model.predict(X_test[:-1])) and 0.9 < right < 1
    assert any("not logged" in str(warning.message) for warning in said)
