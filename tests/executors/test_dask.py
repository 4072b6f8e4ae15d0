"Runs on a real Dask cluster of worker processes: the same results, a killed worker, a stop, and what is refused."
from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import psutil
import pytest

from mlcycle.errors import ConfigError
from mlcycle.notebooks.record.result import NotebookInterrupted
from mlcycle.notebooks.sweep import dask as module
from mlcycle.notebooks.sweep.runner import run_many
from mlcycle.store import artifacts, facts, query, runs
from mlcycle.store.check import fsck
from mlcycle.store.connect import open_store

PARAMETERS = {"source": "n = 1\nfolder = ''", "tags": ["parameters"]}
SLOW = ("import os, time, mlcycle as mlc\nfrom pathlib import Path\nmlc.log_metric('began', n)\n"
        "with open(f'{folder}/{n}.log', 'a') as f:\n    f.write(f'{os.getpid()}\\n')\n"
        "while not Path(folder, 'go').exists():\n    time.sleep(0.05)\nmlc.log_metric('n', n)\nmlc.log_text('x' * n, 'x.txt')")


def all_runs(store) -> list:
    return [runs.to_run(row) for row in query.page(store, None, None, "started", None)]


@pytest.mark.needs("postgresql", "s3")
def test_a_killed_worker_costs_one_attempt(project, cluster, team, wait_for) -> None:
    "SIGKILL in the middle of a run: it is run again on the other worker, both attempts are recorded, the row counts once, the kernel is gone."
    path = project.write(PARAMETERS, SLOW)
    made = cluster(2)
    started = run_in_thread(lambda: run_many(path, {"n": [1, 2, 3]}, fixed={"folder": str(project.folder)}, executor=made.executor, store=team,
                                             progress=False))
    wait_for(lambda: all((project.folder / f"{n}.log").exists() for n in (1, 2)))
    kernel = int((project.folder / "1.log").read_text())
    victim = next(worker for worker in made.workers if kernel in {p.pid for p in psutil.Process(worker.pid).children(recursive=True)})
    victim.send_signal(signal.SIGKILL)
    wait_for(lambda: not psutil.pid_exists(kernel) or psutil.Process(kernel).status() == psutil.STATUS_ZOMBIE)
    (project.folder / "go").touch()
    sweep = started()
    assert [row.status for row in sweep] == ["finished"] * 3 and sweep.status == "finished"
    assert [row.attempts for row in sweep] == [2, 1, 1] and [row.metrics["n"] for row in sweep] == [1.0, 2.0, 3.0]
    parts = runs.children(team, runs.get(team, sweep.run))
    lost = [run for run in parts if run.status == "lost"]
    assert len(parts) == 4 and [run.name for run in lost] == [sweep[0].name] and "its worker ended" in lost[0].reason
    assert [facts.tags(team, run)["sweep.attempt"] for run in parts if run.name == sweep[0].name] == ["1", "2"]
    assert team.blobs.read(artifacts.get(team, runs.get(team, sweep[2].run), "x.txt").digest) == b"xxx"
    assert not fsck(team).problems


def run_in_thread(function):
    "Begin something; the value is called for its result."
    from concurrent.futures import ThreadPoolExecutor

    pool = ThreadPoolExecutor(1)
    future = pool.submit(function)
    return lambda: future.result(timeout=300)


def test_a_row_that_was_lost_twice_is_given_up(project, cluster, wait_for) -> None:
    "A notebook that takes its worker down with it is tried once more, and not for ever."
    path = project.write({"source": "n = 1", "tags": ["parameters"]},
                         "import os, signal, psutil, mlcycle as mlc\nmlc.log_metric('n', n)\nif n == 1:\n"
                         "    worker = next(p for p in psutil.Process().parents() if 'dask_worker' in ' '.join(p.cmdline()))\n    worker.kill()\n"
                         "    import time\n    time.sleep(60)")
    made = cluster(2)
    started = run_in_thread(lambda: run_many(path, {"n": [1, 2]}, executor=made.executor, store=project.store, progress=False))
    wait_for(lambda: all(worker.poll() is not None for worker in made.workers))
    made.add()
    sweep = started()
    assert [(row.status, row.attempts) for row in sweep] == [("lost", 2), ("finished", 1)] and sweep.reason == "1 of 2 failed"
    assert sum(run.name == sweep[0].name for run in project.runs()) == 2


def test_ctrl_c_reaches_the_kernels_of_the_workers(project, calm_cluster, wait_for) -> None:
    "A stop here interrupts the kernels there, which Dask alone would leave running; nothing more is begun."
    project.write(PARAMETERS, SLOW)
    made = calm_cluster
    process = subprocess.Popen([sys.executable, "-m", "mlcycle", "run", "train.ipynb", "-P", "n=1,2,3,4", "-p", f"folder={project.folder}", "--json",
                                "--executor", made.executor], cwd=project.folder, env=project.environment(), text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    wait_for(lambda: all((project.folder / f"{n}.log").exists() for n in (1, 2)))
    pids = [int((project.folder / f"{n}.log").read_text()) for n in (1, 2)]
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    told = json.loads(out)
    assert [row["status"] for row in told["rows"]] == ["cancelled", "cancelled", "not started", "not started"] and process.returncode == 1, err
    wait_for(lambda: not any(psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE for pid in pids))
    assert all(worker.poll() is None for worker in made.workers)
    assert {run.status for run in project.runs()} == {"cancelled"}


def test_a_client_of_ones_own_is_used_and_left_open(project, calm_cluster, tmp_path) -> None:
    "In Python the executor may be a Client; limits and scratch folders hold on workers; executed notebooks come back to this machine."
    from distributed import Client

    path = project.write({"source": "n = 1", "tags": ["parameters"]}, "import os, mlcycle as mlc\nopen('x', 'x').close()\nmlc.log_metric('n', n)\n"
                         "x = bytearray(range(200)) * (3_000_000 if n == 2 else 1)\nimport time\ntime.sleep(60 if n == 2 else 0)")
    with Client(calm_cluster.address, set_as_default=False) as client:
        sweep = run_many(path, [{"n": 1}, {"n": 2}, {"n": 3}], executor=client, scratch=True, memory="400M", out=tmp_path / "out", progress=False)
        assert [row.status for row in sweep] == ["finished", "failed", "finished"] and "over its memory limit" in sweep[1].reason
        assert client.submit(lambda: 1).result(timeout=30) == 1
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(f"{row.name}.ipynb" for row in sweep)
    assert not (project.folder / "x").exists()


def test_the_same_task_twice_makes_one_run_that_counts(project, calm_cluster) -> None:
    "Dask may execute a task again after it has finished: the second time gives the first result."
    from distributed import Client

    from mlcycle.notebooks.sweep.tasks import Task

    path = project.write({"source": "n = 1", "tags": ["parameters"]}, "import mlcycle as mlc\nmlc.log_metric('n', n)")
    parent = runs.create(project.store, "e", kind="sweep")
    where = project.store.settings.store, project.store.settings.artifacts
    task = Task(parent.id, 1, "e-1", "e", str(path), path.read_bytes(), "train.ipynb", {"n": 4}, store=where)
    with Client(calm_cluster.address, set_as_default=False) as client:
        first, second = (client.submit(module.run_on_worker, task, pure=False).result(timeout=60) for _ in range(2))
    assert first.result.run == second.result.run and second.result.metrics == {"n": 4.0} and second.attempts == 1
    assert len(runs.children(project.store, parent)) == 1


def test_other_versions_are_refused_with_a_list(project, cluster, tmp_path) -> None:
    "A worker with another version of what the notebook imports is named, and nothing runs."
    other = tmp_path / "other" / "humanize-0.1.dist-info"
    other.mkdir(parents=True)
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: psutil\nVersion: 0.1\n")
    other.rename(other.with_name("psutil-0.1.dist-info"))
    made = cluster(1, PYTHONPATH=os.pathsep.join([str(tmp_path / "other"), os.environ.get("PYTHONPATH", "")]))
    path = project.write({"source": "n = 1", "tags": ["parameters"]}, "import psutil")
    with pytest.raises(ConfigError, match=r"psutil 0\.1, here \d"):
        run_many(path, {"n": [1]}, executor=made.executor, progress=False)
    assert project.runs() == []


def test_a_store_that_workers_do_not_see_is_refused(project, calm_cluster, tmp_path, monkeypatch) -> None:
    "A path means another folder elsewhere: a worker that does not find the file that was just written there, and one on another machine."
    path = project.write({"source": "n = 1", "tags": ["parameters"]}, "n")
    hidden = open_store(tmp_path / "hidden" / "mlcycle.db")
    monkeypatch.setattr(module._Marks, "__enter__", lambda self: (str(tmp_path / "elsewhere" / "mark"), ""))  # what a worker with another disk sees
    with pytest.raises(ConfigError, match="does not see the folder of the metadata"):
        run_many(path, {"n": [1]}, executor=calm_cluster.executor, store=hidden, progress=False)
    monkeypatch.undo()
    monkeypatch.setattr(module.DaskExecutor, "_hosts", lambda self: {"here", "there"})
    with pytest.raises(ConfigError, match=r"several machines (?s:.*)PostgreSQL"):
        run_many(path, {"n": [1]}, executor=calm_cluster.executor, store=hidden, progress=False)
    assert all_runs(hidden) == []
    hidden.close()


def test_a_lost_scheduler_ends_the_sweep(project, cluster, wait_for) -> None:
    "When the scheduler dies, the sweep fails with that reason and does not wait for ever."
    path = project.write(PARAMETERS, SLOW)
    made = cluster(1)
    started = run_in_thread(lambda: run_many(path, {"n": [1, 2]}, fixed={"folder": str(project.folder)}, executor=made.executor, progress=False))
    wait_for((project.folder / "1.log").exists)
    made.scheduler.kill()
    sweep = started()
    assert sweep.status == "failed" and "scheduler" in sweep[0].reason
    assert not isinstance(sweep, NotebookInterrupted)
