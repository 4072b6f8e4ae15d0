"Stores that former versions of mlcycle left behind: opened with today's code, everything in them is found. `former/make.py` says what they hold."
from __future__ import annotations

import json
import math
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

import mlcycle as mlc
from mlcycle.errors import NotFoundError
from mlcycle.notebooks.record.recorded import recorded
from mlcycle.registry.lineage import of_version
from mlcycle.store import artifacts, check, events, facts, inputs, models, runs, schema
from mlcycle.store.connect import Store
from mlcycle.store.opening import stored_version
from mlcycle.tune.overview import summaries
from mlcycle.tune.result import read_study
from mlcycle.tune.storage import open_study
from mlcycle.ui.views.models import model_view

ARCHIVES = sorted((Path(__file__).parent / "former").glob("store-*.tar.gz"))
ROWS = pd.DataFrame({"age": [21.0, 34.0, 45.0, 52.0, 63.0, 70.0], "calls": [1, 5, 2, 8, 3, 9]})
RUNS = {("baseline", "script", "finished"), ("fold-1", "script", "finished"), ("broken", "script", "failed"),
        ("from-notebook", "notebook", "finished"), ("depths", "study", "finished"),
        *((f"depths-{number}", "trial", "finished") for number in range(5))}


@pytest.fixture(params=ARCHIVES, ids=lambda path: path.name.removesuffix(".tar.gz"))
def former(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    "A copy of a former store, opened with today's code."
    with tarfile.open(request.param) as archive:
        archive.extractall(tmp_path / ".mlcycle", filter="data")
    yield mlc.connect(tmp_path / ".mlcycle" / "mlcycle.db")


def test_it_is_migrated_and_sound(former: Store) -> None:
    "It is brought to today's version, a copy of the old one lies beside it, and no digest or reference in it is broken."
    assert stored_version(former.db) == schema.HEAD and len(list(Path(former.db.where).parent.glob("*.backup"))) == 1
    assert check.fsck(former).problems == ()


def test_runs_are_found(former: Store) -> None:
    "Every run with its status, its parent, its error; params, metrics by step, tags, inputs, captures and warnings with their exact values."
    listed = mlc.runs()
    assert set(zip(listed["name"], listed["kind"], listed["status"], strict=True)) == RUNS and len(listed) == len(RUNS)
    run, child, broken = (runs.resolve(former, name) for name in ("baseline", "fold-1", "broken"))
    assert facts.params(former, run) == {"C": 0.5, "solver": "lbfgs", "columns": ["age", "calls"], "seed": None}
    assert facts.tags(former, run).items() >= {"owner": "anna", "stage": "first"}.items()
    loss = mlc.history("baseline", "loss")
    values = loss["value"].tolist()
    assert values[:2] == [0.7, 0.5] and math.isnan(values[2]) and math.copysign(1, values[3]) == -1.0 and loss["step"].tolist() == [0, 1, 2, 3]
    assert mlc.runs("metrics.accuracy > 0.8 and params.solver == 'lbfgs'")["metrics.epochs"].tolist() == [2**53]
    assert (child.parent, runs.children(former, run)) == (run.id, [child])
    assert (broken.error.type, broken.error.message) == ("ValueError", "C must be positive") and "make.py" in broken.error.traceback
    assert [(d.name, d.role, d.rows, d.source, list(d.schema)) for d in inputs.listing(former, run)] == \
           [("customers", "train", 6, "customers.csv", ["age", "calls"])]
    captured = facts.captures(former, run)
    assert set(captured) == {"git", "environment", "code", "hardware"}
    assert captured["code"]["script"] == "make.py" and captured["git"]["dirty"] is False
    assert facts.warnings(former, run) == ["the sixth row looks odd"] and (run.actor, run.process.host) == ("anna@lab", "lab")
    assert former.blobs.read(artifacts.get(former, run, "notes/read.txt").digest) == b"six customers\n"


def test_notebook_run_is_readable(former: Store) -> None:
    "The notebook as it was, and as it was executed with its outputs; its record is complete enough to run it again."
    run = runs.resolve(former, "from-notebook")
    executed = json.loads(former.blobs.read(artifacts.get(former, run, "notebook/executed.ipynb").digest))
    assert "C = 2.0, seed = 0" in json.dumps([cell.get("outputs") for cell in executed["cells"]])
    record = recorded(former, run)
    assert (dict(record.params), record.name, [d.name for d in record.inputs]) == ({"C": 2.0, "seed": 0}, "train.ipynb", ["customers"])
    assert record.snapshot and {d["name"] for d in record.environment["distributions"]} >= {"mlcycle", "scikit-learn"}


def test_models_are_loaded(former: Store) -> None:
    "Every version loads and predicts what it predicted then; where each came from is known."
    assert mlc.resolve_version("churn@champion").ref == "churn/4" and models.get_model(former, "churn").versions == (1, 2, 3, 4)
    then = json.loads(former.blobs.read(artifacts.get(former, runs.resolve(former, "baseline"), "predictions.json").digest))
    for number in (2, 3, 4):
        assert mlc.load_model(f"churn/{number}").predict_proba(ROWS)[:, 1] == pytest.approx(list(then.values()), abs=1e-12)
    assert mlc.load_model("churn/1").C == 2.0 and mlc.load_model("from-notebook").C == 2.0
    assert len(mlc.predict("churn", ROWS)) == 6
    lineage = of_version(former, models.get_version(former, "churn", 1))
    assert {"run", "version", "notebook", "data", "environment", "code"} <= {node.kind for node in lineage.nodes}


def test_aliases_go_where_they_went(former: Store) -> None:
    "The history has the right kinds, also where a typed reason begins like that of a rollback, and rolling back goes to the right places."
    history = models.alias_history(former, "churn", "champion")
    champion = [(m.kind, m.before, m.after, m.why.strip("()")) for m in history]  # version 0002 told kinds by reasons, and put this one in brackets
    assert champion == [("promoted", None, 1, "first to pass"), ("promoted", 1, 2, "better recall"), ("promoted", 2, 3, ""),
                        ("rolled_back", 3, 2, "rolled back from 3: complaints"), ("promoted", 2, 4, "rolled back from 3, now mended")]
    challenger = [(m.kind, m.after, m.actor) for m in models.alias_history(former, "churn", "challenger")]
    assert challenger == [("promoted", 3, "anna@lab"), ("removed", None, "anna@lab")]
    view = model_view(former, models.get_model(former, "churn"))
    assert [m["kind"] for m in view.data["history"]].count("rolled_back") == 1 and "rolled back" in repr(view)
    assert [mlc.rollback("churn").after for _ in range(2)] == [2, 1] and mlc.rollback("churn@challenger").after == 3
    with pytest.raises(NotFoundError, match="never anywhere before churn/1"):
        mlc.rollback("churn")


def test_study_goes_on(former: Store) -> None:
    "The study is readable with its trials and their runs, and more trials can be added to it."
    (summary,) = summaries(former)
    tuned = read_study(open_study(former, "depths"))
    assert (summary.json()["study"], tuned.metrics, tuned.directions, tuned.number("finished")) == ("depths", ("loss",), ("minimize",), 5)
    best = min(tuned.rows, key=lambda row: row.values[0])
    assert tuned.best == best and set(best.params) == {"depth", "rate"}
    assert facts.params(former, runs.get(former, best.run)).items() >= best.params.items()

    def objective(depth: int, rate: float) -> dict[str, float]:
        return {"loss": (depth - 3) ** 2 + rate}

    space = ["depth=int(1,6)", "rate=loguniform(1e-3,1)"]
    again = mlc.tune(objective, space, metric="loss", trials=7, study="depths", resume=True, progress=False)
    assert again.number("finished") == 7 and again.rows[:5] == tuned.rows


def test_log_of_events_is_kept(former: Store) -> None:
    "Who did what is all there, and what is done now goes on top."
    log = events.listing(former, limit=1000)
    assert {e.actor for e in log} == {"anna@lab"} and sum(e.action == "alias.move" for e in log) == 7
    assert [e.subject for e in log if e.action == "version.create"] == ["churn/4", "churn/3", "churn/2", "churn/1"]
    mlc.promote("churn/3", why="rolled back from 4")
    assert events.listing(former, limit=1000)[1:] == log and models.alias_history(former, "churn", "champion")[-1].kind == "promoted"
