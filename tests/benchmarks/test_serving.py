"Serving beside MLflow's server and a raw echo: `wrk` asks all of them in turn. Needs wrk, a C compiler, and MLFLOW_PYTHON for MLflow's side."
from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pandas as pd
import psutil
import pytest
from sklearn.compose import make_column_transformer
from sklearn.datasets import load_breast_cancer
from sklearn.ensemble import GradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from mlcycle.registry.compiled.compiling import compile_model
from mlcycle.registry.packaging import package
from mlcycle.registry.versions import register
from mlcycle.store import runs
from mlcycle.store.connect import Store
from tests.benchmarks.conftest import Race
from tests.services import free_port

_MLFLOW = """
import os, sys
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
import mlflow, pickle, pandas
model, example = pickle.load(open(sys.argv[1], "rb"))
mlflow.sklearn.save_model(model, sys.argv[2], input_example=example, serialization_format="cloudpickle")
"""


def numbers() -> tuple[Any, pd.DataFrame]:
    "(a): 30 numbers, scaler and logistic regression."
    X, y = load_breast_cancer(return_X_y=True, as_frame=True)
    return make_pipeline(StandardScaler(), LogisticRegression()).fit(X, y), X


def mixed() -> tuple[Any, pd.DataFrame]:
    "(b): 12 mixed columns, column transformer and gradient boosting."
    rng, count = np.random.default_rng(0), 2000
    X = pd.DataFrame({f"n{i}": rng.normal(size=count) for i in range(8)} | {f"t{i}": rng.choice(list("abcde"), count) for i in range(4)})
    columns = make_column_transformer((OneHotEncoder(), [f"t{i}" for i in range(4)]), remainder="passthrough", sparse_threshold=0)
    return make_pipeline(columns, GradientBoostingClassifier(random_state=0)).fit(X, (X["n0"] > 0) ^ (X["t1"] == "a")), X


MODELS = {"numbers": numbers, "mixed": mixed}


@dataclass
class Target:
    "A server, and what it is asked."
    url: str
    body: bytes
    content_type: str = "application/json"
    pid: int = 0
    started: float = 0.0  # Seconds from the command to the first answer

    def memory(self) -> float:
        "Resident memory of all its processes, in MB."
        process = psutil.Process(self.pid)
        return sum(each.memory_info().rss for each in (process, *process.children(recursive=True))) / 1e6

    def first_answer(self) -> bytes:
        "Ask until it answers."
        while True:
            try:
                with urllib.request.urlopen(urllib.request.Request(self.url, self.body, {"Content-Type": self.content_type})) as response:
                    return response.read()
            except OSError:
                time.sleep(0.01)


def ask(target: Target, clients: int, seconds: float, folder: Path) -> tuple[float, float, float]:
    "Requests a second, median and 99th percentile in milliseconds; every answer must be a good one."
    (folder / "body").write_bytes(target.body)
    script = folder / "post.lua"
    script.write_text(f'wrk.method = "POST"\nwrk.body = io.open("{folder}/body", "rb"):read("*a")\n'
                      f'wrk.headers["Content-Type"] = "{target.content_type}"\n')
    out = subprocess.run(["wrk", "-t1", f"-c{clients}", f"-d{seconds:g}s", "--latency", "-s", str(script), target.url],
                         check=True, capture_output=True, text=True).stdout
    assert "Non-2xx" not in out and "Socket errors" not in out, out
    rate = float(re.search(r"Requests/sec:\s+([\d.]+)", out)[1])
    half, most = (float(value) * {"us": 1e-3, "ms": 1, "s": 1e3}[unit] for value, unit in re.findall(r"(?:50|99)%\s+([\d.]+)(us|ms|s)", out))
    return rate, half, most


@contextmanager
def process(command: list[str], target: Callable[[subprocess.Popen[str]], Target], **options: Any) -> Iterator[Target]:
    begun = time.perf_counter()
    running = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True, **options)
    try:
        asked = target(running)
        asked.pid = running.pid
        asked.first_answer()
        asked.started = time.perf_counter() - begun
        yield asked
    finally:
        family = [psutil.Process(running.pid), *psutil.Process(running.pid).children(recursive=True)]
        running.terminate()
        _, alive = psutil.wait_procs(family, 20)
        for each in alive:
            each.kill()
        running.stdout.close()


def servers(stack: ExitStack, store: Store, folder: Path, name: str, rows: int) -> dict[str, Target]:
    "The servers that are there, by name: `ours`, `echo`, `mlflow`."
    model, table = MODELS[name]()
    run = runs.create(store, name)
    logged = package(store, run, model, input_example=table.head())
    register(run.id, name, store=store)
    assert compile_model(store, logged.digest).state == "used"
    part = table.head(rows)
    body = {"row": part.iloc[0].to_dict()} if rows == 1 else {"records": part.to_dict("records")}
    own = json.dumps(body, default=lambda value: value.item()).encode()
    port = free_port()
    targets = {"ours": stack.enter_context(process(
        [sys.executable, "-m", "mlcycle", "serve", name, "--port", str(port)], lambda _: Target(f"http://127.0.0.1:{port}/v1/predict", own),
        env={**os.environ, **store.environment}, cwd=folder))}
    subprocess.run(["cc", "-O2", "-D_GNU_SOURCE", "-o", str(folder / "echo"), str(Path(__file__).with_name("echo.c"))], check=True)
    targets["echo"] = stack.enter_context(process([str(folder / "echo")],
                                                  lambda echo: Target(f"http://127.0.0.1:{int(echo.stdout.readline())}/", own)))
    if python := os.environ.get("MLFLOW_PYTHON"):
        import pickle

        (folder / "model.pkl").write_bytes(pickle.dumps((model, table.head())))
        subprocess.run([python, "-c", _MLFLOW, "model.pkl", "model"], cwd=folder, check=True, capture_output=True)
        theirs = json.dumps({"dataframe_split": json.loads(part.to_json(orient="split", index=False))}).encode()
        other = free_port()
        targets["mlflow"] = stack.enter_context(process(
            [str(Path(python).with_name("mlflow")), "models", "serve", "-m", "model", "--env-manager", "local", "-p", str(other)],
            lambda _: Target(f"http://127.0.0.1:{other}/invocations", theirs), cwd=folder, stderr=subprocess.DEVNULL,
            env={**os.environ, "PATH": f"{Path(python).parent}{os.pathsep}{os.environ['PATH']}", "MLFLOW_DISABLE_TELEMETRY": "true"}))
    return targets


def note_rates(race: Race, what: str, rate: dict[tuple[str, int], float], bounds: dict[str, float | None]) -> None:
    "Rows of the table: ours beside each other server; the bounds, percent of the echo and times MLflow, are for 16 clients."
    for server, clients in rate:
        if server == "ours":
            continue
        ratio, bound = rate["ours", clients] / rate[server, clients], bounds[server] if clients == 16 else None
        judged = 100 * ratio if server == "echo" else ratio
        unit = "%" if server == "echo" else "x"
        race.note(f"{what}, {clients} clients: {server}", f"{rate['ours', clients]:,.0f}/s", f"{rate[server, clients]:,.0f}/s",
                  f"{judged:.3g} {unit}", f">= {bound:g} {unit}" if bound else "", judged >= bound if bound else None)


@pytest.mark.parametrize(("name", "rows", "times_mlflow"), [("numbers", 1, 120), ("mixed", 1, 60), ("numbers", 569, 8), ("mixed", 1000, 8)])
def test_throughput(race: Race, local: Store, tmp_path: Path, name: str, rows: int, times_mlflow: float) -> None:
    "Requests a second with one client and with sixteen, start and memory."
    if not race.timed:
        pytest.skip("pass --benchmark-enable to start the servers")
    if not shutil.which("wrk") or not shutil.which("cc"):
        pytest.skip("needs wrk and a C compiler")
    with ExitStack() as stack:
        targets = servers(stack, local, tmp_path, name, rows)
        rates: dict[tuple[str, int], list[tuple[float, float, float]]] = {}

        def one_round() -> None:
            for clients in (1, 16):
                for server, target in targets.items():
                    rates.setdefault((server, clients), []).append(ask(target, clients, 2, tmp_path))

        one_round()  # all of them are warm after it
        rates.clear()
        race.benchmark.pedantic(one_round, rounds=3, iterations=1)
        what = f"{name}, {rows} row{'s' * (rows > 1)}"
        rate = {key: median(each[0] for each in values) for key, values in rates.items()}
        half, most = (median(each[i] for each in rates["ours", 1]) for i in (1, 2))
        note_rates(race, what, rate, {"echo": 25.0 if (name, rows) == ("numbers", 1) else None, "mlflow": times_mlflow})
        race.note(f"{what}, 1 client: median", f"{half:.3f} ms", "", "", "<= 0.2 ms" if rows == 1 else "", half <= 0.2 if rows == 1 else None)
        race.note(f"{what}, 1 client: 99th percentile", f"{most:.3f} ms", "", f"{most / half:.1f} x", "<= 10 x", most <= 10 * half)
        for what_else, unit, values, bound in (("first answer", "s", {key: target.started for key, target in targets.items()}, 1.5),
                                               ("memory", "MB", {key: target.memory() for key, target in targets.items()}, 130)):
            theirs = f"{values['mlflow']:.3g} {unit}" if "mlflow" in values else ""
            race.note(f"{what}: {what_else}", f"{values['ours']:.3g} {unit}", theirs, "", f"<= {bound} {unit}", values["ours"] <= bound)
