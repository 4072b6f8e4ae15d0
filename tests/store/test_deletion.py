"Deleting runs, the same on every database: all of it or nothing, and never what a version came from."
from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import func, select

from mlcycle.entities import Dataset
from mlcycle.errors import MlcycleError, NotFoundError, StoreError, UsageError
from mlcycle.store import deletion, events, facts, fields, fingerprints, inputs, live, models, query, requests, runs, schema
from mlcycle.store.connect import Store
from mlcycle.track.active import ActiveRun


def full(store: Store, name: str = "full", parent: str | None = None, end: bool = True) -> ActiveRun:
    "A run with a row in every table that a run can have rows in."
    active = ActiveRun(store, runs.create(store, "churn", name, parent=parent))
    active.log_metrics({"auc": 0.9, "loss": 0.1})
    active.log_params({"lr": 0.1})
    active.set_tags({"team": "risk"})
    active.log_bytes(name.encode(), "model/manifest.json")
    facts.put_captures(store, active.run.pk, {"git": {}}, ["a warning"])
    inputs.put(store, active.run, Dataset("train", "a" * 64))
    live.append(store, active.run.pk, [live.Piece(0, "fit", "stdout", "epoch 1")])
    requests.ask(store, active.run)
    fingerprints.put(store, active.run, "f" * 64)
    if end:
        active.finish()
    return active


def rows(store: Store, pk: int) -> dict[str, int]:
    "How many rows each table holds of a run."
    found = {t.name: store.db.all(select(func.count()).select_from(t).where(t.c.run == pk))[0][0]
             for t in schema.metadata.sorted_tables if "run" in t.c and t.name not in ("versions", "unsettled")}
    return found | {"runs": store.db.all(select(func.count()).where(schema.runs.c.pk == pk))[0][0]}


def test_nothing_of_a_run_is_left(store: Store) -> None:
    "A deleted run leaves no row in any table, another keeps all of its own, and the log says who went."
    gone, kept = full(store), full(store, "kept")
    before = rows(store, kept.run.pk)
    assert all(rows(store, gone.run.pk).values()) and len(before) == 12
    with store.db.write() as con:
        con.execute(schema.unsettled.insert(), [{"run": run.run.pk, "name": "loss", "step": 0} for run in (gone, kept)])
    assert [run.id for run in deletion.delete(store, gone.run)] == [gone.id]
    assert store.db.all(select(schema.unsettled.c.run)) == [(kept.run.pk,)]
    assert not any(rows(store, gone.run.pk).values()) and rows(store, kept.run.pk) == before
    last = events.listing(store, limit=1)[0]
    assert (last.action, last.subject, last.data) == ("run.delete", gone.id, {"name": "full", "experiment": "churn", "status": "finished"})
    with pytest.raises(NotFoundError, match="deleted before"):
        deletion.delete(store, gone.run)


def test_all_or_none(store: Store) -> None:
    "One run that must stay keeps the others: a version's run, a running one, and a parent whose children were not asked for."
    free, versioned, going = full(store, "free"), full(store, "versioned"), full(store, "going", end=False)
    parent = full(store, "parent")
    child = full(store, "child", parent.id)
    grandchild = full(store, "grandchild", child.id, end=False)
    for _ in range(2):
        models.create_version(store, "churn", versioned.run, "d" * 64, "sklearn")
    for run, why in ((versioned, "churn/1, churn/2 came from it"), (going, "still running"), (parent, "1 run that is part of it")):
        with pytest.raises(UsageError, match=why):
            deletion.delete(store, free.run, run.run)
    with pytest.raises(UsageError, match=r"grandchild .* still running"):
        deletion.delete(store, parent.run, children=True)
    assert query.count(store) == 6 and not events.listing(store, action="run.delete")
    grandchild.finish()
    assert {run.name for run in deletion.delete(store, free.run, parent.run, children=True)} == {"free", "parent", "child", "grandchild"}
    assert query.count(store) == 2


def test_number_of_a_deleted_run_is_never_given_again(store: Store) -> None:
    "Whoever still holds a deleted run must not find another in its place, nor write to it."
    held = full(store, "newest", end=False)
    runs.finish(store, held.run)
    deletion.delete(store, held.run)
    following = runs.create(store, "churn", "following")
    assert following.pk != held.run.pk and held.metrics == {}
    with pytest.raises(StoreError):
        held.log_metric("auc", 0.5)
    assert not any(rows(store, following.pk)[table] for table in ("points", "metrics"))


def test_version_and_deletion_at_once(store: Store) -> None:
    "Whichever comes first wins: there is never a version whose run is gone without the run's deletion having been refused."
    def race(i: int) -> tuple[bool, bool]:
        run = full(store, f"race {i}").run

        def attempt(action: Any) -> bool:
            try:
                action()
            except MlcycleError:
                return False
            return True

        with ThreadPoolExecutor(2) as pool:
            made = pool.submit(attempt, lambda: models.create_version(store, "churn", run, "d" * 64, "sklearn"))
            gone = pool.submit(attempt, lambda: deletion.delete(store, run))
            return made.result(), gone.result()

    outcomes = [race(i) for i in range(8)]
    assert all(made != gone for made, gone in outcomes), outcomes


def test_pages_hold_each_run_once(store: Store) -> None:
    "Page after page of every order gives each run exactly once, also where some lack the metric; counts agree."
    for i in range(23):
        active = ActiveRun(store, runs.create(store, "even" if i % 2 == 0 else "odd", f"r{i}"))
        active.log_params({"lr": i % 3})
        if i % 4:
            active.log_metric("auc", (i % 5) / 5)
    for order in ("-started", "name", "-metrics.auc", "metrics.auc", "params.lr"):
        for condition, experiment in ((None, None), ("params.lr >= 1", None), ("metrics.auc > 0.3", "odd")):
            whole = [r.id for r in query.page(store, condition, experiment, order, None)]
            paged = [r.id for start in range(0, 30, 4) for r in query.page(store, condition, experiment, order, 4, start)]
            assert paged == whole and len(set(whole)) == query.count(store, condition, experiment), (order, condition)
    assert fields.names(store) == {"params": ["lr"], "metrics": ["auc"], "tags": []}


def test_delete_command_asks_first(store: Store) -> None:
    "`mlcycle delete` without --yes asks; no answer (a pipe) deletes nothing, and --json needs --yes."
    run = full(store, "unwanted")

    def delete(*words: str) -> subprocess.CompletedProcess:
        return subprocess.run([sys.executable, "-m", "mlcycle", "delete", *words], env={**os.environ, **store.environment}, text=True,
                              capture_output=True, stdin=subprocess.DEVNULL, timeout=60)

    for words in (["unwanted"], ["unwanted", "--json"]):
        done = delete(*words)
        assert done.returncode == 2 and "--yes" in done.stdout + done.stderr and query.count(store) == 1
    done = delete("unwanted", "--yes", "--json")
    assert done.returncode == 0 and run.id in done.stdout and query.count(store) == 0
