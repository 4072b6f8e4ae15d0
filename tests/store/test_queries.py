"Queries mean what Python means, and whatever is asked is answered or refused in bounded time, on both databases."
from __future__ import annotations

import math
import operator
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlcycle.errors import AmbiguousError, QueryError
from mlcycle.store import facts, metrics, query, runs, schema
from mlcycle.store.connect import Store, open_store

VALUES = {"none": None, "five": 5, "float": 5.5, "text": "a", "digits": "5", "yes": True, "list": [1], "map": {"a": 5}, "nan": math.nan,
          "large": 2**53 + 1, "huge": 10**400, "infinite": -math.inf, "empty": ""}


@pytest.fixture
def values_store(store: Store) -> Store:
    "Runs with one param of every type, and a metric for the numbers; one run has neither."
    for name, value in VALUES.items():
        run = runs.create(store, "e", name)
        facts.put_params(store, run.pk, {"p": value})
        facts.put_tags(store, run.pk, {"t": value})
        if isinstance(value, float) or (type(value) is int and value < 2**60):
            metrics.log(store, run.pk, {"m": float(value)}, {"m": 0})
    runs.create(store, "e", "without")
    return store


def names(store: Store, text: str) -> set[str]:
    "The names of the runs that fit."
    return {row.name for row in query.page(store, text, limit=None)}


def is_equal(value: Any, constant: Any) -> bool:
    "Equality of Python, but true is no number, and NaN is found by NaN."
    if isinstance(value, float) and isinstance(constant, float) and value != value and constant != constant:
        return True
    return isinstance(value, bool) == isinstance(constant, bool) and value == constant


constants = st.sampled_from([None, 5, 5.0, 5.5, "a", "5", True, False, [1], [2], math.nan, 2**53, 2**53 + 1, 10**400, -math.inf, "", "zz", 7])


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(constant=constants, others=st.lists(constants, max_size=4))
def test_params_are_compared_as_in_python(values_store: Store, constant: Any, others: list[Any]) -> None:
    "==, !=, in and not in find what Python finds, whatever the type of the value; a run without the param fits only `== None`."
    def expected(wanted: bool, constants: list[Any]) -> set[str]:
        equal = {name for name, value in VALUES.items() if any(is_equal(value, c) for c in constants)}
        without = {"without"} if wanted and any(c is None for c in constants) else set()
        return (equal if wanted else set(VALUES) - equal) | without

    assert names(values_store, f"params.p == {constant!r}") == expected(True, [constant])
    assert names(values_store, f"params.p != {constant!r}") == expected(False, [constant])
    assert names(values_store, f"params.p in {others!r}") == expected(True, others)
    assert names(values_store, f"params.p not in {others!r}") == expected(False, others)


def test_metrics_tags_and_fields_are_compared_as_in_python(values_store: Store) -> None:
    "NaN is unlike every number, a missing time or parent unlike every text; what a run does not have is not found by `!=`."
    logged = {name: float(value) for name, value in VALUES.items() if isinstance(value, float) or (type(value) is int and value < 2**60)}
    for number in (5, 5.5, 7, -math.inf):
        assert names(values_store, f"metrics.m != {number}") == {name for name, value in logged.items() if operator.ne(value, number)}
        assert names(values_store, f"min(metrics.m) != {number}") == names(values_store, f"metrics.m != {number}")
    assert names(values_store, "metrics.m not in [5, 5.5]") == set(logged) - {"five", "float"}
    assert names(values_store, "metrics.m != nan") == set(logged) - {"nan"} and names(values_store, "metrics.m is not None") == set(logged)
    assert names(values_store, "tags.t != '5'") == set(VALUES) - {"five", "digits"}
    everything = {*VALUES, "without"}
    assert names(values_store, "parent != 'x'") == names(values_store, "ended != '2020-01-01'") == names(values_store, "seconds != 1") == everything
    assert names(values_store, "name not in ['text', 'list']") == everything - {"text", "list"} and names(values_store, "parent is not None") == set()


@pytest.mark.parametrize("text", [
    "params.p in [" + ",".join(map(str, range(1_000_000))) + "]", "params.p in [" + ",".join(map(str, range(12_000))) + "]",
    " and ".join(["metrics.m > 0"] * 600), " or ".join(["not metrics.m > 0"] * 50_000), "not " * 50 + "metrics.m > 0",
    "not " * 30_000 + "metrics.m > 0", "metrics.m > " + "9" * 400, "metrics.m > -" + "9" * 400, "metrics.m > " + "9" * 5000,
    "metrics.m > " + "-" * 900 + "1", "metrics" + ".a" * 50_000 + " > 1", "(" * 500 + "metrics.m > 0" + ")" * 500,
    "params.p == " + "[" * 80 + "1" + "]" * 80, "0 < " + " < ".join(["metrics.m"] * 2000), "x" * 5_000_000,
    " and ".join(f"metrics['m{i}'] > 0" for i in range(70))], ids=lambda text: f"{text[:20]}-{len(text)}")
def test_what_is_too_large_is_refused(values_store: Store, text: str) -> None:
    "Big lists, long chains, deep nesting and numbers that no float64 holds are errors of the query that are short to read."
    for i in range(70):
        metrics.log(values_store, 1, {f"m{i}": 1.0}, {f"m{i}": 0})
    for ask in (lambda: query.page(values_store, text), lambda: query.count(values_store, text), lambda: query.page(values_store, order_by=text)):
        with pytest.raises(QueryError) as caught:
            ask()
        assert len(str(caught.value)) < 5000


def test_what_is_large_is_answered(values_store: Store) -> None:
    "Up to those limits both databases answer."
    wide = ",".join(map(str, range(9_900)))
    assert names(values_store, f"params.p in [{wide}]") == {"five"} and names(values_store, f"metrics.m in [{wide}]") == {"five"}
    assert names(values_store, " and ".join(["metrics.m > 0"] * 500)) == {"five", "float", "large"}
    assert names(values_store, "not " * 18 + "metrics.m > 5") == {"float", "large"}
    nested = "metrics.m > 5"
    for _ in range(9):
        nested = f"(metrics.m > 0 and (metrics.m > 1 or {nested}))"
    assert names(values_store, nested) == {"five", "float", "large"}


def test_a_name_that_looks_like_an_id_is_found(store: Store) -> None:
    "A whole id comes before a name, a name before the beginning of an id; many ids that begin like a name do not hide it."
    begun = [runs.create(store, "e", f"run {i}") for i in range(8)]
    with store.db.write() as con:
        for i, run in enumerate(begun):
            con.execute(schema.runs.update().where(schema.runs.c.pk == run.pk).values(id=f"a{i:015x}"))
    called = runs.create(store, "e", "a")
    assert runs.resolve(store, "a").id == called.id and runs.resolve(store, f"a{3:015x}").name == "run 3"
    imitator = runs.create(store, "e", f"a{3:015x}")
    assert runs.resolve(store, f"a{3:015x}").name == "run 3" and runs.resolve(store, imitator.id).id == imitator.id
    with pytest.raises(AmbiguousError):
        runs.resolve(store, "a0")
    runs.create(store, "e", "a")
    with pytest.raises(AmbiguousError, match="fits 2 runs"):
        runs.resolve(store, "a")


ORDERS = ["started", "-started", "name", "status", "seconds", "metrics.m", "max(metrics.m)", "-count(metrics.m)", "params.p", "-params.p", "tags.t"]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(order=st.sampled_from(ORDERS),
       text=st.sampled_from(["", "metrics.m > 5", "params.p != 5 or name == 'without'", "not tags.t == 'a'", "status == 'x'"]),
       experiment=st.sampled_from([None, "e", "other"]), limit=st.integers(1, 15), offset=st.integers(0, 16), window=st.sampled_from([1, 5, 2000]))
def test_pages_are_pieces_of_the_whole(values_store: Store, order: str, text: str, experiment: str | None, limit: int, offset: int,
                                       window: int) -> None:
    "In every order each page is a piece of all runs in that order, which holds each run that fits once; a page with its number says the same."
    whole = [row.name for row in query.page(values_store, text, experiment, order, None)]
    assert sorted(whole) == sorted(names(values_store, text) if experiment != "other" else [])
    assert query.count(values_store, text, experiment) == len(whole)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(query, "WINDOW", window)  # whether the page is among the runs that are looked at first makes no difference
        page = query.page(values_store, text, experiment, order, limit, offset)
        rows, total = query.page_and_count(values_store, text, experiment, order, limit, offset)
    assert [row.name for row in page] == [row.name for row in rows] == whole[offset:offset + limit] and total == len(whole)


def test_params_and_metrics_are_ordered_by_value(values_store: Store) -> None:
    "Numbers by number, text after them by text, and whatever has none at the end, in both directions."
    for order in ("params.p", "-params.p"):
        ordered = [row.name for row in query.page(values_store, order_by=order)]
        numbers = [VALUES[name] for name in ordered if type(VALUES.get(name)) in (int, float) and VALUES[name] == VALUES[name]]
        assert numbers == sorted(numbers, reverse=order[0] == "-") and ordered[:len(numbers)] == [n for n in ordered if VALUES.get(n) in numbers
                                                                                                 and type(VALUES[n]) in (int, float)]
        assert ordered[-1] == "without"
    lowest = [row.name for row in query.page(values_store, order_by="min(metrics.m)", limit=2)]
    assert lowest == ["infinite", "five"]


@pytest.mark.parametrize("values", [("hgb", "forest", "linear"), (3, 1, 2), (7, 7, 7), ("same", "same", "same")], ids=str)
@pytest.mark.parametrize("order", ["params.p", "-params.p"])
def test_an_order_by_a_param_reads_an_index_alone(tmp_path: Path, values: tuple[Any, ...], order: str) -> None:
    "Texts, numbers and equal values: on SQLite a page reads the index of values and no row of `params`; of equals the newest is first."
    with open_store(tmp_path / "mlcycle.db") as store:
        keys = [runs.create(store, "e", f"r{number}").pk for number in range(12)]
        for number, key in enumerate(keys):
            facts.put_params(store, key, {"p": values[number % 3]})
        asked: list[str] = []
        query.page(store, limit=1)  # a connection that is kept
        store.db._readers.idle[-1].set_trace_callback(asked.append)
        page = [row.pk for row in query.page(store, order_by=order, limit=5)]
        (asking,) = [text for text in asked if "FROM params" in text and "ORDER BY" in text]
        steps = [step for *_, step in store.db.rows(f"EXPLAIN QUERY PLAN {asking}")]
    newest_first = [(key, values[number % 3]) for number, key in enumerate(keys)][::-1]
    assert page == [key for key, _ in sorted(newest_first, key=lambda pair: pair[1], reverse=order.startswith("-"))][:5]
    assert "COVERING INDEX ix_params_name_number_value" in steps[0] and not [step for step in steps if "PRIMARY KEY" in step], steps


def test_habits_of_sql_are_understood_or_answered(store: Store) -> None:
    "AND, OR and NOT in capitals mean what they mean elsewhere, in quotes they stay; a bare name is answered with where it stands."
    for name, auc in (("low", 0.5), ("high AND dry", 0.9)):
        run = runs.create(store, "e", name)
        metrics.log(store, run.pk, {"auc": auc}, {"auc": 0})
        facts.put_params(store, run.pk, {"model": "hgb", "auc_goal": 1})
        runs.finish(store, run)
    for text in ("metrics.auc > 0.6 AND params.model == 'hgb'", "NOT metrics.auc < 0.6", "name IN ['high AND dry'] OR name == 'x'",
                  "name == 'high AND dry' AND status == 'finished'"):
        assert names(store, text) == {"high AND dry"}, text
    for text, hint in (("auc > 0.6", "did you mean metrics.auc?"), ("model == 'hgb'", "did you mean params.model?"),
                        ("auc > 0.6 AND model == 'hgb'", "did you mean metrics.auc?"), ("metrics.auc > 0.6 XOR 1", "Something is not understood")):
        with pytest.raises(QueryError, match=re.escape(hint)):
            names(store, text)
