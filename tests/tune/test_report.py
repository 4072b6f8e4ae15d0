"A trial is ended where its study says so, at once, with what it logged; nothing else is."
from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nbformat
import pytest

import mlcycle as mlc
from mlcycle.config import ENV_TRIAL
from mlcycle.errors import NotebookRunError
from mlcycle.notebooks.execute.drive import Control
from mlcycle.notebooks.execute.options import RunOptions
from mlcycle.notebooks.execute.runner import run_notebook
from mlcycle.notebooks.sweep.shared_cells import sharing
from mlcycle.notebooks.sweep.tasks import Task, execute_task
from mlcycle.store import artifacts, metrics, runs
from mlcycle.track.trial import trialing
from mlcycle.tune.listener import Listener

forking = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="kernels are forked on Linux only")
CELLS = ["import time\nimport mlcycle as mlc", {"source": "start = 0.0", "tags": ["parameters"]},
         "print('before')\nfor step in range(10):\n    try:\n        mlc.report(start + step / 10)\n"
         "    except Exception:\n        print('swallowed')",
         "print('below')"]


class At:
    "Ends a trial at a step, and remembers what was reported."
    metric = "auc"

    def __init__(self, step: int):
        self.step, self.got = step, []

    def report(self, value: float, step: int) -> bool:
        self.got.append((step, value))
        return step == self.step


def logged(project: Any, run_id: str, name: str = "auc") -> list[tuple[int, float]]:
    "The points of a metric, as stored."
    return [(point.step, point.value) for point in metrics.history(project.store, runs.get(project.store, run_id), name)]


def check_pruned(project: Any, done: Any, handler: At, start: float = 0.0) -> None:
    "All that is to be true of a run that was ended at step 3."
    expected = [(step, start + step / 10) for step in range(handler.step + 1)]
    assert (done.status, done.reason, done.error) == ("pruned", f"pruned at step {handler.step} (cell 3)", None)
    assert handler.got == expected == logged(project, done.run)
    stored = runs.get(project.store, done.run)
    assert (stored.status, stored.reason, stored.error) == ("pruned", done.reason, None)
    *_, loop, below = nbformat.reads(json.dumps(project.executed(done.run)), as_version=4).cells
    printed, ended = loop.outputs
    assert printed.text == "before\n" and below.outputs == []
    assert ended.traceback == [f"Pruned at step {handler.step}: {expected[-1][1]:g} is not good enough to go on."]
    cells = json.loads(project.artifact(done.run, "notebook/cells.json"))
    assert [cell["status"] for cell in cells][-2:] == ["pruned", "pending"]


@pytest.mark.parametrize("fresh", [pytest.param(False, marks=forking), True])
def test_a_kernel_stops_where_the_study_says_so(project, fresh):
    "At once, past `except Exception`, with what was logged and printed; the cells below do not run."
    handler = At(3)
    with Listener() as listener:
        done = run_notebook(project.write(*CELLS), progress=False, fresh=fresh, env={ENV_TRIAL: listener.register("1", handler)})
    check_pruned(project, done, handler)
    assert project.executed(done.run)["metadata"]["mlcycle"]["kernel"] == ("fresh" if fresh else "forked")


@forking
def test_trials_from_shared_cells(project):
    "Forks of one kernel each ask for their own trial, two at a time, in two orders of asking."
    path = project.write(*CELLS)
    with Listener() as listener, sharing(path) as (shared, reason), ThreadPoolExecutor(2) as pool:
        assert not reason

        def trial(n: int) -> Any:
            handler = At(n)
            done = run_notebook(path, {"start": float(n)}, progress=False, shared=shared, env={ENV_TRIAL: listener.register(str(n), handler)})
            listener.forget(str(n))
            return done, handler

        found = list(pool.map(trial, [3, 1, 2, 0]))
    for done, handler in found:
        check_pruned(project, done, handler, float(handler.step))


def test_nothing_tells_of_the_place(project):
    "Where the study listens is in no document, no cell and no row of the run."
    with Listener() as listener:
        told = listener.register("1", At(3))
        done = run_notebook(project.write(*CELLS), progress=False, env={ENV_TRIAL: told})
    address = json.loads(told)["address"]
    kept = [project.store.blobs.read(each.digest) for each in artifacts.listing(project.store, runs.get(project.store, done.run))]
    kept += [path.read_bytes() for path in project.folder.glob("mlcycle.db*")]
    assert len(kept) > 3 and any(done.run.encode() in text for text in kept)
    assert not [text for text in kept if str(address).encode() in text or ENV_TRIAL.encode() in text]


def test_the_same_notebook_by_itself_logs(project):
    "Without a study nothing is asked; a run inside a trial is not the trial."
    path = project.write(*CELLS[:3])
    done = run_notebook(path, progress=False)
    assert (done.status, logged(project, done.run, "objective")) == ("finished", [(step, step / 10) for step in range(10)])
    outer = project.write(f"import mlcycle as mlc\ndone = mlc.run_notebook({str(path)!r}, progress=False)\nprint(done.status)", name="outer.ipynb")
    handler = At(3)
    with Listener() as listener:
        assert run_notebook(outer, progress=False, env={ENV_TRIAL: listener.register("1", handler)}).status == "finished"
    assert handler.got == []


def test_a_tracked_cell_inside_a_trial(project):
    "The run of the cell and the run of the notebook are both pruned; what was reported is with the inner one, as all that it logs."
    path = project.write("import mlcycle as mlc\n%load_ext mlcycle",
                         "%%track inner\nfor step in range(5):\n    mlc.report(step / 10)", "print('below')")
    with Listener() as listener:
        done = run_notebook(path, progress=False, env={ENV_TRIAL: listener.register("1", At(2))})
    assert (done.status, done.reason) == ("pruned", "pruned at step 2 (cell 2)")
    inner = next(run for run in project.runs() if run.name == "inner")
    assert (inner.status, inner.reason, inner.error) == ("pruned", "pruned at step 2", None)
    assert logged(project, inner.id) == [(0, 0.0), (1, 0.1), (2, 0.2)]


def test_only_the_study_prunes(project):
    "Another's exception of that name is a failure, in a trial too; so is ours where there is no trial."
    own = project.write("class TrialPruned(Exception): pass", "raise TrialPruned('Pruned by me')", name="own.ipynb")
    ours = project.write("import mlcycle as mlc", "raise mlc.TrialPruned(3, 0.5)", name="ours.ipynb")
    with Listener() as listener:
        for path, env in ((own, {ENV_TRIAL: listener.register("1", At(0))}), (ours, None)):
            with pytest.raises(NotebookRunError) as e:
                run_notebook(path, progress=False, env=env)
            assert e.value.result.status == "failed"


def test_as_a_task(project):
    "Tasks that differ in their environment only; a pruned one is an outcome, not an error."
    path = project.write(*CELLS)
    handlers = [At(1), At(20)]
    with mlc.run("study") as study, Listener() as listener:
        tasks = [Task(study.id, row, f"trial {row}", study.experiment, str(path), path.read_bytes(), "train.ipynb",
                      options=RunOptions(env={ENV_TRIAL: listener.register(str(row), handler)})) for row, handler in enumerate(handlers, 1)]
        outcomes = [execute_task(task, project.store, Control()) for task in tasks]
    assert [outcome.status for outcome in outcomes] == ["pruned", "finished"]
    assert [len(handler.got) for handler in handlers] == [2, 10]


@pytest.mark.skipif(os.name != "posix", reason="there is no SIGKILL")
def test_a_kernel_that_is_killed_disturbs_nobody(project):
    "SIGKILL while the study thinks about a report; then half a message; the next trial is answered."
    class Killing(At):
        def report(self, value: float, step: int) -> bool:
            os.kill(int(value), signal.SIGKILL)
            time.sleep(0.5)
            return super().report(value, step)

    handler = Killing(0)
    with Listener() as listener:
        path = project.write("import os\nimport mlcycle as mlc", "mlc.report(os.getpid())")
        with pytest.raises(NotebookRunError, match="SIGKILL"):
            run_notebook(path, progress=False, env={ENV_TRIAL: listener.register("1", handler)})
        address = json.loads(listener.register("2", other := At(3)))["address"]
        for junk in (b"", b"\0\0", b"\0\0\0\x10half", b"\0\0\0\x01{"):
            with socket.socket(socket.AF_UNIX) as dying:
                dying.connect(address)
                dying.sendall(junk)
        done = run_notebook(project.write(*CELLS), progress=False, env={ENV_TRIAL: listener.register("2", other)})
        check_pruned(project, done, other)
        assert len(handler.got) == 1


def test_a_study_that_is_killed_is_an_error_in_its_kernels(project, wait_for):
    "No kernel waits for an answer that never comes."
    code = ("import time\nfrom mlcycle.tune.listener import Listener\n"
            "class Slow:\n    metric = 'auc'\n    def report(self, value, step):\n        print('asked', flush=True)\n        time.sleep(60)\n"
            "with Listener() as listener:\n    print(listener.register('1', Slow()), flush=True)\n    time.sleep(60)")
    parent = project.start(code)
    told = parent.stdout.readline().strip()

    def kill() -> None:
        parent.stdout.readline()
        parent.kill()

    killer = threading.Thread(target=kill)
    killer.start()
    for _ in range(2):  # while it waits for the answer, and where nobody is there to ask
        with pytest.raises(NotebookRunError, match="cannot be reached"):
            run_notebook(project.write(*CELLS[:2], "mlc.report(0.5)"), progress=False, env={ENV_TRIAL: told})
    killer.join()


def test_a_handler_that_fails_is_an_error_in_its_kernel(project):
    "The kernel's author sees what the study could not do."
    class Broken(At):
        def report(self, value: float, step: int) -> bool:
            raise RuntimeError("the disk is full")

    with Listener() as listener, pytest.raises(NotebookRunError, match="RuntimeError: the disk is full"):
        run_notebook(project.write(*CELLS[:2], "mlc.report(0.5)"), progress=False, env={ENV_TRIAL: listener.register("1", Broken(0))})


@pytest.mark.parametrize("kind", ["path", "port"])
def test_strangers_are_not_answered(kind, monkeypatch):
    "The socket is nobody else's to open; a port takes only who knows the secret."
    from multiprocessing import AuthenticationError
    from multiprocessing.connection import Client

    import mlcycle.tune.listener as module

    if kind == "port":
        monkeypatch.setattr(module, "_LONGEST", 0)
    handler = At(0)
    with Listener() as listener:
        told = listener.register("1", handler)
        place = json.loads(told)
        if kind == "path":
            folder = Path(place["address"]).parent
            assert folder.stat().st_mode & 0o777 == 0o700
        else:
            with pytest.raises((AuthenticationError, EOFError, OSError)), Client(tuple(place["address"]), authkey=b"guess") as stranger:
                stranger.send_bytes(b'["1", 0.5, 0]')
                stranger.recv_bytes()
            assert handler.got == []
        monkeypatch.setenv(ENV_TRIAL, told)
        with pytest.raises(mlc.TrialPruned):
            mlc.report(0.5)
    assert kind == "port" or not folder.exists()


def test_functions_in_threads(project):
    "Each thread's trial is its own; the same decisions give the same runs, twice."
    def objective(n: int) -> tuple[str, list[tuple[int, float]]]:
        with trialing(At(n)), mlc.run(f"trial {n}", capture=False) as active:
            for step in range(6):
                mlc.report(n + step / 10)
                time.sleep(0.001)
        return active.id, logged(project, active.id)

    def trial(n: int) -> Any:
        try:
            run_id, _ = objective(n)
        except mlc.TrialPruned as e:
            return "pruned", e.step, e.value
        return "finished", run_id[:0], None

    with ThreadPoolExecutor(4) as pool:
        twice = [list(pool.map(trial, range(8))) for _ in range(2)]
    assert twice[0] == twice[1] == [*(("pruned", n, n + n / 10) for n in range(6)), *[("finished", "", None)] * 2]
    by_name = {run.name: (run.status, run.reason, run.error, logged(project, run.id)) for run in project.runs()}
    assert by_name["trial 3"] == ("pruned", "pruned at step 3", None, [(step, 3 + step / 10) for step in range(4)])
    assert by_name["trial 7"][:2] == ("finished", None) and len(by_name["trial 7"][3]) == 6


def test_once_pruned_stays_pruned():
    "Who catches everything is told again at the next report, whatever the pruner would say then."
    handler = At(1)
    with trialing(handler):
        mlc.report(0.5)
        for _ in range(2):
            with pytest.raises(mlc.TrialPruned) as e:
                mlc.report(0.4)
            assert e.value.step == 1
    assert len(handler.got) == 2
    with pytest.raises(mlc.NoActiveRunError, match="no trial and no run"):
        mlc.report(0.5)
