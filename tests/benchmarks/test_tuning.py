"What a study costs on top of Optuna: a trial of a function, a trial of a notebook, and a trial after thousands of others."
from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import optuna
import pytest
import sqlalchemy
from nbformat.v4 import new_code_cell, new_notebook

import mlcycle as mlc
from mlcycle.notebooks.warm.pool import close_all
from mlcycle.store.connect import Store, open_store
from mlcycle.tune.storage import make_study, quietly
from tests.benchmarks.conftest import Race

SPACE = {"x": "uniform(-3, 3)", "y": "loguniform(1e-3, 1)"}
IMPORTS = ("import numpy as np\nimport pandas as pd\nfrom sklearn.datasets import load_breast_cancer\n"
           "from sklearn.linear_model import LogisticRegression\nfrom sklearn.model_selection import train_test_split\n"
           "from sklearn.pipeline import make_pipeline\nfrom sklearn.preprocessing import StandardScaler\n"
           "X, y = load_breast_cancer(return_X_y=True)\nXa, Xb, ya, yb = train_test_split(X, y, random_state=0)")
FIT = "model = make_pipeline(StandardScaler(), LogisticRegression(C=C, max_iter=200)).fit(Xa, ya)\nacc = model.score(Xb, yb)"


def objective(x: float, y: float) -> float:
    return x * x + y


def suggesting(trial: optuna.Trial) -> float:
    return objective(trial.suggest_float("x", -3, 3), trial.suggest_float("y", 1e-3, 1, log=True))


def bare(folder: Path, name: str, **more: Any) -> optuna.Study:
    "A study of Optuna by itself, on its own storage in a database that is set up like ours: a write costs the same."
    with open_store(folder / "bare.db") as store, quietly():
        storage = optuna.storages.RDBStorage(store.db.url, engine_kwargs={"connect_args": {"timeout": 60}}, heartbeat_interval=10, grace_period=60)
        storage.engine.dispose()
        sqlalchemy.event.listen(storage.engine, "connect", lambda connection, _: connection.execute("PRAGMA synchronous=NORMAL"))
        return optuna.create_study(study_name=name, storage=storage, sampler=optuna.samplers.RandomSampler(seed=0), **more)


def test_a_trial_of_a_function(race: Race, local: Store, tmp_path: Path) -> None:
    "Our bookkeeping, a run of its own included, on top of bare Optuna on the same kind of storage, with the same params."
    trials, numbers = race.size(100, 5), iter(range(1000))
    found: list[list[dict[str, Any]]] = [[], []]

    def ours() -> None:
        done = mlc.tune(objective, SPACE, sampler="random", pruner="none", seed=0, trials=trials, store=local, progress=False)
        found[0] = [row.params for row in done.rows]

    def theirs() -> None:
        study = bare(tmp_path, f"s{next(numbers)}")
        with quietly():
            study.optimize(suggesting, n_trials=trials)
            found[1] = [trial.params for trial in study.get_trials()]

    ours(), theirs()
    race.run("a trial of a function, on top of bare Optuna", ours, theirs, rounds=9, each=trials, less=True, bound=5.0)
    assert found[0] == found[1]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="kernels are forked on Linux only")
def test_notebooks_as_trials(race: Race, local: Store, tmp_path: Path) -> None:
    "A hundred trials of a notebook, two at a time, against the same work as a function in Optuna's two threads; one native thread each in both."
    from threadpoolctl import threadpool_limits

    trials, path, numbers = race.size(100, 4), tmp_path / "train.ipynb", iter(range(1000))
    cells = [IMPORTS + "\nimport mlcycle as mlc", "C = 1.0", FIT + "\nmlc.log_metric('acc', acc)"]
    nbformat.write(new_notebook(cells=[new_code_cell(cell, metadata={"tags": ["parameters"]} if i == 1 else {}) for i, cell in enumerate(cells)],
                                metadata={"kernelspec": {"name": "python3", "language": "python", "display_name": "Python 3"}}), path)
    names: dict[str, Any] = {}
    exec(IMPORTS, names)

    def plain(trial: optuna.Trial) -> float:
        mine = {**names, "C": trial.suggest_float("C", 1e-3, 100, log=True)}
        with threadpool_limits(1):
            exec(FIT, mine)
        return mine["acc"]

    def ours() -> None:
        done = mlc.tune(path, {"C": "loguniform(1e-3, 100)"}, metric="acc", direction="maximize", sampler="random", pruner="none", seed=0,
                        trials=trials, jobs=2, store=local, progress=False)
        assert done.number("finished") == trials and not done.warnings

    def theirs() -> None:
        study = bare(tmp_path, f"s{next(numbers)}", direction="maximize")
        with quietly():
            study.optimize(plain, n_trials=trials, n_jobs=2)

    race.run(f"{trials} trials of a notebook, 2 jobs, against a plain function", ours, theirs, rounds=3, bound=3.0, ratio=True)
    close_all()


@pytest.mark.parametrize("size", [100, 1000, 5000])
def test_a_trial_after_many(race: Race, tmp_path: Path, size: int) -> None:
    "What we add to a trial does not grow with the trials that are there; `random`, so that the sampler costs nothing."
    before, more = race.size(size, 20), race.size(20, 3)
    prepared = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    with quietly():
        prepared.optimize(suggesting, n_trials=before)
    with open_store(tmp_path / "many" / "mlcycle.db") as store:
        optuna_only = bare(tmp_path, "many")
        with quietly():
            optuna_only.add_trials(prepared.trials)
        from mlcycle.tune.spaces.given import to_space

        known = {"target": "objective", "metrics": ["objective"], "directions": ["minimize"], "space": to_space(SPACE).json(), "sampler": "random",
                 "pruner": "none", "seed": 0}
        with quietly():
            make_study(store, "many", ["minimize"], known).add_trials(prepared.trials)
        spent: dict[str, list[float]] = {"ours": [], "theirs": []}

        def timing(which: str, function: Callable[..., float]) -> Callable[..., float]:
            def timed(*args: Any, **params: Any) -> float:
                spent[which].append(time.perf_counter())
                return function(*args, **params)

            return timed

        counted = before

        def tuned_objective(x: float, y: float) -> float:
            spent["ours"].append(time.perf_counter())
            return objective(x, y)

        tuned_objective.__name__ = "objective"

        def ours() -> None:
            nonlocal counted
            counted += more
            spent["ours"].clear()
            done = mlc.tune(tuned_objective, sampler="random", pruner="none", trials=counted, study="many", resume=True, store=store, progress=False)
            assert done.number("finished") == counted
            each["ours"].append((spent["ours"][-1] - spent["ours"][0]) / (more - 1))

        def theirs() -> None:
            spent["theirs"].clear()
            with quietly():
                optuna_only.optimize(timing("theirs", suggesting), n_trials=more)
            each["theirs"].append((spent["theirs"][-1] - spent["theirs"][0]) / (more - 1))

        each: dict[str, list[float]] = {"ours": [], "theirs": []}
        rounds = race.size(7, 1)
        for _ in range(rounds):
            theirs()
            ours()
        race.benchmark(lambda: None)  # from one trial to the next is what is measured, not the start of a session
        if race.timed:
            mine, raw = (sorted(each[which])[rounds // 2] * 1e3 for which in ("ours", "theirs"))
            race.note(f"a trial after {size} others, on top of bare Optuna", f"{mine:.3g} ms", f"{raw:.3g} ms", f"{mine - raw:.2f} ms", "<= 5 ms",
                      mine - raw <= 5)
