"Processes are killed at random moments while notebooks run: nothing is left behind, nothing half written, and every run says what became of it."
from __future__ import annotations

import json
import random
import signal
import sys
import time

import nbformat
import psutil
import pytest

from mlcycle.store.check import fsck

RUNS = 100
MANAGER = """
import sys, threading, time
from mlcycle.errors import MlcycleError
from mlcycle.notebooks.execute.runner import run_notebook
from mlcycle.store.connect import current_store
current_store()
def work(number):
    while True:
        try:
            run_notebook("train.ipynb", {"x": number}, out=f"out-{number}-{time.monotonic_ns()}.ipynb", progress=False)
        except MlcycleError:
            pass
for number in range(2):
    threading.Thread(target=work, args=(number,), daemon=True).start()
time.sleep(600)
"""

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="kernels are forked on Linux only")


def test_random_kills(project, wait_for, soak):
    "A hundred runs while managers, warm processes and kernels are killed: no orphan, none left running, nothing half written, a sound store."
    chance = random.Random(4 + soak)
    project.write("import json, random\nimport mlcycle as mlc", {"source": "x = 0", "tags": ["parameters"]},
                  "for step in range(20):\n    mlc.log_metric('loss', random.random(), step)", "__import__('time').sleep(0.1); print('x' * 1000)")
    killed = {"manager": 0, "warm": 0, "kernel": 0}
    manager, seen = project.start(MANAGER), set()
    began, end = 0, time.monotonic() + 480
    while len(project.runs()) < RUNS or min(killed.values()) <= 2:
        if len(project.runs()) > began:  # it goes on, slowly where the machine is busy
            began, end = len(project.runs()), time.monotonic() + 480
        assert time.monotonic() < end, (began, killed)
        time.sleep(chance.uniform(0.05, 0.6))
        if manager.poll() is not None:
            manager = project.start(MANAGER)
        try:
            own = psutil.Process(manager.pid)
            parents = {process: process.ppid() for process in own.children(recursive=True)}
        except psutil.Error:  # some have just ended
            continue
        seen |= set(parents)
        kind = chance.choices(("manager", "warm", "kernel"), (1, 2, 6))[0]
        warm = [process for process, parent in parents.items() if parent == own.pid]
        victims = {"manager": [own], "warm": warm, "kernel": [process for process in parents if process not in warm]}[kind]
        if victims and (kind != "manager" or len(project.runs()) > 5 * killed["manager"]):
            try:
                chance.choice(victims).send_signal(signal.SIGKILL)
            except psutil.Error:
                continue
            killed[kind] += 1
    manager.kill()
    manager.wait()
    assert min(killed.values()) > 2, killed

    wait_for(lambda: not [p for p in seen if p.is_running() and p.status() != psutil.STATUS_ZOMBIE])
    found = project.runs()
    statuses = {status: sum(run.status == status for run in found) for status in {run.status for run in found}}
    assert len(found) >= RUNS and statuses.get("finished", 0) > 5 and "running" not in statuses, statuses
    for path in project.folder.glob("out-*.ipynb"):
        nbformat.validate(nbformat.reads(path.read_text(), as_version=4))
    assert not list(project.folder.glob(".*.tmp"))[2:]  # a killed manager may leave what it was writing beside the file, never in it
    report = fsck(project.store)
    assert {problem.kind for problem in report.problems} <= {"lost"}, report.problems
    print(json.dumps({"killed": killed, **statuses}))
