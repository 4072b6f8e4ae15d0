"Models and servers that the tests of protocols ask: one of mixed columns, one of an array, in this process or in one of its own."
from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.compose import make_column_transformer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder

from mlcycle.registry.packaging import package
from mlcycle.registry.signatures import Column, Signature, Tensor
from mlcycle.registry.versions import register
from mlcycle.serve.answers import PredictionIds
from mlcycle.serve.app import App
from mlcycle.serve.counters import Counters
from mlcycle.serve.guard import Doorkeeper
from mlcycle.serve.predictors import Predictor
from mlcycle.serve.served import ModelFacts, ServedModel
from mlcycle.serve.server import Server, serve
from mlcycle.serve.settings import ServerSettings
from mlcycle.serve.state import Readiness
from mlcycle.serve.worker import all_routes
from mlcycle.store import runs
from mlcycle.store.connect import open_store

PEOPLE = Signature(
    (Column("age", "int64"), Column("income", "float64", nullable=True), Column("city", "category", categories=("Köln", "Ulm")),
     Column("member", "bool"), Column("note", "str", nullable=True)),
    (Column("prediction", "str"), Column("probability_no", "float64"), Column("probability_yes", "float64")))
PIXELS = Signature(Tensor((None, 2, 2), "float32"), (Column("prediction", "float64"),))
ROW = {"age": 30, "income": 1.5, "city": "Ulm", "member": True, "note": None}


def ask_people(data: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    "Yes for those above 30; raises where somebody is 99."
    if (data["age"] == 99).any():
        raise RuntimeError("the model cannot count to 99")
    old = data["age"] > 30
    return {"prediction": np.where(old, "yes", "no").astype(object), "probability_no": np.where(old, 0.25, 0.75),
            "probability_yes": np.where(old, 0.75, 0.25)}


def served_model(
    folder: Path,          # For its counters
    signature: Signature = PEOPLE,
    ask: Any = ask_people,  # What answers
    name: str = "people",
    example: Any = None,   # As the body of a request
    **settings: Any,       # Of the server
) -> ServedModel:
    "A model in this process."
    facts = ModelFacts(name, 3, "0" * 64, "run", False)
    counters = Counters(folder, str(len(list(folder.iterdir()))))
    return ServedModel(facts, signature, Predictor(ask, False), counters, ServerSettings(**settings), example)


class LocalApp:
    "The application of a worker, asked without a network."

    def __init__(self, folder: Path, *models: ServedModel, **settings: Any):
        self.readiness = Readiness()
        self.readiness.missing = ""
        self.routes = all_routes(list(models), self.readiness, folder)
        self.ids = PredictionIds()
        self._app = App(self.routes, Doorkeeper(None), Counters(folder, "app"), ServerSettings(**settings))

    def ask(self, method: str, path: str, body: bytes = b"", query: str = "", **headers: str) -> tuple[int, dict[str, str], bytes]:
        "Status, headers and body of an answer."
        sent: list[dict[str, Any]] = []
        named = [(name.replace("_", "-").lower().encode(), value.encode()) for name, value in headers.items()]
        scope = {"type": "http", "method": method, "path": path, "headers": named, "query_string": query.encode()}

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        asyncio.run(self._app(scope, receive, send))
        return sent[0]["status"], {name.decode(): value.decode() for name, value in sent[0]["headers"]}, sent[1]["body"]


def people_table(count: int = 200) -> pd.DataFrame:
    "Rows of the model of mixed columns that a real server serves."
    random = np.random.default_rng(0)
    return pd.DataFrame({"age": random.integers(18, 80, count), "income": random.normal(30, 10, count).round(2),
                         "city": pd.Categorical(random.choice(["Köln", "Ulm"], count)), "member": random.random(count) < 0.5,
                         "zip": random.choice(["00123", "89073"], count)})


@contextmanager
def real_server(
    folder: Path,  # For its store
    *names: str,   # Of `people` and `pixels`
) -> Iterator[tuple[Server, Any]]:  # Ready; its store
    "A server in processes of its own."
    table = people_table()
    labels = np.where(table["age"] > 40, "yes", "no")
    pipeline = make_pipeline(make_column_transformer((OneHotEncoder(handle_unknown="ignore"), ["city", "zip"]), remainder="passthrough"),
                             LogisticRegression(max_iter=2000))
    models = {"people": (pipeline.fit(table, labels), table), "pixels": None}
    if "pixels" in names:
        pixels = np.random.default_rng(0).normal(size=(100, 4))
        models["pixels"] = (LogisticRegression().fit(pixels, pixels.sum(axis=1) > 0), pixels)
    with open_store(folder / "store.db") as store:
        for name in names:
            model, rows = models[name]
            run = runs.create(store, "protocols", name)
            package(store, run, model, input_example=rows[:5])
            register(run.id, name, store=store)
        with serve(*names, store=store) as server:
            yield server, store
