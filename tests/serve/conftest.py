"A store with registered models, and servers that are real processes."
from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from sklearn.compose import make_column_transformer
from sklearn.ensemble import GradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, PowerTransformer, StandardScaler

from mlcycle.registry.packaging import package
from mlcycle.registry.versions import register
from mlcycle.store import runs
from mlcycle.store.connect import Store, open_store


def people(count: int = 200) -> pd.DataFrame:
    "Mixed columns, one of them with nulls."
    rows = range(count)
    return pd.DataFrame({"age": [20 + i % 50 for i in rows], "income": [None if i % 17 == 0 else 900.5 + 37 * i for i in rows],
                         "city": [("Ulm", "Köln", "Bonn")[i % 3] for i in rows], "member": [i % 2 == 0 for i in rows]}
                        ).astype({"city": "str", "income": "float64"})


def churned(table: pd.DataFrame) -> pd.Series:
    "A label that depends on the columns."
    return ((table["age"] > 45) ^ table["member"]).map({True: "yes", False: "no"})


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    "`churn`, a pipeline on mixed columns; `scale`, logistic regression on two numbers; `positive`, which raises for others than positive numbers."
    with open_store(tmp_path_factory.mktemp("serving") / "store.db") as opened:
        table = people()
        mixed = make_pipeline(make_column_transformer((OneHotEncoder(), ["city"]), ("passthrough", ["age", "member"])),
                              GradientBoostingClassifier(n_estimators=5, random_state=0)).fit(table, churned(table))
        numbers = table[["age"]].assign(height=[150.0 + i % 40 for i in range(len(table))])
        plain = make_pipeline(StandardScaler(), LogisticRegression()).fit(numbers, churned(table))
        positive = make_pipeline(PowerTransformer("box-cox"), LogisticRegression()).fit(numbers, churned(table))
        for name, model, example in (("churn", mixed, table.head(20)), ("scale", plain, numbers.head()), ("positive", positive, numbers.head())):
            run = runs.create(opened, name)
            package(opened, run, model, input_example=example)
            runs.finish(opened, run)
            register(run.id, name, store=opened)
        yield opened


@dataclass
class Running:
    "A server's process."
    url: str
    process: subprocess.Popen[str]

    def ask(self, path: str, body: Any = None, headers: dict[str, str] | None = None, timeout: float = 120) -> tuple[int, Any, dict[str, str]]:
        "Status, document and headers of an answer. A body that is no bytes is sent as JSON."
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json", **(headers or {})})
        try:
            with urllib.request.urlopen(request, timeout=timeout) as response:
                return response.status, _document(response.read()), dict(response.headers)
        except urllib.error.HTTPError as e:
            return e.code, _document(e.read()), dict(e.headers)

    def workers(self) -> list[int]:
        "Process ids of the workers."
        import psutil

        return [child.pid for child in psutil.Process(self.process.pid).children()]


def _document(body: bytes) -> Any:
    try:
        return json.loads(body)
    except ValueError:
        return body


Starter = Callable[..., Any]


@pytest.fixture(scope="module")
def serving(store: Store) -> Starter:
    "Start `mlcycle serve` in a block: `with serving(\"churn\", \"--workers\", \"2\") as server`."
    @contextmanager
    def start(*args: str, **environment: str) -> Iterator[Running]:
        process = subprocess.Popen([sys.executable, "-m", "mlcycle", "serve", *args, "--port", "0", "--json"], stdout=subprocess.PIPE, text=True,
                                   env={**os.environ, **store.environment, **environment}, cwd=Path(store.settings.store.removeprefix("sqlite:///")).parent)
        try:
            state = json.loads(process.stdout.readline())
            assert "url" in state, state
            yield Running(state["url"], process)
        finally:
            process.terminate()
            process.wait(60)
            process.stdout.close()

    return start
