"Studies whose processes are killed at random moments, and studies that several processes work on: each trial counts once, and the best is the best."
from __future__ import annotations

import contextlib
import json
import random
import signal
import sys
import time
from collections import Counter
from typing import Any

import psutil
import pytest

from mlcycle.store import query, runs
from mlcycle.store.check import fsck
from mlcycle.store.connect import Store, open_store
from mlcycle.tune.result import Tuned, read_study
from mlcycle.tune.storage import open_study

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="kernels are forked on Linux only")
TRIALS = 24
WORKER = """
import glob, json, os, random, time
import mlcycle as mlc
def objective(x, y=0):
    open(f'at-work-{os.getpid()}', 'w').close()
    while len(glob.glob('at-work-*')) < int(os.environ.get('TOGETHER', 1)):  # neither is done before the other one has begun
        time.sleep(0.02)
    open('begun', 'a').write(f'{x!r} {y!r}\\n')
    for step in range(3):
        time.sleep(0.05)
        mlc.report(abs(x - 0.3) + 1 / (step + 1), step)
    if 0.5 < x < 0.6:
        raise ValueError('too large')
    return abs(x - 0.3)
target = objective if os.environ['TARGET'] == 'function' else 'train.ipynb'
space = json.loads(os.environ['SPACE'])
done = mlc.tune(target, space, metric='loss', trials=int(os.environ['TRIALS']) or None, jobs=int(os.environ['JOBS']), sampler=os.environ['SAMPLER'],
                study='s', resume=True, progress=False)
print(json.dumps({**done.json(), 'status': done.status}))
"""
NOTEBOOK = ["import time\nimport mlcycle as mlc", {"source": "x = 0.0\ny = 0", "tags": ["parameters"]},
            "open('kernels', 'a').write(f'{__import__(\"os\").getpid()} ')\n"
            "open('begun', 'a').write(f'{x!r} {y!r}\\n')\nfor step in range(3):\n    time.sleep(0.02)\n"
            "    mlc.report(abs(x - 0.3) + 1 / (step + 1), step)\n"
            "if 0.5 < x < 0.6:\n    raise ValueError('too large')\nmlc.log_metric('loss', abs(x - 0.3))"]
SPACE, GRID = {"x": "uniform(0, 1)"}, {"x": [i / 10 for i in range(8)], "y": [0, 1, 2]}


def settings(target: str, sampler: str = "tpe", jobs: int = 2, trials: int = TRIALS) -> dict[str, str]:
    "Environment of a worker."
    return {"TARGET": target, "SAMPLER": sampler, "JOBS": str(jobs), "SPACE": json.dumps(GRID if sampler == "grid" else SPACE),
            "TRIALS": "0" if sampler == "grid" else str(trials)}


def family(worker: int, folder: Any) -> tuple[set[psutil.Process], list[psutil.Process]]:
    "A worker with all that it started, and the kernels, which have written down who they are: those that are alive."
    kernels, started = [], set()
    for pid in (folder / "kernels").read_text().split():
        try:
            kernels.append(psutil.Process(int(pid)))
        except psutil.Error:
            continue
    with contextlib.suppress(psutil.Error):
        started = {psutil.Process(worker), *psutil.Process(worker).children(recursive=True)}
    return {*started, *kernels}, kernels


def alive(processes: set[psutil.Process]) -> list[psutil.Process]:
    return [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


def check(store: Store, trials: int = TRIALS) -> Tuned:
    "All that is to be true of a study that is done: exactly so many count, none runs, the best is the best of the runs, the store is sound."
    done = read_study(open_study(store, "s"))
    counted = [row for row in done.rows if row.status in ("finished", "pruned", "failed")]
    assert len(counted) == trials, Counter(row.status for row in done.rows)
    assert {row.status for row in done.rows} <= {"finished", "pruned", "failed", "retried", "surplus"}
    assert len({row.run for row in counted if row.run}) == sum(row.run is not None for row in counted)
    values = {}
    for row in done.rows:
        if row.status == "finished":
            run = runs.get(store, row.run)
            assert run.status == "finished"
            values[row.run] = row.values[0]
            assert row.values[0] == abs(row.params["x"] - 0.3)
    assert done.best_value == min(values.values()) and values[done.best.run] == done.best_value
    assert not [run for run in map(runs.to_run, query.page(store)) if run.status == "running"]
    assert {problem.kind for problem in fsck(store).problems} <= {"lost"}
    return done


@pytest.mark.parametrize(("target", "sampler", "jobs"), [("function", "tpe", 1), ("function", "grid", 2), ("notebook", "tpe", 2),
                                                         ("notebook", "grid", 1)])
def test_random_kills(project: Any, wait_for: Any, target: str, sampler: str, jobs: int, soak: int) -> None:
    "The process of the study, and kernels, are killed more than ten times; what goes on with it ends with the right count and the right best."
    chance, seen, killed, worker = random.Random(f"{target}{sampler}{soak or ''}"), set(), Counter(), None
    project.write(*NOTEBOOK)
    begun, known, end = project.folder / "begun", 0, time.monotonic() + 240
    begun.touch()
    (project.folder / "kernels").touch()
    while time.monotonic() < end:
        if begun.stat().st_size > known:  # it goes on, slowly where the machine is busy
            known, end = begun.stat().st_size, time.monotonic() + 240
        if worker is None:
            worker, size = project.start(WORKER, **settings(target, sampler, jobs)), begun.stat().st_size
            early = time.monotonic() + (chance.uniform(0.5, 3.0) if chance.random() < 0.2 else 60.0)  # while it opens the study
            while worker.poll() is None and begun.stat().st_size == size and time.monotonic() < early:
                time.sleep(0.02)
        if killed.total() < 12:
            time.sleep(chance.uniform(0.0, 0.25))
        else:
            worker.wait(100)
        if worker.poll() is not None:
            out, err = worker.communicate()
            assert worker.returncode == 0, err
            break
        now, kernels = family(worker.pid, project.folder)
        seen |= now
        try:
            found = kernels if chance.random() < 0.7 else []
            chance.choice(found or [psutil.Process(worker.pid)]).send_signal(signal.SIGKILL)
        except psutil.Error:
            continue
        kind = "kernel" if found else "parent"
        killed[kind] += 1
        if kind == "parent":
            worker.communicate()
            worker = None
    assert killed.total() >= 10, killed
    wait_for(lambda: not alive(seen))
    done = check(project.store)
    assert json.loads(out)["best"] == done.json()["best"]
    if sampler == "grid":
        assert len({json.dumps(row.params) for row in done.rows if row.status in ("finished", "pruned", "failed")}) == TRIALS
    print(dict(killed), Counter(row.status for row in done.rows))


@pytest.mark.parametrize("sampler", ["random", "grid"])
def test_two_at_work_on_one_study(project: Any, database_url: str, sampler: str, soak: int) -> None:
    "Two processes that begin at once run exactly so many trials together, and no combination of a grid twice."
    with open_store(database_url, project.folder / "artifacts") as store:
        environment = {**store.environment, **settings("function", sampler), "TOGETHER": "2"}
        both = [project.start(WORKER, **environment) for _ in range(2)]
        told = [process.communicate(timeout=120) for process in both]
        assert [process.returncode for process in both] == [0, 0], told
        done = check(store)
        begun = (project.folder / "begun").read_text().split("\n")[:-1]
        assert len(begun) == TRIALS == len(set(begun))
        sessions = [run for run in map(runs.to_run, query.page(store)) if run.kind == "study"]
        assert len(sessions) == 2 and min(len(runs.children(store, run)) for run in sessions) >= 4
        assert done.number("retried") == 0 and not done.number("waiting")


@pytest.mark.parametrize("sampler", ["random", "grid"])
def test_one_of_two_is_killed(project: Any, database_url: str, wait_for: Any, sampler: str, soak: int) -> None:
    "The one that lives on takes over what the other one was at: together they do exactly so many."
    with open_store(database_url, project.folder / "artifacts") as store:
        environment = {**store.environment, **settings("function", sampler, 1), "TOGETHER": "2"}
        first, second = (project.start(WORKER, **environment) for _ in range(2))

        def at_work() -> bool:
            sessions = [run for run in map(runs.to_run, query.page(store)) if run.kind == "study"]
            return len(sessions) == 2 and all(len(runs.children(store, run)) >= 2 for run in sessions)

        wait_for(at_work)
        first.kill()
        first.communicate()
        out, err = second.communicate(timeout=120)
        assert second.returncode == 0, err
        done = check(store)
        assert done.number("retried") <= 1 and json.loads(out)["finished"] == done.number("finished")
