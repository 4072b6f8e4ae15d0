"Every way in which a notebook run can end, on real notebooks in real kernels."
from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

import pandas as pd
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlcycle.entities import RunError
from mlcycle.errors import NotebookFormatError, NotebookRunError, NotFoundError, ParameterError, UsageError
from mlcycle.notebooks.checkpoints.detached import home
from mlcycle.notebooks.document.source import parse_notebook
from mlcycle.notebooks.execute.runner import run_notebook
from mlcycle.notebooks.params.annotations import read
from mlcycle.notebooks.params.declared import infer, parameters_of
from mlcycle.notebooks.params.values import gather
from mlcycle.notebooks.record.result import NotebookRun
from mlcycle.notebooks.sweep.grid import check_rows, read_grid
from mlcycle.notebooks.sweep.tables import read_rows, rows_of
from mlcycle.notebooks.sweep.tasks import Task
from mlcycle.notebooks.warm.process import NotForked
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
    result = failure(project.write("print('alive', flush=True)\nimport time; time.sleep(0.5)",
                                   "import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "print('never')"))
    assert result.status == "failed" and result.reason.startswith("the kernel died by SIGKILL") and result.cell == 2
    assert statuses(project, result.run) == ["completed", "failed", "pending"]


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


@pytest.mark.parametrize(("call", "code"), [("exit(1)", "1"), ("quit(3)", "3"), ("import sys; sys.exit(2)", "2"), ("exit('no data')", "no data")])
def test_the_code_of_an_exit_is_the_one_that_was_given(project, call, code):
    "Half-way and in the last cell, a code other than zero has failed, and is named."
    for cells in ([call, "print('not run')"], ["1", call]):
        with pytest.raises(NotebookRunError) as e:
            run_notebook(project.write(*cells), progress=False)
        assert code in e.value.result.reason and e.value.result.status == "failed"
    assert run_notebook(project.write("exit(0)"), progress=False).status == "finished"


def test_a_failed_notebook_keeps_its_widgets(project):
    "What a notebook showed before it failed can be drawn."
    with pytest.raises(NotebookRunError) as e:
        run_notebook(project.write("import ipywidgets\nipywidgets.IntSlider(3)", "1 / 0"), progress=False)
    states = project.executed(e.value.result.run)["metadata"]["widgets"]["application/vnd.jupyter.widget-state+json"]["state"]
    assert any(each["state"].get("value") == 3 for each in states.values())


def test_an_error_while_a_value_is_shown_is_the_users(project):
    "A value that cannot be shown: the error is the one that its method raised."
    with pytest.raises(NotebookRunError, match="ValueError: bad table"):
        run_notebook(project.write("class A:\n    def _repr_html_(self): raise ValueError('bad table')\nA()"), progress=False)


def test_output_widgets_do_not_hang(project):
    "The client answers output widgets while it waits for a cell: the cell's end is noticed however their messages come."
    cells = ["from ipywidgets import interact\ndef f(x): print(x)", *["interact(f, x=10);\ninteract(f, x=True);\ninteract(f, x='Hi');"] * 12]
    assert run_notebook(project.write(*cells), cell_timeout=120, progress=False).status == "finished"


def test_a_long_cell_is_saved_while_it_runs(project, wait_for):
    "What a cell has printed is in the file before the cell ends."
    path = project.write("import os, time\nprint('begun', flush=True)\nwhile not os.path.exists('go'): time.sleep(.05)")
    out, go = project.folder / "out.ipynb", project.folder / "go"
    worker = project.start(f"import mlcycle as mlc; mlc.run_notebook({str(path)!r}, out={str(out)!r}, progress=False)")
    wait_for(lambda: out.exists() and any("begun" in "".join(each["text"]) for each in json.loads(out.read_text())["cells"][0]["outputs"]))
    go.touch()
    assert worker.wait() == 0


def test_what_is_odd_in_a_file_is_left_out_or_refused(project):
    "Unknown parts and odd ids are left out with a warning, as Papermill does; what cannot be read or written is refused in one sentence."
    path = project.write("x = 1", "print(x)")
    odd = json.loads(path.read_text())
    odd["title"], odd["cells"][0]["id"] = "mine", "an id with blanks"
    path.write_text(json.dumps(odd))
    with pytest.warns(UserWarning, match="title"):
        assert run_notebook(path, progress=False).status == "finished"
    ancient = {"nbformat": 2, "nbformat_minor": 0, "metadata": {"name": ""}, "worksheets": [{"cells": [
        {"cell_type": "code", "language": "python", "input": "print(1)", "outputs": [], "collapsed": False, "prompt_number": 1}]}]}
    for content in (ancient, {**odd, "cells": [{**odd["cells"][1], "source": "x = '\ud800'"}]}):
        path.write_text(json.dumps(content))
        try:
            assert run_notebook(path, progress=False).status == "finished"
        except NotebookFormatError as e:
            assert "\n" not in str(e)


def test_many_cells_are_read_in_linear_time():
    "Ten thousand cells without ids of their own get some; equal ids are told apart."
    cells = [{"cell_type": "code", "id": f"c{i // 2}", "metadata": {}, "source": "1", "outputs": [], "execution_count": None} for i in range(10_000)]
    nb = parse_notebook(json.dumps({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}).encode(), "many.ipynb")
    assert len({cell.id for cell in nb.cells}) == 10_000


@given(st.integers(0, 10**9).map(str), st.sampled_from(["", "0", "00"]))
def test_yaml_and_the_command_line_read_the_same_numbers(digits, zeros):
    "`-p n 010`, `-y 'n: 010'` and `-P 'n=[010]'` are all ten."
    text, parameters = zeros + digits, parameters_of("n = 1")
    assert gather(parameters, [("n", text)]) == gather(parameters, (), [f"n: {text}"]) == {"n": int(text)}
    assert read_grid(f"n=[{text}, 1]") == {"n": [int(text), 1]} and read(f"[{text}]", parameters_of("n: list = []").named("n").kind) == [int(text)]


def test_params_mean_what_is_written_or_are_refused(tmp_path):
    "Times and words are texts; what is given twice, refers to itself or unfolds to millions is refused, in every way that takes params."
    parameters = parameters_of("# Parameters\nn: int = 1\nlr = 0.1  # step\nopts = {}\nt = None")
    assert [p.help for p in parameters] == ["", "step", "", ""]
    assert gather(parameters, (), ["{t: 12:30:00}"]) == {"t": "12:30:00"} and gather(parameters, (), ["t: no"]) == {"t": "no"}
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 9)) + "n: *a8"
    for text in ("n: 1\nn: 2", bomb, "n: &n [*n]", "n: " + "[" * 20_000, "n: " + "9" * 100_000):
        (tmp_path / "p.yaml").write_text(text)
        for give, given_to in ((gather, (parameters, (), [text])), (gather, (parameters, (), (), [tmp_path / "p.yaml"])),
                               (read_grid, (str(tmp_path / "p.yaml"),))):
            with pytest.raises(ParameterError) as e:
                give(*given_to)
            assert len(str(e.value)) < 1000
    for text in ("a=1", "[" * 20_000, "9" * 100_000, "x"):
        with pytest.raises(ParameterError):
            gather(parameters, [("opts", text)])


def test_a_column_that_is_there_twice_is_refused_and_gaps_are_none(tmp_path, project):
    "Tables and notebooks with two answers to one question are refused; whole numbers that pandas saved with gaps are whole."
    parameters = parameters_of("n: int = 3\nlr = 0.1")
    frame = pd.DataFrame({"n": [1, None, 3], "lr": [0.1, 0.2, 0.3]})
    frame.to_csv(tmp_path / "t.csv", index=False)
    frame.to_json(tmp_path / "t.jsonl", orient="records", lines=True)
    assert check_rows(parameters, read_rows(tmp_path / "t.csv", parameters)) == check_rows(parameters, read_rows(tmp_path / "t.jsonl", parameters))
    (tmp_path / "t.csv").write_text("n,n\n1,2\n")
    for give in (lambda: read_rows(tmp_path / "t.csv", parameters), lambda: rows_of(pd.DataFrame([[1, 2]], columns=["n", "n"]))):
        with pytest.raises(ParameterError, match="twice"):
            give()
    (tmp_path / "t.csv").write_text("n\n1.5\n")
    with pytest.raises(ParameterError):
        read_rows(tmp_path / "t.csv", parameters)
    with pytest.raises(NotebookFormatError, match="2 cells"):
        infer(parse_notebook(project.write(*[{"source": "x = 1", "tags": ["parameters"]}] * 2).read_bytes(), "n.ipynb"))


def test_a_task_does_not_show_where_its_store_is():
    "A task goes to a cluster's scheduler by its text too: no password is in it."
    task = Task("sweep", 1, "a-1", "e", "/n.ipynb", b"{}", "n", store=("postgresql://me:hunter2@host/db", "s3://bucket"))
    assert "hunter2" not in repr(task) and task.store[0].endswith("/db")


def test_a_file_in_place_of_the_folder_of_checkpoints(monkeypatch):
    "Somebody's file at the place is a reason not to keep a run, and no traceback."
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        monkeypatch.setenv("XDG_RUNTIME_DIR", folder)
        Path(folder, f"mlcycle-{os.getuid()}").touch()
        with pytest.raises(NotForked, match="remove it"):
            home()
