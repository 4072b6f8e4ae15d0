"What every database must do, the same: one suite over SQLite and PostgreSQL."
from __future__ import annotations

import json
import math
import os
import sqlite3
import struct
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from sqlalchemy import insert, select, text, update

from mlcycle.entities import Dataset, RunError
from mlcycle.errors import AmbiguousError, ArtifactNameError, DataError, MlcycleError, NotFoundError
from mlcycle.store import artifacts, bulk, events, facts, inputs, metrics, models, refs, runs, schema, unsettled
from mlcycle.store.connect import Store, open_store
from mlcycle.store.inheriting import TABLES, inherit, logged_tables
from mlcycle.store.thinning import drawable, thinned
from mlcycle.track.active import ActiveRun

relaxed = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
floats = st.floats(allow_nan=True, allow_infinity=True, allow_subnormal=True)
unicode = st.text(st.characters(codec="utf-8", exclude_characters="\0"))
values = st.recursive(
    st.none() | st.booleans() | st.integers() | floats | unicode,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(unicode, inner, max_size=3), max_leaves=6)


def bits(value: float) -> bytes:
    "A float64 to the last bit; every NaN is the same."
    return b"nan" if value != value else struct.pack(">d", value)


def typed(value: Any) -> Any:
    "A value in a form whose equality tells 1, 1.0 and True apart, and -0.0 from 0.0."
    if isinstance(value, float):
        return ("float", bits(value))
    if isinstance(value, list):
        return [typed(v) for v in value]
    if isinstance(value, dict):
        return {k: typed(v) for k, v in value.items()}
    return (type(value).__name__, value)


def elsewhere(store: Store, code: str, *args: Any) -> subprocess.Popen:
    "Start Python in another process that has this `store` open, and `args` in sys.argv."
    script = "import os, sys\nfrom mlcycle.store.connect import current_store\nstore = current_store()\n" + code
    return subprocess.Popen([sys.executable, "-c", script, *map(str, args)], stdout=subprocess.PIPE, text=True,
                            env={**os.environ, **store.environment})


def outputs(processes: list[subprocess.Popen]) -> list[str]:
    "What each process printed; fails when one did."
    printed = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes)
    return printed


# Runs


def test_run_comes_back_whole(store: Store) -> None:
    "A run read from the database is the run that was begun, whoever reads it."
    parent = runs.create(store, "wetter")
    run = runs.create(store, "wetter", "Größe 'μ' \"100 %\" \\ ☃", "notebook", parent.id)
    assert runs.get(store, run.id) == run and runs.children(store, parent) == [run]
    script = "from mlcycle.store import runs; print(ascii(runs.get(store, sys.argv[1]).name))"
    assert outputs([elsewhere(store, script, run.id)]) == [ascii(run.name) + "\n"]


def test_run_ends_once(store: Store) -> None:
    "The first end of a run is its end: a late 'finished' must not hide a failure."
    run = runs.create(store, "churn")
    error = RunError("ValueError", "naïve ☠ message", "Traceback …\n  line", 3, "fit")
    runs.finish(store, run, "failed", error, "cell 3 raised")
    runs.finish(store, run)
    ended = runs.get(store, run.id)
    assert (ended.status, ended.error, ended.reason) == ("failed", error, "cell 3 raised") and ended.seconds >= 0


def test_reference_means_one_run(store: Store) -> None:
    "A reference finds its run by a beginning of the id or by name, and says when it fits several or none."
    first, second = runs.create(store, "e", "base"), runs.create(store, "e", "100%_done")
    third = runs.create(store, "e", "base")
    for ref in (first.id, first.id[:12], first.id[:12].upper(), f" {first.id} "):
        assert runs.resolve(store, ref) == first
    assert runs.resolve(store, "100%_done") == second
    with pytest.raises(AmbiguousError, match=third.id[:8]):
        runs.resolve(store, "base")
    for ref in ("", " ", "100%", "%", "_", "bas", "'; DROP TABLE runs; --", first.id + "0"):
        with pytest.raises(NotFoundError):
            runs.resolve(store, ref)


def test_a_name_of_several_runs_means_the_newest(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    "Who asks to see a run gets the newest of its name, with a line that says so; `~1` is the one before; the beginning of an id stays exact."
    same = [runs.create(store, "e", "base") for _ in range(3)][::-1]
    tilde = runs.create(store, "e", "base~2")
    for run in same[:2]:
        runs.finish(store, run)
    assert refs.newest(store, "base").id == same[0].id
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and f"base is {same[0].id[:8]} (finished, " in line and f"base~1 is {same[1].id[:8]}" in line and "base~2" in line
    assert [refs.newest(store, ref).id for ref in ("base~0", "base~1", "base~2")] == [same[0].id, same[1].id, tilde.id]
    assert refs.newest(store, same[2].id[:12]).id == same[2].id and capsys.readouterr().err == ""
    assert refs.newest(store, "base", prefer=lambda run: run.status == "running").id == same[2].id
    with pytest.raises(AmbiguousError):
        refs.newest(store, "base", prefer=lambda run: run.status == "finished")
    with pytest.raises(NotFoundError, match="3 runs of the name 'base'"):
        refs.newest(store, "base~7")
    with refs.strict_names(), pytest.raises(AmbiguousError, match=same[1].id[:8]):
        refs.find_run("base", store)
    several = [runs.create(store, "e").id[0] for _ in range(17)]
    with pytest.raises(AmbiguousError):  # the beginning of several ids is nobody's name
        refs.newest(store, next(first for first in several if several.count(first) > 1))


def test_every_prefix_finds_its_run(store: Store) -> None:
    "Prefixes work whatever the collation of the database: among many ids, each prefix fits exactly the ids that begin with it."
    made = [runs.create(store, "e") for _ in range(60)]
    for run in made[:20]:
        for length in (1, 2, 3, 16):
            fits = [r for r in made if r.id.startswith(run.id[:length])]
            if len(fits) == 1:
                assert runs.resolve(store, run.id[:length]) == run
            else:
                with pytest.raises(AmbiguousError):
                    runs.resolve(store, run.id[:length])


def test_dead_process_loses_its_run(store: Store) -> None:
    "A run whose process ended without a word is lost, and settling writes that down with the time of its last point."
    script = ("from mlcycle.track.begin import start\nrun = start(store=store, capture=False)\nrun.log_metric('loss', 1.0)\n"
              "print(run.id, flush=True)\nos._exit(0)")
    run = runs.get(store, outputs([elsewhere(store, script)])[0].strip())
    alive = runs.create(store, "e")
    assert (run.status, run.ended) == ("lost", None) and runs.lost_keys(store) == [run.pk]
    runs.settle(store, [run.pk])
    settled = runs.get(store, run.id)
    assert settled.status == "lost" and settled.ended == metrics.history(store, run, "loss")[-1].time
    assert [e.subject for e in events.listing(store, action="run.lost")] == [run.id] and runs.get(store, alive.id).status == "running"


def test_settling_leaves_what_ended_alone(store: Store) -> None:
    "A run that ended while a repair took it for lost is not touched by it, nor does the log say so."
    done = runs.create(store, "e")
    runs.finish(store, done)
    runs.settle(store, [done.pk])
    assert runs.get(store, done.id).status == "finished" and not events.listing(store, done.id, "run.lost")


def test_reused_process_id_is_no_sign_of_life(store: Store) -> None:
    "The process's start time tells a reused id apart; a process on another host is given the benefit of the doubt."
    old, far = runs.create(store, "e"), runs.create(store, "e")
    with store.db.write() as con:
        con.execute(update(schema.runs).where(schema.runs.c.pk == old.pk).values(process_started=old.process.started - 1000))
        con.execute(update(schema.runs).where(schema.runs.c.pk == far.pk).values(host="elsewhere", process_started=far.process.started - 1000))
    assert [runs.get(store, r.id).status for r in (old, far)] == ["lost", "running"]


def test_parts_in_bulk(store: Store) -> None:
    "Many parts of a run are added together, each whole: params, every step of its metrics, status, time; a bad name adds none."
    from mlcycle.store.bulk import Part, add_parts, add_points

    parent, other = runs.create(store, "churn", "search"), runs.create(store, "churn", "other")
    runs.create(store, "churn", "child of another", parent=other.id)
    parts = [Part(f"search.{i}", 1.8e9 + i, 0.25, {"C": i / 7, "kind": "l2"}, {"score": [i / 3, math.nan, math.inf], "mean": [float(i)]},
                  "failed" if i == 7 else "finished", "no score \0" if i == 7 else None) for i in range(300)]
    ids = add_parts(store, parent, parts)
    children = runs.children(store, parent)
    assert [child.id for child in children] == ids and len(set(ids)) == 300 and add_parts(store, parent, []) == []
    for part, child in list(zip(parts, children, strict=True))[::13]:
        assert (child.name, child.kind, child.experiment, child.status, child.seconds) == (part.name, "trial", "churn", part.status, 0.25)
        assert facts.params(store, child) == part.params and child.started.timestamp() == part.started
        found = [p.value for p in metrics.history(store, child, "score")]
        assert [bits(v) for v in found] == [bits(v) for v in part.metrics["score"]] and metrics.latest(store, child)["score"] == math.inf
    assert children[7].reason == "no score \ufffd"
    assert [e.data for e in events.listing(store, parent.id, "run.parts")] == [{"count": 300}]
    with pytest.raises(DataError):
        add_parts(store, other, [Part("fine", 1.8e9, 1.0), Part("a \0", 1.8e9, 1.0)])
    assert len(runs.children(store, other)) == 1
    add_points(store, parent.pk, [("loss", step, 1 / (step + 1)) for step in range(1000)])
    add_points(store, parent.pk, [])
    add_points(store, parent.pk, [("loss", 5, 0.5)])
    assert metrics.latest(store, parent) == {"loss": 0.001} and [p.value for p in metrics.history(store, parent, "loss")][5:7] == [1 / 6, 0.5]


# Params, tags, captures


@pytest.fixture
def run(store: Store) -> ActiveRun:
    "A run to write to."
    return ActiveRun(store, runs.create(store, "e"))


@relaxed
@given(value=values)
@example(10**400)
@example(-(2**63) - 1)
@example("\0 NUL")
@example({"half": "a pair \ud800"})
@example({"nested": [1, 1.0, True, "1", None, -0.0, math.nan, -math.inf, 5e-324]})
@example("\u202e right to left, 👩‍👩‍👧, e\u0301 and é")
def test_param_keeps_its_type(store: Store, run: ActiveRun, value: Any) -> None:
    "What goes in as a param comes out with the same type and value, to the last bit."
    run.log_params({"p": value})
    assert typed(run.params) == typed({"p": value})


def test_param_takes_the_new_value(store: Store, run: ActiveRun) -> None:
    "A param that is logged again has one value, the last one, and its number follows."
    run.log_params({"lr": 0.1, "depth": 3})
    run.log_params({"lr": "auto"})
    assert run.params == {"depth": 3, "lr": "auto"}
    assert store.db.all(select(schema.params.c.name, schema.params.c.number).order_by(schema.params.c.name)) == [("depth", 3.0), ("lr", None)]


@pytest.mark.parametrize("bad", ["NUL \0 inside", "half a pair \ud800"])
def test_text_that_no_database_holds(store: Store, run: ActiveRun, bad: str) -> None:
    "Text that a database cannot hold as a name is refused in words, on both databases alike, and nothing is written."
    for write in (lambda: run.log_params({"good": 1, bad: 1}), lambda: run.log_metric(bad, 1.0), lambda: run.set_tags({bad: "x"}),
                  lambda: run.set_tags({"x": bad}), lambda: runs.create(store, bad), lambda: runs.create(store, "e", bad),
                  lambda: inputs.put(store, run.run, Dataset(bad, "d" * 64)), lambda: models.move_alias(store, "m", bad, None)):
        with pytest.raises(DataError, match="cannot be stored"):
            write()
    assert (run.params, run.metrics, facts.tags(store, run.run)) == ({}, {}, {})
    assert len(events.listing(store)) == 1 and inputs.listing(store, run.run) == []


def test_run_ends_whatever_its_error_said(store: Store) -> None:
    "The end of a run is stored even when its error names a file in an encoding of long ago."
    run = runs.create(store, "e")
    runs.finish(store, run, "failed", RunError("OSError", "no \udcff\0.csv"), "no \udcff\0.csv")
    facts.put_captures(store, run.pk, {"git": {"remote": "\udcff\0"}}, ["no \udcff\0"])
    ended = runs.get(store, run.id)
    assert ended.status == "failed" and ended.error.message == "no \udcff\0.csv" and ended.reason == "no ?\ufffd.csv"


@relaxed
@given(tags=st.dictionaries(unicode.filter(str.strip), unicode, max_size=4))
def test_tags_come_back(store: Store, run: ActiveRun, tags: dict[str, str]) -> None:
    "Tags keep any text, and the last value of each name."
    before = facts.tags(store, run.run)
    run.set_tags(tags)
    assert facts.tags(store, run.run) == before | tags


def test_captures_and_warnings_come_back(store: Store, run: ActiveRun) -> None:
    "What capture found is read as it was written; warnings keep their order."
    facts.put_captures(store, run.run.pk, {"git": {"dirty": True, "remote": "g\u00fct ☃", "n": [1, None]}}, ["zweite Größe", "a"])
    facts.put_captures(store, run.run.pk, {"git": {"dirty": False}}, ["last"])
    assert facts.captures(store, run.run) == {"git": {"dirty": False}}
    assert facts.warnings(store, run.run) == ["zweite Größe", "a", "last"]


# Metrics


def expected_summary(points: list[tuple[int, float]]) -> tuple[int, bytes, Any, Any, int]:
    "Step, last value, extremes and count, computed the plain way."
    step = max(s for s, _ in points)
    real = [v for _, v in points if v == v]
    return step, bits([v for s, v in points if s == step][-1]), min(real, default=None), max(real, default=None), len(points)


@relaxed
@given(points=st.lists(st.tuples(st.integers(-(2**63), 2**63 - 2) | st.integers(0, 3), floats), min_size=1, max_size=12))
@example([(0, -0.0), (1, 5e-324), (2, math.inf), (3, -math.inf), (4, math.nan), (5, 0.1 + 0.2), (6, 2.0**53), (7, 1.7976931348623157e308)])
@example([(0, math.nan), (0, 1.0), (0, math.nan)])
def test_every_point_to_the_last_bit(store: Store, points: list[tuple[int, float]]) -> None:
    "Every point comes back, ordered by step and then as logged, each float exact; the summary is that of the points."
    run = ActiveRun(store, runs.create(store, "e"))
    for step, value in points:
        run.log_metric("m", value, step)
    ordered = sorted(enumerate(points), key=lambda p: (p[1][0], p[0]))
    history = metrics.history(store, run.run, "m")
    assert [(p.step, bits(p.value)) for p in history] == [(s, bits(v)) for _, (s, v) in ordered]
    t = schema.metrics.c
    row = store.db.all(select(t.step, t.value, t.low, t.high, t.count).where(t.run == run.run.pk))[0]
    assert (row[0], bits(math.nan if row[1] is None else row[1]), *row[2:]) == expected_summary(points)
    assert bits(run.metrics["m"]) == expected_summary(points)[1]
    frame = metrics.frame(store, run.run, "m")
    assert [(s, bits(v)) for s, v in zip(frame.step.tolist(), frame.value.tolist(), strict=True)] == [(p.step, bits(p.value)) for p in history]
    assert all(abs((a - b).total_seconds()) < 2e-6 for a, b in zip(frame.time, [p.time for p in history], strict=True))


def summaries(store: Store, run: int) -> dict[str, tuple[int, bytes, Any, Any, int]]:
    "What the table of summaries says of a run's metrics, read as a query reads it."
    t = schema.metrics.c
    rows = store.db.all(select(t.name, t.step, t.value, t.low, t.high, t.count).where(t.run == run))
    return {name: (step, bits(math.nan if value is None else value), low, high, count) for name, step, value, low, high, count in rows}


def read_only_summaries(store: Store, run: int) -> dict[str, tuple[int, bytes, Any, Any, int]]:
    "The same for who can only read the file, beside whoever has it open."
    with closing(sqlite3.connect(f"file:{store.db.where}?mode=ro", uri=True)) as con:
        unsettled.add_view(con)
        rows = con.execute("SELECT name, step, value, low, high, count FROM metrics WHERE run = ?", (run,)).fetchall()
    return {name: (step, bits(math.nan if value is None else value), low, high, count) for name, step, value, low, high, count in rows}


few = st.tuples(st.sampled_from("ab"), st.integers(0, 5), st.sampled_from([0.0, 0.5, -1.0, 2.0, math.nan, math.inf, -math.inf]))


@relaxed
@given(st.lists(st.tuples(st.sampled_from(["one", "several", "bulk", "read"]), st.booleans(), st.lists(few, min_size=1, max_size=3)), max_size=14))
@example([("one", False, [("a", step, 0.5)]) for step in range(4)] + [("read", True, [("a", 0, 0.0)])] + [("one", True, [("a", 4, math.nan)])])
@example([("one", False, [("a", step, 0.5)]) for step in range(4)] + [("one", True, [("a", 3, 2.0)]), ("bulk", True, [("a", 9, 3.0)])])
def test_summaries_are_those_of_the_points(store: Store, calls: list[tuple[str, bool, list[tuple[str, int, float]]]]) -> None:
    "Two who log one run's metrics in any way, with steps that repeat and go back, and who read in between: each sees all that was logged before."
    run, logged = runs.create(store, "e"), {}
    with open_store(store.settings.store, store.settings.artifacts) as other:
        for kind, is_other, batch in calls:
            writer = other if is_other else store
            if kind == "several":
                batch = list({name: (name, step, value) for name, step, value in batch}.values())
                metrics.log(writer, run.pk, {name: value for name, _, value in batch}, {name: step for name, step, _ in batch})
            elif kind == "bulk":
                bulk.add_points(writer, run.pk, batch)
            elif kind == "one":
                batch = batch[:1]
                metrics.log(writer, run.pk, {batch[0][0]: batch[0][2]}, {batch[0][0]: batch[0][1]})
            for name, step, value in batch if kind != "read" else ():
                logged.setdefault(name, []).append((step, value))
            if kind == "read":
                assert summaries(writer, run.pk) == {name: expected_summary(points) for name, points in logged.items()}
                assert metrics.latest(writer, run).keys() == logged.keys()
        expected = {name: expected_summary(points) for name, points in logged.items()}
        if store.db.sqlite:
            assert read_only_summaries(store, run.pk) == expected
        runs.finish(store, run)
        assert summaries(other, run.pk) == expected
        if store.db.sqlite:
            assert store.db.all(select(schema.unsettled)) == []


def test_steps_follow_on(store: Store, run: ActiveRun) -> None:
    "Without a step a metric goes on after its highest one, also in another process that attaches to the run."
    run.log_metric("loss", 1.0)
    run.log_metric("loss", 0.5, step=10)
    run.log_metrics({"loss": 0.4, "auc": 0.9})
    outputs([elsewhere(store, "from mlcycle.track.begin import attach; attach(sys.argv[1], store).log_metric('loss', 0.3)", run.id)])
    assert [p.step for p in metrics.history(store, run.run, "loss")] == [0, 10, 11, 12]
    assert run.metrics == {"loss": 0.3, "auc": 0.9}


def test_points_from_everywhere_at_once(store: Store, run: ActiveRun) -> None:
    "Threads and processes that log to the same metrics and steps of one run lose nothing, never wait in a circle, and count right."
    script = ("from mlcycle.track.begin import attach\nrun = attach(sys.argv[1], store)\n"
              "for i in range(50): run.log_metrics({'a': i, 'b': i} if os.getpid() % 2 else {'b': i, 'a': i}, step=i)")
    others = [elsewhere(store, script, run.id) for _ in range(3)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda i: run.log_metrics({"a": i, "b": i} if i % 2 else {"b": i, "a": i}, step=i % 50), range(200)))
    outputs(others)
    for name in ("a", "b"):
        assert Counter(p.step for p in metrics.history(store, run.run, name)) == dict.fromkeys(range(50), 7)
    assert store.db.all(select(schema.metrics.c.count)) == [(350,), (350,)]


def extremes(points: list[tuple[int, float]], width: int) -> dict[int, tuple[float, float] | None]:
    "Least and greatest number in each range of steps; None where there is no number."
    ranges: dict[int, list[float]] = {}
    for step, value in points:
        ranges.setdefault(step // width, []).append(value)
    return {at: (min(real), max(real)) if (real := [v for v in held if math.isfinite(v)]) else None for at, held in ranges.items()}


def test_a_thinned_curve_is_the_curve(store: Store) -> None:
    "A picture must not lose a spike, an end or a gap: every range keeps its extremes, and few points are kept as they are."
    import numpy as np

    run = runs.create(store, "e")
    rng = np.random.default_rng(0)
    for name, low in (("loss", -3_000), ("huge", -(2**63)), ("few", 0)):
        values = rng.normal(size=200 if name == "few" else 5_000)
        values[[3, 40, 41]] = math.nan, math.inf, 99.0
        values[1_000:2_000] = math.nan
        scale = 3 * 10**15 if name == "huge" else 1
        bulk.add_points(store, run.pk, [(name, low + i // 2 * scale, value) for i, value in enumerate(values.tolist())])  # two at each step
        whole = [(p.step, p.value) for p in metrics.history(store, run, name)]
        steps, kept, place = thinned(store, run, name)
        found = list(zip(steps.tolist(), kept.tolist(), strict=True))
        assert len(found) <= 400 and [bits(found[i][1]) for i in (0, -1)] == [bits(whole[i][1]) for i in (0, -1)] and place == (whole[-1][0], 1)
        assert found == sorted(found, key=lambda p: p[0]) and {(s, bits(v)) for s, v in found} <= {(s, bits(v)) for s, v in whole}
        if name == "few":
            assert [bits(v) for _, v in found] == [bits(v) for _, v in whole]
            continue
        width = next(w for w in (1 << shift for shift in range(64)) if (whole[-1][0] // w) - (whole[0][0] // w) < 199)
        assert extremes(found, width) == extremes(whole, width) and None in extremes(whole, width).values() and 99.0 in kept
    assert thinned(store, run, "nothing")[0].size == 0 and drawable(store, [run]) == ["few", "huge", "loss"]


# Artifacts and inputs


def test_artifact_names_stay_apart(store: Store, run: ActiveRun) -> None:
    "A name replaces itself, is found by prefix in any alphabet, and is refused where another system would mix it up with a neighbour."
    names = ["a-b/x", "a/b.txt", "a_b/y", "A0", "plots/%_.png", "plots/Ä.png", "zz"]
    for name in names:
        run.log_bytes(name.encode(), name)
    run.log_bytes(b"new", "zz", "table")
    assert [a.name for a in artifacts.listing(store, run.run)] == sorted(names)
    assert [a.name for a in artifacts.listing(store, run.run, "plots/%")] == ["plots/%_.png"]
    assert store.blobs.read(artifacts.get(store, run.run, "zz").digest) == b"new"
    for name, why in [("PLOTS/%_.png", "case"), ("plots/ä.png", "case"), ("a/b.txt/c", "folder"), ("a", "folder"), ("A-B", "folder"),
                      ("plots", "folder")]:
        with pytest.raises(ArtifactNameError, match=why):
            run.log_bytes(b"", name)
    assert len(artifacts.listing(store, run.run)) == len(names)
    with pytest.raises(NotFoundError, match=r"plots/Ä\.png"):
        artifacts.get(store, run.run, "nothing")


def test_artifact_named_twice_at_once(store: Store, run: ActiveRun) -> None:
    "Threads that store names which differ only in case at once end with one of them."
    def put(name: str) -> str | None:
        try:
            return run.log_bytes(name.encode(), name).name
        except ArtifactNameError:
            return None

    with ThreadPoolExecutor(8) as pool:
        kept = set(filter(None, pool.map(put, ["Report.txt", "report.txt", "REPORT.txt", "report.TXT"] * 4)))
    assert len(kept) == 1 and [a.name for a in artifacts.listing(store, run.run)] == list(kept)


def test_inputs_find_their_readers(store: Store) -> None:
    "A dataset comes back as it was noted, once for each role, and leads to every run that read it."
    first, second = runs.create(store, "e"), runs.create(store, "e")
    data = Dataset("größe", "d" * 64, "s3://b/größe.csv", 2**40, {"β": "float64"})
    for run in (first, second):
        inputs.put(store, run, data)
        inputs.put(store, run, replace(data, rows=None))
        inputs.put(store, run, replace(data, role="test", digest="e" * 64))
    assert inputs.listing(store, first) == [replace(data, rows=None), replace(data, role="test", digest="e" * 64)]
    assert inputs.readers(store, "d" * 64) == [first, second] and inputs.readers(store, "f" * 64) == []


def test_run_takes_over_what_another_logged(store: Store, run: ActiveRun) -> None:
    "Every kind of thing that was logged comes over, up to a time where one is given; what the run has itself stays."
    source = ActiveRun(store, runs.create(store, "e"))
    assert logged_tables(store, source.run) == ()
    source.log_params({"rows": 10, "lr": 0.5})
    source.set_tags({"notebook": "n.ipynb", "team": "risk", "reproduced": "no"})
    source.log_bytes(b"kept", "data/kept.txt")
    source.log_bytes(b"own", "notebook/source.ipynb")
    inputs.put(store, source.run, Dataset("d", "d" * 64, "", 1, {}))
    for step, value in enumerate([3.0, math.nan, 1.0]):
        source.log_metric("loss", value, step=step)
    now = time.time()
    source.log_metrics({"loss": 0.5, "late": 1.0}, step=3)
    run.log_params({"lr": 0.1})
    inherit(store, source.run, run.run, before=now, tables=logged_tables(store, source.run))
    assert run.params == {"lr": 0.1, "rows": 10} and facts.tags(store, run.run) == {"team": "risk"} and run.metrics == {"loss": 1.0}
    assert [a.name for a in artifacts.listing(store, run.run)] == ["data/kept.txt"] and [d.name for d in inputs.listing(store, run.run)] == ["d"]
    inherit(store, source.run, run.run)
    assert run.metrics == {"late": 1.0, "loss": 1.0} and len(metrics.history(store, run.run, "loss")) == 4
    assert set(logged_tables(store, source.run)) == set(TABLES)


# Models


def version_of(store: Store, run: Any, model: str = "churn", **options: Any) -> Any:
    return models.create_version(store, model, run, "d" * 64, "sklearn", **options)


def test_version_does_not_change(store: Store, run: ActiveRun) -> None:
    "A version keeps its files, signature and metrics when its run goes on and logs the same name again."
    with pytest.raises(NotFoundError, match="no model"):
        version_of(store, run.run)
    run.log_bytes(b"one", "model/model.skops")
    made = version_of(store, run.run, signature={"inputs": [{"name": "Größe"}]}, metrics={"auc": 0.1 + 0.2, "loss": math.inf})
    run.log_bytes(b"two", "model/model.skops")
    run.log_bytes(b"more", "model/more.json")
    again = models.get_version(store, "churn", 1)
    assert again == made and again.metrics == {"auc": 0.30000000000000004, "loss": math.inf} and again.signature == {"inputs": [{"name": "Größe"}]}
    assert [store.blobs.read(f.digest) for f in models.version_files(store, again)] == [b"one"]
    assert [f.name for f in models.version_files(store, version_of(store, run.run))] == ["model/model.skops", "model/more.json"]


def test_numbers_have_no_gaps(store: Store, run: ActiveRun) -> None:
    "Threads and processes that register at once get every number exactly once; a registration that fails leaves no hole and no trace."
    run.log_bytes(b"m", "model/model.skops")
    script = ("from mlcycle.store import models, runs\nrun = runs.get(store, sys.argv[1])\n"
              "for _ in range(5): print(models.create_version(store, 'churn', run, 'd' * 64, 'sklearn').number)")
    others = [elsewhere(store, script, run.id) for _ in range(3)]

    def register(i: int) -> list[int]:
        if i % 4 == 0:
            with pytest.raises(TypeError):
                version_of(store, run.run, signature={"not": object()})
            return []
        return [version_of(store, run.run).number]

    with ThreadPoolExecutor(4) as pool:
        numbers = list(chain.from_iterable(pool.map(register, range(20))))
    numbers += [int(line) for printed in outputs(others) for line in printed.split()]
    assert sorted(numbers) == list(range(1, 31)) and models.get_model(store, "churn").versions == tuple(range(1, 31))
    assert len(events.listing(store, action="version.create", limit=1000)) == 30


def test_alias_history_is_a_chain(store: Store, run: ActiveRun) -> None:
    "However many people move an alias at once, each move begins where the one before it ended, and the last one is what holds."
    run.log_bytes(b"m", "model/model.skops")
    for _ in range(4):
        version_of(store, run.run)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: models.move_alias(store, "churn", "champion", i % 4 + 1, f"because {i}"), range(24)))
    models.move_alias(store, "churn", "challenger", 2)
    models.move_alias(store, "churn", "challenger", None, "no más")
    moves = models.alias_history(store, "churn", "champion")
    assert [m.before for m in moves] == [None, *(m.after for m in moves[:-1])] and {m.why for m in moves} == {f"because {i}" for i in range(24)}
    assert models.get_model(store, "churn").aliases == {"champion": moves[-1].after}
    assert "champion" in models.get_version(store, "churn", moves[-1].after).aliases
    gone = models.alias_history(store, "churn", "challenger")[-1]
    assert (gone.before, gone.after, gone.why) == (2, None, "no más")
    for model, number in [("churn", 9), ("nobody", 1)]:
        with pytest.raises(NotFoundError):
            models.move_alias(store, model, "champion", number)
    assert len(models.alias_history(store, "churn")) == 26


def test_models_are_listed_by_name(store: Store, run: ActiveRun) -> None:
    "Every registered name is listed with its versions; an unknown one is an error that says where to look."
    run.log_bytes(b"m", "model/model.skops")
    for name in ("b", "a-z", "Ärger", "a_a", "b"):
        version_of(store, run.run, name)
    assert [(m.name, m.versions) for m in models.list_models(store)] == [("a-z", (1,)), ("a_a", (1,)), ("b", (1, 2)), ("Ärger", (1,))]
    assert models.versions(store, "nobody") == []
    for look in (lambda: models.get_model(store, "nobody"), lambda: models.get_version(store, "b", 3)):
        with pytest.raises(NotFoundError, match="mlcycle models"):
            look()


# Events


def test_every_change_is_in_the_log(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    "The log says who did what to what, newest first, and what is in it stays as it was."
    monkeypatch.setenv("MLCYCLE_ACTOR", "änn@lab")
    run = ActiveRun(store, runs.create(store, "e"))
    run.log_bytes(b"m", "model/model.skops")
    version_of(store, run.run)
    models.move_alias(store, "churn", "champion", 1, "first")
    before = events.listing(store)
    run.finish()
    log = events.listing(store)
    assert [(e.action, e.subject) for e in log] == [("run.end", run.id), ("alias.move", "churn@champion"), ("version.create", "churn/1"),
                                                    ("run.start", run.id)]
    assert log[1:] == before and {e.actor for e in log} == {"änn@lab"} and log[1].data == {"before": None, "after": 1, "why": "first"}
    assert events.listing(store, subject="churn/1") == [log[2]] and events.listing(store, limit=1) == log[:1]


def test_change_and_event_are_one(store: Store) -> None:
    "A change that fails leaves no event, and an event that fails leaves no change, through either way of writing."
    with pytest.raises(KeyboardInterrupt), store.db.write() as con:
        con.execute(insert(schema.models).values(name="m", created=0.0, last_number=0))
        events.append(con, "model.create", "m")
        raise KeyboardInterrupt
    add = store.db.sql(insert(schema.models))
    with pytest.raises(MlcycleError):
        store.db.transact((add, {"name": "m", "created": 0.0, "last_number": 0}),
                          (store.db.sql(events.APPEND), {"time": 0.0, "actor": None, "action": "x", "subject": "m", "data": "{}"}))
    assert models.list_models(store) == [] and events.listing(store) == []
    run = runs.create(store, "e")  # and the connection is of use afterwards
    assert [e.subject for e in events.listing(store)] == [run.id]


# Processes and connections


def test_forked_child_and_parent_both_write(store: Store, run: ActiveRun) -> None:
    "A forked child opens connections of its own; parent and child go on writing to the same run."
    run.log_metric("loss", 1.0, step=0)
    if (child := os.fork()) == 0:
        try:
            run.log_metric("loss", 2.0, step=1)
            with store.db.write() as con:
                events.append(con, "child", run.id)
        except BaseException:
            os._exit(1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    run.log_metric("loss", 3.0, step=2)
    assert [p.value for p in metrics.history(store, run.run, "loss")] == [1.0, 2.0, 3.0] and events.listing(store, action="child")


def test_idle_connection_that_was_dropped(tmp_path: Path) -> None:
    "A server that ends idle connections is not noticed: neither by who reads next, nor by who writes."
    from tests.conftest import need

    drop = text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()")
    with open_store(need("postgresql").new_database(), tmp_path) as store:
        run = ActiveRun(store, runs.create(store, "e"))
        asks = [lambda: run.log_metric("loss", 1.0), lambda: run.metrics, lambda: run.log_bytes(b"", "empty"), lambda: run.params]
        for ask in asks:
            with store.db.write() as con:
                con.execute(drop)
            ask()
        assert run.metrics == {"loss": 1.0} and len(artifacts.listing(store, run.run)) == 1


def test_lost_connection_is_one_error(tmp_path: Path) -> None:
    "When the server drops its connections the next call says so, and the one after it works again."
    from tests.conftest import need

    with open_store(need("postgresql").new_database(), tmp_path) as store:
        run = ActiveRun(store, runs.create(store, "e"))
        run.log_metric("loss", 1.0)
        with store.db.write() as con:
            con.execute(text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"))
        for _ in range(2):
            try:
                run.log_metric("loss", 2.0)
                break
            except MlcycleError as e:
                assert "failed" in str(e)
        assert run.metrics == {"loss": 2.0} and len(metrics.history(store, run.run, "loss")) == 2


def test_eight_open_a_new_store_at_once(database_url: str, tmp_path: Path) -> None:
    "Eight processes that open a new store at the same moment all find it whole."
    code = ("import sys\nfrom mlcycle.store import runs\nfrom mlcycle.store.connect import open_store\n"
            "print(runs.create(open_store(sys.argv[1], sys.argv[2]), 'e').id)")
    command = [sys.executable, "-c", code, database_url, str(tmp_path)]
    printed = outputs([subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(8)])
    with open_store(database_url, tmp_path) as store:
        assert {e.subject for e in events.listing(store)} == {line.strip() for line in printed}
        assert json.loads(store.db.all(select(schema.events.c.data))[0][0])["experiment"] == "e"
