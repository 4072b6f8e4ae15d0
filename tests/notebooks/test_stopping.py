"Signals and deaths of the process that runs a notebook: the run says what happened, and no kernel is left behind."
from __future__ import annotations

import json
import signal
import subprocess

import psutil
import pytest

RUN = """
import json, os, sys
from mlcycle.notebooks.execute.limits import Limits
from mlcycle.notebooks.execute.runner import run_notebook
from mlcycle.notebooks.record.result import NotebookInterrupted, NotebookTerminated
if "GRACE" in os.environ:
    Limits.__init__.__defaults__ = tuple(float(os.environ["GRACE"]) if value == 5.0 else value for value in Limits.__init__.__defaults__)
try:
    run_notebook("train.ipynb", fresh=bool(os.environ.get("FRESH")))
except (NotebookInterrupted, NotebookTerminated) as e:
    print(json.dumps({"kind": type(e).__name__, "message": str(e), **e.result.json()}))
    sys.exit(e.exit_code)
"""


@pytest.fixture(params=["", "1"], ids=["forked", "fresh"], autouse=True)
def kind_of_kernel(request, monkeypatch) -> None:
    "Everything holds for a kernel that was forked and for one that was started."
    monkeypatch.setenv("FRESH", request.param)


def started(project, wait_for, *cells: str) -> subprocess.Popen[str]:
    "Start a process that runs a notebook, and wait until its last cell is running."
    project.write(*cells, "open('running', 'w').write(str(__import__('os').getpid()))\n__import__('time').sleep(120)")
    process = project.start(RUN)
    wait_for(lambda: (project.folder / "running").exists() and (project.folder / "running").read_text())
    return process


@pytest.mark.parametrize(("signum", "kind", "reason"), [(signal.SIGINT, "NotebookInterrupted", "interrupted (Ctrl-C)"),
                                                        (signal.SIGTERM, "NotebookTerminated", "terminated (SIGTERM)")])
def test_signal_cancels_the_run(project, wait_for, kernels, signum, kind, reason):
    "Ctrl-C and SIGTERM cancel: the kernel is gone, the partial notebook kept, the exit code is not zero."
    process = started(project, wait_for, "print('one')")
    (kernel,) = kernels(process.pid)
    process.send_signal(signum)
    out, err = process.communicate(timeout=120)
    told = json.loads(out)
    assert (process.returncode, told["kind"], told["status"], told["reason"], told["cell"]) == (1, kind, "cancelled", reason, 2), err
    assert not kernel.is_running()
    (run,) = project.runs()
    assert (run.status, run.reason) == ("cancelled", reason)
    assert project.executed(run.id)["cells"][0]["outputs"][0]["text"] == ["one\n"]


def test_second_ctrl_c_does_not_wait(project, wait_for, kernels):
    "A notebook that swallows the interrupt is killed at once by the second Ctrl-C."
    project.write("import time\nwhile True:\n    try:\n        open('running', 'w').write('1')\n        time.sleep(60)\n"
                  "    except KeyboardInterrupt:\n        open('heard', 'w').write('1')")
    process = project.start(RUN, GRACE="600")
    wait_for((project.folder / "running").exists)
    (kernel,) = kernels(process.pid)
    process.send_signal(signal.SIGINT)
    wait_for((project.folder / "heard").exists)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)  # less than the grace that one Ctrl-C gives
    assert json.loads(out)["status"] == "cancelled" and not kernel.is_running(), err


def test_killed_manager_leaves_no_kernel(project, wait_for, kernels):
    "When the process that runs the notebook is killed, its kernel ends by itself, and the run is shown as lost."
    process = started(project, wait_for)
    (kernel,) = kernels(process.pid)
    process.kill()
    process.communicate()
    wait_for(lambda: not kernel.is_running() or kernel.status() == psutil.STATUS_ZOMBIE)
    assert project.runs()[0].status == "lost"


def test_interrupt_stops_a_loop_over_notebooks(project, wait_for):
    "Ctrl-C is no failed run: `except Exception` around `run_notebook` does not swallow it."
    project.write("open('running', 'a').write('x')\n__import__('time').sleep(120)")
    process = project.start("from mlcycle.notebooks.execute.runner import run_notebook\nfor i in range(3):\n    try:\n"
                            "        run_notebook('train.ipynb')\n"
                            "    except Exception:\n        pass")
    wait_for((project.folder / "running").exists)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode != 0 and "NotebookInterrupted" in err and (project.folder / "running").read_text() == "x"
