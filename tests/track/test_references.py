"What stands for a run is taken by every verb; what does not exist is named; runs in bulk, without a block, and in tables that leave none out."
from __future__ import annotations

import inspect
import os
import subprocess
import sys
import time
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sqlalchemy import select

import mlcycle as mlc
from mlcycle.errors import DataError, NotFoundError, UsageError
from mlcycle.evaluate.comparison import compare
from mlcycle.notebooks.record.result import NotebookRun
from mlcycle.notebooks.resume.debugging import debug_kernel
from mlcycle.registry.lineage import lineage
from mlcycle.registry.loading import find_model
from mlcycle.store import runs as store_runs
from mlcycle.store import schema
from mlcycle.store.bulk import Part, add_parts
from mlcycle.store.connect import Store, open_store
from mlcycle.track.queries import LIMIT

X = np.arange(8.0).reshape(4, 2)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    yield mlc.connect(tmp_path / "store" / "mlcycle.db")
    mlc.connect(None).close()


@pytest.fixture
def run(store: Store) -> Any:
    with mlc.run("first", "e", {"lr": 0.1}, capture=False) as active:
        active.log_metrics({"loss": 0.5, "auc": 0.9})
        active.log_model(LogisticRegression().fit(X, [0, 0, 1, 1]), input_example=X)
    with mlc.run("other", "e", capture=False):
        pass
    return active


def forms(store: Store, active: Any) -> dict[str, Any]:
    "Everything that a person may have in hand for one run."
    frame = mlc.runs("name == 'first'")
    return {"active": active, "Run": active.run, "NotebookRun": NotebookRun.from_run(store, active.run, "n.ipynb"), "row": frame.iloc[0],
            "frame": frame, "tuple": next(frame.itertuples()), "record": frame.to_dict("records")[0], "json": {"run": active.id},
            "block": SimpleNamespace(active=active), "view": mlc.RunView("first"), "live": mlc.LiveRun("first"),
            "name": "first", "id": active.id, "prefix": active.id[:10]}


def no_notebook(call: Any) -> bool:
    "Did a verb find the run, and refuse it because it did not execute a notebook?"
    try:
        call()
    except UsageError as e:
        return "does not stand" not in str(e) and not isinstance(e, NotFoundError)
    return False


VERBS: dict[str, Any] = {  # Every public verb that takes a run, to what it gives for one
    "history": lambda ref: mlc.history(ref, "loss")["value"].tolist() == [0.5],
    "register": lambda ref: mlc.register(ref, "named").run,
    "load_model": lambda ref: hasattr(mlc.load_model(ref), "predict"),
    "predict": lambda ref: len(mlc.predict(ref, X)) == 4,
    "predict_file": None,  # tried on files below
    "rerun": lambda ref: no_notebook(lambda: mlc.rerun(ref)),
    "reproduce": lambda ref: no_notebook(lambda: mlc.reproduce(ref, check=True)),
    "LiveRun": lambda ref: mlc.LiveRun(ref).run.name == "first",
    "RunView": lambda ref: mlc.RunView(ref).run.name == "first",
    "note": lambda ref: mlc.note(ref, "slow").text == "slow",
    "tag": lambda ref: mlc.tag(ref, reviewed="yes")["reviewed"] == "yes",
    "Compare": lambda ref: [run.name for run in mlc.Compare(ref, "other").comparison.runs] == ["first", "other"],
}


def test_every_verb_that_takes_a_run_is_tried() -> None:
    "A new verb with a parameter for a run is added to the list above."
    takes = {"run", "ref", "refs"}
    versions = {"promote", "rollback", "resolve_version", "serve", "VersionView"}  # take a version of a model
    named = {name for name in mlc.__all__ if callable(verb := getattr(mlc, name)) and not (isinstance(verb, type) and issubclass(verb, BaseException))
             and takes & set(inspect.signature(verb).parameters)}
    assert named - versions == set(VERBS)


def test_all_verbs_take_all_forms_of_a_run(store: Store, run: Any, tmp_path: Path) -> None:
    "One function resolves them, so no verb knows fewer forms than another."
    pd.DataFrame(X).to_csv(tmp_path / "in.csv", index=False)
    for form, ref in forms(store, run).items():
        for verb, gives in VERBS.items():
            assert gives is None or gives(ref), (form, verb)
        assert mlc.predict_file(ref, tmp_path / "in.csv", tmp_path / "out.csv").rows == 4, form
        assert compare(store, ref, "other").runs[0].id == run.id and find_model(ref).digest and lineage(ref).nodes, form
        assert no_notebook(lambda ref=ref: debug_kernel(ref)), form
        with mlc.run("child", parent=ref if form not in ("name", "prefix") else run.id, capture=False) as child:
            pass
        assert child.run.parent == run.id, form
    for wrong in (3, None, object(), mlc.runs(), {"name": "a"}):
        for verb in ("history", "register", "RunView", "LiveRun", "Compare"):
            with pytest.raises(UsageError, match="does not stand for"):
                VERBS[verb](wrong)
    version = mlc.register(run, "named")
    assert mlc.promote(version).after == version.number and mlc.resolve_version(version).aliases == ("champion",)


def test_a_run_of_another_store_is_read_there(store: Store, tmp_path: Path) -> None:
    "The object knows its store; the one in use has no such run."
    other = open_store(tmp_path / "other.db")
    with mlc.run("there", "e", store=other, capture=False) as there:
        there.log_metric("loss", 1)
        there.log_model(LogisticRegression().fit(X, [0, 0, 1, 1]), input_example=X)
    assert mlc.history(there, "loss")["value"].tolist() == [1.0] and len(mlc.predict(there, X)) == 4
    assert mlc.RunView(there).run.name == mlc.LiveRun(there).run.name == "there"
    other.close()


def test_what_does_not_exist_is_an_error_that_names_what_is_close(store: Store, run: Any) -> None:
    "A metric, a model, an artifact: an empty answer looks like a result."
    for call, hint in ((lambda: mlc.history(run, "losss"), "'loss'"), (lambda: mlc.history("other", "loss"), "none"),
                       (lambda: mlc.register(run, "m", artifact="modle"), "'model'"), (lambda: mlc.load_model(run, artifact="modle"), "'model'")):
        with pytest.raises(NotFoundError, match=hint):
            call()
    done = subprocess.run([sys.executable, "-m", "mlcycle", "artifacts", "first", "--only", "modle"], env={**os.environ, **store.environment},
                          capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and "model/" in done.stderr


def test_tables_say_how_many_runs_they_leave_out(store: Store) -> None:
    "`mlc.runs()` warns and has the total; `mlcycle runs` says it below its table; with all of them shown there is no word."
    with mlc.run("parent", "e", capture=False) as parent:
        add_parts(store, parent.run, [Part(f"part {i}", 1.0, 1.0) for i in range(LIMIT)])
    with pytest.warns(UserWarning, match=r"1,000 of the 1,001 runs"):
        frame = mlc.runs()
    assert (len(frame), frame.attrs["total"]) == (LIMIT, LIMIT + 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(mlc.runs(limit=None)) == LIMIT + 1 and len(mlc.runs(limit=5)) == 5 and len(mlc.runs("name == 'parent'")) == 1
    command = [sys.executable, "-m", "mlcycle", "runs"]
    texts = [subprocess.run([*command, *words], env={**os.environ, **store.environment}, capture_output=True, text=True, timeout=120).stdout
             for words in (("--children",), ("name == 'parent'",))]
    assert "20 of 1,001 runs; `-n 1001` shows all." in texts[0] and "runs;" not in texts[1]


def test_points_in_bulk(store: Store) -> None:
    "A hundred thousand points, all there, with steps that go on; a wrong row stores nothing."
    rows = [{"step": i, "loss": 1 / (i + 1), "auc": i / 50_000} for i in range(50_000)]
    with mlc.run("a", "e", capture=False) as run:
        began = time.process_time()
        assert run.log_many(rows) == 100_000
        print(f"100,000 points in {time.process_time() - began:.2f} s of processor time")
        run.log_metric("loss", 5.0)
        assert mlc.log_many(pd.DataFrame({"loss": [3.0]})) == 1
        for wrong in ([{"loss": 1.0}, {"loss": "x"}], [{"": 1.0}], [{"step": None, "loss": 1.0}, {"step": "x", "loss": 1.0}], "loss", {"loss": 1.0}):
            with pytest.raises(DataError):
                run.log_many(wrong)
    points = mlc.history(run, "loss")
    assert points["step"].tolist() == list(range(50_002)) and points["value"].tolist()[-3:] == [1 / 50_000, 5.0, 3.0]
    assert run.metrics == {"loss": 3.0, "auc": 49_999 / 50_000}


def summary(store: Store, run: Any) -> list[Any]:
    t = schema.metrics.c
    rows = store.db.all(select(t.name, t.step, t.value, t.low, t.high, t.count).where(t.run == run.run.pk).order_by(t.name))
    # 0.0 and -0.0 are equal, so the least of them is either
    return [(name, step, value, *(0.0 if extreme == 0 else extreme for extreme in extremes), count) for name, step, value, *extremes, count in rows]


points = st.tuples(st.sampled_from("ab"), st.integers(0, 4), st.floats(width=32))


@given(st.lists(points, max_size=12), st.lists(points, max_size=12))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_points_in_bulk_are_summed_up_like_single_ones(store: Store, first: list[Any], second: list[Any]) -> None:
    "Last value, lowest, highest and count, with NaN, repeated steps and steps that go back."
    with mlc.run("bulk", "e", capture=False) as bulk, mlc.run("single", capture=False) as single:
        for part in (first, second):
            bulk.log_many({"step": step, name: value} for name, step, value in part)
        for name, step, value in [*first, *second]:
            single.log_metric(name, value, step)
    assert list(map(repr, summary(store, bulk))) == list(map(repr, summary(store, single)))


ENDS = {  # How a process ends that has called `start_run`, to what is recorded
    "run.finish()": ("finished", None),
    "run.finish('failed')": ("failed", None),
    "raise ValueError('bad')": ("failed", "ValueError: bad"),
    "pass": ("cancelled", "before run.finish()"),
    "sys.exit(3)": ("cancelled", "before run.finish()"),
}


@pytest.mark.parametrize("end", ENDS)
def test_a_started_run_has_the_end_of_its_process(store: Store, end: str) -> None:
    "Without a block, the process itself is what may end first."
    code = f"import sys\nimport mlcycle as mlc\nrun = mlc.start_run('job', 'e', capture=False)\nmlc.log_metric('loss', 0.5)\n{end}\n"
    subprocess.run([sys.executable, "-c", code], env={**os.environ, **store.environment}, capture_output=True, timeout=120)
    run = store_runs.resolve(store, "job")
    status, reason = ENDS[end]
    assert run.status == status and (reason or "") in (run.reason or "") and mlc.history(run, "loss")["value"].tolist() == [0.5]


def test_a_started_run_is_the_current_one(store: Store) -> None:
    "Verbs find it until it is finished; another has to wait, a block inside is part of it, and a wrong end ends nothing."
    run = mlc.start_run("outer", "e", {"lr": 0.1}, capture=False)
    with pytest.raises(UsageError, match="is open here"):
        mlc.start_run("second", capture=False)
    with mlc.run("inner", capture=False) as inner:
        mlc.log_metric("loss", 1.0)
    mlc.log_metric("loss", 2.0)
    with pytest.raises(UsageError, match="nonsense"):
        run.finish("nonsense")
    assert mlc.current_run() is run and inner.run.parent == run.id
    run.finish()
    with pytest.raises(mlc.NoActiveRunError):
        mlc.current_run()
    assert run.metrics == {"loss": 2.0} and run.run.status == "finished" and inner.metrics == {"loss": 1.0}
