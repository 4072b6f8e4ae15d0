"What reading costs: commands and queries over many runs, and predicting a file. `pytest tests/benchmarks/test_reading.py --benchmark-enable`"
from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mlcycle.store.connect import Store, open_store
from tests.benchmarks.conftest import Race

MODELS = ("hgb", "forest", "linear")


def fill(store: Store, count: int) -> None:
    "Runs with three metrics and three params each, through the tables."
    from mlcycle.store import schema

    rng, keys = random.Random(7), range(1, count + 1)
    with store.db.write() as con:
        con.execute(schema.runs.insert(), [
            {"pk": i, "id": f"{i:016x}", "name": f"churn-{i}", "experiment": f"e{i % 5}", "kind": "script",
             "status": "finished" if i % 10 else "failed", "started": 1.8e9 + i, "ended": 1.8e9 + i + 1, "actor": "me"} for i in keys])
        for name in ("auc", "loss", "f1"):
            values = [rng.random() for _ in keys]
            con.execute(schema.metrics.insert(), [{"run": i, "name": name, "step": 0, "value": v, "low": v, "high": v, "count": 1}
                                                  for i, v in zip(keys, values, strict=True)])
        rates = [rng.random() for _ in keys]
        for name, text, number in (("model", lambda i: f'"{MODELS[i % 3]}"', lambda i: None), ("depth", lambda i: str(i % 9), lambda i: i % 9),
                                   ("rate", lambda i: repr(rates[i - 1]), lambda i: rates[i - 1])):
            con.execute(schema.params.insert(), [{"run": i, "name": name, "value": text(i), "number": number(i)} for i in keys])


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    "Makes the project with so many runs, once."
    made: dict[int, Path] = {}

    def project(count: int) -> Path:
        if count not in made:
            made[count] = tmp_path_factory.mktemp("many")
            with open_store(made[count] / ".mlcycle" / "mlcycle.db") as store:
                fill(store, count)
        return made[count]

    return project


@pytest.mark.parametrize("words", [("runs",), ("runs", "-o", "-metrics.auc"), ("runs", "metrics.auc > 0.9 and params.model == 'hgb'"),
                                   ("show", "churn-77"), ("models",)], ids=" ".join)
def test_command(race: Race, many: Callable[[int], Path], words: tuple[str, ...]) -> None:
    "A whole process that looks at 100,000 runs, beside one that does nothing."
    folder = many(race.size(100_000, 300))
    command = [sys.executable, "-c", "from mlcycle.ui.cli import main; main()", *words]
    race.run(f"mlcycle {' '.join(words)} of 100,000 runs", lambda: subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL),
             lambda: subprocess.run([sys.executable, "-c", "pass"], check=True), rounds=11, unit="s", bound=0.2)


@pytest.mark.parametrize(("query", "order", "counted"), [
    (None, "-params.rate", False), (None, "params.depth", False), (None, "params.model", False), ("max(metrics.auc) > 0.9999", "-started", False),
    ("max(metrics.auc) > 0.1", "-started", False), ("metrics.auc > 0.9 and params.model == 'hgb'", "-started", True),
    ("metrics.auc > 0.5 and params.model == 'hgb' and status == 'finished'", "-started", True)])
def test_query(race: Race, many: Callable[[int], Path], query: str | None, order: str, counted: bool) -> None:
    "A page of 100 of 100,000 runs, as a table reads it; where it is counted, with the number of those that fit."
    from mlcycle.track.queries import runs_page

    with open_store(many(race.size(100_000, 300)) / ".mlcycle" / "mlcycle.db") as store:
        race.run(f"{'page and count' if counted else 'page'}: {query or 'all'}, by {order}",
                 lambda: runs_page(query, order_by=order, limit=100, store=store, counted=counted), rounds=11, bound=50)


_HAND = """
import sys, joblib, pandas as pd, pyarrow as pa, pyarrow.parquet as pq
model, source, out = joblib.load(sys.argv[1]), sys.argv[2], sys.argv[3]
chunks = pd.read_csv(source, chunksize=100_000) if source.endswith(".csv") else (
    batch.to_pandas() for batch in pq.ParquetFile(source).iter_batches(100_000))
writer = None
for chunk in chunks:
    answers = pd.DataFrame({"prediction": model.predict(chunk)})
    answers[["probability_0", "probability_1"]] = model.predict_proba(chunk)
    table = pa.Table.from_pandas(answers, preserve_index=False)
    writer = writer or pq.ParquetWriter(out, table.schema)
    writer.write_table(table)
writer.close()
"""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Path:
    "A project with a registered model, and the same model in a file of joblib's."
    import joblib
    from sklearn.datasets import load_breast_cancer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    from mlcycle.registry.versions import register
    from mlcycle.track.begin import start

    folder = tmp_path_factory.mktemp("served")
    X, y = load_breast_cancer(return_X_y=True, as_frame=True)
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=500)).fit(X, y)
    with open_store(folder / ".mlcycle" / "mlcycle.db") as store:
        run = start("logistic", store=store, capture=False)
        run.log_model(model, input_example=X.head())
        run.finish()
        register(run.id, "cancer", store=store)
    joblib.dump(model, folder / "model.joblib")
    X.to_csv(folder / "small.csv", index=False)
    return folder


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_predict(race: Race, served: Path, ending: str) -> None:
    "A million rows as a whole process, against a loop over pandas chunks written by hand: both give labels and probabilities."
    import numpy as np
    import pandas as pd

    rng, small, count = np.random.default_rng(0), pd.read_csv(served / "small.csv"), race.size(1_000_000, 2000)
    rows = small.iloc[rng.integers(0, len(small), count)].reset_index(drop=True) * rng.normal(1, 0.01, (count, 1))
    source = served / f"rows.{ending}"
    rows.to_csv(source, index=False) if ending == "csv" else rows.to_parquet(source)
    del rows
    ours = [sys.executable, "-c", "from mlcycle.ui.cli import main; main()", "predict", "cancer", source.name, "-o", "ours.parquet"]
    hand = [sys.executable, "-c", _HAND, "model.joblib", source.name, "hand.parquet"]
    race.run(f"mlcycle predict, 1,000,000 rows of {ending}, against a loop by hand",
             lambda: subprocess.run(ours, cwd=served, check=True, stdout=subprocess.DEVNULL),
             lambda: subprocess.run(hand, cwd=served, check=True), rounds=3, unit="s", bound=1, ratio=True)
    made, expected = (pd.read_parquet(served / f"{name}.parquet") for name in ("ours", "hand"))
    assert len(made) == count and (made["prediction"] == expected["prediction"]).all()
    assert (made["probability_1"] - expected["probability_1"]).abs().max() < 1e-9


def test_predict_small(race: Race, served: Path) -> None:
    "569 rows as a whole process, against the same by hand: what is left is what scikit-learn takes to be imported."
    ours = [sys.executable, "-c", "from mlcycle.ui.cli import main; main()", "predict", "cancer", "small.csv", "-o", "small.parquet"]
    hand = [sys.executable, "-c", _HAND, "model.joblib", "small.csv", "hand.parquet"]
    race.run("mlcycle predict, 569 rows (raw: by hand)", lambda: subprocess.run(ours, cwd=served, check=True, stdout=subprocess.DEVNULL),
             lambda: subprocess.run(hand, cwd=served, check=True), rounds=5, unit="s", bound=0.8)


def test_asking(race: Race, served: Path) -> None:
    "A model that this store did not log, asked in a process of its own: what that takes on top of one that imports what the model needs."
    from mlcycle.registry import asking
    from mlcycle.registry.packaging import model_files, read_manifest
    from mlcycle.registry.versions import resolve_version

    with open_store(served / ".mlcycle" / "mlcycle.db") as store:
        manifest = read_manifest(store, resolve_version("cancer", store=store).digest)
        with model_files(store, manifest) as folder:
            race.run("asking a foreign model apart (raw: a process that imports pandas and scikit-learn)",
                     lambda: asking.ask_apart(folder, manifest),
                     lambda: subprocess.run([sys.executable, "-c", "import pandas, sklearn.linear_model"], check=True), rounds=7, unit="s", bound=0.5,
                     less=True)


def test_predicting_by_the_compiled_form(race: Race, tmp_path: Path) -> None:
    "1,000,000 rows of a mixed table: the compiled form of gradient boosting beside the model, checks and outputs included."
    import numpy as np
    import pandas as pd
    from sklearn.compose import make_column_transformer
    from sklearn.ensemble import GradientBoostingClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder

    import mlcycle as mlc
    from mlcycle.registry.compiled.compiling import compile_model
    from mlcycle.registry.loading import open_model
    from mlcycle.registry.packaging import package
    from mlcycle.store import runs

    rng, count = np.random.default_rng(0), race.size(1_000_000, 12_000)
    rows = pd.DataFrame({f"n{i}": rng.normal(size=count).round(3) for i in range(8)} | {f"t{i}": rng.choice(list("abcde"), count) for i in range(4)})
    steps = make_column_transformer((OneHotEncoder(handle_unknown="ignore"), [f"t{i}" for i in range(4)]), remainder="passthrough")
    some = rows[:3000]
    model = make_pipeline(steps, GradientBoostingClassifier(random_state=0)).fit(some, (some["n0"] > 0) & (some["t1"] != "a"))
    with open_store(tmp_path / "mlcycle.db") as store:
        run = runs.create(store, "churn", "boosting")
        digest = package(store, run, model, input_example=rows[:50]).digest
        opened = open_model(run, store=store)
        assert compile_model(store, digest).state == "used"
        by_form, by_model = mlc.predict(run, rows, store=store), mlc.predict(opened, rows)
        assert (by_form["prediction"] == by_model["prediction"]).all()
        race.run("predict 1,000,000 rows by the compiled form", lambda: mlc.predict(run, rows, store=store), lambda: mlc.predict(opened, rows),
                 rounds=3, unit="s", bound=0.8, ratio=True)
