"Many runs on this machine: limits, scratch folders, Ctrl-C, and nothing left over."
from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import replace

import psutil
import pytest

from mlcycle.errors import NotebookRunError
from mlcycle.notebooks.execute.runner import run_notebook
from mlcycle.notebooks.sweep.result import Sweep, SweepRow
from mlcycle.notebooks.sweep.runner import run_many
from mlcycle.store import facts, runs

PARAMETERS = {"source": "n = 1\nseconds = 0.0", "tags": ["parameters"]}


def left_over(before: set[int]) -> list[str]:
    "Kernels below this process that were not there before. A process that keeps imports for the next run is none."
    found = [p for p in psutil.Process().children(recursive=True) if p.pid not in before and p.status() != psutil.STATUS_ZOMBIE]
    return [" ".join(p.cmdline()) for p in found if "ipykernel_launcher" in " ".join(p.cmdline())]


def test_eight_at_once_leave_nothing_behind(project, monkeypatch, tmp_path) -> None:
    "Sixteen runs, eight at once, all writing to the same name: each in its own folder, no folder, kernel or open run afterwards."
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr(tempfile, "tempdir", None)
    (tmp_path / "tmp").mkdir()
    path = project.write(PARAMETERS, "from pathlib import Path\nassert not Path('state').exists()\nPath('state').write_text(str(n))\n"
                         "import time, mlcycle as mlc\ntime.sleep(0.2)\nmlc.log_metric('n', int(Path('state').read_text()))")
    before = {p.pid for p in psutil.Process().children(recursive=True)}
    sweep = run_many(path, {"n": list(range(16))}, jobs=8, scratch=True, out=tmp_path / "out", progress=False)
    assert [(row.metrics, row.reason) for row in sweep] == [({"n": float(n)}, None) for n in range(16)] and sweep.status == "finished"
    assert left_over(before) == [] and not (project.folder / "state").exists()
    assert not [path.name for path in (tmp_path / "tmp").iterdir() if path.name.startswith("mlcycle-run-")]
    assert len(list((tmp_path / "out").iterdir())) == 16
    assert {run.status for run in project.runs()} == {"finished"} and len(project.runs()) == 17


@pytest.mark.parametrize("fresh", [True, False])
def test_memory_limit_ends_one_run_and_no_other(project, wait_for, fresh) -> None:
    "A run over its limit, with a worker process of its own, is killed and says so; the others go on."
    path = project.write({"source": "n = 1", "tags": ["parameters"]}, "import subprocess, sys, time, mlcycle as mlc\nmlc.log_metric('n', n)\n"
                         "if n == 2:\n    code = 'x = bytearray(range(200)) * 3_000_000; import time; time.sleep(60)'\n"
                         "    p = subprocess.Popen([sys.executable, '-c', code])\n    open('pid', 'w').write(str(p.pid))\n    time.sleep(60)")
    sweep = run_many(path, {"n": [1, 2, 3]}, jobs=2, memory="500M", fresh=fresh, progress=False)
    assert [row.status for row in sweep] == ["finished", "failed", "finished"] and sweep.reason == "1 of 3 failed"
    assert sweep[1].reason.startswith("over its memory limit of 500 MB (used ") and sweep[1].metrics == {"n": 2.0}
    run = runs.get(project.store, sweep[1].run)
    assert run.error.type == "MemoryLimitError" and run.error.cell == 2 and run.seconds < 30
    pid = int((project.folder / "pid").read_text())
    wait_for(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)


def test_one_run_takes_limits_and_a_scratch_folder_too(project) -> None:
    "`mlcycle run --memory --scratch` without a grid."
    path = project.write({"source": "much = False", "tags": ["parameters"]}, "import os, mlcycle as mlc\nmlc.set_tags({'cwd': os.getcwd()})\n"
                         "x = bytearray(range(200)) * (3_000_000 if much else 1)\nimport time\ntime.sleep(60 if much else 0)")
    done = run_notebook(path, scratch=True, memory="1GB")
    where = facts.tags(project.store, runs.get(project.store, done.run))["cwd"]
    assert where != str(project.folder) and not os.path.exists(where)
    with pytest.raises(NotebookRunError, match="over its memory limit of 300 MB"):
        run_notebook(path, {"much": True}, memory="300M")


def start_sweep(project, wait_for, *words: str, values: str = "1,2,3,4,5,6", grace: float = 5.0) -> subprocess.Popen[str]:
    "`mlcycle run -P` as a process, with its first run over and two more going on."
    code = "from pathlib import Path\nimport time, mlcycle as mlc\nmlc.log_metric('n', n)\nPath(f'began-{n}').touch()\nif n > 1:\n"
    project.write(PARAMETERS, code + (words[0] if words else "    time.sleep(120)"))
    patient = ("from mlcycle.notebooks.execute.limits import Limits\nfrom mlcycle.ui.cli import main\n"
               f"Limits.__init__.__defaults__ = tuple({grace} if value == 5.0 else value for value in Limits.__init__.__defaults__)\nmain()")
    process = subprocess.Popen([sys.executable, "-c", patient, "run", "train.ipynb", "-P", f"n={values}", "--jobs", "2", "--json"], text=True,
                               cwd=project.folder, env=project.environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    wait_for(lambda: all((project.folder / f"began-{n}").exists() for n in (1, 2, 3)))
    return process


def test_ctrl_c_ends_what_runs_and_starts_no_more(project, wait_for) -> None:
    "One Ctrl-C: the two that run are cancelled, the rest never begins, the parent is cancelled, the table is still printed."
    process = start_sweep(project, wait_for)
    below = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    told = json.loads(out)
    assert process.returncode == 1 and told["status"] == "cancelled" and told["reason"] == "interrupted (Ctrl-C) with 1 of 6 finished", err
    assert [row["status"] for row in told["rows"]] == ["finished", "cancelled", "cancelled", "not started", "not started", "not started"]
    stopped = Sweep("0" * 16, "s", "e", "t.ipynb", "cancelled", 1.0, tuple(SweepRow(i, {}, row["status"]) for i, row in enumerate(told["rows"], 1)))
    assert "`--cached` (in Python: cached=True) goes on: it takes over the 1 finished" in " ".join(repr(stopped).split())
    assert "--cached" not in repr(replace(stopped, status="finished"))
    found = {run.name.rpartition("-")[2]: run for run in project.runs()}
    assert len(project.runs()) == 4 and found["2"].reason == "interrupted (Ctrl-C)"
    parent = runs.get(project.store, told["run"])
    assert (parent.kind, parent.status, parent.reason) == ("sweep", "cancelled", told["reason"])
    psutil.wait_procs(below, timeout=60)
    assert not [p for p in below if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


def test_second_ctrl_c_kills(project, wait_for) -> None:
    "Kernels that swallow the interrupt are killed by the second Ctrl-C, at once."
    loop = "    while True:\n        try:\n            time.sleep(60)\n        except KeyboardInterrupt:\n            Path(f'heard-{n}').touch()"
    process = start_sweep(project, wait_for, loop, grace=600.0)
    process.send_signal(signal.SIGINT)
    wait_for(lambda: all((project.folder / f"heard-{n}").exists() for n in (2, 3)))
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert [row["status"] for row in json.loads(out)["rows"]][:3] == ["finished", "cancelled", "cancelled"], err


def test_table_and_exit_code_in_a_terminal(project) -> None:
    "What a person and a scheduler see: a table with what varies, the failure's reason, exit code 1, and wrong cells by row and column."
    project.write({"source": "n: int = 1\nmodel = 'a'", "tags": ["parameters"]},
                  "import mlcycle as mlc\nassert n < 3, 'too many'\nmlc.log_metric('n', n)")
    (project.folder / "params.csv").write_text("n,model\n1,x\n3,y\n")

    def mlcycle(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-m", "mlcycle", *words], cwd=project.folder, env=project.environment(), timeout=120, text=True,
                              capture_output=True)

    done = mlcycle("map", "train.ipynb", "params.csv", "--name", "both")
    assert done.returncode == 1 and "1 of 2 failed" in done.stdout and "too many" in done.stdout and "both" in done.stdout, done.stderr
    before = {run.id for run in project.runs()}
    again = json.loads(mlcycle("map", "train.ipynb", "params.csv", "--cached", "--json").stdout)["rows"]  # what finished is taken over
    assert again[0]["run"] in before and again[1]["run"] not in before and again[0]["status"] == "finished" and len(project.runs()) == 5
    (project.folder / "params.csv").write_text("n,model\n1,x\nmany,y\n")
    (project.folder / "german.csv").write_text("n;model\n1;x\n")
    refused = mlcycle("map", "train.ipynb", "german.csv")
    assert refused.returncode == 2 and "german.csv separates its columns by semicolons" in refused.stderr and len(project.runs()) == 5
    refused = mlcycle("map", "train.ipynb", "params.csv")
    assert refused.returncode == 2 and "row 2, column 'n'" in refused.stderr and len(project.runs()) == 5
    (project.folder / "grid.yaml").write_text("n: [1, 2]\nmodel: [a]\n")
    done = mlcycle("run", "train.ipynb", "-P", "grid.yaml", "--json")
    assert done.returncode == 0 and [row["params"] for row in json.loads(done.stdout)["rows"]] == [{"n": 1}, {"n": 2}], done.stderr
