"MLflow's protocol: the bodies that its clients send are answered in its form, and what its server lets pass wrongly is refused."
from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from mlcycle.registry.signatures import Signature, Tensor
from tests.serve.protocol_models import ROW, LocalApp, served_model

TABLE = pd.DataFrame([ROW, {"age": 31, "income": np.nan, "city": "Köln", "member": False, "note": 'a "b"'}]).astype({"note": object})
RECORDS = [ROW, {"age": 31, "income": None, "city": "Köln", "member": False, "note": 'a "b"'}]
SPLIT = {"columns": list(ROW), "data": [list(record.values()) for record in RECORDS]}
COLUMNS = {name: [record[name] for record in RECORDS] for name in ROW}
CSV, PARQUET = "text/csv", "application/vnd.apache.parquet"


def parquet(table: pd.DataFrame, **options: Any) -> bytes:
    sink = io.BytesIO()
    table.to_parquet(sink, **options)
    return sink.getvalue()


def other(**changes: Any) -> dict[str, Any]:
    "A row with other values; `...` takes a column out."
    return {name: value for name, value in {**ROW, **changes}.items() if value is not ...}


GOOD: dict[str, tuple[str, Any]] = {
    "records": ("", {"dataframe_records": RECORDS}),
    "records in another order": ("", {"dataframe_records": [dict(reversed(record.items())) for record in RECORDS]}),
    "split": ("", {"dataframe_split": SPLIT}),
    "split with an index": ("", {"dataframe_split": SPLIT | {"index": [7, 8]}}),
    "split in another order": ("", {"dataframe_split": {"columns": list(reversed(ROW)), "data": [list(reversed(row)) for row in SPLIT["data"]]}}),
    "instances": ("", {"instances": RECORDS}),
    "inputs as columns": ("", {"inputs": COLUMNS}),
    "instances as columns": ("", {"instances": COLUMNS}),
    "inputs as records": ("", {"inputs": RECORDS}),
    "params that say nothing": ("", {"inputs": COLUMNS, "params": {}}),
    "a member that nobody knows": ("", {"client_request_id": "7", "dataframe_records": RECORDS}),
    "pandas' own split": ("", b'{"dataframe_split": %s}' % TABLE.to_json(orient="split").encode()),
    "pandas' own records": ("", b'{"dataframe_records": %s}' % TABLE.to_json(orient="records").encode()),
    "a charset": ("application/json; charset=utf-8", {"dataframe_records": RECORDS}),
    "whole floats": ("", {"dataframe_records": [other(age=30.0), other(age=31.0)]}),
    "CSV": (CSV, TABLE.to_csv(index=False).encode()),
    "CSV with windows' ends": (CSV, TABLE.to_csv(index=False, lineterminator="\r\n").encode()),
    "CSV with a mark": (CSV, b"\xef\xbb\xbf" + TABLE.to_csv(index=False).encode()),
    "Parquet": (PARQUET, parquet(TABLE)),
    "Parquet, zstd": (PARQUET, parquet(TABLE, compression="zstd")),
    "Parquet with an index": (PARQUET, parquet(TABLE.set_axis(["x", "y"]))),
    "Parquet of categories": (PARQUET, parquet(TABLE.astype({"city": "category"}))),
}
BAD: dict[str, tuple[str, Any, int, str]] = {
    "30.5 in a whole column": ("", {"dataframe_records": [other(age=30.5)]}, 422, "30.5"),
    "a column too few": ("", {"dataframe_records": [other(city=...)]}, 422, "city"),
    "a column too many": ("", {"dataframe_records": [other(age2=1)]}, 422, "age2"),
    "a null": ("", {"instances": [other(age=None)]}, 422, "null"),
    "an unknown category": ("", {"inputs": COLUMNS | {"city": ["Rom", "Ulm"]}}, 422, "Rom"),
    "text in numbers": ("", {"dataframe_split": SPLIT | {"data": [["x", *SPLIT["data"][0][1:]]]}}, 422, "'x'"),
    "a short row": ("", {"dataframe_split": SPLIT | {"data": [[1]]}}, 422, "Row 1"),
    "a column twice": ("", {"dataframe_split": {"columns": ["age", "age"], "data": [[1, 2]]}}, 422, "twice"),
    "columns of two lengths": ("", {"inputs": COLUMNS | {"age": [1]}}, 422, "same number"),
    "no rows": ("", {"dataframe_records": []}, 422, "no rows"),
    "no shape": ("", {}, 422, "dataframe_split"),
    "two shapes": ("", {"inputs": COLUMNS, "instances": RECORDS}, 422, "exactly one"),
    "a bare list": ("", RECORDS, 422, "exactly one"),
    "records as an object": ("", {"dataframe_records": COLUMNS}, 422, "list of rows"),
    "params": ("", {"inputs": COLUMNS, "params": {"top": 3}}, 422, "params"),
    "a shape twice": ("", b'{"inputs": {}, "inputs": {}}', 400, "twice"),
    "a column of a row twice": ("", b'{"instances": [{"age": 1, "age": 2}]}', 400, "twice"),
    "NaN": ("", b'{"dataframe_records": [{"age": NaN}]}', 400, "NaN"),
    "no JSON": ("", b"{", 400, "JSON"),
    "CSV with 30.5": (CSV, TABLE.assign(age=30.5).to_csv(index=False).encode(), 422, "30.5"),
    "CSV cut off": (CSV, b'age,income,city,member,note\n30,1,Ulm,True,"a', 400, "CSV"),
    "CSV without rows": (CSV, b"age,income,city,member,note\n", 422, "no rows"),
    "empty CSV": (CSV, b"", 400, "empty"),
    "Parquet cut off": (PARQUET, parquet(TABLE)[:-20], 400, "Parquet"),
    "Parquet with 30.5": (PARQUET, parquet(TABLE.assign(age=30.5)), 422, "30.5"),
    "another type": ("text/html", b"", 415, "text/csv"),
}


@pytest.fixture
def app(tmp_path: Path) -> LocalApp:
    return LocalApp(tmp_path, served_model(tmp_path))


def send(app: LocalApp, content_type: str, body: Any) -> tuple[int, Any]:
    "Status and JSON of an answer."
    body = body if isinstance(body, bytes) else json.dumps(body).encode()
    status, headers, answer = app.ask("POST", "/invocations", body, content_type=content_type or "application/json")
    assert headers["content-type"] == ("application/json" if status == 200 else "application/problem+json")
    return status, json.loads(answer)


@pytest.mark.parametrize("name", GOOD)
def test_bodies_of_mlflow(app: LocalApp, name: str) -> None:
    "Each is answered as MLflow answers it."
    assert send(app, *GOOD[name]) == (200, {"predictions": ["no", "yes"]})


@pytest.mark.parametrize("name", BAD)
def test_bodies_that_are_refused(app: LocalApp, name: str) -> None:
    "Each is refused with a problem document that names what is wrong; MLflow's server answers some of them."
    content_type, body, status, text = BAD[name]
    got, problem = send(app, content_type, body)
    assert got == status and text in json.dumps(problem, ensure_ascii=False), problem


def test_arrays_and_several_models(tmp_path: Path) -> None:
    "A model of an array takes lists; with two models each has an address of its own, and `/ping` answers as MLflow's does."
    def add(data: np.ndarray) -> dict[str, np.ndarray]:
        return {"prediction_0": data.sum(axis=1), "prediction_1": data.max(axis=1)}

    pixels = served_model(tmp_path, Signature(Tensor((None, 2), "float64")), add, "pixels")
    app = LocalApp(tmp_path, pixels, served_model(tmp_path))
    for body in ({"inputs": [[1, 2]]}, {"instances": [[1, 2]]}, {"dataframe_split": {"columns": [0, 1], "data": [[1, 2]]}}):
        status, _, answer = app.ask("POST", "/models/pixels/invocations", json.dumps(body).encode())
        assert (status, json.loads(answer)) == (200, {"predictions": [[3.0, 2.0]]})
    assert app.ask("POST", "/models/pixels/invocations", b"a,b\n1,2\n", content_type=CSV)[2] == b'{"predictions":[[3.0,2.0]]}'
    assert app.ask("POST", "/invocations", b"{}")[0] == 404
    assert app.ask("GET", "/ping")[:1] == (200,) and app.ask("GET", "/health")[2] == b"\n"
