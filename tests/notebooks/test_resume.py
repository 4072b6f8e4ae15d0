# ruff: noqa: E501  (cells of notebooks)
"A run that failed goes on: real kernels, real checkpoints, and nothing left when their time is over."
from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from typing import Any

import psutil
import pytest

from mlcycle.errors import NotebookRunError, UsageError
from mlcycle.notebooks.checkpoints.detached import home
from mlcycle.notebooks.checkpoints.reach import NotKept, kept_of, reach
from mlcycle.notebooks.execute.runner import run_notebook
from mlcycle.notebooks.resume.debugging import debug_kernel
from mlcycle.notebooks.resume.runner import rerun
from mlcycle.notebooks.warm.wire import Gone, receive, send
from mlcycle.store import facts, inputs, metrics, runs
from mlcycle.ui.tree import Face, invoke

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="kernels are kept on Linux only")

MARK = "def ran(n): open('ran', 'a').write(n)\nran('1')"
SEED = "import random, numpy as np, mlcycle as mlc\nrandom.seed(3); np.random.seed(3); rng = np.random.default_rng(3)"
SLOW = "import time; ran('2'); time.sleep(1)\nmlc.log_metric('loss', 2.0, step=0)\nbefore = [random.random(), np.random.rand(), rng.random()]\nprint('loaded')"
LAST = "ran('3')\nmlc.log_metric('loss', 1.0, step=1)\nprint(before, random.random(), np.random.rand(), rng.random(), random.gauss(0, 1))"


@pytest.fixture(autouse=True)
def _ended(project):
    "No test leaves a checkpoint behind."
    yield
    for run in project.runs():
        if "kept" in facts.captures(project.store, run):
            end(project, run)


def end(project: Any, run: Any) -> None:
    "End the checkpoints of a run."
    for each in facts.captures(project.store, run)["kept"]["checkpoints"]:
        try:
            checkpoint = reach(each, run.id)
        except NotKept:
            continue
        send(checkpoint.control, "end")
        with pytest.raises(Gone):
            receive(checkpoint.control, 10)
        checkpoint.close()


def failing(project: Any, *cells: Any, keep: float | None = 120.0, params: dict[str, Any] | None = None) -> Any:
    "Run a notebook that fails; its run."
    with pytest.raises(NotebookRunError) as error:
        run_notebook(project.write(*cells), params or {}, keep=keep, progress=False)
    return runs.get(project.store, error.value.result.run)


def pids(project: Any, run: Any) -> list[int]:
    return [each["pid"] for each in facts.captures(project.store, run)["kept"]["checkpoints"]]


def text_of(project: Any, run: str, index: int = -1) -> str:
    return "".join("".join(out["text"]) for out in project.executed(run)["cells"][index]["outputs"] if out["output_type"] == "stream")


def marks(project: Any) -> str:
    return (project.folder / "ran").read_text()


def test_goes_on_where_it_failed(project):
    "Only the mended cell is executed; numbers are those of an uninterrupted run; outputs, metrics and counts of the cells above are there."
    failed = failing(project, MARK, SEED, SLOW, LAST + "\nnosuchname")
    assert marks(project) == "123"
    project.write("# A title", MARK, SEED, SLOW, LAST)  # a heading above does not count
    done = rerun(failed.id, progress=False)
    assert (done.status, marks(project)) == ("finished", "1233") and "It went on at cell 4" in done.notes[0]
    (project.folder / "ran").unlink()
    whole = run_notebook("train.ipynb", progress=False)
    assert marks(project) == "123" and text_of(project, done.run) == text_of(project, whole.run) != ""
    assert done.metrics == whole.metrics == {"loss": 1.0}
    points = [[(p.step, p.value) for p in metrics.history(project.store, runs.get(project.store, each.run), "loss")] for each in (done, whole)]
    assert points[0] == points[1] == [(0, 2.0), (1, 1.0)]  # what the failed cell itself had logged is not taken over
    cells, of_whole = project.executed(done.run)["cells"], project.executed(whole.run)["cells"]
    assert [c.get("execution_count") for c in cells] == [c.get("execution_count") for c in of_whole] == [None, 1, 2, 3, 4]
    assert [c["metadata"].get("mlcycle") for c in cells[1:]] == [{"taken_over": failed.id}] * 3 + [None]
    assert "".join(cells[3]["outputs"][0]["text"]) == "loaded\n"
    assert facts.tags(project.store, runs.get(project.store, done.run))["reruns"] == failed.id
    again = rerun(failed.id, progress=False)  # the checkpoint is as it was
    assert text_of(project, again.run) == text_of(project, whole.run)


def test_a_rerun_that_fails_again_uses_the_same_state(project):
    "Mended twice: the second rerun goes on from what the first run kept, also by the name that both runs have; a finished one has no cell that failed."
    step = "import time; ran('2'); time.sleep(1)"
    failed = failing(project, MARK, step, "ran('3'); nosuchname")
    with pytest.raises(NotebookRunError) as error:
        rerun(failed.id, progress=False)
    second = error.value.result.run
    assert marks(project) == "1233" and "kept" not in facts.captures(project.store, runs.get(project.store, second))
    project.write(MARK, step, "ran('3')")
    done = rerun(second, progress=False)
    assert done.status == "finished" and marks(project) == "12333" and failed.id[:8] in done.notes[0] and "It went on at cell 3" in done.notes[0]
    assert facts.tags(project.store, runs.get(project.store, done.run))["reruns"] == second
    assert "All cells were run" in rerun(done.run, progress=False).notes[0] and marks(project) == "12333123"


def test_a_changed_parameter_goes_back_to_its_cell(project):
    "Cells above the parameters are taken over, the cell that assigns them and all below are executed."
    cells = (MARK.replace("ran('1')", "ran('1'); __import__('time').sleep(.5)"), {"source": "lr: float = 0.1", "tags": ["parameters"]},
             "ran('2'); __import__('time').sleep(.5)", "ran('3'); print(lr)")
    failed = failing(project, *cells[:-1], cells[-1] + "\nnosuchname", params={"lr": 0.2})
    assert marks(project) == "123" and [each["cell"] for each in facts.captures(project.store, failed)["kept"]["checkpoints"]][-1] == 4
    project.write(*cells)
    done = rerun(failed.id, {"lr": 0.5}, progress=False)
    assert (done.params, text_of(project, done.run)) == ({"lr": 0.5}, "0.5\n") and marks(project) == "12323"
    same = rerun(failed.id, progress=False)
    assert (same.params, text_of(project, same.run)) == ({"lr": 0.2}, "0.2\n") and marks(project) == "123233"
    back = invoke(["rerun", failed.id, "-p", "lr=0.3", "--from", "3"], Face())
    assert marks(project) == "12323323" and back.data["status"] == "finished"
    all_of_it = rerun(failed.id, first=1, progress=False)
    assert marks(project).endswith("123") and all_of_it.status == "finished"
    with pytest.raises(UsageError, match="There is no cell '9'"):
        rerun(failed.id, first=9)


def test_a_changed_cell_above_is_executed(project):
    "What was changed in the file above the cell that failed is not skipped; the file's absence is no obstacle."
    cells = [MARK, "ran('2'); x = 1; __import__('time').sleep(.4)", "ran('3'); y = x; __import__('time').sleep(.4)", "print(y)\nnosuchname"]
    failed = failing(project, *cells)
    project.write(*cells[:2], "ran('4'); y = x + 10", "print(y)")
    done = rerun(failed.id, progress=False)
    assert text_of(project, done.run) == "11\n" and marks(project) == "1234"
    (project.folder / "train.ipynb").unlink()
    with pytest.raises(NotebookRunError, match="nosuchname") as error:
        rerun(failed.id, progress=False)
    assert "It went on at cell 4" in error.value.result.notes[0] and marks(project) == "1234"


@pytest.mark.parametrize(("last", "settings"), [("import os; os.kill(os.getpid(), 9)", {}), ("import time; time.sleep(60)", {"cell_timeout": 1})],
                         ids=["killed", "too long"])
def test_goes_on_after_other_deaths(project, last, settings):
    "A kernel that was killed, for want of memory say, and a cell over its limit: the state before it is there. What fails again can be kept again."
    with pytest.raises(NotebookRunError) as error:
        run_notebook(project.write(MARK, "x = 5", last), keep=60, progress=False, **settings)
    failed = error.value.result.run
    project.write(MARK, "x = 5", "ran('2'); x += 1", "nosuchname")
    with pytest.raises(NotebookRunError) as error:
        rerun(failed, keep=60, progress=False)
    second = error.value.result.run
    project.write(MARK, "x = 5", "ran('2'); x += 1", "print(x)")
    done = rerun(second, progress=False)
    assert text_of(project, done.run) == "6\n" and marks(project) == "12"
    taken = [cell["metadata"].get("mlcycle") for cell in project.executed(done.run)["cells"]]
    assert taken == [{"taken_over": failed}] * 2 + [{"taken_over": second}, None]


def test_what_was_logged_later_stays_with_the_failed_run(project):
    "Inputs and artifacts come along by the time at which they were logged."
    cells = ["import mlcycle as mlc, pandas as pd", "mlc.log_input(pd.DataFrame({'a': [1]}), 'early'); mlc.log_text('1', 'early.txt')"]
    late = "mlc.log_input(pd.DataFrame({'a': [2]}), 'late'); mlc.log_text('2', 'late.txt')"
    failed = failing(project, *cells, late + "\nnosuchname")
    project.write(*cells, "mlc.log_metric('m', 1)")
    run = runs.get(project.store, rerun(failed.id, progress=False).run)
    assert [d.name for d in inputs.listing(project.store, run)] == ["early"] and project.artifact(run.id, "early.txt") == b"1"
    with pytest.raises(Exception, match=r"late\.txt"):
        project.artifact(run.id, "late.txt")


def test_secrets_come_from_the_environment_again(project, monkeypatch):
    "A secret is in no record; it must be there when the run is made again, and is masked in it too."
    monkeypatch.setenv("MY_TOKEN", "s3cret-value-1")
    path = project.write("import os", {"source": "key = ''", "tags": ["parameters"]}, "print(len(key), key)", "nosuchname")
    with pytest.raises(NotebookRunError) as error:
        run_notebook(path, secrets={"key": "env:MY_TOKEN"}, keep=60, progress=False)
    project.write("import os", {"source": "key = ''", "tags": ["parameters"]}, "print(len(key), key)", "print('again', key)")
    done = rerun(error.value.result.run, progress=False)
    assert text_of(project, done.run) == "again [redacted]\n" and "s3cret-value-1" not in json.dumps(project.executed(done.run))
    monkeypatch.delenv("MY_TOKEN")
    with pytest.raises(UsageError, match="MY_TOKEN"):
        rerun(error.value.result.run, progress=False)


def test_debug_shows_the_state(project):
    "A console that is opened in the state before the failing cell has its variables; the checkpoint outlives it, the kernel does not."
    import pexpect

    failed = failing(project, MARK, "table = {'x': 41}", "table['x'] += 1\ntable['age']")
    console = pexpect.spawn(sys.executable, ["-m", "mlcycle", "debug", failed.id], cwd=project.folder, env=project.environment(TERM="dumb"),
                            encoding="utf8", timeout=60)
    console.expect(r"just before cell 3[\s\S]*table\['age'\][\s\S]*KeyError[\s\S]*In \[")
    console.sendline("print('x is', table['x'], __import__('os').getpid())")
    console.expect(r"x is 41 (\d+)")
    kernel = int(console.match[1])
    assert psutil.pid_exists(kernel)
    console.sendline("exit")
    console.expect(pexpect.EOF)
    console.close()
    assert console.exitstatus == 0
    end_of(kernel)
    assert all(psutil.pid_exists(pid) for pid in pids(project, failed))
    project.write(MARK, "table = {'x': 41}", "print(table)")
    assert text_of(project, rerun(failed.id, progress=False).run) == "{'x': 41}\n"


def test_debug_without_a_terminal(project):
    "With --json the kernel waits for whoever attaches, and ends with its checkpoint."
    failed = failing(project, "x = 5", "nosuchname")
    done = project.start(f"from mlcycle.ui.cli import main; main(['debug', '{failed.id}', '--json'])")
    told = json.loads(done.communicate(timeout=60)[0])
    assert told["cell"] == 2 and told["error"]["type"] == "NameError"
    from jupyter_client import BlockingKernelClient

    client = BlockingKernelClient()
    client.load_connection_file(told["connection_file"])
    client.start_channels()
    client.wait_for_ready(timeout=120)
    reply = client.execute_interactive("", user_expressions={"x": "x"}, timeout=120)
    client.stop_channels()
    assert reply["content"]["user_expressions"]["x"]["data"]["text/plain"] == "5"
    end(project, failed)
    end_of(told["pid"])
    assert not os.path.exists(told["connection_file"])


def end_of(*processes: int) -> None:
    "Wait until processes have ended."
    until = time.monotonic() + 120
    while alive := [pid for pid in processes if psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE]:
        assert time.monotonic() < until, alive
        time.sleep(0.05)


def test_nothing_is_left_after_its_time(project):
    "At the end of the time processes, sockets and folders are gone, and rerun and debug say so; a run that goes on from there is not cut off."
    slow = "__import__('time').sleep(3); print('whole')"
    failed = failing(project, MARK, "x = 1", "nosuchname", keep=3.0)
    left = pids(project, failed)
    folders = [os.path.dirname(each["path"]) for each in kept_of(project.store, failed)["checkpoints"]]
    assert all(os.stat(folder).st_mode & 0o077 == 0 and os.path.dirname(folder) == str(home()) for folder in folders)
    project.write(MARK, "x = 1", slow)
    done = rerun(failed.id, progress=False)
    assert text_of(project, done.run) == "whole\n" and marks(project) == "1"
    end_of(*left)
    assert not [folder for folder in folders if os.path.exists(folder)]
    assert "All cells were run: run" in rerun(failed.id, progress=False).notes[0] and marks(project) == "11"
    with pytest.raises(UsageError, match="was kept until"):
        debug_kernel(failed.id)


def test_a_killed_manager_leaves_nothing(project, wait_for):
    "SIGKILL of the process that runs the notebook ends its checkpoints with its kernel: nobody asked to keep a run that was killed."
    project.write(MARK, "open('pids', 'w').write(str(__import__('os').getpid()))", "import time; time.sleep(60)")
    process = project.start("from mlcycle.notebooks.execute.runner import run_notebook as r; r('train.ipynb', keep=600, progress=False)")
    wait_for(lambda: (project.folder / "pids").exists() and (project.folder / "pids").read_text())
    kernel = int((project.folder / "pids").read_text())
    name = psutil.Process(kernel).cmdline()

    def working() -> list[int]:
        return [p.pid for p in psutil.process_iter(["cmdline"]) if p.info["cmdline"] == name and _works_in(p, project.folder)]

    wait_for(lambda: len(working()) >= 4)  # the kernel and three checkpoints
    mine = working()
    process.kill()
    end_of(*mine)


def _works_in(process: psutil.Process, folder: Any) -> bool:
    try:
        return process.cwd() == str(folder)
    except psutil.Error:
        return False


@pytest.mark.parametrize("how", ["failed without --keep", "finished with --keep", "cancelled with --keep"])
def test_nothing_lingers_that_was_not_asked_for(project, how):
    "Without --keep, and after a run that did not fail, no process stays and nothing is recorded."
    interrupt = f"import os, time\nos.kill({os.getpid()}, 2); time.sleep(30)"
    last = {"failed without --keep": "nosuchname", "finished with --keep": "1", "cancelled with --keep": interrupt}[how]
    with contextlib.suppress(NotebookRunError, KeyboardInterrupt):
        run_notebook(project.write(MARK, "x = 1", last), keep=None if "without" in how else 60, progress=False)
    run = project.runs()[0]
    assert run.status == how.split()[0] and "kept" not in facts.captures(project.store, run)
    until = time.monotonic() + 120
    while still := [p.pid for p in psutil.process_iter() if p.pid != os.getpid() and _works_in(p, project.folder)]:
        assert time.monotonic() < until, still
        time.sleep(0.05)


def test_a_kernel_that_cannot_be_kept_says_why(project):
    "A thread forbids the fork: the reason is on the run; what was kept before it can still be gone on from."
    failed = failing(project, MARK, "import threading, time\nthreading.Thread(target=time.sleep, args=(5,), name='reader', daemon=True).start()", "nosuchname")
    assert "before cell 3: a thread 'reader'" in facts.warnings(project.store, failed)[0]
    with pytest.raises(UsageError, match=r"could not be kept before cell 3: a thread 'reader'.*goes on before cell 2"):
        debug_kernel(failed.id)
    project.write(MARK, "ran('2')", "ran('3')")
    assert "It went on at cell 2" in rerun(failed.id, progress=False).notes[0] and marks(project) == "123"


def test_refused_before_anything_runs(project):
    "What cannot be kept is said at once."
    path = project.write("1")
    for settings in ({"keep": 0}, {"keep": 60, "fresh": True}, {"keep": 60, "scratch": True}):
        with pytest.raises(UsageError, match="keep"):
            run_notebook(path, **settings)
    assert project.runs() == []
