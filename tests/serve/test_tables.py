"Arrow and Parquet bodies: the same answers as JSON, and bodies that were made to harm are refused without harm."
from __future__ import annotations

import io
import json
import os
import resource
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mlcycle.registry.signatures import Column, Signature
from mlcycle.serve.columns import ColumnsReader
from mlcycle.serve.problems import Problem
from mlcycle.serve.tables import ARROW, PARQUET, UNPACKED_LIMIT, table_rows
from tests.serve.protocol_models import LocalApp, served_model

PEOPLE = pa.table({"age": [30, 31], "income": [1.5, None], "city": ["Ulm", "Köln"], "member": [True, False], "note": pa.array([None, "x"])})
SOAK = int(os.environ.get("MLCYCLE_SOAK") or 1)
NUMBERS = ColumnsReader(Signature((Column("a", "float64"),)))
TEXTS = ColumnsReader(Signature((Column("a", "str", nullable=True),)))


def arrow(table: pa.Table, **options: Any) -> bytes:
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table)
    return sink.getvalue()


def parquet(table: pa.Table, **options: Any) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, **options)
    return sink.getvalue()


FORMS = {ARROW: arrow, PARQUET[0]: parquet}


@pytest.mark.parametrize("media_type", FORMS)
def test_answers_in_json_and_arrow(tmp_path: Path, media_type: str) -> None:
    "The same predictions whatever goes in or comes out; probabilities where asked; text plain or by dictionary, in one piece or several."
    app = LocalApp(tmp_path, served_model(tmp_path))
    encoded, pieces = PEOPLE.set_column(2, "city", PEOPLE["city"].dictionary_encode()), pa.concat_tables([PEOPLE.slice(0, 1), PEOPLE.slice(1, 1)])
    for table in (PEOPLE, encoded, pieces):
        body = FORMS[media_type](table)
        status, _, answer = app.ask("POST", "/v1/predict", body, "probabilities=true", content_type=media_type)
        given = json.loads(answer)
        assert status == 200 and given["predictions"] == ["no", "yes"] and given["probabilities"][0] == {"no": 0.75, "yes": 0.25}
        status, headers, answer = app.ask("POST", "/v1/models/people/predict", body, content_type=media_type, accept=f"{ARROW}, */*")
        given = pa.ipc.open_stream(answer).read_all()
        assert status == 200 and headers["content-type"] == ARROW and given["probability_yes"].to_pylist() == [0.25, 0.75]
        assert given["prediction"].to_pylist() == ["no", "yes"] and given.schema.metadata[b"model"] == b"people"


WRONG = {
    "a missing column": PEOPLE.drop(["age"]), "an extra column": PEOPLE.append_column("more", [[1, 2]]),
    "halves": PEOPLE.set_column(0, "age", [[1.5, 2]]),
    "text": PEOPLE.set_column(0, "age", [["1", "2"]]), "a null": PEOPLE.set_column(0, "age", [pa.array([None, 1])]),
    "lists": PEOPLE.set_column(0, "age", [[[1], [2]]]), "structs": PEOPLE.set_column(0, "age", [[{"a": 1}, {"a": 2}]]),
    "bytes": PEOPLE.set_column(4, "note", [[b"1", b"2"]]), "times": PEOPLE.set_column(0, "age", [pa.array([1, 2], pa.timestamp("us"))]),
    "an unknown category": PEOPLE.set_column(2, "city", [["Rom", "Ulm"]]), "no rows": PEOPLE.slice(0, 0), "nothing": pa.table({}),
    "infinity": PEOPLE.set_column(1, "income", [[np.inf, 1.0]]), "decimals": PEOPLE.set_column(1, "income", [pa.array([1, 2], pa.decimal128(5, 2))]),
}


@pytest.mark.parametrize("media_type", FORMS)
@pytest.mark.parametrize("name", WRONG)
def test_tables_that_do_not_fit(tmp_path: Path, name: str, media_type: str) -> None:
    "Each is refused, and says why."
    app = LocalApp(tmp_path, served_model(tmp_path))
    status, _, answer = app.ask("POST", "/v1/predict", FORMS[media_type](WRONG[name]), content_type=media_type)
    assert status == 422, answer


@pytest.mark.parametrize("media_type", FORMS)
def test_damaged_bodies(media_type: str) -> None:
    "A body that is cut off or changed anywhere is read as what it says or refused; nothing else happens."
    body = FORMS[media_type](pa.table({"a": [1.5, 2.5, 3.5]}))
    random = np.random.default_rng(0)
    damaged = [body[:length] for length in range(0, len(body), 7)]
    for _ in range(300 * SOAK):
        changed = bytearray(body)
        for place in random.integers(0, len(body), random.integers(1, 4)):
            changed[place] = random.integers(0, 256)
        damaged.append(bytes(changed))
    refused = 0
    for one in damaged:
        try:
            table_rows(NUMBERS, one, media_type)
        except Problem as e:
            refused += 1
            assert e.status < 500
    assert refused > len(damaged) / 3


def test_a_body_that_ends_the_process_which_reads_it() -> None:
    "Some single bytes of a footer make pyarrow end its process (in 26.0 the 21st): the body is refused, and the next one is read."
    body = parquet(pa.table({"a": [1.5, 2.5, 3.5]}))
    footer = len(body) - 8 - int.from_bytes(body[-8:-4], "little")
    for place in range(footer + 10, footer + 30):
        changed = bytearray(body)
        changed[place] = 127
        try:
            table_rows(NUMBERS, bytes(changed), PARQUET[0])
        except Problem as e:
            assert e.status in (400, 413, 422)
        assert table_rows(NUMBERS, body, PARQUET[0]).data["a"].tolist() == [1.5, 2.5, 3.5]
    with pytest.raises(Problem):
        table_rows(NUMBERS, body[:footer + 20] + b"\x7f" + body[footer + 21:], PARQUET[0])


def bombs() -> dict[str, tuple[str, bytes, ColumnsReader]]:
    "Small bodies that would be huge."
    zeros, row = pa.table({"a": np.zeros(5_000_000)}), pa.table({"a": [1.0]})
    long = pa.table({"a": pa.DictionaryArray.from_arrays(np.zeros(10_000, dtype="int8"), ["x" * 1_000_000])})
    rows = {"a": pa.array(["x" * 1_000_000] * 300)}
    liar = bytearray(arrow(row))
    place = liar.rindex(np.int64(1).tobytes())
    liar[place:place + 8] = np.int64(2**40).tobytes()
    return {
        "too many rows, Parquet": (PARQUET[0], parquet(zeros, compression="zstd"), NUMBERS),
        "too many rows, Arrow": (ARROW, arrow(pa.table({"a": pa.nulls(2_000_000)})), NUMBERS),
        "compressed Arrow": (ARROW, arrow(zeros.slice(0, 900_000), compression="zstd"), NUMBERS),
        "one text, many times": (ARROW, arrow(long), TEXTS),
        "one text, many times, Parquet": (PARQUET[0], parquet(long), TEXTS),
        "long pages": (PARQUET[0], parquet(pa.table(rows), compression="zstd", use_dictionary=False), TEXTS),
        "a length that is a lie": (ARROW, bytes(liar), NUMBERS),
    }


def test_bombs() -> None:
    "Refused, and the process has not needed what they would unpack to."
    made = bombs()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for name, (media_type, body, reader) in made.items():
        with pytest.raises(Problem) as refused:
            table_rows(reader, body, media_type)
        assert refused.value.status in (400, 413, 415, 422), name
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert grown < UNPACKED_LIMIT


def test_times_and_zones() -> None:
    "Times with a zone come as UTC, and only where the column has one."
    reader = ColumnsReader(Signature((Column("at", "datetime64[us, UTC]"),)))
    values = pa.array([0, 1], pa.timestamp("s", "Europe/Berlin"))
    assert table_rows(reader, arrow(pa.table({"at": values})), ARROW).data["at"].tolist() == [value.replace(tzinfo=None) for value in (
        np.array([0, 1], "datetime64[s]").astype("datetime64[us]").tolist())]
    plain = ColumnsReader(Signature((Column("at", "datetime64[us]"),)))
    with pytest.raises(Problem):
        table_rows(plain, arrow(pa.table({"at": values})), ARROW)
