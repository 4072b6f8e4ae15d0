"`mlcycle tune` as a person types it, and `%%tune` and `%mlcycle tune` in a kernel."
from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import nbformat
import pytest

from mlcycle.store import facts, runs
from mlcycle.store.connect import open_store
from mlcycle.store.query import page
from mlcycle.tune.overview import sessions as study_sessions
from mlcycle.tune.result import read_study
from mlcycle.tune.storage import open_study, study_names
from tests.ui.kernels import Kernel, shown

PARAMETERS = "x = 1.0  # tune: uniform(-5, 5)\nmodel = 'a'\nwait = 0.0"
SCORE = "import time, mlcycle as mlc\ntime.sleep(wait)\nmlc.log_metric('loss', (x - 1) ** 2 + (model == 'b'))"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    "A project with a notebook that says itself what varies."
    cells = [nbformat.v4.new_code_cell(PARAMETERS, id="p", metadata={"tags": ["parameters"]}), nbformat.v4.new_code_cell(SCORE, id="s")]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "train.ipynb")
    (tmp_path / ".mlcycle").mkdir(exist_ok=True)
    return tmp_path


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "mlcycle", "tune", "train.ipynb", *words]


def tune(project: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*words), cwd=project, capture_output=True, text=True, timeout=120)


def test_a_study_from_the_command_line(project: Path) -> None:
    "The space of the notebook, of a file and of the line come together; JSON is one line with the documented keys; --resume goes on."
    (project / "space.yaml").write_text("x: uniform(-2, 2)\n")
    varied = ("--space", "space.yaml", "-s", "model={a, b}")
    done = tune(project, *varied, "-m", "loss", "-n", "6", "--study", "first", "--seed", "1", "--enqueue", "x=1.0,model=a", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert done.stdout.count("\n") == 1 and list(found) == ["study", "finished", "pruned", "failed", "best"]
    assert (found["study"], found["finished"], found["best"]["params"], found["best"]["value"]) == ("first", 6, {"x": 1.0, "model": "a"}, 0.0)
    again = tune(project, "-m", "loss", "-n", "8", "--study", "first", "--resume", "--json")
    assert json.loads(again.stdout)["finished"] == 8 and json.loads(again.stdout)["best"] == found["best"]
    assert json.loads(tune(project, *varied, "-m", "loss", "-n", "9", "--study", "first", "--resume", "--json").stdout)["finished"] == 9
    other = tune(project, "-m", "loss", "-n", "9", "--study", "first", "--resume", "-s", "x=uniform(0, 1)")
    assert other.returncode == 2 and "another space" in other.stderr
    text = tune(project, "-s", "model={a, b}", "-s", "x={-1, 1}", "-m", "loss", "--sampler", "grid", "-j", "2").stdout
    assert "4 finished" in text and "best (the least) loss 0" in text


def test_a_study_goes_on_as_it_was_made(project: Path) -> None:
    "Params, metric, direction, sampler and limits need not be given again; given again, they agree or nothing runs."
    made = ("-s", "x=uniform(-5, 5)", "-p", "model", "b", "-m", "loss", "-d", "maximize", "--sampler", "random", "--pruner", "none", "--seed", "3",
            "--trial-timeout", "50", "-e", "hills")
    assert tune(project, *made, "-n", "2", "--study", "s").returncode == 0
    again = tune(project, "--resume", "--study", "s", "-n", "4")
    assert again.returncode == 0 and "greatest" in again.stdout, (again.stdout, again.stderr)
    same = tune(project, "--resume", "--study", "s", "-n", "5", "-p", "model", "b", "-m", "loss", "-d", "maximize", "--executor", "local")
    assert same.returncode == 0, same.stderr
    with open_store(project / ".mlcycle" / "mlcycle.db") as store:
        rows = read_study(open_study(store, "s")).rows
        each = [facts.params(store, runs.get(store, row.run)) for row in rows]
        sessions = [facts.params(store, run) for run in study_sessions(store, "s")]
        experiments = {runs.get(store, row.run).experiment for row in rows}
    assert [params["model"] for params in each] == ["b"] * 5 and all(row.values[0] >= 1 for row in rows) and experiments == {"hills"}
    assert {(params["sampler"], params["pruner"], params["seed"]) for params in sessions} == {("random", "none", 3)}
    for other, named in ((("-p", "model", "a"), "params model"), (("-p", "wait", "0"), "params wait"), (("-m", "other"), "metrics"),
                         (("-d", "minimize"), "directions"), (("--sampler", "tpe"), "sampler"), (("--pruner", "median"), "pruner"),
                         (("--executor", "dask://127.0.0.1:1"), "executor")):
        done = tune(project, "--resume", "--study", "s", "-n", "9", *other)
        assert done.returncode == 2 and f"The {named} of the study 's'" in done.stderr, (other, done.stderr)
    with open_store(project / ".mlcycle" / "mlcycle.db") as store:
        assert len(read_study(open_study(store, "s")).rows) == 5


def test_what_is_wrong_is_said_before_anything_runs(project: Path) -> None:
    "Each with where it stands, exit code 2, and neither a run nor a study."
    (project / "space.yaml").write_text("# what varies\nx: loguniform(1, 0)\n")
    three = ("-m", "loss", "-n", "3")
    wrong = [(("-n", "3"), "--metric"), (("-m", "loss"), "--trials"), ((*three, "--space", "space.yaml"), "space.yaml:2"),
             ((*three, "-s", "y=uniform(0, 1)"), "`y`"), (("-m", "loss", "--sampler", "grid"), "uniform(-5, 5)"), ((*three, "--resume"), "--study")]
    for words, said in [*wrong, *([] if find_spec("torch") else [((*three, "--sampler", "gp"), "torch")])]:
        done = tune(project, *words)
        assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr, (words, done.stderr)
    with open_store(project / ".mlcycle" / "mlcycle.db") as store:
        assert study_names(store) == [] and page(store) == []


def test_ctrl_c_and_resume(project: Path) -> None:
    "One Ctrl-C ends what runs and says how to go on; after --resume everything counts once."
    process = subprocess.Popen(command("-m", "loss", "-n", "8", "-j", "2", "-p", "wait=0.5", "--study", "long"), cwd=project, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True)
    path = project / ".mlcycle" / "mlcycle.db"

    def finished() -> int:
        with open_store(path) as store:
            return read_study(open_study(store, "long")).number("finished") if "long" in study_names(store) else 0

    end = time.monotonic() + 60
    while not (path.exists() and finished() >= 2):
        assert process.poll() is None and time.monotonic() < end, process.communicate()
        time.sleep(0.1)
    time.sleep(0.2)
    os.kill(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 1 and "--resume --study long" in err, (out, err)
    assert json.loads(tune(project, "-m", "loss", "-n", "8", "--study", "long", "--resume", "--json").stdout)["finished"] == 8
    with open_store(path) as store:
        rows = read_study(open_study(store, "long")).rows
    assert not [row for row in rows if row.status in ("running", "waiting", "failed")]
    assert len({row.run for row in rows if row.status == "finished"}) == 8


def test_a_cell_is_tuned(kernel: Kernel) -> None:
    "The cell suggests its params; its last value counts; the best are variables afterwards, and nothing else of the cell stays."
    kernel.run("goal = 3")
    cell = "%%tune first -n 12 --seed 1 --out found\nx = suggest('x', 'int(0, 10)')\nhidden = x\nmlc_loss = (x - goal) ** 2\nmlc_loss"
    status, outputs = kernel.run(cell)
    assert status == "ok" and "12 finished" in shown(outputs) and "<svg" in shown(outputs, "text/html")
    assert shown(kernel.run("found.best_params == {'x': x}, 'hidden' in globals(), len(found.rows)")[1]) == "(True, False, 12)"
    kernel.run("auc = 7.0\nimport mlcycle as mlc")
    status, outputs = kernel.run("%%tune logged -n 3 -m auc -d maximize --seed 1 --out found\nx = suggest('x', 'uniform(0, 1)')\n"
                                 "mlc.log_metric('auc', 1 - x)")
    same = "[mlc.history(row.run, 'auc')['value'].tolist() for row in found.rows] == [list(row.values) for row in found.rows]"
    assert status == "ok" and shown(kernel.run(f"{same}, found.best_value < 1, len(found.rows)")[1]) == "(True, True, 3)", outputs
    status, outputs = kernel.run("%%tune -n 1 -m auc -d maximize\nx = suggest('x', 'uniform(0, 1)')")
    assert "log it: mlc.log_metric('auc', …)" in " ".join(shown(outputs).split())  # the variable of a former cell is no result of this one
    status, outputs = kernel.run("%%tune -n 2 -m auc -d maximize\nauc = suggest('auc', 'uniform(0, 1)') / 0")
    assert status == "ok" and "ZeroDivisionError" in shown(outputs) and "no trial finished" in shown(outputs)
    status, outputs = kernel.run("%%tune\nx = suggest('x', 'int(0, 10)')")
    error = next(o for o in outputs if o["type"] == "error")
    assert status == "error" and "--trials" in error["evalue"] and len(error["traceback"]) == 1


def test_the_progress_of_a_tuned_cell_tells_the_truth(kernel: Kernel) -> None:
    "While its only trial runs in the kernel's own thread: one runs, it is the study that is named, and the clock has somebody to move it."
    cell = ("%%tune hills --study hills -n 1\nimport threading\nx = suggest('x', 'int(0, 10)')\n"
            "sum(thread.name == 'mlcycle-progress' for thread in threading.enumerate())")
    status, outputs = kernel.run(cell)
    lines = [o["data"]["text/plain"] for o in outputs if o["type"] in ("display_data", "update_display_data") and "trials" in o["data"]["text/plain"]]
    assert status == "ok" and any(line.startswith("hills: 0 of 1 trials, 1 running") for line in lines), lines
    assert "best (the least) objective 1" in shown(outputs)
    status, outputs = kernel.run("%%tune hills --study valleys -n 1\n1")
    assert status == "error" and "two names" in next(o for o in outputs if o["type"] == "error")["evalue"]


def test_the_command_in_a_notebook(kernel: Kernel, project: Path) -> None:
    "`%mlcycle tune` shows the study as a table, with the same words as the terminal."
    kernel.run(f"%cd {project}")
    status, outputs = kernel.run("%mlcycle tune train.ipynb -m loss -n 3 --seed 1")
    assert status == "ok" and "3 finished" in shown(outputs) and "<table" in shown(outputs, "text/html")
