"What a file, a table or a model's example holds is kept exactly or refused: nothing is guessed, and nothing is changed by logging it."
from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from sklearn.compose import make_column_selector, make_column_transformer
from sklearn.ensemble import RandomForestClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.multioutput import ClassifierChain, MultiOutputClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, OrdinalEncoder, StandardScaler
from sklearn.tree import DecisionTreeRegressor

import mlcycle as mlc
from mlcycle.data.datasets import array_digest, describe, frame_digest
from mlcycle.errors import DataError, MlcycleError, ModelError, SignatureError
from mlcycle.registry.packaging import stored_example
from mlcycle.store.connect import Store
from mlcycle.track.pictures import table_bytes
from mlcycle.values import plain

FRAME = pd.DataFrame({"a": [0.0, 1.0, 2.0, 5.0], "b": [1.0, 0.0, 3.0, 2.0]})


@pytest.fixture
def store(tmp_path: Path) -> Store:
    yield mlc.connect(tmp_path / "store" / "mlcycle.db")
    mlc.connect(None).close()


def log(model: Any, example: Any) -> Any:
    with mlc.run("m", "e", capture=False) as run:
        run.log_model(model, input_example=example)
    return run


@pytest.fixture
def sums(store: Store) -> Any:
    "A run whose model answers 10a + b."
    return log(LinearRegression().fit(FRAME, 10 * FRAME.a + FRAME.b), FRAME)


@given(st.lists(st.lists(st.sampled_from(["1", "2.5", "", '"1"', '"2\n3"']), min_size=1, max_size=4), min_size=1, max_size=4),
       st.integers(1, 3))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_csv_row_of_another_length_is_refused(tmp_path: Path, rows: list[list[str]], width: int) -> None:
    "Row names, decimal commas and missing cells shift or invent values; rows as long as the header come out as they stand, in any chunks."
    import csv

    from mlcycle.registry.signatures import Column, Signature
    from mlcycle.registry.sources import open_source

    assume(all(row != [""] for row in rows))  # a blank line is no row
    names = [f"c{i}" for i in range(width)]
    path = tmp_path / "in.csv"
    path.write_text("\n".join(",".join(row) for row in [names, *rows]) + "\n", encoding="utf-8")
    signature = Signature(tuple(Column(name, "str", nullable=True) for name in names))
    right = all(len(row) == width for row in rows)
    for chunk_rows in (1, 100):
        if not right:
            with pytest.raises(DataError, match=r"cells|fields"):
                list(open_source(path, signature, chunk_rows).chunks)
            continue
        table = pd.concat(open_source(path, signature, chunk_rows).chunks)
        with path.open(newline="", encoding="utf-8") as f:
            assert table.fillna("").to_numpy().tolist() == list(csv.reader(f))[1:]


def test_extra_columns_come_out_whole(sums: Any, tmp_path: Path) -> None:
    "Lists, digits, labels and nulls that the model does not take reach the output as they were, through each format."
    kept = pd.DataFrame({"vec": [list(range(2000)), [], None, [1]], "id": pd.array([2**60 + 1, None, 3, 4], "Int64"),
                         "at": pd.to_datetime(["2026-01-05"] * 4), "share": [0.1 + 0.2, None, 1e-300, 3.0]})
    FRAME.join(kept).set_axis(pd.Index(list("wxyz"), name="patient")).to_parquet(tmp_path / "in.parquet")
    for name in ("out.jsonl", "out.csv", "out.parquet"):
        mlc.predict_file(sums, tmp_path / "in.parquet", tmp_path / name, extra="keep", chunk_rows=3)
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["vec"] for row in rows] == [list(range(2000)), [], None, [1]] and [row["id"] for row in rows] == [2**60 + 1, None, 3, 4]
    assert [row["share"] for row in rows] == [0.1 + 0.2, None, 1e-300, 3.0] and [row["patient"] for row in rows] == list("wxyz")
    table = pd.read_csv(tmp_path / "out.csv", dtype={"id": "Int64"}, float_precision="round_trip")
    assert json.loads(table["vec"][0]) == list(range(2000)) and table["id"][0] == 2**60 + 1 and table["patient"].tolist() == list("wxyz")
    table = pd.read_parquet(tmp_path / "out.parquet")
    assert table["vec"][0].tolist() == list(range(2000)) and table["prediction"].round(6).tolist() == [1, 10, 23, 52]
    (tmp_path / "in.jsonl").write_text('{"a": 1, "b": 2, "id": null}\n{"a": 1, "b": 2, "id": 1152921504606846977}\n')
    mlc.predict_file(sums, tmp_path / "in.jsonl", tmp_path / "out.jsonl", extra="keep")
    assert json.loads((tmp_path / "out.jsonl").read_text().splitlines()[1])["id"] == 2**60 + 1


def test_the_index_of_a_parquet_file_is_a_column_when_it_has_a_name(sums: Any, tmp_path: Path) -> None:
    "A feature there is used; one that the model does not take is extra; numbers that pandas gave the rows are not."
    wanted = [1.0, 10.0, 23.0, 52.0]
    for index, table in {"b": FRAME.set_index("b"), "": FRAME.set_axis([7, 3, 9, 1])}.items():
        table.to_parquet(tmp_path / "in.parquet")
        mlc.predict_file(sums, tmp_path / "in.parquet", tmp_path / "out.csv", chunk_rows=2)
        assert pd.read_csv(tmp_path / "out.csv")["prediction"].round(6).tolist() == wanted, index
    FRAME.rename_axis("visit").to_parquet(tmp_path / "in.parquet")
    with pytest.raises(SignatureError, match="visit: extra"):
        mlc.predict_file(sums, tmp_path / "in.parquet", tmp_path / "none.csv")
    mlc.predict_file(sums, tmp_path / "in.parquet", tmp_path / "out.csv", extra="keep", chunk_rows=3)
    assert pd.read_csv(tmp_path / "out.csv")["visit"].tolist() == [0, 1, 2, 3]


def test_files_that_cannot_be_read_are_named(sums: Any, tmp_path: Path) -> None:
    "Another encoding, half of a surrogate pair, doubled keys and a damaged page: DataError, and no output."
    files = {"latin.jsonl": '{"a": 1, "t": "Z\u00fcrich"}\n'.encode("latin-1"), "half.jsonl": b'{"a": 1, "t": "\\ud800"}\n',
             "twice.jsonl": b'{"a": 1, "b": 2, "a": 3}\n', "latin.csv": "a,b\n1,\u00fc\n".encode("latin-1"), "semicolons.csv": b"a;b\n1,5;2\n",
             "blank.csv": b"\na,b\n1,2\n", "nul.csv": b"a,b\n1\x00,2\n\x00"}
    FRAME.to_parquet(tmp_path / "page.parquet")
    damaged = bytearray((tmp_path / "page.parquet").read_bytes())
    damaged[4:44] = b"\xff" * 40
    for name, content in {**files, "page.parquet": bytes(damaged)}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError) as caught:
            mlc.predict_file(sums, tmp_path / name, tmp_path / "out.csv", extra="drop")
        assert name in str(caught.value) or isinstance(caught.value, SignatureError), name
        assert not (tmp_path / "out.csv").exists()
    unnamed = FRAME[["a"]].set_axis([""], axis=1)
    run = log(LinearRegression().fit(unnamed, FRAME.a), unnamed)
    unnamed.to_csv(tmp_path / "unnamed.csv", index=False)
    assert mlc.predict_file(run, tmp_path / "unnamed.csv", tmp_path / "out.csv").rows == 4


def polars_table(table: pd.DataFrame) -> Any:
    return pytest.importorskip("polars").from_pandas(table)


@pytest.mark.parametrize("make", [pa.Table.from_pandas, polars_table])
def test_tables_of_other_libraries_keep_their_column_names(store: Store, make: Any) -> None:
    "A model is never given columns in another order, and a stored table, a dataset and a signature have the names."
    table = make(FRAME)
    with mlc.run("m", "e", capture=False) as run:
        run.log_model(LinearRegression().fit(FRAME, 10 * FRAME.a + FRAME.b), input_example=table)
        artifact = run.log_table(table, "t")
        dataset = run.log_input(table, "rows")
    swapped = make(FRAME[["b", "a"]])
    assert mlc.predict(run, swapped)["prediction"].round(6).tolist() == [1, 10, 23, 52]
    assert list(pd.read_parquet(io.BytesIO(store.blobs.read(artifact.digest)))) == list(dataset.schema) == ["a", "b"]
    assert dataset.digest == frame_digest(FRAME)


def scaled(values: Any) -> Any:
    values -= 3
    return values


@pytest.mark.parametrize("data", [FRAME.to_numpy(), FRAME])
@pytest.mark.parametrize("training_metrics", [False, True])
def test_logging_and_predicting_change_no_data(store: Store, data: Any, training_metrics: bool) -> None:
    "Steps that work in place get copies: of what is logged, of what is asked, and of what autologging measures."
    was = data.copy()
    model = make_pipeline(StandardScaler(copy=False), LogisticRegression())
    y = [0, 1, 0, 1]
    expected = make_pipeline(StandardScaler(), LogisticRegression()).fit(was, y).predict_proba(was)
    mlc.autolog(training_metrics=training_metrics)
    try:
        model.fit(data.copy(), y)
    finally:
        mlc.autolog(False)
    run = log(model, data)
    assert np.array_equal(np.asarray(data), np.asarray(was))
    assert np.array_equal(np.asarray(stored_example(store, run_manifest(store, run))), np.asarray(was))
    for _ in range(2):
        answers = mlc.predict(run, data)
        assert np.allclose(answers[["probability_0", "probability_1"]], expected) and np.array_equal(np.asarray(data), np.asarray(was))


def run_manifest(store: Store, run: Any) -> Any:
    from mlcycle.registry.loading import find_model

    return find_model(run.run, store=store).manifest


def test_no_probability_is_lost(store: Store) -> None:
    "Chains, several outputs and one class: as many columns as the model has answers."
    X = pd.DataFrame({"a": np.linspace(-1, 1, 40)})
    Y = np.c_[X.a > 0, X.a > 0.3].astype(int)
    simple = LogisticRegression()
    for model, count in ((ClassifierChain(simple), 2), (MultiOutputClassifier(simple), 4), (RandomForestClassifier(3), 4)):
        run = log(model.fit(X, Y), X)
        names = [name for name in mlc.predict(run, X) if name.startswith("probability")]
        assert len(set(names)) == count, model


def test_common_models_can_be_logged(store: Store) -> None:
    "None among texts and flags, whole numbers beyond 2**53, sparse tables: stored, and the same answer for a file with nulls."
    y = [0, 1, 0] * 10
    for values in ([None, "a", "b"] * 10, [None, True, False] * 10):
        X = pd.DataFrame({"k": pd.Series(values, dtype=object)})
        known = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1)
        for encoder in (OneHotEncoder(), OneHotEncoder(handle_unknown="ignore"), known):
            model = make_pipeline(make_column_transformer((encoder, ["k"])), LogisticRegression()).fit(X, y)
            for example in (X, X[1:3]):
                answers = mlc.predict(log(model, example), X.astype({"k": "str"}) if values[1] == "a" else X)
                assert np.allclose(answers["probability_0"], model.predict_proba(X)[:, 0]), (values[:3], encoder)
    ids = pd.DataFrame({"id": [2**60 + i * 1024 for i in range(20)]})
    run = log(DecisionTreeRegressor().fit(ids, range(20)), ids)
    with pytest.raises(SignatureError, match="null in row 1"):
        mlc.predict(run, pd.DataFrame({"id": [None, *ids.id[1:]]}, dtype=object))
    sparse = pytest.importorskip("scipy.sparse").random(30, 3, 0.4, format="csr", random_state=0)
    with pytest.raises(DataError, match="toarray"):
        log(LogisticRegression().fit(sparse, y), sparse)
    frame = pd.DataFrame.sparse.from_spmatrix(sparse, columns=list("abc"))
    assert len(mlc.predict(log(LogisticRegression().fit(frame, y), frame), frame)) == 30


def test_columns_chosen_by_their_type(store: Store) -> None:
    "A pipeline that takes its columns by a type, also by one that nothing can be made of, is stored and chooses the same ones again."
    X = pd.DataFrame({"a": np.arange(30.0), "n": np.arange(30), "t": pd.Series(["x", "y", "z"] * 10, dtype=object)})
    for kind in (np.number, np.floating, np.integer, np.generic, object, complex, bool, "number", [np.number, object]):
        columns = make_column_transformer((OneHotEncoder(), make_column_selector(dtype_include=kind)), ("passthrough", ["a"]))
        model = make_pipeline(columns, LinearRegression()).fit(X, range(30))
        run = log(model, X)
        assert mlc.load_model(run)[0].transformers_[0][2] == model[0].transformers_[0][2], kind
        assert np.allclose(mlc.predict(run, X)["prediction"], model.predict(X)), kind


def test_a_copy_that_fails_on_its_example_is_explained(store: Store) -> None:
    "What a file cannot hold (None and NaN side by side, told apart by the model) is a ModelError, and no raw error of a library."
    X = pd.DataFrame({"k": pd.Series([None, float("nan"), "a", "b"] * 5, dtype=object)})
    model = make_pipeline(OneHotEncoder(), LogisticRegression()).fit(X, [0, 1, 0, 1] * 5)
    with pytest.raises(ModelError):
        log(model, X)
    with pytest.raises(ModelError, match="cannot predict on its own example"):
        log(make_pipeline(SimpleImputer(), FunctionTransformer(scaled), LinearRegression()), FRAME)


cells = st.one_of(st.none(), st.booleans(), st.integers(-2**70, 2**70), st.floats(allow_nan=False), st.text(st.characters(codec=None), max_size=5),
                  st.binary(max_size=3), st.lists(st.integers(0, 3), max_size=3), st.dictionaries(st.text(max_size=2), st.integers(), max_size=2))


@given(st.lists(cells, min_size=1, max_size=5), st.sampled_from([".parquet", ".csv", ".json"]), st.booleans())
@settings(max_examples=150, deadline=None)
def test_any_table_is_stored_or_refused(values: list[Any], ending: str, labelled: bool) -> None:
    "log_table raises DataError and nothing else; what it writes as JSON reads back as the same values."
    labels = [f"r{i}" for i in range(len(values))] if labelled else None
    table = pd.DataFrame({"a": pd.Series(values, dtype=object, index=labels)})
    try:
        content, name = table_bytes(table, f"table v1.2{ending}")
    except DataError:
        return
    assert name == f"table v1.2{ending}"
    if ending == ".json":
        rows = json.loads(content)
        assert [row["a"] for row in rows] == values and [row.get("index") for row in rows] == (labels or [None] * len(values))
    if labelled and ending == ".csv":
        assert pd.read_csv(io.BytesIO(content), dtype=str, keep_default_na=False)["index"].tolist() == labels


params = st.recursive(st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=3)),
                      lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2) | st.integers(0, 3), inner, max_size=3))


@given(params)
@settings(max_examples=100, deadline=None)
def test_params_keep_their_values_and_the_number_of_their_keys(value: Any) -> None:
    "JSON's own types come back as they were; keys that are no text lose no item."
    def size(part: Any) -> int:
        inner = part.values() if isinstance(part, dict) else part if isinstance(part, list) else ()
        return 1 + sum(map(size, inner))

    stored = json.loads(json.dumps(plain(value)))
    assert size(stored) == size(value)
    if "{" not in repr(value):
        assert stored == value


def test_times_in_nanoseconds_are_times(store: Store) -> None:
    "As a param, in an array, and as the parameter of a notebook."
    from mlcycle.notebooks.params.inject import jsonable, literal

    moment = np.datetime64("2026-01-05T10:00:00", "ns")
    with mlc.run("r", "e", {"t": moment, "ts": np.array([moment]), "d": np.timedelta64(1500, "ns")}, capture=False) as run:
        assert run.params == {"t": "2026-01-05T10:00:00.000000000", "ts": ["2026-01-05T10:00:00.000000000"], "d": "1500 nanoseconds"}
    assert "datetime" in literal(moment) and jsonable(moment) == "2026-01-05T10:00:00" and "timedelta(0, 1" in literal(np.timedelta64(10**9, "ns"))


def test_different_data_has_different_digests() -> None:
    "Values that pandas hashes alike, a mask; the same data has the same digest."
    pairs = [(pd.DataFrame({"a": [1, "x"]}), pd.DataFrame({"a": pd.Series(["1", "x"], dtype=object)})),
             (pd.DataFrame({"a": [b"x", "y"]}), pd.DataFrame({"a": pd.Series(["x", "y"], dtype=object)})),
             (pd.DataFrame({"a": [True, "x"]}), pd.DataFrame({"a": pd.Series(["True", "x"], dtype=object)}))]
    for left, right in pairs:
        assert frame_digest(left) != frame_digest(right) and frame_digest(left) == frame_digest(left.copy())
    assert array_digest(np.ma.array([1, 2], mask=[0, 1])) != array_digest(np.array([1, 2]))
    with pytest.raises(DataError, match="surrogate"):
        describe(pd.DataFrame({"a": pd.Series(["\udce9"], dtype=object)}))


def test_a_folder_is_logged_whole_or_not_at_all(store: Store, tmp_path: Path) -> None:
    "Links to folders are followed; a link out, to nothing or in a circle is refused, and the run has no file of the folder."
    folder = tmp_path / "d"
    (folder / "v2").mkdir(parents=True)
    (folder / "v2" / "weights").write_text("w")
    (folder / "latest").symlink_to("v2")
    with mlc.run("r", "e", capture=False) as run:
        assert sorted(a.name for a in run.log_artifact(folder)) == ["d/latest/weights", "d/v2/weights"]
    with mlc.run("r2", "e", capture=False) as run:
        for target in ("gone", "..", ".", str(tmp_path)):
            (folder / "link").symlink_to(target)
            with pytest.raises(MlcycleError, match="'link'"):
                run.log_artifact(folder)
            (folder / "link").unlink()
        from mlcycle.store import artifacts

        assert artifacts.listing(store, run.run) == []


def test_figures_keep_their_names(store: Store) -> None:
    "What is behind a dot is a format only if it is known as one; a figure that cannot be drawn is a DataError."
    from matplotlib.figure import Figure

    figure, broken = Figure(), Figure()
    broken.suptitle("$\\frac{$")
    names = {"lr=0.5": "lr=0.5.png", "roc_v1.2": "roc_v1.2.png", "a.SVG": "a.SVG", "b": "b.png"}
    with mlc.run("r", "e", capture=False) as run:
        assert {name: run.log_figure(figure, name).name for name in names} == names
        for wrong, name in ((figure, "a.csv"), (broken, "b"), (3, "c")):
            with pytest.raises(DataError):
                run.log_figure(wrong, name)


def test_wrong_calls_say_what_is_wrong(sums: Any, tmp_path: Path) -> None:
    "Numbers that no float holds, names that are no text, several scores, mixed flags: our own errors, which name the remedy."
    space = {"fit_intercept": "{true, false}"}
    with mlc.run("r", "e", capture=False) as run:
        for call, words in ((lambda: run.log_metric("n", 10**400), "too large"), (lambda: run.log_metrics([("a", 1)]), "log_many"),
                            (lambda: mlc.run(5, capture=False).__enter__(), "is text, not 5"), (lambda: run.finish("nonsense"), "finished, failed"),
                            (lambda: run.log_params({"ring": ring}), "holds itself"),
                            (lambda: mlc.tune(LinearRegression(), space, X=FRAME, y=FRAME.a, cv=2, scoring=["r2"], trials=1), "one score")):
            with pytest.raises(MlcycleError, match=words):
                call()
    flags = FRAME.assign(f=[True, False, True, True])
    model = log(LinearRegression().fit(flags, FRAME.a), flags)
    (tmp_path / "mixed.csv").write_text("a,b,f\n1,2,True\n3,4,1\n")
    with pytest.raises(SignatureError, match="True and False with 1 and 0"):
        mlc.predict_file(model, tmp_path / "mixed.csv", tmp_path / "out.csv")


ring: list[Any] = []
ring.append(ring)


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text() | st.integers(), inner)
    | st.frozensets(st.integers() | st.text() | st.floats()) | st.sets(st.binary()), max_leaves=12)


@given(PLAIN)
def test_a_plain_value_that_a_stored_class_uses_is_written_exactly(value: Any) -> None:
    "Constants of a notebook go along with a class as source: signs of zero, infinities, surrogates, types and the order of dicts included."
    from mlcycle.registry.flavours.collected import literal

    again = eval(literal(value))

    def exact(part: Any) -> Any:
        if isinstance(part, list | tuple):
            return type(part), [exact(each) for each in part]
        if isinstance(part, dict):
            return dict, [(exact(key), exact(each)) for key, each in part.items()]
        if isinstance(part, set | frozenset):
            return type(part), sorted(repr(exact(each)) for each in part)
        return type(part), repr(part)

    assert exact(again) == exact(value)


TYPED = st.fixed_dictionaries({
    "count": st.integers(-2**63, 2**63 - 1), "share": st.none() | st.floats(allow_nan=False),
    "word": st.text(st.characters(exclude_categories=["Cs"])),
    "plan": st.sampled_from(["basic", "plus"]), "yes": st.booleans(),
    "since": st.datetimes(pd.Timestamp("1900-01-01"), pd.Timestamp("2200-01-01"))})


@settings(deadline=None, max_examples=40)
@given(st.lists(TYPED, min_size=1, max_size=6))
def test_each_form_of_rows_is_the_same_table_to_a_model(rows: list[dict[str, Any]]) -> None:
    "Dicts, lists, arrays, rows and tables of two libraries give a model exactly what the DataFrame does: large numbers, categories, times, nulls."
    import polars as pl

    from mlcycle.registry.check import check
    from mlcycle.registry.rows import as_table
    from mlcycle.registry.signatures import Column, Signature

    signature = Signature((Column("count", "int64"), Column("share", "float64", nullable=True), Column("word", "str"),
                           Column("plan", "category", categories=("plus", "basic")), Column("since", "datetime64[us]"), Column("yes", "bool")))
    frame = pd.DataFrame(rows).astype({"share": "float64", "word": "str", "plan": pd.CategoricalDtype(["basic", "plus"])})
    rows = [{name: row[name] for name in signature.names} for row in rows]
    wanted = check(signature, frame)
    assert wanted["count"].tolist() == [row["count"] for row in rows]
    values = np.empty((len(rows), 6), dtype=object)
    values[:] = [list(row.values()) for row in rows]
    forms = {"list of dicts": rows, "dict of columns": {name: [row[name] for row in rows] for name in rows[0]},
             "dict of a frame": frame.to_dict("series"), "tuples": [tuple(row.values()) for row in rows],
             "list of lists": [list(row.values()) for row in rows], "array": values, "polars": pl.DataFrame(rows),
             "rows of a frame": [frame.iloc[i] for i in range(len(rows))], "records": pd.DataFrame(rows).to_records(index=False)}
    if len(rows) == 1:
        forms |= {"dict": rows[0], "row": frame.iloc[0], "flat list": list(rows[0].values()), "flat array": values[0]}
    for name, form in forms.items():
        pd.testing.assert_frame_equal(check(signature, as_table(signature, form)).reset_index(drop=True), wanted, obj=name)
