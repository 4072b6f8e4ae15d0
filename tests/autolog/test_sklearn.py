"scikit-learn's fit, searches and cross-validation: what a notebook's examples cannot show."
from __future__ import annotations

import json
import multiprocessing
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from inspect import signature
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
import pytest
from joblib import parallel_config
from sklearn import metrics as metrics_module
from sklearn import model_selection
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.datasets import load_breast_cancer
from sklearn.decomposition import PCA
from sklearn.ensemble import BaggingClassifier, HistGradientBoostingClassifier, RandomForestClassifier, StackingClassifier, VotingClassifier
from sklearn.experimental import enable_halving_search_cv  # noqa: F401
from sklearn.feature_selection import SelectFromModel
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import (
    GridSearchCV,
    HalvingGridSearchCV,
    RandomizedSearchCV,
    cross_val_predict,
    cross_val_score,
    cross_validate,
    permutation_test_score,
    validation_curve,
)
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import all_estimators

import mlcycle as mlc
from mlcycle.registry.loading import find_model
from mlcycle.store import artifacts, facts, inputs, metrics
from mlcycle.store import runs as store_runs
from mlcycle.store.connect import Store, open_store
from mlcycle.track.active import ActiveRun
from tests.autolog.conftest import all_runs

X, y = load_breast_cancer(return_X_y=True, as_frame=True)
X = (X - X.mean()) / X.std()
small, target = X.to_numpy()[:120], y.to_numpy()[:120]


def snapshot() -> dict[Any, Any]:
    "Every attribute of every estimator class and of those above it, and what else is changed."
    kinds = {kind for _, estimator in all_estimators() for kind in estimator.__mro__ if kind is not object}
    found: dict[Any, Any] = {(kind, name): value for kind in kinds for name, value in vars(kind).items() if not name.startswith(("__doc", "_abc"))}
    found |= {(key, "fn"): value.fn for key, value in found.items() if hasattr(value, "fn") and hasattr(value, "check")}
    for name in ("cross_validate", "cross_val_predict", "learning_curve", "validation_curve", "permutation_test_score"):
        found[name] = [cell.cell_contents for cell in getattr(model_selection, name).__closure__]
    found |= {name: [cell.cell_contents for cell in getattr(metrics_module, name).__closure__] for name in ("roc_auc_score", "confusion_matrix")}
    return found | {"parallel": joblib.Parallel.__call__}


def test_off_restores_everything() -> None:
    "Every attribute of every class is the very object that it was, however often it was switched."
    before = snapshot()
    mlc.autolog()
    during = snapshot()
    changed = {key for key in before if during[key] is not before[key] and key[1:] not in (("__dict__",), ("__weakref__",))}
    mlc.autolog(models=True)
    mlc.autolog(False)
    mlc.autolog(False)
    after = snapshot()
    assert len(changed) > 150 and (LogisticRegression, "fit") in changed and "parallel" in changed
    different = [key for key in before.keys() | after.keys() if key not in after or key not in before
                 or (after[key] != before[key] if isinstance(after[key], list) else after[key] is not before[key])]
    assert [key for key in different if key[1] not in ("__dict__", "__weakref__")] == []


NESTED = {
    "pipeline": lambda: make_pipeline(StandardScaler(), PCA(3), LogisticRegression()),
    "vote": lambda: VotingClassifier([("a", LogisticRegression()), ("b", HistGradientBoostingClassifier(max_iter=2))]),
    "stack": lambda: StackingClassifier([("a", LogisticRegression())], cv=2),
    "bag": lambda: BaggingClassifier(LogisticRegression(), 4),
    "select": lambda: make_pipeline(SelectFromModel(LogisticRegression()), LogisticRegression()),
}


@pytest.mark.parametrize("backend", ["sequential", "threading", "loky"])
@pytest.mark.parametrize("kind", NESTED)
def test_only_the_outermost_fit(logged: Store, kind: str, backend: str) -> None:
    "What an estimator fits inside itself is not logged, neither here nor in joblib's threads and processes."
    estimator = NESTED[kind]()
    with parallel_config(backend=backend, n_jobs=1 if backend == "sequential" else 2):
        estimator.fit(small, target)
    run, = all_runs(logged)
    assert run.status == "finished" and not facts.warnings(logged, run)


def test_preparation_is_no_model(logged: Store) -> None:
    "A transformer by itself leaves the run to the model, whichever of its methods is called, and so does what it fits inside."
    with mlc.run("prepared", capture=False) as run:
        data = StandardScaler().fit(small).transform(small)
        data = PCA(5).fit_transform(data)
        data = SelectFromModel(LogisticRegression()).fit_transform(data, target)
        model = RandomForestClassifier(5, oob_score=True, bootstrap=True, random_state=0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model.fit(data, target)
    assert run.params["n_estimators"] == 5 and run.metrics["oob_score"] == model.oob_score_ and len(all_runs(logged)) == 1


def test_further_fits_become_children(logged: Store) -> None:
    "The first fit goes into the run, the others into runs of their own below it, and the user's own params stay."
    with mlc.run("three", params={"C": "mine"}, capture=False) as run:
        for c in (0.1, 1.0, 10.0):
            LogisticRegression(C=c).fit(small, target)
    children = store_runs.children(logged, run.run)
    assert run.params["C"] == "mine" and run.params["max_iter"] == 100
    assert [facts.params(logged, child)["C"] for child in children] == [1.0, 10.0] and {c.experiment for c in children} == {run.experiment}


def test_threads_of_the_user_are_logged(logged: Store) -> None:
    "Fits that a user starts in threads are outermost, each of them, also side by side."
    def fit(c: float) -> Any:
        return LogisticRegression(C=c).fit(small, target)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(fit, [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]))
    found = all_runs(logged)
    assert sorted(facts.params(logged, run)["C"] for run in found) == [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    assert {run.status for run in found} == {"finished"}


def _fit_in_a_worker(c: float) -> float:
    return float(LogisticRegression(C=c).fit(small, target).score(small, target))


def test_forked_workers_do_not_log(logged: Store) -> None:
    "A forked worker inherits the changed classes and no run."
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert all(score > 0.9 for score in pool.map(_fit_in_a_worker, [0.5, 1.0]))
    assert all_runs(logged) == []


def test_classes_of_a_notebook_reach_workers(python: Callable[..., str]) -> None:
    "A class that is pickled by value, since it is defined in `__main__`, works in joblib's workers, and where there is no mlcycle at all."
    code = """
import sys, subprocess, cloudpickle, numpy as np, mlcycle as mlc
mlc.autolog()
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.model_selection import GridSearchCV
class Constant(ClassifierMixin, BaseEstimator):
    def __init__(self, value=0): self.value = value
    def fit(self, X, y):
        self.classes_ = np.unique(y)
        return self
    def predict(self, X): return np.full(len(X), self.value)
X, y = np.zeros((20, 2)), np.array([0, 1] * 10)
search = GridSearchCV(Constant(), {"value": [0, 1]}, cv=2, n_jobs=2).fit(X, y)
assert search.best_score_ == 0.5
with open("constant.pkl", "wb") as f: cloudpickle.dump((Constant(1), X, y), f)
print(len(mlc.runs()))
"""
    assert python(code).strip() == "3"
    there = """
import sys, pickle
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.startswith("mlcycle"): raise ImportError(name)
sys.meta_path.insert(0, Refuse())
model, X, y = pickle.load(open("constant.pkl", "rb"))
print(model.fit(X, y).predict(X).sum())
"""
    assert python(there).strip() == "20"


@pytest.mark.parametrize("first", ["sklearn", "autolog"])
def test_whichever_comes_first(python: Callable[..., str], first: str) -> None:
    "It works whether scikit-learn is imported before or after, also for functions imported by name, and does not import it itself."
    names = "from sklearn.model_selection import cross_val_score as score\nfrom sklearn.linear_model import Ridge\n"
    on = "import sys, mlcycle as mlc\nmlc.autolog()\n"
    if first == "autolog":
        on += "assert 'sklearn' not in sys.modules and 'pandas' not in sys.modules and 'matplotlib' not in sys.modules\n"
    rest = """
import numpy as np
X = np.arange(20.).reshape(-1, 1)
Ridge(alpha=3.0).fit(X, X[:, 0])
score(Ridge(), X, X[:, 0], cv=2)
frame = mlc.runs(order_by="started")
print([name.rsplit("-", 1)[0] for name in frame["name"]], sys.meta_path[0].__class__.__name__)
"""
    assert "['Ridge', 'Ridge-cv']" in python((names + on if first == "sklearn" else on + names) + rest)


def test_a_failing_fit_is_the_users(logged: Store) -> None:
    "The estimator's own error reaches the user unchanged; the run that was begun for it says that it failed."
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        LogisticRegression().fit(small, target[:5])
    run, = all_runs(logged)
    assert run.status == "failed" and run.error and run.error.type == "ValueError"
    LogisticRegression().fit(small, target)
    assert [r.status for r in all_runs(logged)] == ["failed", "finished"]


class Unruly(ClassifierMixin, BaseEstimator):
    "An estimator that answers every question about itself with an error."

    def fit(self, X: Any, y: Any) -> Unruly:
        self.fitted_ = True
        return self

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        raise RuntimeError("no params today")

    @property
    def n_iter_(self) -> int:
        raise RuntimeError("not counted")


def test_a_failure_of_ours_is_a_warning(logged: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    "An estimator that cannot be described, and a store that cannot be written to, do not disturb a fit."
    assert Unruly().fit(small, target).fitted_
    run, = all_runs(logged)
    assert run.status == "finished" and facts.warnings(logged, run) == ["autologging: params not logged: RuntimeError: no params today"]
    with logged.db.write() as con:
        con.exec_driver_sql("DROP TABLE params")
    assert LogisticRegression().fit(small, target).coef_.shape == (1, 30)
    monkeypatch.setenv("MLCYCLE_STORE", "nonsense://")
    monkeypatch.setattr("mlcycle.store.connect._connected", None)
    with pytest.warns(UserWarning, match="autologging of LogisticRegression failed"):
        assert LogisticRegression().fit(small, target).coef_.shape == (1, 30)


def test_classes_look_as_before(logged: Store) -> None:
    "Signatures, documentation, cloning and scikit-learn's own look at `fit` do not see the difference."
    assert list(signature(LogisticRegression.fit).parameters) == ["self", "X", "y", "sample_weight"]
    assert LogisticRegression.fit.__qualname__ == "LogisticRegression.fit" and "Fit the model" in LogisticRegression.fit.__doc__
    assert clone(LogisticRegression(C=3)).C == 3 and not hasattr(Pipeline([("scale", StandardScaler())]), "fit_predict")
    search = GridSearchCV(LogisticRegression(), {"C": [1.0]}, cv=2)
    search.fit(small, target, sample_weight=np.ones(len(target)))
    assert search.best_params_ == {"C": 1.0}

    class Weighted(LogisticRegression):
        def fit(self, X: Any, y: Any, weights: Any = None) -> Weighted:
            return super().fit(X, y, weights)

    assert "set_fit_request" in dir(Weighted) and "weights" in Weighted._get_class_level_metadata_request_values("fit")


SEARCHES = {
    "grid": lambda: GridSearchCV(LogisticRegression(), {"C": [0.1, 1.0, 10.0]}, cv=3, return_train_score=True),
    "random": lambda: RandomizedSearchCV(make_pipeline(StandardScaler(), LogisticRegression()), {"logisticregression__C": [0.1, 1.0, 10.0]},
                                         n_iter=3, cv=3, random_state=0),
    "halving": lambda: HalvingGridSearchCV(LogisticRegression(), {"C": [0.1, 1.0, 10.0]}, cv=3, min_resources=60, random_state=0),
    "several metrics": lambda: GridSearchCV(LogisticRegression(), {"C": [0.1, 1.0, 10.0]}, cv=3, scoring=["accuracy", "roc_auc"], refit=False),
}


@pytest.mark.parametrize("n_jobs", [1, 2])
@pytest.mark.parametrize("kind", SEARCHES)
def test_each_candidate_is_a_child(logged: Store, kind: str, n_jobs: int) -> None:
    "Of every search, each candidate is a run with its params, rank and folds, as `cv_results_` has them."
    search = SEARCHES[kind]().set_params(n_jobs=n_jobs)
    with mlc.run("search", capture=False) as run:
        search.fit(small, target)
    results, children = search.cv_results_, store_runs.children(logged, run.run)
    assert len(children) == len(results["params"]) == run.metrics["candidates"] and facts.warnings(logged, run.run) == []
    scorer = "accuracy" if kind == "several metrics" else "score"
    for i, child in enumerate(children):
        params, values = facts.params(logged, child), metrics.latest(logged, child)
        assert results["params"][i].items() <= params.items() and child.kind == "trial" and child.status == "finished"
        for name in (f"rank_test_{scorer}", f"mean_test_{scorer}", f"std_test_{scorer}", "mean_fit_time"):
            assert values[name] == results[name][i]
        assert [p.value for p in metrics.history(logged, child, f"test_{scorer}")] == [results[f"split{j}_test_{scorer}"][i] for j in range(3)]
        assert kind != "halving" or params["n_resources"] == results["n_resources"][i]
        assert kind != "grid" or values["mean_train_score"] == results["mean_train_score"][i]
    if kind != "several metrics":
        assert run.metrics["best_score"] == search.best_score_
        assert {f"best_{k}": v for k, v in search.best_params_.items()}.items() <= run.params.items()
    assert facts.tags(logged, run.run)["search"] == type(search).__name__


def test_folds_are_steps(logged: Store) -> None:
    "cross_validate, imported by name long before, logs its folds; what only draws curves or predicts stays quiet."
    with mlc.run("folds", capture=False) as run:
        result = cross_validate(LogisticRegression(C=0.7), small, target, cv=4, return_train_score=True)
        cross_val_predict(LogisticRegression(), small, target, cv=2)
        validation_curve(LogisticRegression(), small, target, param_name="C", param_range=[0.1, 1.0], cv=2)
        permutation_test_score(LogisticRegression(), small, target, cv=2, n_permutations=2)
    for name in ("test_score", "train_score"):
        assert [p.value for p in metrics.history(logged, run.run, name)] == result[name].tolist()
    assert run.metrics["mean_test_score"] == pytest.approx(result["test_score"].mean()) and run.params["C"] == 0.7
    assert len(all_runs(logged)) == 1
    cross_val_score(Ridge(), small, target, cv=2, n_jobs=2)
    assert all_runs(logged)[-1].name.startswith("Ridge-cv-") and len(all_runs(logged)) == 2


def test_what_is_asked_for(logged: Store) -> None:
    "The model loads and predicts the same, the data has its digest, training metrics are right; without asking there is none of it."
    mlc.autolog(models=True, training_metrics=True, datasets=True)
    with mlc.run("asked", capture=False) as run:
        model = make_pipeline(StandardScaler(), LogisticRegression()).fit(X, y)
    assert facts.warnings(logged, run.run) == []
    assert run.metrics["training_accuracy"] == model.score(X, y) and 0 < run.metrics["training_log_loss"] < 1
    assert [d.rows for d in inputs.listing(logged, run.run)] == [569, 569]
    mlc.register(run.id, "cancer")
    assert (mlc.load_model("cancer").predict(X) == model.predict(X)).all()
    mlc.autolog(datasets=False, training_metrics=False)
    with mlc.run("plain", capture=False) as run:
        model.fit(X, y)
    assert not any(name.startswith("training") for name in run.metrics) and artifacts.listing(logged, run.run) == []
    assert inputs.listing(logged, run.run) == []


def test_inputs_have_the_names_of_their_variables(logged: Store) -> None:
    "Local and global ones, keywords, a pipeline, parts of a fit; what stands in no variable is X and y."
    def fitted(fit: Callable[[], Any]) -> list[tuple[str, str]]:
        fit()
        whole = [run for run in all_runs(logged) if run.parent is None]  # not the candidates of a search
        return sorted((d.name, d.role) for d in inputs.listing(logged, whole[-1]))

    features, churned = np.asarray(X)[:50, :3].copy(), np.asarray(y)[:50].copy()
    named = [("churned", "train"), ("features", "train")]
    assert fitted(lambda: LogisticRegression().fit(features, churned)) == named
    assert fitted(lambda: make_pipeline(StandardScaler(), LogisticRegression()).fit(y=churned, X=features)) == named
    assert fitted(lambda: GridSearchCV(LogisticRegression(), {"C": [1.0, 2.0]}, cv=2).fit(features, churned)) == named
    assert fitted(lambda: LogisticRegression().fit(features + 1, churned)) == [("X", "train"), ("churned", "train")]
    assert fitted(lambda: LogisticRegression().fit(features[:], churned[:])) == [("X", "train"), ("y", "train")]
    assert fitted(lambda: LogisticRegression().fit(X, y)) == [("X", "train"), ("y", "train")]


def test_own_run_is_captured(logged: Store) -> None:
    "A run that autologging begins knows its environment and code like any other, and the second in the same process too."
    for _ in range(2):
        LogisticRegression().fit(small, target)
    for run in all_runs(logged):
        found = facts.captures(logged, run)
        assert {"environment", "hardware", "autolog"} <= set(found) and not facts.warnings(logged, run)
        assert found["autolog"]["classes"] == {"0": int((target == 0).sum()), "1": int((target == 1).sum())}


def test_long_params_are_shortened(logged: Store) -> None:
    "A param that is too long for a table is shortened, its whole text is an artifact, and arrays as long as the data are only described."
    class Heavy(LogisticRegression):
        def __init__(self, table: Any = None, words: Any = None, stop: str = ""):
            super().__init__()
            self.table, self.words, self.stop = table, words, stop

    with mlc.run("heavy", capture=False) as run:
        Heavy(np.zeros((10**6, 2)), pd.DataFrame({"a": [1, 2]}), "word " * 1000).fit(small, target)
    assert run.params["table"] == "ndarray[1000000, 2]" and run.params["words"] == "DataFrame[2, 1]"
    assert len(run.params["stop"]) < 250 and run.params["stop"].endswith("… (5,000 characters)")
    kept = artifacts.get(logged, run.run, "autolog/params.json")
    assert json.loads(logged.blobs.read(kept.digest))["stop"] == "word " * 1000


def test_secrets_are_masked(logged: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    "A secret of the environment that ends up in a candidate's params is not stored."
    monkeypatch.setenv("SERVICE_TOKEN", "hunter2-hunter2-hunter2")
    monkeypatch.setenv("MLCYCLE_SECRETS", "SERVICE_TOKEN")

    class Client(LogisticRegression):
        def __init__(self, token: str = ""):
            super().__init__()
            self.token = token

    GridSearchCV(Client(), {"token": ["hunter2-hunter2-hunter2"]}, cv=2).fit(small, target)
    stored = [facts.params(logged, run) for run in all_runs(logged)]
    assert len(stored) == 2 and "hunter2" not in json.dumps(stored)


def test_provider_of_a_distribution(tmp_path: Any, monkeypatch: pytest.MonkeyPatch, logged: Store) -> None:
    "Others add a library by an entry point; one that is broken is a warning and the rest works."
    mlc.autolog(False)
    site = tmp_path / "site"
    (site / "toy-1.0.dist-info").mkdir(parents=True)
    (site / "toy-1.0.dist-info" / "METADATA").write_text("Name: toy\nVersion: 1.0\n")
    (site / "toy-1.0.dist-info" / "entry_points.txt").write_text("[mlcycle.autolog]\ntoy = toy_autolog:provider\nbroken = toy_autolog:missing\n")
    (site / "toy.py").write_text("def train(rounds): return rounds * 2\n")
    (site / "toy_autolog.py").write_text("""
from mlcycle.track.autolog.outermost import record
def install(patches, module):
    patches.wrap(module.train, lambda plain: lambda rounds: record("toy", None, lambda: plain(rounds),
                 lambda log: log.params({"rounds": rounds}), lambda log, result: log.metrics({"result": result})))
provider = {"toy": install}
""")
    monkeypatch.syspath_prepend(site)
    with pytest.warns(UserWarning, match="autologging by broken is off"):
        mlc.autolog()
    import toy  # type: ignore[import-not-found]

    plain = toy.train
    with mlc.run("toy", capture=False) as run:
        assert toy.train(21) == 42
    assert run.params == {"rounds": 21} and run.metrics == {"result": 42.0}
    mlc.autolog(False)
    assert toy.train is not plain and toy.train(1) == 2 and len(all_runs(logged)) == 1


def test_parent_of_the_kept_type(logged: Store) -> None:
    "`current_run` inside a fit, as in a scorer of the user, is still the user's run."
    seen: list[ActiveRun] = []

    def score(estimator: Any, X: Any, y: Any) -> float:
        seen.append(mlc.current_run())
        return 0.5

    with mlc.run("scored", capture=False) as run:
        cross_val_score(LogisticRegression(), small, target, cv=2, scoring=score)
    assert seen == [run, run]


def test_the_model_of_a_fit_is_kept_without_being_asked_for(python: Callable[..., str], tmp_path: Path) -> None:
    "As it was when it was fitted, one of a run, at the end of the process; a search's best one; none of trials, and none beside the user's own."
    code = """
import os
import numpy as np
import mlcycle as mlc
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import GridSearchCV

class Own(Ridge):
    pass

X = np.arange(40.0).reshape(-1, 2)
y = np.repeat([0, 1], 10)
mlc.autolog()
model = Ridge(alpha=0.1)
with mlc.run("early"):
    model.fit(X, X[:, 0])
early = model.predict(X[:3]).tolist()
with mlc.run("late"):
    model.set_params(alpha=1e6).fit(X, -X[:, 1])
with mlc.run("search"):
    GridSearchCV(LogisticRegression(), {"C": [1.0, 2.0]}, cv=2).fit(X, y)
with mlc.run("by hand"):
    mlc.log_model(LogisticRegression(C=9.0).fit(X, y), "forest", X[:2])
    Ridge().fit(X, y)
with mlc.run("own"):
    Own().fit(X, y)
def target(C):
    LogisticRegression(C=C * 2).fit(X, y)
    return LogisticRegression(C=C).fit(X, y).score(X, y)
mlc.tune(target, {"C": "uniform(1, 2)"}, trials=2, study="tuned", direction="maximize", progress=False)
assert mlc.predict("early", X[:3])["prediction"].tolist() == early
if os.fork() == 0:
    from mlcycle.track.autolog.kept_models import store_waiting
    store_waiting()
    os._exit(0)
os.wait()
from mlcycle.track.autolog.kept_models import store_waiting
store_waiting()
for number in range(9):
    with mlc.run(f"many-{number}"):
        Ridge().fit(X, y)
"""
    python(code)
    with open_store(tmp_path / "mlcycle.db") as store:
        kept = {run.name: [file.name.split("/")[0] for file in artifacts.listing(store, run) if file.name.endswith("manifest.json")]
                for run in all_runs(store)}
        notes = {run.name: [note for note in facts.warnings(store, run) if "not kept" in note] for run in all_runs(store)}
        own = {"early", "late", "search", *(f"many-{number}" for number in range(1, 9))}
        assert {name for name, models in kept.items() if models == ["autologged"]} - {name for name in kept if name.startswith("Ridge")} == own
        assert kept["by hand"] == ["forest"] and not any(models for name, models in kept.items() if "tuned" in name)
        assert "code=[Own]" in notes["own"][0] and "newer ones" in notes["many-0"][0]
        assert sum(map(len, notes.values())) == 2, notes
        found = find_model("search", store=store)
        assert found.manifest.kind.endswith("LogisticRegression") and found.manifest.verified and not found.manifest.unsafe
        assert find_model("by hand", store=store).manifest.kind.endswith("LogisticRegression")
