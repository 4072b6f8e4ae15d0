"Compiled forms: equal to their models on every kind of model and output, caught where a conversion is wrong, and harmless where it is worse."
from __future__ import annotations

import copy
import json
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.compose import make_column_transformer
from sklearn.ensemble import (
    ExtraTreesRegressor,
    GradientBoostingClassifier,
    GradientBoostingRegressor,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.naive_bayes import GaussianNB
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, MinMaxScaler, OneHotEncoder, OrdinalEncoder, StandardScaler
from sklearn.tree import DecisionTreeClassifier

import mlcycle as mlc
from mlcycle.errors import ConfigError
from mlcycle.registry.asking import Limits
from mlcycle.registry.check import check
from mlcycle.registry.compiled import compiling, opening
from mlcycle.registry.compiled.agreement import TOLERANCE, compare, relative_difference
from mlcycle.registry.compiled.building import compare_with_model
from mlcycle.registry.compiled.compiling import compile_model
from mlcycle.registry.compiled.draws import draw_rows
from mlcycle.registry.compiled.forms import CompiledForm, compiled_form, save_form
from mlcycle.registry.compiled.graphs import write_graph
from mlcycle.registry.compiled.opening import open_compiled
from mlcycle.registry.compiled.plans import NotCompilable
from mlcycle.registry.compiled.predicting import QuickModel, open_quick
from mlcycle.registry.compiled.running import CompiledModel, columns_of
from mlcycle.registry.flavours.base import flavours
from mlcycle.registry.infer import infer_signature
from mlcycle.registry.outputs import outputs
from mlcycle.registry.packaging import package
from mlcycle.registry.signatures import Column, Signature, Tensor
from mlcycle.store import runs
from mlcycle.store.connect import Store, open_store
from tests.registry.test_asking import FLAVOUR

RNG = np.random.default_rng(0)
ROWS = 400
TABLE = pd.DataFrame({
    "age": RNG.integers(18, 80, ROWS), "plan": RNG.choice(["basic", "full", "trial"], ROWS), "income": RNG.normal(50, 10, ROWS).round(1),
    "city": pd.Series(RNG.choice(["Bern", "Oslo", None], ROWS), dtype=object), "code": RNG.integers(0, 5, ROWS),
    "size": pd.Categorical(RNG.choice(["S", "M", "L"], ROWS))})
TABLE.loc[RNG.random(ROWS) < 0.1, "income"] = np.nan
CLASS = np.where(TABLE["age"] > 40, np.where(TABLE["plan"] == "trial", "leaves", "stays"), "new")
FLAG = (CLASS != "stays") & (TABLE["size"] != "S").to_numpy()
VALUE = TABLE["age"] * 0.5 + TABLE["income"].fillna(0) + (TABLE["city"] == "Oslo") * 7
NUMBERS = ["age", "income", "code"]


def mixed(last: Any, **encoder: Any) -> Any:
    "A pipeline over numbers with nulls, texts with nulls, words that it has not learnt, and codes."
    return make_pipeline(make_column_transformer(
        (make_pipeline(SimpleImputer(strategy="median"), StandardScaler()), ["income", "age"]),
        (OneHotEncoder(handle_unknown="ignore", **encoder), ["plan", "code"]), (OneHotEncoder(handle_unknown="ignore"), ["city"]),
        (OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1), ["size"]), sparse_threshold=0), last)


def boosters() -> dict[str, tuple[Any, pd.DataFrame, Any]]:
    "Models of other libraries, where they are installed."
    from lightgbm import LGBMClassifier, LGBMRegressor
    from xgboost import XGBClassifier, XGBRegressor

    numbers, labels = TABLE[NUMBERS], pd.Series(CLASS).map({"leaves": 0, "new": 1, "stays": 2}).to_numpy()
    return {"xgboost classes": (XGBClassifier(n_estimators=20), numbers, labels), "xgboost flags": (XGBClassifier(n_estimators=20), numbers, FLAG),
            "xgboost counts": (XGBRegressor(n_estimators=20, objective="count:poisson"), numbers, VALUE.round()),
            "xgboost stopped": (_stopped(XGBRegressor(n_estimators=50, early_stopping_rounds=3)), numbers, VALUE),
            "lightgbm classes": (LGBMClassifier(n_estimators=20, verbose=-1), numbers, CLASS),
            "lightgbm averaged": (LGBMRegressor(n_estimators=20, verbose=-1, boosting_type="rf", bagging_freq=1, bagging_fraction=0.5), numbers,
                                  VALUE),
            "lightgbm dropped": (LGBMClassifier(n_estimators=20, verbose=-1, boosting_type="dart"), numbers, FLAG)}


def _stopped(model: Any) -> Any:
    "A model that looks at rows of its own while it is fitted, and stops early."
    fit = model.fit
    model.fit = lambda X, y: fit(X, y, eval_set=[(X[::2] + 1.5, y[::2])], verbose=False)
    return model


MODELS: dict[str, tuple[Any, Any, Any]] = {
    "logistic": (mixed(LogisticRegression(max_iter=500), drop="first"), TABLE, CLASS),
    "flags": (mixed(LogisticRegression(max_iter=500)), TABLE, FLAG),
    "forest": (mixed(RandomForestClassifier(15, random_state=0)), TABLE, CLASS),
    "forest of values": (mixed(RandomForestRegressor(10, random_state=0)), TABLE, VALUE),
    "two values": (ExtraTreesRegressor(5, random_state=0), TABLE[["age", "code"]], np.column_stack([VALUE, -VALUE])),
    "nulls in a tree": (RandomForestClassifier(5, random_state=0), TABLE[NUMBERS], FLAG.astype("int8")),
    "boosting": (mixed(GradientBoostingClassifier(n_estimators=15, random_state=0)), TABLE, FLAG),
    "exponential": (mixed(GradientBoostingClassifier(n_estimators=15, loss="exponential", random_state=0)), TABLE, FLAG),
    "boosting of classes": (mixed(GradientBoostingClassifier(n_estimators=8, random_state=0)), TABLE, CLASS),
    "boosting of values": (mixed(GradientBoostingRegressor(n_estimators=15, random_state=0)), TABLE, VALUE),
    "histograms": (HistGradientBoostingClassifier(max_iter=15), TABLE.astype({"plan": "category", "city": "category"}), CLASS),
    "histograms of counts": (HistGradientBoostingRegressor(max_iter=15, loss="poisson", categorical_features=["code"]), TABLE[NUMBERS], VALUE),
    "linear": (make_pipeline(SimpleImputer(), MinMaxScaler(clip=True), LinearRegression()), TABLE[NUMBERS], VALUE),
    "single tree of an array": (DecisionTreeClassifier(max_depth=4), TABLE[["age", "code"]].to_numpy("float64"), CLASS),
    "the rest passed on": (make_pipeline(make_column_transformer((OneHotEncoder(handle_unknown="ignore"), ["plan"]), remainder="passthrough"),
                                         GradientBoostingClassifier(n_estimators=8, random_state=0)), TABLE[["age", "plan", "code"]], FLAG),
    "search": (GridSearchCV(mixed(LogisticRegression(max_iter=500)), {"logisticregression__C": [1, 2]}, cv=2), TABLE, CLASS),
    "by skl2onnx": (make_pipeline(SimpleImputer(), StandardScaler(), GaussianNB()), TABLE[NUMBERS], CLASS),
}


@pytest.fixture(scope="module")
def fitted() -> dict[str, tuple[Any, Any, Signature]]:
    "Every model, fitted once: name to the model, its rows and its signature."
    done = {}
    for name, (model, X, y) in (MODELS | boosters()).items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model.fit(X, y)
            vars(model).pop("fit", None)
            done[name] = (model, X, infer_signature(X[:60], model=model))
    return done


BOOSTERS = ("xgboost classes", "xgboost flags", "xgboost counts", "xgboost stopped", "lightgbm classes", "lightgbm averaged", "lightgbm dropped")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [*MODELS, *BOOSTERS])
def test_every_kind_agrees(fitted: dict[str, tuple[Any, Any, Signature]], name: str) -> None:
    "Values, labels, types and names of the outputs are the model's, on its rows, on drawn ones, on nulls and on words that it has not learnt."
    model, X, signature = fitted[name]
    content, maker = write_graph(model, signature, outputs(model, X))
    compiled = CompiledModel(content)
    agreement = compare_with_model(model, compiled, signature, X)
    assert (agreement.cause, agreement.text, agreement.rows) == ("", "", ROWS + 1000) and agreement.difference <= TOLERANCE
    assert ("skl2onnx" in maker) == (name == "by skl2onnx")
    one, was = check(signature, X[:1]), outputs(model, check(signature, X))
    alone, given = compiled(columns_of(one)), compiled(columns_of(check(signature, X)))
    assert list(alone) == list(given) == list(was) and {len(values) for values in alone.values()} == {1}
    assert compare(was, pd.DataFrame(given)).cause == "" == compare(was[:1], pd.DataFrame(alone)).cause


@pytest.mark.filterwarnings("ignore")
def test_wrong_categories_are_caught() -> None:
    "Gradient boosting whose sets of categories a converter takes for limits, as skl2onnx does: it converts without a word, and the check sees it."
    codes = RNG.integers(0, 12, 600)
    X = pd.DataFrame({"code": codes.astype(float), "size": RNG.normal(size=600).round(2)})
    y = np.isin(codes, [1, 4, 7, 10]) ^ (X["size"] > 1)
    model = HistGradientBoostingClassifier(categorical_features=["code"], max_iter=20, random_state=0).fit(X, y)
    signature, answer = infer_signature(X[:50], model=model), outputs(model, X)
    right = compare_with_model(model, CompiledModel(write_graph(model, signature, answer)[0]), signature, X[:50])
    mistaken = copy.deepcopy(model)
    for (predictor,) in mistaken._predictors:
        predictor.nodes["is_categorical"] = 0
    wrong = compare_with_model(model, CompiledModel(write_graph(mistaken, signature, answer)[0]), signature, X[:50])
    assert right.cause == "" and wrong.cause == "labels" and "prediction is" in wrong.text
    for (predictor,) in (mistaken := copy.deepcopy(model))._predictors:  # only what becomes of nulls is wrong
        predictor.nodes["missing_go_to_left"] ^= 1
    assert compare_with_model(model, CompiledModel(write_graph(mistaken, signature, answer)[0]), signature, X[:50]).cause in ("labels", "numbers")


numbers = st.sampled_from(["int8", "int64", "uint16", "float32", "float64"])


@st.composite
def signatures(draw: st.DrawFn) -> tuple[Signature, Any]:
    "A signature and a few rows that fit it."
    if draw(st.booleans()):
        dtype, width = draw(numbers), draw(st.integers(1, 4))
        rows = np.array(draw(st.lists(st.lists(st.integers(0, 100), min_size=width, max_size=width), min_size=1, max_size=5)))
        return Signature(Tensor((None, width), dtype, dtype.startswith("float") and draw(st.booleans()))), rows.astype(dtype)
    columns, rows = [], {}
    count = draw(st.integers(1, 5))
    for i in range(draw(st.integers(1, 5))):
        kind, nullable = draw(st.sampled_from(["number", "str", "bool", "category", "chosen"])), draw(st.booleans())
        if kind == "number":
            dtype = draw(numbers)
            columns.append(Column(f"c{i}", dtype, nullable))
            value: Any = st.integers(0, 120) if dtype[0] in "iu" else st.floats(-1e300 if dtype == "float64" else -1e30, 1e30, width=64)
        elif kind == "bool":
            columns.append(Column(f"c{i}", "bool", nullable))
            value = st.booleans()
        elif kind == "str":
            columns.append(Column(f"c{i}", "str", nullable))
            value = st.text(max_size=5).filter(lambda text: text.isprintable())
        else:
            known = tuple(draw(st.lists(st.integers(0, 50) if kind == "chosen" else st.text("abc", max_size=3), min_size=1, max_size=4, unique=True)))
            columns.append(Column(f"c{i}", "int64" if kind == "chosen" else "category", nullable, known))
            value = st.sampled_from(known)
        values = draw(st.lists(value, min_size=count, max_size=count))
        rows[f"c{i}"] = pd.Series(values, dtype=object) if kind in ("str", "category") else pd.Series(values)
    return Signature(tuple(columns)), pd.DataFrame(rows)


@settings(max_examples=60, deadline=None)
@given(signatures(), st.integers(0, 3))
def test_drawn_rows_fit_their_signature(given_: tuple[Signature, Any], seed: int) -> None:
    "Whatever a signature says, the rows that are drawn for it pass its check, are the same for the same seed, and hold nulls only where they may."
    signature, example = given_
    rows, again = (draw_rows(signature, check(signature, example), 80, seed) for _ in range(2))
    checked = check(signature, rows)
    assert len(checked) == 80
    if isinstance(rows, np.ndarray):
        assert np.array_equal(rows, again, equal_nan=rows.dtype.kind == "f")
        return
    assert rows.equals(again)
    for column in signature.columns:
        assert column.nullable or not checked[column.name].isna().any()
        assert column.categories is None or set(checked[column.name].dropna()) <= set(column.categories)


finite = st.floats(allow_nan=True, allow_infinity=True)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(finite, finite), min_size=1, max_size=6))
def test_difference_is_zero_only_for_equals(pairs: list[tuple[float, float]]) -> None:
    "Equal numbers are not apart, others are, and a null beside a number is infinitely far."
    was, now = (np.array(side) for side in zip(*pairs, strict=True))
    apart = relative_difference(was, now)
    equal = (was == now) | (np.isnan(was) & np.isnan(now))
    assert (apart[equal] == 0).all() and not np.isnan(apart).any() and (apart >= 0).all()
    assert np.isinf(apart[np.isnan(was) ^ np.isnan(now)]).all()
    assert (apart[~equal & (np.sign(was) * np.sign(now) < 0) & (np.abs(was) > 1e-7 * np.abs(was[np.isfinite(was)]).max(initial=0))] >= 1).all()


def log(store: Store, model: Any, X: Any, y: Any, **options: Any) -> tuple[Any, str]:
    "Fit a model and log it: the run and the manifest's digest."
    run = runs.create(store, "churn", type(model).__name__)
    return run, package(store, run, model.fit(X, y), input_example=X[:30] if options.pop("example", True) else None, **options).digest


def test_opening_imports_little(tmp_path: Path) -> None:
    "A server that opens a compiled form has numpy and ONNX Runtime, and none of what made the model."
    store = open_store(tmp_path / "mlcycle.db")
    run, digest = log(store, mixed(LogisticRegression(max_iter=500)), TABLE, CLASS)
    assert compile_model(store, digest).state == "used"
    was = mlc.predict(run, TABLE[:1], store=store)["prediction"].tolist()
    store.close()
    code = f"""
import json, sys
import numpy as np
from mlcycle.registry.compiled.opening import open_compiled
from mlcycle.registry.packaging import read_manifest
from mlcycle.store.connect import open_store
store = open_store({str(tmp_path / "mlcycle.db")!r})
model = open_compiled(store, read_manifest(store, {digest!r}))
answer = model({{name: np.array([value], dtype=object) for name, value in json.loads(sys.argv[1]).items()}})
heavy = {{"pandas", "sklearn", "scipy", "sqlalchemy", "pyarrow", "onnx", "skl2onnx", "matplotlib", "IPython"}}
print(json.dumps([answer["prediction"].tolist(), sorted(heavy & set(sys.modules))]))
"""
    row = json.loads(TABLE[:1].to_json(orient="records"))[0]
    done = subprocess.run([sys.executable, "-c", code, json.dumps(row)], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [was, []]


def test_no_form_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    "What cannot be compiled is recorded with its cause, is not tried again, and the model itself answers."
    store = open_store(tmp_path / "mlcycle.db")
    X, y = TABLE[["age", "code"]], FLAG
    _, pickled = log(store, LogisticRegression(), X, y, flavour="pickle", allow_pickle=True)
    _, blind = log(store, LogisticRegression(C=2), X, y, example=False)
    dated, other = TABLE[["age"]].assign(since=pd.Timestamp("2026-01-01")), make_pipeline(FunctionTransformer(np.log1p), LogisticRegression())
    late, odd = (log(store, make_pipeline(make_column_transformer(("passthrough", ["age"])), LogisticRegression()), dated, y)[1],
                 log(store, other, X, y)[1])
    causes = {digest: (compile_model(store, digest).state, compile_model(store, digest).cause) for digest in (pickled, blind, late, odd)}
    assert causes[pickled] == ("unsupported", "flavour") and causes[blind] == ("unsupported", "example") and causes[late] == ("unsupported", "inputs")
    assert causes[odd][0] in ("unsupported", "failed") and all(open_compiled(store, digest) is None for digest in causes)
    monkeypatch.setattr(compiling, "run_apart", lambda *_: pytest.fail("it was compiled before"))
    assert {digest: (compile_model(store, digest).state, compile_model(store, digest).cause) for digest in causes} == causes
    monkeypatch.setattr(compiling, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"mlcycle\[onnx\]"):
        compile_model(store, odd)
    with pytest.raises(NotCompilable):
        write_graph(object(), infer_signature(X), pd.DataFrame({"prediction": [object()]}))
    store.close()


@pytest.mark.parametrize(("does", "cause"), [("crash", "died"), ("fill", "memory"), ("spin", "time"), ("refuse", "refused")])
def test_conversion_that_does_harm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, does: str, cause: str) -> None:
    "A conversion that crashes, takes all memory or never ends is ended, recorded with its cause, and tried again only when asked to."
    packages = tmp_path / "packages"
    (packages / "harm-1.dist-info").mkdir(parents=True)
    (packages / "harm.py").write_text(FLAVOUR)
    (packages / "harm-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: harm\nVersion: 1\n")
    (packages / "harm-1.dist-info" / "entry_points.txt").write_text("[mlcycle.flavour]\nharm = harm:flavour\n")
    monkeypatch.syspath_prepend(packages)
    flavours.cache_clear()
    store = open_store(tmp_path / "mlcycle.db")
    _, digest = log(store, LogisticRegression(), TABLE[["age"]], FLAG)
    manifest = json.loads(store.blobs.read(digest)) | {"flavour": "harm", "facts": {"does": does}}
    harmful, _ = store.blobs.put(json.dumps(manifest).encode())
    form = compile_model(store, harmful, limits=Limits(4 << 30, 2 if does == "spin" else 60, 600))
    assert (form.state, form.cause, form.file) == ("failed", cause, None) and "\n" not in form.reason and open_compiled(store, harmful) is None
    assert compile_model(store, harmful) == form and "the model itself answers" in form.summary
    flavours.cache_clear()
    store.close()


def test_another_runtime_has_not_agreed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    "A form that was compared with another ONNX Runtime, or whose file is damaged or gone, is not used; compiling makes it again."
    store = open_store(tmp_path / "mlcycle.db")
    _, digest = log(store, LinearRegression(), TABLE[["age"]], VALUE)
    form = compile_model(store, digest)
    assert form.state == "used" and open_compiled(store, digest) is not None
    save_form(store, CompiledForm(digest, "used", file=form.file, libraries={**form.libraries, "onnxruntime": "1.0"}))
    assert open_compiled(store, digest) is None and compile_model(store, digest).libraries == form.libraries
    path = Path(store.blobs.path(form.file))
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    assert open_compiled(store, digest) is None
    path.unlink()
    assert open_compiled(store, digest) is None and compile_model(store, digest, force=True).file == form.file
    assert open_compiled(store, digest) is not None
    monkeypatch.setattr(opening, "import_runtime", lambda: (_ for _ in ()).throw(ConfigError("not installed")))
    assert open_compiled(store, digest) is None and compiled_form(store, digest).state == "used"
    store.close()


@pytest.mark.parametrize("name", ["flags", "forest", "nulls in a tree", "boosting of values", "two values"])
def test_file_is_predicted_the_same(tmp_path: Path, fitted: dict[str, tuple[Any, Any, Signature]], name: str) -> None:
    "`predict_file` with the compiled form and without it: the same rows, columns, types and values, whatever the type of the output."
    model, X, _ = fitted[name]
    store = open_store(tmp_path / "mlcycle.db")
    run = runs.create(store, "churn", "model")
    digest = package(store, run, model, input_example=X[:60]).digest
    X.to_parquet(tmp_path / "in.parquet")
    X.astype({column: object for column in X if X[column].dtype == "category"}).to_csv(tmp_path / "in.csv", index=False)
    tables = []
    for _ in range(2):
        for source in ("in.parquet", "in.csv"):
            mlc.predict_file(run, tmp_path / source, tmp_path / "out.parquet", store=store, chunk_rows=150)
            tables.append(pd.read_parquet(tmp_path / "out.parquet"))
        form = compile_model(store, digest)
        assert form.state == "used", form
    assert isinstance(open_quick(run, store=store), QuickModel)
    for by_model, by_form in zip(tables[:2], tables[2:], strict=True):
        assert len(by_model) == ROWS and compare(by_model, by_form).cause == ""
    store.close()
