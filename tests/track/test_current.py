"Which run is current, and how it ends, where a notebook cannot show it: signals, dead processes, tasks, threads, forks."
from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

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
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                               env={**os.environ, **store.environment})
    process.run_id = process.stdout.readline().strip()
    return process


@pytest.mark.parametrize(("sent", "code", "reason"), [(signal.SIGTERM, 143, "SIGTERM"), (signal.SIGINT, -signal.SIGINT, "interrupted")])
def test_a_signal_cancels_the_run(store: Store, sent: signal.Signals, code: int, reason: str) -> None:
    "A scheduler's SIGTERM and a person's Ctrl-C end the run, keep what it logged, and the process leaves as it would have."
    process = start_script(store, "time.sleep(60)")
    process.send_signal(sent)
    assert process.wait(120) == code
    run = runs.get(store, process.run_id)
    assert run.status == "cancelled" and reason in run.reason
    assert mlc.history(run.id, "loss", store)["value"].tolist() == [0.5]


def test_a_killed_process_leaves_a_lost_run_that_fsck_settles(store: Store) -> None:
    "Nobody writes that a run is lost; everybody sees it, and fsck puts it on record."
    process = start_script(store, "time.sleep(60)")
    assert runs.get(store, process.run_id).status == "running"
    process.kill()
    process.wait(120)
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
    with mlc.run("job", "churn") as run:
        run.log_metric("loss", 1)
    assert run.run.status == "finished"
    from mlcycle.store import facts

    assert "environment" in facts.captures(store, run.run)


POOLS = """
import json, multiprocessing, os, sys
from concurrent.futures import ProcessPoolExecutor
import mlcycle as mlc

def seen(metric):
    try:
        mlc.log_metric(metric, 1.0)
        return mlc.current_run().name
    except mlc.MlcycleError as e:
        return type(e).__name__

def nested(name):
    with mlc.run(name, capture=False) as run:
        return run.experiment, run.run.parent, run.store.settings.store

if __name__ == "__main__":
    how, other_project = sys.argv[1:]
    if how == "loky":
        from joblib.externals.loky import get_reusable_executor
        pool = get_reusable_executor(1)
    else:
        pool = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context(how))
    with mlc.run("first", "e", capture=False) as first:
        os.chdir(other_project)  # a child that starts here finds the store of the run, not of the folder
        answers = [pool.submit(seen, "one").result(), pool.submit(nested, "inner").result() == ("e", first.id, first.store.settings.store)]
    answers.append(pool.submit(seen, "two").result())
    with mlc.run("second", "e", store=first.store, capture=False) as second:
        answers.append(pool.submit(seen, "three").result())
        with mlc.run("third", capture=False):
            answers.append(pool.submit(seen, "four").result())
    others = [mlc.run(name, "e", store=first.store, capture=False) for name in "ab"]  # side by side: neither is part of the other
    for other in others:
        other.__enter__()
    answers.append(pool.submit(seen, "five").result())
    for other in reversed(others):
        other.__exit__(None, None, None)
    print(json.dumps([answers, first.metrics, second.metrics]))
"""


@pytest.mark.parametrize("how", ["fork", "spawn", "forkserver", "loky"])
def test_children_find_the_run_however_they_are_started(tmp_path: Path, how: str) -> None:
    "A worker logs to the run that is open, in its parent's store; one that outlives its run finds the next one, and never writes to what has ended."
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "pyproject.toml").touch()
    (tmp_path / "one" / "pools.py").write_text(POOLS)
    done = subprocess.run([sys.executable, "pools.py", how, str(tmp_path / "two")], cwd=tmp_path / "one", capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    answers, first, second = json.loads(done.stdout)
    assert answers == ["first", True, "NoActiveRunError", "second", "third", "UsageError"]
    assert (first, second) == ({"one": 1.0}, {"three": 1.0}) and not (tmp_path / "two" / ".mlcycle").exists()


def test_blocks_may_end_in_any_order(store: Store) -> None:
    "Whatever order open blocks are closed in, the innermost of those still open is current, and a new run becomes its part."
    chance = random.Random(11)
    for _ in range(15):
        open_blocks: list[mlc.run] = []
        for _ in range(14):
            if open_blocks and chance.random() < 0.45:
                open_blocks.pop(chance.randrange(len(open_blocks))).__exit__(None, None, None)
            else:
                block = mlc.run(experiment="e", capture=False)
                begun = block.__enter__()
                assert begun.run.parent == (open_blocks[-1].active.id if open_blocks else None)
                open_blocks.append(block)
            if open_blocks:
                assert mlc.current_run() is open_blocks[-1].active
            assert (signal.getsignal(signal.SIGTERM) is signal.SIG_DFL) == (not open_blocks)
        for block in open_blocks:
            block.__exit__(None, None, None)
        with pytest.raises(NoActiveRunError):
            mlc.current_run()
    assert set(mlc.runs().status) == {"finished"}


def test_generators_that_are_closed_elsewhere(store: Store) -> None:
    "A run in an asynchronous generator that is left early, or in one that another thread closes, is cancelled, without a second error."
    async def batches() -> AsyncIterator[int]:
        with mlc.run("asynchronous", "e", capture=False):
            for i in range(3):
                yield i

    async def main() -> None:
        async for _ in batches():
            break

    def epochs() -> Iterator[int]:
        with mlc.run("in a thread", "e", capture=False):
            yield 1

    asyncio.run(main())
    waiting, errors = epochs(), []
    next(waiting)

    def close() -> None:
        try:
            waiting.close()
        except BaseException as e:
            errors.append(e)

    thread = threading.Thread(target=close)
    thread.start()
    thread.join()
    assert errors == [] and dict(zip(mlc.runs().name, mlc.runs().status, strict=True)) == {"asynchronous": "cancelled", "in a thread": "cancelled"}
    with pytest.raises(NoActiveRunError):
        mlc.current_run()


def test_sigterm_without_an_open_block_ends_the_process(tmp_path: Path) -> None:
    "A block that another thread has closed leaves no handler that acts; one that was begun in a forked child is unwound there."
    code = ("import os, signal, threading, mlcycle as mlc\n"
            "block = mlc.run('r', 'e', capture=False); block.__enter__()\n"
            "if (pid := os.fork()) == 0:\n    with mlc.run('child', capture=False): os.kill(os.getpid(), signal.SIGTERM)\n"
            "assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 143\n"
            "t = threading.Thread(target=block.__exit__, args=(None, None, None)); t.start(); t.join()\n"
            "os.kill(os.getpid(), signal.SIGTERM)\n")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "MLCYCLE_STORE": str(tmp_path / "m.db")})
    assert done.returncode == -signal.SIGTERM, done.stderr
    with open_store(tmp_path / "m.db") as opened:
        assert {name: runs.resolve(opened, name).status for name in ("r", "child")} == {"r": "finished", "child": "cancelled"}


class _Silent(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


class _NoText(Exception):
    def __str__(self) -> Any:
        return 5


class _Noteless(Exception):
    def add_note(self, note: str) -> None:
        raise TypeError("no notes")


class _Ambiguous:
    def __eq__(self, other: object) -> bool:
        raise ValueError("ambiguous")

    __hash__ = None


_ODD = [_Silent(), _NoText(), _Noteless(), SystemExit(_Ambiguous()), ExceptionGroup("both", [_Silent(), ValueError("\udcff")]),
        SyntaxError("bad", (1, 2, 3, 4)), KeyError("\ud800\0")]


@pytest.mark.parametrize("error", _ODD, ids=lambda error: type(error).__name__)
def test_odd_exceptions_end_the_run_and_are_seen(store: Store, error: BaseException) -> None:
    "The user's own exception leaves the block, whatever it is, and the run has failed with it."
    with pytest.raises(type(error)) as caught, mlc.run("odd", "e", capture=False):
        raise error
    assert caught.value is error
    run = runs.resolve(store, "odd")
    assert run.status == "failed" and run.error.type == type(error).__name__
    with pytest.raises(NoActiveRunError):
        mlc.current_run()


def test_a_listener_that_fails_while_the_store_does_hides_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    "Autologging that cannot even warn, since the store is gone, does not replace the exception of the block, nor leave the run current."
    from mlcycle.track import current

    def fails(active: Any) -> None:
        raise _Silent

    monkeypatch.setattr(current, "leaving", [fails])
    with pytest.raises(ZeroDivisionError), mlc.run("job", "e", store=open_store(tmp_path / "runs.db"), capture=False) as run:
        run.store.db.close()
        (tmp_path / "runs.db").write_bytes(b"gone")
        for extra in tmp_path.glob("runs.db-*"):
            extra.unlink()
        raise ZeroDivisionError
    with pytest.raises(NoActiveRunError):
        mlc.current_run()


def test_a_run_in_another_container_is_not_judged(store: Store, needs: Callable[..., None]) -> None:
    "Containers that share a host name see other processes under the same numbers: what goes on in one is running in the other."
    unshare = ["unshare", "--pid", "--fork", "--mount-proc"]
    allowed = shutil.which("unshare") and subprocess.run([*unshare, "true"], capture_output=True).returncode == 0
    needs("process namespaces", allowed, "run the tests as root in a container that may unshare")
    process = start_script(store, "sys.stdin.readline()\n    run.log_metric('loss', 0.25)")
    code = ("import sys, mlcycle as mlc\nfrom mlcycle.store.check import fsck\nfrom mlcycle.store.connect import current_store\n"
            "with mlc.run('inside', 'churn', capture=False) as inside:\n    fsck(current_store(), repair=True)\n"
            "    print(mlc.runs(\"name == 'job'\").status[0], inside.run.process.host, sep='\\n')")
    environment = {**os.environ, **store.environment}
    there = subprocess.run([*unshare, sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=100)
    assert there.returncode == 0, there.stderr
    status, host = there.stdout.split()
    assert status == "running" and host.startswith(f"{socket.gethostname()}/") and runs.get(store, process.run_id).status == "running"
    process.stdin.write("end\n")
    process.stdin.flush()
    assert process.wait(60) == 0 and runs.get(store, process.run_id).status == "finished"


def test_a_run_that_was_called_lost_can_still_end(store: Store) -> None:
    "Its own process knows better than whoever settled it: the end that it records is its end."
    with mlc.run("job", "e", capture=False) as run:
        runs.settle(store, [run.run.pk])
        assert runs.get(store, run.id).status == "lost"
        run.log_metric("loss", 1.0)
    assert runs.get(store, run.id).status == "finished" and runs.get(store, run.id).error is None
