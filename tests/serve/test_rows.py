"""Rows in JSON and a table with pandas: whatever `registry.check` accepts, a request may have, with the same values, and the reverse.

Signatures and values are made by hypothesis, with those that break such things: limits of each type, halves, nulls, other kinds, categories.
"""
from __future__ import annotations

import json
import math
import os
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlcycle.errors import SignatureError
from mlcycle.registry.check import check
from mlcycle.registry.signatures import Column, Signature
from mlcycle.serve.json_rows import JsonRows, rows_from_value
from mlcycle.serve.json_text import parse_json
from mlcycle.serve.predictors import signature_frame
from mlcycle.serve.problems import Problem
from mlcycle.serve.typed_arrays import fit_arrays

EXAMPLES = 100 * int(os.environ.get("MLCYCLE_SOAK") or 1)  # each makes a decoder of its own, which takes milliseconds
NUMBERS = ("int8", "int32", "int64", "uint8", "uint64", "float16", "float32", "float64")
TIMES = ("datetime64[s]", "datetime64[us]", "datetime64[ns]", "datetime64[us, UTC]", "datetime64[ns, UTC]")
TEXT = st.text(st.characters(codec="utf-8"), max_size=4) | st.sampled_from(["Ulm", "Köln", "1", "true", "2026-01-31", "NaN", '"'])
WHOLE = st.integers(-3, 300) | st.sampled_from([2**31, 2**53, 2**53 + 1, 2**63 - 1, -(2**63), 2**63, 2**64 - 1, 2**64, 10**30])
FLOAT = st.floats(allow_nan=False, allow_infinity=False) | st.sampled_from([0.5, 30.0, 1e300, 70000.0, 1e39, 2.0**53, 2.0**63, -0.0])
MOMENTS = st.datetimes().map(lambda moment: moment.isoformat()) | st.sampled_from(
    ["2026-01-31", "2026-01-31T12:00:00+02:00", "2026-01-31T12:00:00.123456", "2026-01-31 12:00", "9999-12-31", "0001-01-01", "2026-02-30"])
ANY = st.none() | st.booleans() | WHOLE | FLOAT | TEXT | MOMENTS


@st.composite
def columns(draw: st.DrawFn, name: str) -> Column:
    "A column of any kind."
    dtype = draw(st.sampled_from((*NUMBERS, *TIMES, "bool", "str", "category", "object")))
    categories = draw(st.sampled_from([("Ulm", "Köln"), (1, 2, 30), (0.5, 30.0), ("only",)])) if dtype == "category" else None
    if dtype == "str" and draw(st.booleans()):
        categories = ("Ulm", "Köln")
    return Column(name, dtype, draw(st.booleans()), categories)


def values_for(column: Column) -> st.SearchStrategy[Any]:
    "Mostly what fits a column."
    if column.categories is not None:
        own: st.SearchStrategy[Any] = st.sampled_from(column.categories)
    elif column.dtype.startswith("datetime64"):
        own = MOMENTS.map(lambda text: text if "+" in text or "UTC" not in column.dtype else f"{text}+00:00")
    else:
        own = {"bool": st.booleans(), "str": TEXT, "object": TEXT | WHOLE}.get(column.dtype, FLOAT if column.dtype[0] == "f" else WHOLE)
    return own | st.none() if column.nullable else own


@st.composite
def bodies(draw: st.DrawFn) -> tuple[Signature, dict[str, list[Any]]]:
    "A signature, and columns for it that mostly fit."
    signature = Signature(tuple(draw(columns(name)) for name in "abc"[: draw(st.integers(1, 3))]))
    count = draw(st.integers(1, 3))
    cells = {str(column.name): draw(st.lists(values_for(column), min_size=count, max_size=count)) for column in signature.columns}
    if draw(st.integers(0, 3)) == 0:
        cells[draw(st.sampled_from(sorted(cells)))][draw(st.integers(0, count - 1))] = draw(ANY)
    return signature, cells


def as_table(signature: Signature, cells: dict[str, list[Any]]) -> pd.DataFrame:
    "What a person has in a notebook: the same values in a DataFrame."
    return pd.DataFrame({name: pd.Series(values, dtype=object) for name, values in cells.items()})


def same(left: Any, right: Any) -> bool:
    "Whether two values are the same, nulls included."
    return bool(left == right) or (pd.isna(left) and pd.isna(right))


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(bodies())
def test_tables_and_requests_are_judged_alike(body: tuple[Signature, dict[str, list[Any]]]) -> None:
    "A DataFrame passes `check` exactly if the request with its values is taken, and the model then gets the same columns."
    signature, cells = body
    try:
        wanted = check(signature, as_table(signature, cells))
    except SignatureError as e:
        wanted, why = None, e
    names = list(cells)
    records = [dict(zip(names, row, strict=True)) for row in zip(*cells.values(), strict=True)]
    for request in ({"records": records}, {"columns": cells}):
        try:
            rows = JsonRows(signature).decode(json.dumps(request).encode())
        except Problem as e:
            assert wanted is None, (signature, request, e)
            continue
        assert wanted is not None, (signature, request, why)
        fitted = check(signature, signature_frame(signature, rows.data))
        pd.testing.assert_frame_equal(fitted, wanted)


EDGES = [None, True, False, 0, 1, 2, -1, 300, 2**53, 2**53 + 1, 2**63 - 1, 2**63, 2**64 - 1, 2**64, 10**30, 0.5, 30.0, 1e300, 70000.0, 1e39,
         2.0**63, -0.0, "", "Ulm", "1", "true", "NaN", "2026-01-31", "2026-01-31T12:00:00+02:00", "2026-01-31T12:00:00.123456789",
         "2026-01-31 12:00", "9999-12-31", "0001-01-01", "2026-02-30", "2026-W05", "20260131", "2026-01-31T12:00:00Z", "2026-01", "2026"]
KINDS = [(dtype, None) for dtype in (*NUMBERS, *TIMES, "bool", "str", "object")] + [
    ("category", ("Ulm", "")), ("category", (1, 2, 30)), ("category", (True, False)), ("str", ("Ulm", ""))]


@pytest.mark.parametrize(("dtype", "categories"), KINDS, ids=lambda value: str(value))
def test_edges_of_each_type(dtype: str, categories: tuple[Any, ...] | None) -> None:
    "What breaks such code most often, in each type, alone and beside a null."
    for nullable in (False, True):
        signature = Signature((Column("a", dtype, nullable, categories),))
        decoder = JsonRows(signature)
        for cells in ([value, *more] for value in EDGES for more in ([], [None])[: 1 + nullable]):
            try:
                wanted = check(signature, as_table(signature, {"a": cells}))
            except SignatureError:
                with pytest.raises(Problem):
                    decoder.decode(json.dumps({"columns": {"a": cells}}).encode())
                continue
            rows = decoder.decode(json.dumps({"columns": {"a": cells}}).encode())
            pd.testing.assert_frame_equal(check(signature, signature_frame(signature, rows.data)), wanted)


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(bodies(), st.data())
def test_the_fast_path_and_the_exact_path_agree(body: tuple[Signature, dict[str, list[Any]]], data: st.DataObject) -> None:
    "On every body, also one whose text was cut, doubled or changed in one place, both take the same rows or refuse."
    signature, cells = body
    records = [dict(zip(cells, row, strict=True)) for row in zip(*cells.values(), strict=True)]
    request = data.draw(st.sampled_from([{"records": records}, {"columns": cells}, {"row": records[0]}, {"records": records, "probabilities": True}]))
    text = json.dumps(request, ensure_ascii=data.draw(st.booleans())).encode()
    place = data.draw(st.integers(0, len(text)))
    text = data.draw(st.sampled_from([text, text, text[:place] + text[place + 1:],
                                      text[:place] + b"1" + text[place:],
                                      text[:place] + b'"a": 1, ' + text[place:], text + b" ", text + b"{}", b"\xef\xbb\xbf" + text]))
    decoder = JsonRows(signature)
    try:
        exact: Any = rows_from_value(decoder.reader, parse_json(text))
    except Problem as e:
        exact = e
    try:
        rows: Any = decoder.decode(text)
    except Problem as e:
        rows = e
    assert type(rows) is type(exact), (text, rows, exact)
    if isinstance(rows, Problem):
        assert rows.as_dict() == exact.as_dict()
        return
    assert (rows.count, rows.single, rows.probabilities) == (exact.count, exact.single, exact.probabilities)
    for name, array in rows.data.items():
        assert array.dtype == exact.data[name].dtype and len(array) == len(exact.data[name]), (text, name)
        assert all(map(same, array.tolist(), exact.data[name].tolist())), (text, name)


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.sampled_from(NUMBERS), st.sampled_from(NUMBERS), st.booleans(), st.lists(FLOAT | WHOLE, min_size=1, max_size=4), st.data())
def test_binary_numbers_are_judged_like_those_of_json(dtype: str, sent: str, nullable: bool, values: list[Any], data: st.DataObject) -> None:
    "An array that is taken as it lies in a body holds what the exact path would have made of its values."
    limits = np.finfo(sent) if sent[0] == "f" else np.iinfo(sent)
    numbers = values if sent[0] == "f" else map(int, values)
    with np.errstate(all="ignore"):
        array = np.array([min(max(value, limits.min), limits.max) for value in numbers]).astype(sent)
    if sent[0] == "f" and data.draw(st.booleans()):
        array[0] = np.nan
    decoder = JsonRows(Signature((Column("a", dtype, nullable),)))
    plain = [None if isinstance(value, float) and math.isnan(value) else value for value in array.tolist()]
    try:
        exact: Any = decoder.reader.from_columns({"a": plain})["a"]
    except Problem as e:
        with pytest.raises(Problem) as refused:
            fit_arrays(decoder.reader, {"a": array})
        assert refused.value.as_dict() == e.as_dict()
        return
    fitted = fit_arrays(decoder.reader, {"a": array})["a"]
    assert fitted.dtype == exact.dtype and np.array_equal(fitted, exact, equal_nan=True)
