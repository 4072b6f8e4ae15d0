"MLflow beside ours, where it is installed: here, or in the environment whose Python MLFLOW_PYTHON names."
from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from statistics import median

import pytest

from tests.benchmarks.conftest import Race

_SETUP = """
import os, sys, time
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
import logging; logging.disable(logging.WARNING)
import mlflow
mlflow.set_tracking_uri("sqlite:///mlflow.db")
"""
_VERBS = _SETUP + """
import json, statistics
def times(action, n):
    found = []
    for i in range(n):
        begin = time.perf_counter(); action(i); found.append(time.perf_counter() - begin)
    return statistics.median(found)
def run(i):
    with mlflow.start_run(): pass
run(0)
found = {"start and end a run, ms": times(run, 10) * 1e3}
with mlflow.start_run():
    found["log one metric, us"] = times(lambda i: mlflow.log_metric("loss", 1 / (i + 1), step=i), 200) * 1e6
    found["100 params in one call, ms"] = times(lambda i: mlflow.log_params({f"p{i}_{k}": k for k in range(100)}), 5) * 1e3
print(json.dumps(found))
"""
_WRITER = _SETUP + """
with mlflow.start_run():
    print("ready", flush=True); sys.stdin.readline()
    begin = time.time()
    for step in range(50): mlflow.log_metric("loss", 0.5, step=step)
    print(begin, time.time())
"""


def test_mlflow(race: Race, tmp_path: Path) -> None:
    "MLflow's numbers for the same things; measured only when times are wanted."
    python = os.environ.get("MLFLOW_PYTHON") or (sys.executable if find_spec("mlflow") else None)
    if not python or not race.timed:
        pytest.skip("set MLFLOW_PYTHON to a Python that has MLflow, and pass --benchmark-enable")

    def go(code: str) -> str:
        return subprocess.run([python, "-c", code], cwd=tmp_path, check=True, capture_output=True, text=True).stdout

    found: dict[str, float] = {}
    race.benchmark.pedantic(lambda: found.update(json.loads(go(_VERBS).splitlines()[-1])), rounds=1, iterations=1)
    one = _SETUP + "with mlflow.start_run(): mlflow.log_metric('loss', 0.5)"
    for what, code in {"import": "import mlflow", "process: existing store, a run, a metric": one}.items():
        spans = []
        for _ in range(5):
            begin = time.perf_counter()
            go(code)
            spans.append(time.perf_counter() - begin)
        found[f"{what}, s"] = median(spans)
    writers = [subprocess.Popen([python, "-c", _WRITER], cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(8)]
    for writer in writers:
        while writer.stdout.readline() != "ready\n":
            assert writer.poll() is None
    for writer in writers:
        writer.stdin.write("\n")
        writer.stdin.flush()
    spans = [tuple(map(float, writer.communicate()[0].splitlines()[-1].split())) for writer in writers]
    found["eight processes together, points/s"] = 8 * 50 / (max(end for _, end in spans) - min(begin for begin, _ in spans))
    for what, value in found.items():
        what, unit = what.rsplit(", ", 1)
        race.note(f"MLflow: {what}", f"{value:,.4g} {unit}", "", "", "", None)
