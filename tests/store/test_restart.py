"A PostgreSQL server that is restarted: what goes on meanwhile waits for it, loses nothing, and does nothing twice."
from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nbformat
import nbformat.v4 as v4
import psycopg
import pytest
from sqlalchemy import insert, text

import mlcycle as mlc
from mlcycle.errors import StoreError
from mlcycle.store import artifacts, events, metrics, models, runs, schema
from mlcycle.store.connect import Store, open_store
from mlcycle.store.reconnecting import ConnectionLostError
from mlcycle.track.active import ActiveRun
from tests.conftest import need
from tests.services import Postgres

pytestmark = pytest.mark.needs("postgresql")  # also its marker, by which it can be left out
AWAY_SECONDS = 4  # Longer than a few attempts; nothing depends on how much longer


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    "A cluster that may be stopped: nobody else works with it."
    need("postgresql")  # skips where there is none
    started = Postgres()
    yield started
    started.stop()


@pytest.fixture
def team_store(server: Postgres, tmp_path: Path) -> Iterator[Store]:
    "A store in that cluster."
    with open_store(server.new_database(), tmp_path / "artifacts") as opened:
        yield opened


def rows(store: Store, query: str) -> list[Any]:
    "The rows of a query, without the code under test."
    with psycopg.connect(store.db.url.replace("+psycopg", "")) as con:
        return con.execute(query).fetchall()


def bounce(server: Postgres) -> None:
    "Stop the server, and start it again after a while."
    server.halt()
    time.sleep(AWAY_SECONDS)
    server.start()


def wait_for(condition: Callable[[], bool], process: subprocess.Popen) -> None:
    "Wait until something is so; fails when the process ends before."
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.1)


def test_a_run_logs_through_restarts(server: Postgres, team_store: Store) -> None:
    "Points, params, artifacts, versions, moves and the end of a run are each stored once while the server goes away twice and comes back."
    run, restarts = ActiveRun(team_store, runs.create(team_store, "e")), threading.Event()

    def twice() -> None:
        for _ in range(2):
            bounce(server)
        restarts.set()

    thread = threading.Thread(target=twice)
    thread.start()
    step = 0
    while not restarts.is_set() or step < 50:
        run.log_metric("loss", float(step))
        run.log_params({"step": step})
        run.log_bytes(str(step).encode(), f"model/{step % 7}.txt")
        models.create_version(team_store, "m", run.run, "d" * 64, "sklearn")
        models.move_alias(team_store, "m", "champion", step + 1)
        step += 1
    thread.join()
    run.finish()
    assert [p.step for p in metrics.history(team_store, run.run, "loss")] == list(range(step)) and run.params == {"step": step - 1}
    assert models.get_model(team_store, "m").versions == tuple(range(1, step + 1))
    assert [move.after for move in models.alias_history(team_store, "m")] == list(range(1, step + 1))
    assert len(events.listing(team_store, action="version.create", limit=9999)) == step
    assert len(artifacts.listing(team_store, run.run)) == min(7, step)
    assert runs.get(team_store, run.id).status == "finished"


@pytest.mark.parametrize("path", ["fast", "sqlalchemy"])
@pytest.mark.parametrize("was_committed", [True, False], ids=["committed", "undone"])
def test_a_commit_whose_answer_is_lost_happens_once(team_store: Store, path: str, was_committed: bool) -> None:
    "The connection breaks just before or just after the commit. Nobody can tell by the error; the number of the transaction can."
    db, calls = team_store.db, []
    drop = text("SELECT pg_terminate_backend(:pid)")
    add = insert(schema.models)
    values = {"name": "m", "created": 0.0, "last_number": 0}

    def work(transaction: Any) -> str:
        calls.append("called")
        if path == "fast":
            transaction.execute(db.sql(add), values)
            pid = transaction.execute("SELECT pg_backend_pid()").fetchone()[0]
        else:
            transaction.execute(add, values)
            pid = transaction.execute(text("SELECT pg_backend_pid()")).scalar()
        if len(calls) == 1:
            if was_committed:
                transaction.execute("COMMIT") if path == "fast" else transaction.exec_driver_sql("COMMIT")
            with open_store(db.url, team_store.settings.artifacts) as other:
                other.db.all(drop, {"pid": pid})
        return f"call {len(calls)}"

    stored = db.transact_with(work) if path == "fast" else db.in_transaction(work)
    assert stored == ("call 1" if was_committed else "call 2")
    assert rows(team_store, "SELECT count(*) FROM models") == [(1,)]


def test_who_has_never_reached_a_server_is_told_at_once(server: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    "A wrong address is not waited for; a process that was started for a run knows that the address is right."
    wrong = server.address("postgres").replace(str(server.port), "1")
    waits: list[float] = []
    monkeypatch.setattr("mlcycle.store.reconnecting.time.sleep", waits.append)
    with pytest.raises(StoreError, match="cannot be reached"):
        open_store(wrong, tmp_path)
    assert waits == []
    monkeypatch.setenv("MLCYCLE_RUN", "0" * 16)
    monkeypatch.setattr("mlcycle.store.database.RECONNECT_SECONDS", 0.2)
    with pytest.raises(ConnectionLostError, match="cannot be reached"):
        open_store(wrong, tmp_path)
    assert waits


def test_a_sweep_goes_on_after_a_restart(server: Postgres, tmp_path: Path) -> None:
    "The server goes away in the middle of a sweep of notebooks. The command succeeds, and every run has every point once."
    url = server.new_database()
    body = "import mlcycle as mlc, time\nfor i in range(60):\n    mlc.log_metric('m', float(i)); time.sleep(.1)"
    cells = [v4.new_code_cell("n = 1", metadata={"tags": ["parameters"]}), v4.new_code_cell(body)]
    nbformat.write(v4.new_notebook(cells=cells), tmp_path / "nb.ipynb")
    (tmp_path / "pyproject.toml").touch()
    environment = {**os.environ, "MLCYCLE_STORE": url, "MLCYCLE_ARTIFACTS": str(tmp_path / "artifacts")}
    command = [sys.executable, "-m", "mlcycle", "run", "nb.ipynb", "-P", "n=[1,2,3]", "--jobs", "2", "-e", "e"]
    with open_store(url, tmp_path / "artifacts") as store:
        process = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        try:
            wait_for(lambda: rows(store, "SELECT count(DISTINCT run) FROM points WHERE step > 3") == [(2,)], process)
            bounce(server)
            printed = process.communicate(timeout=400)[0]
        finally:
            process.kill()
        assert process.returncode == 0, printed
        assert rows(store, "SELECT kind, status, count(*) FROM runs GROUP BY kind, status ORDER BY kind") == [
            ("notebook", "finished", 3), ("sweep", "finished", 1)]
        points = rows(store, "SELECT count(*), min(step), max(step), count(DISTINCT step) FROM points WHERE name = 'm' GROUP BY run")
        assert points == [(60, 0, 59, 60)] * 3


def test_a_study_goes_on_after_a_restart(server: Postgres, team_store: Store) -> None:
    "The server goes away between two trials and comes back: each trial of the study has one run, all have finished."
    began = []

    def objective(x: float) -> float:
        began.append(x)
        if len(began) == 3:
            bounce_thread.start()
        time.sleep(0.05)
        return x * x

    bounce_thread = threading.Thread(target=bounce, args=(server,))
    tuned = mlc.tune(objective, {"x": "uniform(0, 1)"}, trials=12, study="s", store=team_store)
    bounce_thread.join()
    assert len(began) == 12 and tuned.best is not None
    assert rows(team_store, "SELECT status, count(*) FROM runs WHERE kind = 'trial' GROUP BY status") == [("finished", 12)]
    assert rows(team_store, "SELECT state::text, count(*) FROM trials GROUP BY state") == [("COMPLETE", 12)]
