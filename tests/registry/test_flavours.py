"Each kind of model comes back from a store as it was, here and on another machine, and what is missing or not trusted is said."
from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import catboost
import lightgbm as lgb
import numpy as np
import onnx
import pandas as pd
import pytest
import xgboost as xgb
from scipy import stats
from skl2onnx import to_onnx
from sklearn.compose import make_column_transformer
from sklearn.ensemble import VotingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import RandomizedSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder

import mlcycle as mlc
from mlcycle.errors import ModelError, NotFoundError, UnsafeModelError, UsageError
from mlcycle.registry import asking
from mlcycle.registry.flavours.base import flavours
from mlcycle.registry.outputs import outputs
from mlcycle.registry.safety.proofs import read_proof

rng = np.random.default_rng(0)
X = pd.DataFrame({"age": rng.integers(18, 90, 120), "income": rng.random(120) * 90, "town": rng.choice(["Ulm", "Jena", "Kiel"], 120)})
Y = ((X["age"] > 50) & (X["town"] != "Ulm")).astype(int)
NAMES = Y.map({0: "stays", 1: "leaves"})
NUMBERS = X[["age", "income"]].astype("float64")
CATEGORIES = X.assign(town=X["town"].astype("category"))
QUIET = {"iterations": 4, "verbose": 0, "thread_count": 1, "allow_writing_files": False}


def towns(last: Any) -> Any:
    "A pipeline of scikit-learn's with another library's model at its end."
    return make_pipeline(make_column_transformer((OneHotEncoder(), ["town"]), remainder="passthrough"), last)


def booster() -> xgb.Booster:
    return xgb.train({"nthread": 1, "objective": "multi:softprob", "num_class": 2}, xgb.DMatrix(CATEGORIES, Y, enable_categorical=True), 4)


def search() -> RandomizedSearchCV:
    space = {"xgbclassifier__learning_rate": stats.loguniform(0.01, 1), "xgbclassifier__max_depth": stats.randint(2, 4)}
    return RandomizedSearchCV(towns(xgb.XGBClassifier(n_estimators=3, n_jobs=1)), space, n_iter=2, cv=2, random_state=0).fit(X, Y)


def voting() -> VotingClassifier:
    return VotingClassifier([("x", xgb.XGBClassifier(n_estimators=3, n_jobs=1)), ("l", lgb.LGBMClassifier(n_estimators=3, verbose=-1, n_jobs=1)),
                             ("c", catboost.CatBoostClassifier(**QUIET)), ("s", LogisticRegression(max_iter=500))], voting="soft").fit(NUMBERS, NAMES)


MODELS = {
    "xgboost classifier": (lambda: xgb.XGBClassifier(n_estimators=4, n_jobs=1).fit(NUMBERS, Y), NUMBERS, "xgboost"),
    "xgboost booster": (booster, CATEGORIES, "xgboost"),
    "xgboost in a pipeline": (lambda: towns(xgb.XGBClassifier(n_estimators=4, n_jobs=1)).fit(X, Y), X, "xgboost"),
    "xgboost ranker": (lambda: xgb.XGBRanker(n_estimators=3, n_jobs=1).fit(NUMBERS, Y, qid=np.repeat([0, 1], 60)), NUMBERS, "xgboost"),
    "lightgbm classifier": (lambda: lgb.LGBMClassifier(n_estimators=4, verbose=-1, n_jobs=1).fit(CATEGORIES, NAMES), CATEGORIES, "lightgbm"),
    "lightgbm booster": (lambda: lgb.train({"verbose": -1, "num_threads": 1}, lgb.Dataset(NUMBERS, Y), 4), NUMBERS, "lightgbm"),
    "lightgbm in a pipeline": (lambda: towns(lgb.LGBMRegressor(n_estimators=4, verbose=-1, n_jobs=1)).fit(X, Y), X, "lightgbm"),
    "catboost classifier": (lambda: catboost.CatBoostClassifier(**QUIET).fit(X, NAMES, cat_features=["town"]), X, "catboost"),
    "catboost in a pipeline": (lambda: towns(catboost.CatBoostRegressor(**QUIET)).fit(X, Y), X, "catboost"),
    "onnx": (lambda: to_onnx(LogisticRegression().fit(NUMBERS.to_numpy(), NAMES), NUMBERS[:1].to_numpy().astype("float32")), NUMBERS, "onnx"),
    "search over distributions": (search, X, "xgboost"),
    "four libraries": (voting, NUMBERS, "catboost"),
}


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(asking, "_proved", set())
    yield mlc.connect(tmp_path / "mlcycle.db")
    mlc.connect(None).close()


def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    "From here on it is another machine: nothing is noted about any model."
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "elsewhere"))
    asking._proved.clear()


@pytest.mark.parametrize("name", MODELS)
def test_it_comes_back_here_and_elsewhere(name: str, store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    "Verified when logged, no opt-in asked; on another machine first asked in a process of its own; what it predicts is what it predicted."
    make, rows, flavour = MODELS[name]
    model = make()
    with mlc.run("model", "e", capture=False) as run:
        logged = run.log_model(model, input_example=rows)
    assert (logged.manifest.flavour, logged.manifest.unsafe, logged.manifest.verified) == (flavour, False, 100)
    elsewhere(tmp_path, monkeypatch)
    mlc.register(run, "model")
    proof = read_proof(logged.digest, logged.manifest.libraries)
    assert proof is not None and proof.how == "asked" and proof.refusal is None
    wanted = outputs(model, rows)
    pd.testing.assert_frame_equal(mlc.predict("model", rows), wanted, check_exact=False, rtol=1e-6)
    again = mlc.load_model("model")
    for part in ("classes_", "feature_names_in_"):
        if hasattr(model, part):
            assert list(getattr(again, part)) == list(getattr(model, part))
    if name == "search over distributions":
        assert again.best_params_ == model.best_params_ and again.best_score_ == model.best_score_
        assert again.param_distributions["xgbclassifier__max_depth"].args == (2, 4)


MODULE = """
import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin

class Ratio(TransformerMixin, BaseEstimator):
    def __init__(self, scale=1.0):
        self.scale = scale
    def fit(self, X, y=None):
        self.middle_ = np.median(X, axis=0)
        return self
    def transform(self, X):
        return np.asarray(X) / self.middle_ * self.scale
"""


def test_classes_of_ones_own_are_trusted_by_name(store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    "Who logs it names them, also for a pipeline with a booster; who loads it elsewhere names them again; other classes stay refused."
    (tmp_path / "churn_features.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    import churn_features

    model = make_pipeline(churn_features.Ratio(), xgb.XGBRegressor(n_estimators=3, n_jobs=1)).fit(NUMBERS, Y)
    with mlc.run("ratio", "e", capture=False) as run:
        with pytest.raises(UnsafeModelError, match=r"trust=\['churn_features.Ratio'\]"):
            run.log_model(model, input_example=NUMBERS)
        with pytest.raises(UsageError, match="one text"):
            run.log_model(model, input_example=NUMBERS, trust="churn_features.Ratio")
        logged = run.log_model(model, input_example=NUMBERS, trust=["churn_features.Ratio"])
    assert "churn_features.Ratio" in str(logged) and logged.manifest.verified
    assert np.array_equal(mlc.load_model("ratio").predict(NUMBERS), model.predict(NUMBERS))
    elsewhere(tmp_path, monkeypatch)
    monkeypatch.delitem(sys.modules, "churn_features")
    for trust in ([], ["churn_features.Other"]):
        with pytest.raises(UnsafeModelError, match=r"trust=\['churn_features.Ratio'\]"):
            mlc.load_model("ratio", trust=trust)
        assert "churn_features" not in sys.modules
    assert np.array_equal(mlc.load_model("ratio", trust=["churn_features.Ratio"]).predict(NUMBERS), model.predict(NUMBERS))
    sys.modules.pop("churn_features", None)


CODE = "from rules import limit\nclass Model:\n    classes_ = [0, 1]\n    def __init__(self, low): self.low = low\n" \
       "    def predict(self, table):\n        from .rules import limit as again\n        return (table['age'] > limit(self.low)).astype(int)\n" \
       "def load(folder):\n    return Model(int((folder / 'data' / 'low.txt').read_text()))\n"


def code_folder(path: Path, add: int) -> Path:
    (path / "data").mkdir(parents=True)
    (path / "data" / "low.txt").write_text("40")
    (path / "rules.py").write_text(f"def limit(low):\n    return low + {add}\n")
    (path / "model.py").write_text(CODE)
    (path / "__pycache__").mkdir()
    (path / "__pycache__" / "old.pyc").write_text("x")
    return path


def test_a_folder_of_code_is_a_model(store: Any, tmp_path: Path) -> None:
    "Its source and files are stored by digest, it asks for the opt-in, and two folders with modules of one name do not meet."
    with mlc.run("rules", "e", capture=False) as run:
        logged = [run.log_model(code_folder=code_folder(tmp_path / name, add), name=name, input_example=X) for name, add in (("a", 0), ("b", 30))]
        with pytest.raises(NotFoundError, match=r"model\.py"):
            run.log_model(code_folder=tmp_path, input_example=X)
        with pytest.raises(UsageError, match="one of them"):
            run.log_model(input_example=X)
    assert set(logged[0].manifest.files) == {"code/model.py", "code/rules.py", "code/data/low.txt", "example.parquet"}
    assert logged[0].manifest.unsafe and logged[0].manifest.verified == 100
    with pytest.raises(UnsafeModelError, match="allow_pickle=True"):
        mlc.load_model(run, artifact="a")
    loaded = [mlc.load_model(run, artifact=name, allow_pickle=True) for name in ("a", "b")]
    (tmp_path / "a" / "rules.py").write_text("raise SystemError")
    for model, low in zip(loaded, (40, 70), strict=True):
        assert model.predict(X).tolist() == (X["age"] > low).astype(int).tolist()
    assert "rules" not in sys.modules


def test_a_missing_library_is_named_and_is_no_lasting_refusal(store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    "The error says what to install, nothing is noted about the model, and with the library there it loads."
    model = xgb.XGBRegressor(n_estimators=2, n_jobs=1).fit(NUMBERS, Y)
    with mlc.run("model", "e", capture=False) as run:
        logged = run.log_model(model, input_example=NUMBERS)
    elsewhere(tmp_path, monkeypatch)
    with monkeypatch.context() as missing:
        missing.setattr(flavours()["xgboost"], "modules", ("xgboost", "no_such_library"))
        for use in (lambda: mlc.load_model("model"), lambda: mlc.register(run, "model")):
            with pytest.raises(ModelError, match=r"no_such_library is not installed here.*pip install 'mlcycle\[xgboost\]'"):
                use()
    assert read_proof(logged.digest, logged.manifest.libraries) is None
    assert np.array_equal(mlc.load_model("model").predict(NUMBERS), model.predict(NUMBERS))


def test_an_objective_of_ones_own_and_derived_classes(store: Any) -> None:
    "What would not predict the same from the file is refused when it is logged, and says what to do."
    class Mine(xgb.XGBRegressor):
        pass

    own = lgb.LGBMClassifier(n_estimators=2, verbose=-1, objective=lambda y, p: (p - y, np.ones(len(y)))).fit(NUMBERS, Y)
    with mlc.run("model", "e", capture=False) as run:
        with pytest.raises(ModelError, match="objective of its own"):
            run.log_model(own, input_example=NUMBERS)
        with pytest.raises(ModelError, match="Fit it first"):
            run.log_model(xgb.XGBClassifier())
        with pytest.raises(UnsafeModelError, match="Mine"):
            run.log_model(Mine(n_estimators=2).fit(NUMBERS, Y), input_example=NUMBERS)
        external = onnx.TensorProto(name="w", data_type=1, dims=[1], data_location=onnx.TensorProto.EXTERNAL)
        graph = MODELS["onnx"][0]()
        graph.graph.initializer.append(external)
        with pytest.raises(UnsafeModelError, match="another file"):
            run.log_model(graph)
    assert not store.blobs.exists("0" * 64)
