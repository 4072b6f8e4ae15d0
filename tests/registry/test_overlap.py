"Files that are predicted in pieces, read ahead and written behind: the same rows in order, and an error as without threads."
from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlcycle.errors import DataError, MlcycleError
from mlcycle.registry import sources
from mlcycle.registry.check import check
from mlcycle.registry.outputs import outputs
from mlcycle.registry.overlap import ahead, behind
from mlcycle.registry.signatures import Column, Signature
from mlcycle.registry.sources import open_source

SIGNATURE = Signature((Column("a", "float64", nullable=True), Column("b", "int64", nullable=True)))
CELLS = st.one_of(
    st.floats(allow_nan=False).map(repr), st.integers(-2**70, 2**70).map(str), st.integers(-5, 5).map(str),
    st.sampled_from(["", "NA", "nan", "NAN", "None", "inf", "-inf", "Infinity", "1e5", "1E400", "-1e-400", "+5", " 7", "7 ", " ", '"7"', '""', "0x10",
                     "1_0", "1,5", '"1,5"', '"a\nb"', "true", "True", "5.0", "5.", ".5", "1e", "--1", "٣", "1d5", "9007199254740993", "0.1", '"x']))


def told(read: Any) -> Any:
    "The table, or the kind and text of the error."
    try:
        parts = [check(SIGNATURE, part, extra="drop", first_row=1) for part in read() if len(part)]
        return pd.concat(parts, ignore_index=True) if parts else None
    except MlcycleError as e:
        return type(e), str(e)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.tuples(CELLS, CELLS), min_size=1, max_size=6), others=st.sampled_from(["x", '"x y"', "", "NA", "007"]))
def test_both_readers_of_csv_read_the_same(tmp_path: Path, rows: list[tuple[str, str]], others: str) -> None:
    "Whatever stands in the cells: the fast reader of numbers gives the table that pandas gives, or leaves the file to it."
    path = tmp_path / "in.csv"
    path.write_text("".join(f"{line}\n" for line in ["a,b,id", *(f"{a},{b},{others}" for a, b in rows)]), encoding="utf-8")
    fast = told(lambda: open_source(path, SIGNATURE, 100).chunks)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "_numbers", lambda columns: None)
        slow = told(lambda: open_source(path, SIGNATURE, 100).chunks)
    if isinstance(slow, pd.DataFrame):
        pd.testing.assert_frame_equal(fast, slow)
    else:
        assert fast == slow


def test_a_file_is_read_whole_when_the_fast_reader_gives_up(tmp_path: Path) -> None:
    "What only pandas reads may come after a million bytes: no row is read twice or left out, in pieces of any size."
    values = [*np.arange(0, 300_000) / 8, 2.0**60 + 1]
    path = tmp_path / "in.csv"
    path.write_text("a,b,id\n" + "".join(f"{value},{i},r{i}\n" for i, value in enumerate(values)) + "+5,300001,last\n")
    parts = list(open_source(path, SIGNATURE, 70_000).chunks)
    table = pd.concat(parts, ignore_index=True)
    assert table["b"].tolist() == list(range(300_002)) and table["id"].iloc[-1] == "last" and table["a"].iloc[-1] == 5.0
    assert table["a"].iloc[:-1].tolist() == values


def test_pieces_keep_their_order_and_their_errors() -> None:
    "Each piece once and in order; the error of the reader after its pieces; whoever leaves early leaves no thread behind, and the reader is closed."
    closed = []

    def read(count: int, error: Exception | None = None) -> Any:
        try:
            yield from range(count)
            if error:
                raise error
        finally:
            closed.append(count)

    written: list[int] = []
    with behind(written.append) as write, ahead(read(500)) as pieces:
        for piece in pieces:
            write(piece)
    assert written == list(range(500)) and closed == [500]
    with pytest.raises(DataError, match="damaged"), behind(written.append) as write, ahead(read(3, DataError("damaged"))) as pieces:
        for piece in pieces:
            write(piece)
    with ahead(read(10**9)) as pieces:
        assert next(pieces) == 0
    assert closed == [500, 3, 10**9]

    def full(piece: int) -> None:
        raise OSError(28, "No space left")

    with pytest.raises(OSError, match="No space"), behind(full) as write:
        for piece in range(1000):
            write(piece)
    assert not [thread for thread in threading.enumerate() if thread.name in ("mlcycle-ahead", "mlcycle-behind")]


def test_a_pipeline_is_taken_apart_without_a_difference() -> None:
    "Labels and probabilities are those of the pipeline itself, also with steps that are left out, learn nothing, or change rows in place."
    from sklearn.base import BaseEstimator, TransformerMixin
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import Pipeline, make_pipeline
    from sklearn.preprocessing import FunctionTransformer, StandardScaler

    rng = np.random.default_rng(0)
    X = pd.DataFrame(rng.normal(size=(60, 3)), columns=list("abc"))
    y = np.where(X["a"] + X["b"] > 0, "yes", "no")
    in_place = FunctionTransformer(lambda rows: rows.__imul__(2))

    class Doubled(TransformerMixin, BaseEstimator):
        "Learns nothing, so nothing shows that it was fitted."

        def fit(self, X, y=None):
            return self

        def transform(self, X):
            return X * 2

    for model in (make_pipeline(StandardScaler(), LogisticRegression()), make_pipeline(LogisticRegression()),
                  make_pipeline(in_place, LogisticRegression()), make_pipeline(Doubled(), LogisticRegression()),
                  Pipeline([("none", None), ("own", Doubled()), ("last", LogisticRegression())]),
                  Pipeline([("none", "passthrough"), ("scale", StandardScaler(copy=False)), ("last", LogisticRegression())])):
        model.fit(X.copy(), y)
        table, before = outputs(model, X), X.copy()
        assert table["prediction"].tolist() == model.predict(X.copy()).tolist()
        assert (table[["probability_no", "probability_yes"]].to_numpy() == model.predict_proba(X.copy())).all()
        pd.testing.assert_frame_equal(X, before)


def test_a_note_that_others_could_write_does_not_count(tmp_path: Path) -> None:
    "The list of estimators is taken from a note of this user alone, and only when it lists nothing but scikit-learn's names."
    code = ("from mlcycle.registry.safety.estimators import _note, read_names, write_names\nimport os\nwrite_names(['sklearn.svm._classes.SVC'])\n"
            "assert read_names() == ['sklearn.svm._classes.SVC']\nos.chmod(_note(), 0o666); assert read_names() is None\nos.chmod(_note(), 0o600)\n"
            "write_names(['sklearn.svm._classes.SVC', 'os.system']); assert read_names() is None\n"
            "_note().write_text('[]'); assert read_names() is None\n_note().write_text('{'); assert read_names() is None\n"
            "from mlcycle.registry.safety.estimators import skops_io\nskops_io(); assert len(read_names()) > 100")
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "XDG_CACHE_HOME": str(tmp_path)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_skops_trusts_the_same_when_it_is_imported_faster(tmp_path: Path) -> None:
    "Every list of names that skops makes while it is imported, by itself and by us, with and without a note; what we changed is put back."
    code = ("import sys, pandas, sklearn.linear_model, sklearn.ensemble\n{}\nimport json, skops.io._trusted_types as listed\n"
            "import skops.io._utils as utils\n"
            "print(json.dumps([{{k: sorted(v) for k, v in vars(listed).items() if k.endswith('_NAMES')}}, utils.whichmodule.__module__,\n"
            "hasattr(utils.whichmodule, '__wrapped__')]))")
    ours = "from mlcycle.registry.safety.estimators import skops_io; skops_io()"
    plain, first, noted = (json.loads(subprocess.run([sys.executable, "-c", code.format(line)], env={**os.environ, "XDG_CACHE_HOME": str(tmp_path)},
                                                     capture_output=True, text=True, check=True).stdout) for line in ("import skops.io", ours, ours))
    assert plain == first == noted and len(plain[0]["SCIPY_UFUNC_TYPE_NAMES"]) > 100 and plain[1:] == ["skops.io._utils", False]
