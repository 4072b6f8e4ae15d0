"Every way in which a notebook run can end, on real notebooks in real kernels."
from __future__ import annotations

import os
import time

import psutil
import pytest

from mlcycle.entities import RunError
from mlcycle.errors import NotebookFormatError, NotebookRunError, NotFoundError, ParameterError, UsageError
from mlcycle.notebooks.execute.runner import run_notebook
from mlcycle.notebooks.record.result import NotebookRun
from mlcycle.store import facts, runs


def failure(path, **options) -> NotebookRun:
    "Run a notebook that must not finish."
    with pytest.raises(NotebookRunError) as caught:
        run_notebook(path, **options)
    return caught.value.result


def statuses(project, run_id: str) -> list[str]:
    "What became of each code cell."
    return [cell["metadata"]["papermill"]["status"] for cell in project.executed(run_id)["cells"] if cell["cell_type"] == "code"]


def test_success_is_this_run_across_the_process_border(project):
    "The notebook logs to the very run that executes it, in its own folder, and both notebooks are kept."
    path = project.write({"source": "lr: float = 0.1", "tags": ["parameters"]},
                         "import mlcycle as mlc, os\nrun = mlc.current_run()\nmlc.log_metric('auc', 0.75)\nmlc.log_text('hello', 'note.txt')",
                         "print(run.id, os.getcwd())")
    done = run_notebook(path, {"lr": 0.5}, experiment="churn", name="first", tags={"who": "me"})
    assert (done.status, done.metrics, done.params) == ("finished", {"auc": 0.75}, {"lr": 0.5})
    assert done.json() | {"seconds": 0} == {"run": done.run, "status": "finished", "reason": None, "cell": None, "error": None, "seconds": 0,
                                            "metrics": {"auc": 0.75}, "version": None, "cached": False}
    assert project.executed(done.run)["cells"][-1]["outputs"][0]["text"] == [f"{done.run} {project.folder}\n"]
    assert project.artifact(done.run, "notebook/source.ipynb") == path.read_bytes()
    assert project.artifact(done.run, "note.txt") == b"hello"
    run = runs.get(project.store, done.run)
    assert (run.kind, run.name, run.experiment, facts.tags(project.store, run)["who"]) == ("notebook", "first", "churn", "me")
    assert [p.name for p in project.folder.glob("*.ipynb")] == ["train.ipynb"]  # no file without `out`


def test_raising_cell(project):
    "A failure names the cell, keeps the traceback without colours, and keeps the notebook as far as it came."
    result = failure(project.write("# Load", "rows = [1]", "# Split", "print('before')\nrows[7]", "print('never')"), out=project.folder / "out.ipynb")
    assert (result.status, result.cell, result.cell_id, result.reason) == ("failed", 2, "c4", "cell 2 raised IndexError: list index out of range")
    run = runs.get(project.store, result.run)
    assert isinstance(run.error, RunError) and (run.error.type, run.error.cell, run.error.cell_id) == ("IndexError", 2, "c4")
    assert "\x1b" not in run.error.traceback and "rows[7]" in run.error.traceback and run.seconds is not None
    assert statuses(project, result.run) == ["completed", "failed", "pending"]
    assert (project.folder / "out.ipynb").read_bytes() == project.artifact(result.run, "notebook/executed.ipynb")


@pytest.mark.parametrize("leave", ["import sys; sys.exit(0)", "raise SystemExit", "exit()", "quit()"])
def test_leaving_half_way_is_no_success(project, leave):
    "Papermill reports success here, although the later cells never ran."
    result = failure(project.write("print('one')", leave, "print('three')"))
    assert (result.status, result.reason, result.cell) == ("failed", "stopped before its last cell", 2)
    assert result.error.type == "SystemExit" and statuses(project, result.run) == ["completed", "failed", "pending"]


def test_leaving_at_the_end(project):
    "In the last code cell that runs, `sys.exit(0)` ends a notebook well and `sys.exit(3)` does not."
    ending = ["# The end", {"source": "print('skipped')", "tags": ["skip-execution"]}, ""]
    assert run_notebook(project.write("import sys; sys.exit(0)", *ending)).status == "finished"
    assert failure(project.write("import sys; sys.exit(3)", *ending)).reason == "cell 1 called sys.exit(3)"


def test_allowed_to_raise(project):
    "A cell tagged `raises-exception` may raise, as in nbclient."
    done = run_notebook(project.write({"source": "1 / 0", "tags": ["raises-exception"]}, "print('on')"))
    assert done.status == "finished" and project.executed(done.run)["cells"][1]["outputs"][0]["text"] == ["on\n"]


def test_killed_kernel(project):
    "A kernel that is killed, as by the out-of-memory killer, is found out within seconds and named."
    began = time.monotonic()
    result = failure(project.write("print('alive', flush=True)\nimport time; time.sleep(0.5)",
                                   "import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "print('never')"))
    assert result.status == "failed" and result.reason.startswith("the kernel died by SIGKILL") and result.cell == 2
    assert time.monotonic() - began < 20 and statuses(project, result.run) == ["completed", "failed", "pending"]


def test_crashed_kernel_has_last_words(project):
    "A segmentation fault leaves its C stack with the run."
    result = failure(project.write("import ctypes, faulthandler; faulthandler.enable(); ctypes.string_at(0)"))
    assert result.reason == "the kernel died by SIGSEGV" and "Segmentation fault" in result.error.traceback


def test_cell_timeout_interrupts(project):
    "A cell that is too slow is interrupted, so that it can tidy up, and its output is kept."
    path = project.write("import time\nprint('working', flush=True)\ntry:\n    time.sleep(60)\nfinally:\n    print('tidied')", "1")
    result = failure(path, cell_timeout=1)
    assert (result.reason, result.error.type, result.cell) == ("cell 1 took longer than 1 s", "CellTimeoutError", 1)
    outputs = project.executed(result.run)["cells"][0]["outputs"]
    assert outputs[0]["text"] == ["working\n", "tidied\n"] and outputs[-1]["ename"] == "KeyboardInterrupt"


def test_run_timeout_kills_what_does_not_listen(project):
    "A notebook that swallows every interrupt is killed, with the processes that it started; nothing of it is left."
    path = project.write("a = 1", "import subprocess, os, time\nchild = subprocess.Popen(['sleep', '120'])\n"
                         "open('pids', 'w').write(f'{os.getpid()} {child.pid}')\nprint('working', flush=True)\n"
                         "while True:\n    try:\n        time.sleep(60)\n    except KeyboardInterrupt:\n        print('no', flush=True)")
    result = failure(path, timeout=4)
    assert (result.reason, result.error.type, result.cell) == ("the run took longer than 4 s", "RunTimeoutError", 2)
    assert "did not react" in result.error.message
    assert "".join(project.executed(result.run)["cells"][1]["outputs"][0]["text"]).startswith("working\n")
    for pid in map(int, (project.folder / "pids").read_text().split()):
        assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_foreign_kernel(project):
    "A notebook from another machine runs in a kernel of its language, and says so."
    path = project.write("import sys; print(sys.executable)", kernelspec={"name": "conda-env-x-py", "display_name": "x", "language": "python"})
    with pytest.warns(UserWarning, match="conda-env-x-py"):
        done = run_notebook(path)
    assert "conda-env-x-py" in done.warnings[0] and "conda-env-x-py" in facts.warnings(project.store, runs.get(project.store, done.run))[0]


def test_kernel_that_does_not_start(project, tmp_path, monkeypatch):
    "An installed kernel that is broken fails the run with its own words."
    (tmp_path / "kernels" / "broken").mkdir(parents=True)
    (tmp_path / "kernels" / "broken" / "kernel.json").write_text(
        '{"argv": ["sh", "-c", "echo no module named churn >&2; exit 3"], "display_name": "b", "language": "python"}')
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    result = failure(project.write("1"), kernel="broken")
    assert result.reason.startswith("the kernel did not start") and "no module named churn" in result.error.traceback


def test_wrong_use_leaves_nothing(project):
    "What can be known before is refused before: no run, no file, no kernel."
    good = project.write({"source": "learning_rate = 0.1", "tags": ["parameters"]}, name="good.ipynb")
    julia = project.write("1", name="julia.ipynb", kernelspec={"name": "julia-1.10", "display_name": "j", "language": "julia"})
    broken = project.folder / "broken.ipynb"
    broken.write_text('{"cells": [')
    before = sorted(p.name for p in project.folder.iterdir())
    for error, words, path, options in [
        (ParameterError, "did you mean `learning_rate`", good, {"params": {"lerning_rate": 1.0}}),
        (ParameterError, "expects float", good, {"params": {"learning_rate": "fast"}}),
        (NotFoundError, "Installed: python3", good, {"kernel": "pyhton3"}),
        (NotebookFormatError, "speaks julia", julia, {}),
        (NotebookFormatError, "not JSON", broken, {}),
        (NotFoundError, "There is no file", project.folder / "missing.ipynb", {}),
        (UsageError, "above zero", good, {"cell_timeout": -1}),
        (NotFoundError, "no folder", good, {"out": project.folder / "nowhere" / "out.ipynb"}),
        (UsageError, "has no value", good, {"secrets": {"learning_rate": "env:NOT_SET_ANYWHERE"}}),
    ]:
        with pytest.raises(error, match=words) as caught:
            run_notebook(path, **options)
        assert caught.value.exit_code == 2
    assert project.runs() == [] and sorted(p.name for p in project.folder.iterdir()) == before


MODEL = """
import mlcycle as mlc
from sklearn.datasets import load_breast_cancer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
X, y = load_breast_cancer(return_X_y=True, as_frame=True)
model = make_pipeline(StandardScaler(), LogisticRegression()).fit(X, y)
mlc.log_metric("accuracy", model.score(X, y))
mlc.current_run().log_model(model, input_example=X.head())
"""


def test_register(project):
    "What the notebook logged becomes the next version; a run that logged no model says so and stays finished."
    done = run_notebook(project.write(MODEL), register="cancer")
    assert done.version == done.json()["version"] == "cancer/1" and done.metrics["accuracy"] > 0.9
    without = failure(project.write("1"), register="cancer")
    assert without.status == "finished" and without.version is None and "was not registered as 'cancer'" in without.reason
    assert without.result().exit_code == 1
    with pytest.raises(UsageError):
        run_notebook(project.write("1"), register="../cancer")
    assert len(project.runs()) == 2


def test_threads_keep_their_folders(project):
    "Two runs at once in one process: each kernel works in its own notebook's folder, the process stays where it is."
    from concurrent.futures import ThreadPoolExecutor

    here = os.getcwd()
    paths = []
    for name in ("a", "b"):
        (project.folder / name).mkdir()
        paths.append(project.write("import os, time; time.sleep(0.5); print(os.getcwd())", name=f"{name}/train.ipynb"))
    with ThreadPoolExecutor(2) as pool:
        done = list(pool.map(run_notebook, paths))
    texts = [project.executed(each.run)["cells"][0]["outputs"][0]["text"] for each in done]
    assert texts == [[f"{project.folder}/a\n"], [f"{project.folder}/b\n"]] and os.getcwd() == here


def test_parameters_arrive_with_their_types(project):
    "What the notebook gets is what was given, not its text."
    import datetime as dt
    from decimal import Decimal
    from pathlib import Path

    import numpy as np

    values = {"a": True, "b": 3, "c": float("nan"), "d": float("-inf"), "e": "it's \"so\"\nü", "f": b"\x00\xff", "g": None, "h": (1, [2, {"x": {3}}]),
              "i": dt.date(2026, 11, 22), "j": dt.datetime(2026, 1, 2, 3, tzinfo=dt.UTC), "k": dt.timedelta(hours=30), "l": Path("a b/c"),
              "m": Decimal("0.10"), "n": np.float64(0.1), "o": np.int32(7), "p": set()}
    declared = "\n".join(f"{name} = None" for name in values) + "\ndatetime = 'mine'"
    done = run_notebook(project.write({"source": declared, "tags": ["parameters"]}, f"print(repr([{', '.join(values)}]))\nprint(datetime)"), values)
    text = "".join(project.executed(done.run)["cells"][-1]["outputs"][0]["text"])
    expected = [v.item() if isinstance(v, np.generic) else v for v in values.values()]
    assert text == f"{expected!r}\nmine\n"
    assert done.params["i"] == "2026-11-22" and done.params["b"] == 3 and done.params["o"] == 7
