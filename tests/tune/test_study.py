"What a study does with a search that goes right, with one that goes wrong, and with one that is stopped."
from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import mlcycle as mlc
from mlcycle.errors import MlcycleError, UsageError
from mlcycle.store import runs
from mlcycle.store.connect import Store, open_store
from mlcycle.tune.result import Tuned, read_study
from mlcycle.tune.storage import open_study

forking = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="kernels are forked on Linux only")
CONDITIONAL = {"model": "{linear, tree}", "depth": "int(2, 5) when model == 'tree'", "leaves": "{4, 8, 16} when model == 'tree'",
               "C": "{0.1, 1.0} when model == 'linear'", "scale": [True, False], "constraints": ["depth * 2 <= leaves"]}
ALL = [{"model": "linear", "C": c, "scale": s} for c in (0.1, 1.0) for s in (True, False)] + [
    {"model": "tree", "depth": d, "leaves": n, "scale": s} for d in range(2, 6) for n in (4, 8, 16) for s in (True, False) if d * 2 <= n]


def tune(target: Any, space: Any = None, **more: Any) -> Tuned:
    return mlc.tune(target, space, progress=False, **more)


def parabola(x: float, **rest: Any) -> float:
    return (x - 1) ** 2


def in_order(found: list[dict[str, Any]]) -> list[str]:
    return sorted(json.dumps(params, sort_keys=True) for params in found)


# What is searched


def test_a_grid_is_gone_through_exactly(local: Store) -> None:
    "Every allowed combination once, conditions and constraints included; it stops by itself, and what `trials` left is done by `resume`."
    tried: list[dict[str, Any]] = []

    def objective(**params: Any) -> float:
        tried.append(params)
        return float(len(params))

    done = tune(objective, CONDITIONAL, sampler="grid", study="whole", store=local)
    assert in_order(tried) == in_order(ALL) == in_order([row.params for row in done.rows])
    assert all(type(a) is type(b) for params in tried for a, b in zip(params.values(), next(p for p in ALL if p == params).values(), strict=True))
    assert {row.status for row in done.rows} == {"finished"} and done.status == "finished"
    assert len(tune(objective, sampler="grid", study="whole", resume=True, store=local).rows) == len(tried) == len(ALL)  # nothing is left
    tried.clear()
    part = tune(objective, CONDITIONAL, sampler="grid", trials=5, jobs=2, study="parts", store=local)
    assert (part.number("finished"), len(part.rows), len(tried)) == (5, 5, 5)
    rest = tune(objective, study="parts", resume=True, store=local)  # it knows that it is a grid
    assert in_order(tried) == in_order(ALL) and rest.number("finished") == len(rest.rows) == len(ALL)
    tried.clear()
    warm = tune(objective, CONDITIONAL, sampler="grid", enqueue=[ALL[7], {**ALL[0], "C": 1.0}], store=local)  # tried first, and once
    assert in_order(tried) == in_order(ALL) and tried[0] == ALL[7] and warm.number("finished") == len(ALL)


@pytest.mark.parametrize("sampler", ["tpe", "random", "nsga2", "qmc"])
def test_no_sampler_runs_what_a_constraint_forbids(local: Store, sampler: str) -> None:
    "What breaks a constraint is no run and no trial that counts, in a space of which two thirds are forbidden."
    tried: list[dict[str, Any]] = []

    def objective(a: int, b: int, kind: str, c: int = 0) -> float:
        tried.append({"a": a, "b": b, "kind": kind, "c": c})
        return float(a * b + c)

    space = {"a": "int(1, 20)", "b": "int(1, 20)", "kind": "{plain, more}",
             "c": "int(1, 20) when kind == 'more'", "constraints": ["a + 3 < b", "c < a"]}
    done = tune(objective, space, sampler=sampler, trials=25, seed=5, store=local)
    assert len(tried) == done.number("finished") == 25 == len(runs.children(local, runs.get(local, done.run)))
    assert all(p["a"] + 3 < p["b"] and (p["kind"] == "plain" or p["c"] < p["a"]) for p in tried)
    forbidden = [row for row in done.rows if row.status == "infeasible"]
    assert forbidden and all(row.reason in ("breaks a + 3 < b", "breaks c < a") and row.run is None for row in forbidden)
    assert {key: done.json()[key] for key in ("finished", "pruned", "failed")} == {"finished": 25, "pruned": 0, "failed": 0}


def test_hopeless_constraints_are_given_up(local: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    "A constraint that next to nothing meets ends the study with its text, not in a loop for ever."
    monkeypatch.setattr("mlcycle.tune.asking._HOPELESS", 40)
    with pytest.raises(UsageError, match=r"x \* x < 0.0000001"):
        tune(parabola, {"x": "uniform(1, 2)", "y": "uniform(0, 1)", "constraints": ["x * x < 0.0000001 + y * 0"]}, sampler="random", trials=3,
             store=local)


# What goes wrong


def test_what_fails_is_a_fact_and_the_study_goes_on(local: Store) -> None:
    "Each way to fail is recorded with its reason in the trial and in its run, never taken for the best, and the others are run."
    ways = {"nan": lambda: float("nan"), "text": lambda: "good", "none": lambda: None, "two": lambda: (1.0, 2.0), "other": lambda: {"accuracy": 1.0},
            "raises": lambda: 1 / 0, "exits": lambda: sys.exit(3), "fine": lambda: 0.5, "number": lambda: "0.25", "infinite": lambda: float("inf")}
    done = tune(lambda way: ways[way](), {"way": list(ways)}, metric="loss", sampler="grid", store=local)
    reasons = {row.params["way"]: row.reason for row in done.rows}
    assert reasons == {"nan": "loss is NaN", "text": "loss is 'good', which is no number", "none": "loss is None, which is no number",
                       "two": "1 values are expected (loss), not (1.0, 2.0)", "other": "the metric 'loss' was not logged. It has 'accuracy'.",
                       "raises": "ZeroDivisionError: division by zero", "exits": "SystemExit: 3", "fine": None, "number": None, "infinite": None}
    assert all((row.status == "failed") == bool(row.reason) and runs.get(local, row.run).status == row.status for row in done.rows)
    assert (done.status, done.best_params, done.number("failed"), done.json()["best"]["value"]) == ("finished", {"way": "number"}, 7, 0.25)


def test_a_notebook_that_fails_is_a_fact(project: Any) -> None:
    "An error in a cell, a metric that is missing and one that is NaN: failed with the reason; the others finish."
    path = project.write("import math\nimport mlcycle as mlc", {"source": "way = ''", "tags": ["parameters"]},
                         "if way == 'raises':\n    raise ValueError('no luck')\nif way != 'silent':\n"
                         "    mlc.log_metric('auc', math.nan if way == 'nan' else 0.9)")
    done = tune(path, {"way": ["fine", "raises", "silent", "nan"]}, metric="auc", direction="maximize", sampler="grid", jobs=2)
    reasons = {row.params["way"]: (row.status, row.reason) for row in done.rows}
    assert reasons["fine"] == ("finished", None) and reasons["nan"] == ("failed", "auc is NaN")
    assert reasons["raises"][0] == "failed" and "ValueError: no luck" in reasons["raises"][1]
    assert reasons["silent"] == ("failed", "the metric 'auc' was not logged.")
    assert done.best_params == {"way": "fine"} and runs.get(project.store, done.best.run).status == "finished"


def test_a_hopeless_study_ends(local: Store) -> None:
    "max_failures stops it, with why; it counts what failed in this session only."
    def objective(x: float) -> float:
        raise RuntimeError("never")

    done = tune(objective, {"x": "uniform(0, 1)"}, trials=50, max_failures=4, study="bad", store=local)
    assert (done.status, done.reason, done.number("failed"), done.best, done.json()["best"]) == ("failed", "4 trials failed", 4, None, None)
    again = tune(objective, trials=50, max_failures=2, study="bad", resume=True, store=local)
    assert (again.number("failed"), again.reason) == (6, "2 trials failed")
    assert [runs.get(local, each.run).status for each in (done, again)] == ["failed", "failed"]


def test_what_a_study_cannot_store_is_asked_for_again(local: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    "Data, objects and secrets of a study are in no database; the study goes on when they are given again, and all else is remembered."
    monkeypatch.setenv("MLCYCLE_SECRETS", "PASSWORD")
    monkeypatch.setenv("PASSWORD", "xyzzy-plugh")
    data, received = object(), []

    def objective(x: float, **fixed: Any) -> float:
        received.append(fixed)
        return x

    fixed = {"data": data, "password": "xyzzy-plugh", "rate": 0.5, "names": ["a", "b"]}
    tune(objective, {"x": "uniform(0, 1)"}, trials=1, study="s", fixed=fixed, store=local)
    assert "xyzzy" not in json.dumps(open_study(local, "s").user_attrs)
    with pytest.raises(UsageError, match=r"data of the study 's'.*Give it again"):
        tune(objective, trials=2, study="s", resume=True, store=local)
    tune(objective, trials=2, study="s", resume=True, fixed={"data": data, "password": "xyzzy-plugh"}, store=local)
    assert received == [fixed, fixed]


def test_an_estimator_is_judged_as_before(local: Store) -> None:
    "Scoring and folds go on; another scorer is refused, so that no two scores share one name."
    from sklearn.datasets import load_iris
    from sklearn.tree import DecisionTreeClassifier

    X, y = load_iris(return_X_y=True)
    made = {"X": X, "y": y, "study": "tree", "store": local, "trials": 1}
    first = tune(DecisionTreeClassifier(), {"max_depth": [1]}, scoring="neg_log_loss", cv=3, **made)
    again = tune(DecisionTreeClassifier(), resume=True, **{**made, "trials": 2})
    assert again.metrics == ("neg_log_loss",) and len({row.values for row in again.rows}) == 1 and again.rows[0] == first.rows[0]
    for other in ({"scoring": "accuracy"}, {"cv": 4}):
        with pytest.raises(UsageError, match="of the study 'tree'"):
            tune(DecisionTreeClassifier(), resume=True, **{**made, "trials": 3}, **other)


WRONG: list[tuple[Any, dict[str, Any]]] = [
    ({"x": "loguniform(0, 1)"}, {}), ({"x": "int(1, 2) when y == 3"}, {}), ({"x": "uniform(0, 1)", "constraints": ["x < z"]}, {}), ({}, {}),
    ({"x": "uniform(0, 1)"}, {"sampler": "grid"}), ({"x": "uniform(0, 1)"}, {"sampler": "bayes"}), ({"x": "uniform(0, 1)"}, {"pruner": "best"}),
    ({"x": "uniform(0, 1)"}, {"trials": 0}), ({"x": "uniform(0, 1)"}, {"trials": None}), ({"x": "uniform(0, 1)"}, {"direction": "up"}),
    ({"x": "uniform(0, 1)"}, {"resume": True}), ({"x": "uniform(0, 1)"}, {"enqueue": [{"z": 1}]}), ({"x": "uniform(0, 1)"}, {"from_study": "none"}),
    ({"x": "uniform(0, 1)"}, {"study": "there"}), ({"x": "uniform(0, 2)"}, {"study": "there", "resume": True}),
    (None, {"study": "there", "resume": True, "metric": "other"}), (None, {"study": "there", "resume": True, "direction": "maximize"}),
    ({"x": "uniform(0, 1)"}, {"jobs": 0}), ({"x": "uniform(0, 1)"}, {"max_failures": 0}), ({"x": "uniform(0, 1)"}, {"timeout": -1.0})]


def test_what_is_wrong_is_refused_before_anything_ran(local: Store) -> None:
    "A wrong space, option or resume is an error that leaves no run and no study."
    from mlcycle.store import query
    from mlcycle.tune.storage import study_names

    def parabola_of(x: float) -> float:
        return x

    tune(parabola_of, {"x": "uniform(0, 1)"}, trials=2, study="there", store=local)
    before, left = len(query.page(local)), []
    for space, more in WRONG:
        with pytest.raises(MlcycleError):
            tune(parabola_of, space, **{"trials": 3, "store": local, **more})
        if len(query.page(local)) > before or study_names(local) != ["there"]:
            left.append((space, more, study_names(local)))
            before = len(query.page(local))
    with pytest.raises(UsageError, match="has another space"):
        tune(parabola_of, {"x": "uniform(0, 2)"}, trials=3, study="there", resume=True, store=local)
    assert left == []


def test_a_wrong_notebook_is_refused_before_anything_ran(project: Any) -> None:
    "A wrong space in the cell is refused with its line, a parameter that is not there by name, a fixed value of the wrong kind too."
    path = project.write({"source": "lr = 0.1  # tune: loguniform(1e-4, 1)\nepochs = 3\ndepth = 2  # tune: int(9, 3)", "tags": ["parameters"]})
    with pytest.raises(UsageError, match=r"train\.ipynb cell 1, line 3"):
        tune(path, metric="loss", trials=3)
    good = project.write({"source": "lr = 0.1  # tune: loguniform(1e-4, 1)\nepochs = 3", "tags": ["parameters"]}, "x = lr")
    with pytest.raises(UsageError, match="momentum"):
        tune(good, {"momentum": "uniform(0, 1)"}, metric="loss", trials=3)
    with pytest.raises(MlcycleError):
        tune(good, metric="loss", trials=3, fixed={"epochs": "many"}, study="s")
    with pytest.raises(UsageError, match="Which metric"):
        tune(good, trials=3)
    assert [run for run in project.runs() if run.kind != "study"] == []
    assert project.runs() == []


# What it gives


def test_several_objectives_give_a_front(local: Store) -> None:
    "The Pareto front is Optuna's own, and no trial of it is beaten by another."
    done = tune(lambda x, y: (x**2 + y, (x - 2) ** 2 + y), {"x": "uniform(-1, 3)", "y": "uniform(0, 1)"}, metric="near, far", sampler="nsga2",
                direction="minimize", trials=60, seed=1, store=local)
    assert {row.number for row in done.front} == {t.number for t in open_study(local, done.study).best_trials} and len(done.front) > 2
    assert done.metrics == ("near", "far") and done.json()["best"]["value"] == list(done.front[0].values)
    assert len(done.frame()[["near", "far"]].dropna()) == 60
    mixed = tune(lambda x: {"up": x, "down": x * x}, {"x": "uniform(0, 1)"}, metric="up,down", direction="maximize,minimize", trials=10, store=local)
    assert {row.number for row in mixed.front} == {t.number for t in open_study(local, mixed.study).best_trials}


def test_a_study_begins_warm(local: Store) -> None:
    "Params that are known to be good are tried first; the finished trials of another study are taken over and counted."
    space = {"x": "uniform(-3, 3)"}
    first = tune(parabola, space, trials=4, enqueue=[{"x": 0.5}, {"x": 1.0}, {"x": 0.5}], study="first", store=local)
    assert [row.params["x"] for row in first.rows][:2] == [0.5, 1.0] and first.best_value == 0.0 and first.number("finished") == 4
    second = tune(parabola, space, trials=6, from_study="first", study="second", store=local)
    assert [row.params for row in second.rows][:4] == [row.params for row in first.rows]
    assert second.number("finished") == 6 and second.best_value == 0.0
    assert len(runs.children(local, runs.get(local, second.run))) == 2  # what was taken over was not run again
    assert "4 of the 4 finished trials of first were taken over." in second.warnings


def test_json_is_what_was_promised(local: Store) -> None:
    "Exactly the documented keys, counted over the whole study, over two sessions; the best is the best over the runs in the store."
    def objective(x: float) -> float:
        if x < -2:
            raise ValueError("too small")
        for step in range(3):
            mlc.report(abs(x - 1) + 1 / (step + 1), step)
        return abs(x - 1)

    tune(objective, {"x": "uniform(-3, 3)"}, trials=15, seed=2, study="s", store=local)
    done = tune(objective, trials=30, seed=2, study="s", resume=True, store=local)
    told = json.loads(json.dumps(done.json()))
    assert set(told) == {"study", "finished", "pruned", "failed", "best"} and set(told["best"]) == {"value", "params", "run"}
    assert told["study"] == "s" and told["finished"] + told["pruned"] + told["failed"] == 30 and min(told["failed"], told["pruned"]) > 0
    statuses = [runs.get(local, row.run).status for row in done.rows]
    assert statuses == [row.status for row in done.rows] and len({row.run for row in done.rows}) == 30
    assert told["best"]["value"] == min(abs(row.params["x"] - 1) for row in done.rows if row.status == "finished")
    assert read_study(open_study(local, "s")).json() == done.json()


def test_an_estimator_is_tuned_and_registered(local: Store) -> None:
    "The best is scikit-learn's own cross-validation at these params; the version predicts what a fit on all the data predicts, and names the study."
    import numpy as np
    from sklearn.datasets import load_breast_cancer
    from sklearn.model_selection import StratifiedKFold, cross_val_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import SVC

    X, y = load_breast_cancer(return_X_y=True, as_frame=True)
    model, cv = make_pipeline(StandardScaler(), SVC()), StratifiedKFold(3, shuffle=True, random_state=0)
    done = tune(model, {"svc__C": "loguniform(1e-2, 1e2)"}, X=X, y=y, cv=cv, scoring="roc_auc", trials=8, seed=0, store=local, register="tumour",
                study="svm")
    best = make_pipeline(StandardScaler(), SVC(C=done.best_params["svc__C"]))
    assert done.best_value == pytest.approx(cross_val_score(best, X, y, cv=cv, scoring="roc_auc").mean(), abs=1e-12)
    assert done.version and done.metrics == ("roc_auc",) and done.directions == ("maximize",)
    with pytest.raises(Exception, match="not fitted"):
        model.predict(X)
    assert np.array_equal(mlc.load_model(done.version, store=local).predict(X), best.fit(X, y).predict(X))
    child = next(run for run in runs.children(local, runs.get(local, done.run)) if run.name == "svm-best")
    assert child.status == "finished" and done.version == "tumour/1"


def test_the_best_notebook_is_registered(project: Any) -> None:
    "The version is the model that the best trial logged, from the best trial's run."
    path = project.write("import mlcycle as mlc\nfrom sklearn.datasets import load_iris\nfrom sklearn.tree import DecisionTreeClassifier\n"
                         "X, y = load_iris(return_X_y=True)", {"source": "depth = 1", "tags": ["parameters"]},
                         "model = DecisionTreeClassifier(max_depth=depth, random_state=0).fit(X, y)\nmlc.log_metric('acc', model.score(X, y))\n"
                         "mlc.log_model(model, input_example=X[:2])")
    done = tune(path, {"depth": "int(1, 3)"}, metric="acc", direction="maximize", sampler="grid", register="iris")
    assert (done.best_params, done.version) == ({"depth": 3}, "iris/1"), done.warnings
    assert mlc.load_model("iris", store=project.store).get_depth() == 3


# How it ends


@forking
def test_pruning_in_a_notebook(project: Any, kernels: Any) -> None:
    "What the median prunes ends at once: its run is `pruned` with what it logged, the cells below did not run, and no kernel is left."
    path = project.write("import time\nimport mlcycle as mlc", {"source": "x = 0.0", "tags": ["parameters"]},
                         "for step in range(5):\n    mlc.report(x + step, step)", "open(f'through-{x}', 'w').close()\nmlc.log_metric('loss', x)")
    done = tune(path, metric="loss", trials=8, jobs=1, enqueue=[{"x": float(v)} for v in (0, 1, 2, 3, 4, 90, 91, 92)], space={"x": "uniform(0, 99)"})
    assert [row.status for row in done.rows] == ["finished"] * 5 + ["pruned"] * 3
    for row in done.rows[5:]:
        run = runs.get(project.store, row.run)
        assert (run.status, run.reason) == ("pruned", "pruned at step 0 (cell 3)") == (row.status, row.reason) and row.values == ()
        assert not (project.folder / f"through-{row.params['x']}").exists()
    assert done.json() | {"best": None} == {"study": done.study, "finished": 5, "pruned": 3, "failed": 0, "best": None}
    assert kernels(os.getpid()) == []


@forking
def test_limits_of_a_trial(project: Any) -> None:
    "A trial that takes too much memory, and one that takes too long, fail with that reason; the others finish."
    path = project.write("import time\nimport mlcycle as mlc", {"source": "way = ''", "tags": ["parameters"]},
                         "if way == 'big':\n    data = bytearray(2_000_000_000)\nif way == 'long':\n    time.sleep(60)\nmlc.log_metric('loss', 1.0)")
    done = tune(path, {"way": ["big", "long", "fine"]}, metric="loss", sampler="grid", memory="1G", trial_timeout=6)
    by = {row.params["way"]: row for row in done.rows}
    assert (by["big"].status, by["long"].status, by["fine"].status) == ("failed", "failed", "finished")
    assert "emory" in by["big"].reason and "6 s" in by["long"].reason, (by["big"].reason, by["long"].reason)


def test_time_and_flatness(local: Store) -> None:
    "No trial is begun after `timeout`; `stop_when_flat` stops where nothing gets better, and says so."
    began = time.monotonic()
    done = tune(lambda x: time.sleep(0.1) or x, {"x": "uniform(0, 1)"}, timeout=2.0, sampler="random", store=local)
    assert time.monotonic() - began >= 2.0 and 1 <= done.number("finished") <= 20 and done.status == "finished"
    flat = tune(lambda x: 1.0, {"x": "uniform(0, 1)"}, trials=100, stop_when_flat=7, sampler="random", store=local)
    assert flat.number("finished") == 8 and any("no better value for 7 trials" in note for note in flat.notes)


STUDY = """
import json, os, sys, time
import mlcycle as mlc
from mlcycle.notebooks.record.result import NotebookInterrupted
def objective(x):
    open('begun', 'a').write(f'{x!r}\\n')
    time.sleep(float(os.environ.get('SLEEP', 0.05)))
    return x
target = objective if os.environ['TARGET'] == 'function' else 'train.ipynb'
try:
    done = mlc.tune(target, {'x': 'uniform(0, 1)'}, metric='loss', trials=8, jobs=int(os.environ['JOBS']), seed=1, study='s', resume=True,
                    progress=False)
except NotebookInterrupted as e:
    print(json.dumps({**e.result.json(), 'status': e.result.status, 'reason': e.result.reason, 'message': str(e)}))
    sys.exit(9)
print(json.dumps({**done.json(), 'status': done.status}))
"""


@pytest.mark.parametrize(("target", "jobs"), [("function", 1), ("function", 2), pytest.param("notebook", 2, marks=forking)])
def test_ctrl_c_and_on(project: Any, wait_for: Any, target: str, jobs: int) -> None:
    "Ctrl-C cancels what runs and gives what there is; `resume` runs the interrupted params first, and every trial counts once."
    path = project.folder / "begun"
    project.write("import os, time\nimport mlcycle as mlc", {"source": "x = 0.0", "tags": ["parameters"]},
                  "open('begun', 'a').write(f'{x!r}\\n')\ntime.sleep(float(os.environ.get('SLEEP', 0.05)))\nmlc.log_metric('loss', x)")
    process = project.start(STUDY, TARGET=target, JOBS=str(jobs), SLEEP="0.7")
    wait_for(lambda: path.exists() and len(path.read_text().split()) >= 3)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    told = json.loads(out or "{}")
    assert process.returncode == 9, err
    begun = path.read_text().split()
    rows = read_study(open_study(project.store, "s")).rows
    waiting = [repr(row.params["x"]) for row in rows if row.status == "waiting"]
    assert told["status"] == "cancelled" and "interrupted (Ctrl-C)" in told["reason"] and "--resume --study s" in told["message"]
    assert told["finished"] == sum(row.status == "finished" for row in rows) == len(done := [x for x in begun if x not in waiting])
    assert bool(waiting) == ((target, jobs) != ("function", 2))  # threads cannot be interrupted: what they were at is finished
    (session,) = [run for run in project.runs() if run.kind == "study"]
    assert session.status == "cancelled" and not any(run.status == "running" for run in project.runs())
    path.unlink()
    again = project.start(STUDY, TARGET=target, JOBS=str(jobs))
    out, err = again.communicate(timeout=120)
    assert again.returncode == 0, err
    after, told = path.read_text().split(), json.loads(out)
    assert (told["finished"], told["pruned"], told["failed"]) == (8, 0, 0)
    assert sorted(after[:len(waiting)]) == sorted(waiting) and len(after) + len(done) == 8  # a trial that waits may not have come to its cell
    rows = read_study(open_study(project.store, "s")).rows
    assert sorted(repr(row.params["x"]) for row in rows if row.status == "finished") == sorted({*begun, *after})
    assert told["best"]["value"] == min(map(float, {*begun, *after}))


def test_a_second_ctrl_c_leaves_functions_behind(tmp_path: Path) -> None:
    "Functions in threads cannot be ended: one Ctrl-C waits for them, a second one does not; what they tried is tried again on resume."
    code = ("import os, time, mlcycle as mlc\nfrom mlcycle.store.connect import open_store\nstore = open_store('runs.db')\n\n"
            "def slow(x):\n    os.write(1, b'begun\\n')  # one write, since two threads do it\n    time.sleep(60)\n    return x\n\n"
            "mlc.tune(slow, {'x': 'uniform(0, 1)'}, trials=4, jobs=2, study='slow', store=store, progress=False)")
    process = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert [process.stdout.readline(), process.stdout.readline()] == ["begun\n", "begun\n"]
    for _ in range(2):
        time.sleep(1.0)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert "--resume --study slow goes on" in err

    def slow(x: float) -> float:
        return x

    with open_store(tmp_path / "runs.db") as store:
        left = read_study(open_study(store, "slow")).rows
        done = tune(slow, trials=4, study="slow", resume=True, store=store)
    assert [row.status for row in left] == ["running", "running"] and done.number("finished") == 4 and done.number("retried") == 2
    assert [row.params for row in done.rows if row.attempt == 2] == [row.params for row in left]


@pytest.mark.parametrize("value", [5, "a", None, True, -0.1, float("nan")])
def test_params_to_try_first_lie_in_the_space(local, value):
    "A value outside of the space, or of another type, is refused before there is a study."
    with pytest.raises(UsageError, match="which is not in uniform"):
        tune(lambda x: x, {"x": "uniform(0, 1)"}, trials=1, enqueue=[{"x": 0.5}, {"x": value}], study="none", store=local)
    assert tune(lambda x: x, {"x": "uniform(0, 1)"}, trials=1, enqueue=[{"x": 1}], study="some", store=local).rows[0].params == {"x": 1.0}
