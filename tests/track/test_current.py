"Which run is current, and how it ends, where a notebook cannot show it: signals, dead processes, tasks, threads, forks."
from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import mlcycle as mlc
from mlcycle.errors import NoActiveRunError
from mlcycle.store import runs
from mlcycle.store.check import fsck
from mlcycle.store.connect import Store, open_store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    yield mlc.connect(tmp_path / "runs.db")
    mlc.connect(None).close()


def start_script(store: Store, body: str) -> subprocess.Popen[str]:
    "A process that prints a line once it is inside its run."
    code = ("import os, sys, time, signal\nimport mlcycle as mlc\n"
            f"with mlc.run('job', 'churn', capture=False) as run:\n    run.log_metric('loss', 0.5)\n    print(run.id, flush=True)\n    {body}\n")
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env={**os.environ, **store.environment})
    process.run_id = process.stdout.readline().strip()
    return process


@pytest.mark.parametrize(("sent", "code", "reason"), [(signal.SIGTERM, 143, "SIGTERM"), (signal.SIGINT, -signal.SIGINT, "interrupted")])
def test_a_signal_cancels_the_run(store: Store, sent: signal.Signals, code: int, reason: str) -> None:
    "A scheduler's SIGTERM and a person's Ctrl-C end the run, keep what it logged, and the process leaves as it would have."
    process = start_script(store, "time.sleep(60)")
    process.send_signal(sent)
    assert process.wait(20) == code
    run = runs.get(store, process.run_id)
    assert run.status == "cancelled" and reason in run.reason
    assert mlc.history(run.id, "loss", store)["value"].tolist() == [0.5]


def test_a_killed_process_leaves_a_lost_run_that_fsck_settles(store: Store) -> None:
    "Nobody writes that a run is lost; everybody sees it, and fsck puts it on record."
    process = start_script(store, "time.sleep(60)")
    assert runs.get(store, process.run_id).status == "running"
    process.kill()
    process.wait(20)
    assert runs.get(store, process.run_id).status == "lost"
    assert mlc.runs("status == 'lost'")["id"].tolist() == [process.run_id] and len(mlc.runs("status == 'running'")) == 0
    assert [p.kind for p in fsck(store).problems] == ["lost"]
    assert fsck(store, repair=True).sound and fsck(store).problems == ()
    assert runs.get(store, process.run_id).reason


def test_a_forked_worker_does_not_end_its_parents_run(store: Store) -> None:
    "multiprocessing by fork copies the open run; a worker that leaves, or is terminated, must not touch it."
    # CPython drops a signal that reaches a child in the middle of fork: half a second is well past it
    process = start_script(store, "pid = os.fork()\n    if pid == 0:\n        sys.exit(0)\n    os.waitpid(pid, 0)\n"
                                  "    pid = os.fork()\n    if pid == 0:\n        time.sleep(60)\n        os._exit(1)\n"
                                  "    time.sleep(0.5)\n    os.kill(pid, signal.SIGTERM)\n"
                                  "    left = os.waitpid(pid, 0)[1]\n    run.set_tags({'signal': left})\n    run.log_metric('loss', 0.4)")
    assert process.wait(30) == 0
    run = runs.get(store, process.run_id)
    assert run.status == "finished"
    assert mlc.runs(store=store)["tags.signal"].item() == str(int(signal.SIGTERM))
    assert mlc.history(run.id, "loss", store)["value"].tolist() == [0.5, 0.4]


def test_a_forked_worker_logs_to_the_run(store: Store) -> None:
    "A connection must not cross the fork: parent and child write at the same time, and nothing is lost."
    with mlc.run("job", "churn", capture=False) as run:
        run.log_metric("parent", 0)
        pid = os.fork()
        if pid == 0:
            for i in range(200):
                run.log_metric("child", i)
            os._exit(0)
        for i in range(1, 200):
            run.log_metric("parent", i)
        assert os.waitpid(pid, 0)[1] == 0
    assert [len(mlc.history(run.id, name)) for name in ("parent", "child")] == [200, 200]


def test_each_task_has_its_own_run(store: Store) -> None:
    "Two asyncio tasks interleave at every await and never mix up their runs."
    async def work(name: str) -> str:
        with mlc.run(name, "tasks", capture=False) as run:
            for i in range(20):
                mlc.log_metric(name, i)
                await asyncio.sleep(0)
                assert mlc.current_run() is run
        return ",".join(run.metrics)

    async def main() -> list[str]:
        return await asyncio.gather(*map(work, "abc"))

    assert asyncio.run(main()) == ["a", "b", "c"]
    with pytest.raises(NoActiveRunError):
        mlc.current_run()


def test_threads_without_a_run_log_to_the_main_threads(store: Store) -> None:
    "A pool that a training loop started logs to that loop's run, and a thread's own run wins over it."
    seen = {}

    def plain() -> None:
        seen["plain"] = mlc.current_run().name

    def own() -> None:
        with mlc.run("own", "churn", capture=False):
            seen["own"] = mlc.current_run().name

    with mlc.run("main", "churn", capture=False):
        threads = [threading.Thread(target=f) for f in (plain, own)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert seen == {"plain": "main", "own": "own"}

    def outside() -> None:
        with pytest.raises(NoActiveRunError):
            mlc.current_run()
        seen["outside"] = True

    thread = threading.Thread(target=outside)
    thread.start()
    thread.join()
    assert seen["outside"]


def test_threads_count_steps_together(store: Store) -> None:
    "Values logged without a step from many threads get one step each."
    with mlc.run("job", "churn", capture=False) as run:
        threads = [threading.Thread(target=lambda: [run.log_metric("loss", 1.0) for _ in range(100)]) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert mlc.history(run.id, "loss")["step"].tolist() == list(range(400))


def test_a_child_process_finds_the_run_it_was_started_for(store: Store) -> None:
    "What a kernel does: the variables of `environment` are enough to log to the run of the parent."
    with mlc.run("job", "churn", capture=False) as run:
        run.log_metric("loss", 1.0)
        subprocess.run([sys.executable, "-c", "import mlcycle as mlc; mlc.log_metric('loss', 0.5); mlc.log_params({'lr': 0.1})"],
                       env={**os.environ, **run.environment}, check=True, timeout=60)
    assert mlc.history(run.id, "loss")[["step", "value"]].values.tolist() == [[0, 1.0], [1, 0.5]] and run.params == {"lr": 0.1}


def test_a_store_that_fails_at_the_end_does_not_hide_the_own_error(tmp_path: Path) -> None:
    "The exception of the training code is what a person must see."
    store = open_store(tmp_path / "runs.db")
    with pytest.raises(ZeroDivisionError) as caught, mlc.run("job", "churn", store=store, capture=False):
        store.db.close()
        (tmp_path / "runs.db").write_bytes(b"gone")
        for extra in tmp_path.glob("runs.db-*"):
            extra.unlink()
        raise ZeroDivisionError
    assert any("could not record the end" in note for note in caught.value.__notes__)


def test_capture_never_fails_a_run(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    "Git is there and broken: the run goes on, with a warning that says so."
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "git").write_text("#!/bin/sh\necho broken >&2\nexit 3\n")
    (tmp_path / "bin" / "git").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    (tmp_path / "repo" / ".git").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "repo")
    began = time.monotonic()
    with mlc.run("job", "churn") as run:
        run.log_metric("loss", 1)
    assert run.run.status == "finished" and time.monotonic() - began < 20
    from mlcycle.store import facts

    assert "environment" in facts.captures(store, run.run)
