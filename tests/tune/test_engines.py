"Optuna's engines are Optuna's: its own storage suite passes, and every sampler proposes what it proposes without us, to the last bit."
from __future__ import annotations

import math
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import optuna
import pytest
from optuna.testing.pytest_storages import StorageTestCase

import mlcycle as mlc
from mlcycle.errors import ConfigError
from mlcycle.store.connect import Store
from mlcycle.tune.engines import make_sampler
from mlcycle.tune.storage import quietly, study_storage

optuna.logging.set_verbosity(optuna.logging.ERROR)


class TestStorage(StorageTestCase):
    "The storage as it is set up here, in the database that the runs are in, of each kind."

    @pytest.fixture
    def storage(self, store: Store) -> Any:
        "Empty, beside the store's own tables."
        with quietly():
            return study_storage(store)


def branin(x: float, y: float) -> float:
    "Three equal minima of 0.397887. Source: Dixon & Szegö 1978."
    return (y - 5.1 * x**2 / (4 * math.pi**2) + 5 * x / math.pi - 6) ** 2 + 10 * (1 - 1 / (8 * math.pi)) * math.cos(x) + 10


def hartmann(**x: float) -> float:
    "One minimum of -3.32237 among many local ones. Source: Dixon & Szegö 1978."
    weights, wide = (1.0, 1.2, 3.0, 3.2), ((10, 3, 17, 3.5, 1.7, 8), (0.05, 10, 17, 0.1, 8, 14), (3, 3.5, 1.7, 10, 17, 8), (17, 8, 0.05, 10, 0.1, 14))
    places = ((1312, 1696, 5569, 124, 8283, 5886), (2329, 4135, 8307, 3736, 1004, 9991),
              (2348, 1451, 3522, 2883, 3047, 6650), (4047, 8828, 8732, 5743, 1091, 381))
    point = [x[f"x{i}"] for i in range(6)]
    return -sum(w * math.exp(-sum(a * (v - p / 1e4) ** 2 for a, v, p in zip(row, point, place, strict=True)))
                for w, row, place in zip(weights, wide, places, strict=True))


def conditional(model: str, depth: int = 0, lr: float = 1.0, C: float = 1.0) -> float:
    "A linear model that is good at best, a tree that is better with the right depth and rate: 0 at depth 7 and a rate of 0.01."
    return (depth - 7) ** 2 / 25 + math.log10(lr / 0.01) ** 2 if model == "tree" else 0.5 + math.log10(C) ** 2


def suggest_branin(trial: optuna.Trial) -> float:
    return branin(trial.suggest_float("x", -5, 10), trial.suggest_float("y", 0, 15))


def suggest_hartmann(trial: optuna.Trial) -> float:
    return hartmann(**{f"x{i}": trial.suggest_float(f"x{i}", 0, 1) for i in range(6)})


def suggest_conditional(trial: optuna.Trial) -> float:
    if trial.suggest_categorical("model", ["linear", "tree"]) == "tree":
        return conditional("tree", trial.suggest_int("depth", 1, 12), trial.suggest_float("lr", 1e-4, 1, log=True))
    return conditional("linear", C=trial.suggest_float("C", 1e-3, 1e3, log=True))


PROBLEMS: dict[str, tuple[Callable[..., float], dict[str, str], Callable[[optuna.Trial], float], float, float]] = {
    "branin": (branin, {"x": "uniform(-5, 10)", "y": "uniform(0, 15)"}, suggest_branin, 0.397887, 0.1),
    "hartmann": (hartmann, {f"x{i}": "uniform(0, 1)" for i in range(6)}, suggest_hartmann, -3.32237, 0.35),
    "conditional": (conditional, {"model": "{linear, tree}", "depth": "int(1, 12) when model == 'tree'",
                                  "lr": "loguniform(1e-4, 1) when model == 'tree'", "C": "loguniform(1e-3, 1e3) when model == 'linear'"},
                    suggest_conditional, 0.0, 0.1)}
BARE = {"tpe": lambda: optuna.samplers.TPESampler(multivariate=True, group=True, seed=11), "random": lambda: optuna.samplers.RandomSampler(seed=11),
        "qmc": lambda: optuna.samplers.QMCSampler(seed=11, scramble=True, warn_independent_sampling=False),
        "nsga2": lambda: optuna.samplers.NSGAIISampler(seed=11), "gp": lambda: optuna.samplers.GPSampler(seed=11),
        "cmaes": lambda: optuna.samplers.CmaEsSampler(seed=11, warn_independent_sampling=False)}
PACKAGES = {"gp": "torch", "cmaes": "cmaes"}


@pytest.mark.parametrize("sampler", BARE)
@pytest.mark.parametrize("problem", PROBLEMS)
def test_samplers_propose_what_they_propose_without_us(local: Store, problem: str, sampler: str) -> None:
    "Params and values of every trial are those of bare Optuna, to the last bit; where the sampler learns, it comes near the known optimum."
    if (package := PACKAGES.get(sampler)) and not find_spec(package):
        with pytest.raises(ConfigError, match=f"needs {package}: pip install {package}"):
            make_sampler(sampler)
        return
    function, space, suggesting, optimum, near = PROBLEMS[problem]
    trials = {"gp": 20, "tpe": 60, "cmaes": 60, "nsga2": 110}.get(sampler, 30)  # NSGA-II's second generation begins at 50; the others learn nothing
    with quietly():
        bare = optuna.create_study(sampler=BARE[sampler]())
        bare.optimize(suggesting, n_trials=trials)
    ours = mlc.tune(function, space, sampler=sampler, seed=11, trials=trials, store=local, progress=False)
    expected = [(t.number, "finished", list(t.params.items()), tuple(t.values)) for t in bare.trials]
    assert [(row.number, row.status, list(row.params.items()), row.values) for row in ours.rows] == expected
    assert (ours.best_value, ours.best_params) == (bare.best_value, bare.best_params)
    if sampler == "tpe":
        assert 0 <= ours.best_value - optimum + 1e-5 <= near


NOTEBOOK = ["import mlcycle as mlc", {"source": "x = 0.0\nlr = 0.1", "tags": ["parameters"]},
            "for step in range(6):\n    mlc.report((x - 1) ** 2 + lr / (step + 1), step)\nmlc.log_metric('loss', (x - 1) ** 2 + lr / 6)"]


def reporting(x: float, lr: float) -> float:
    "What `NOTEBOOK` does."
    for step in range(6):
        mlc.report((x - 1) ** 2 + lr / (step + 1), step)
    return (x - 1) ** 2 + lr / 6


def test_the_same_seed_gives_the_same_trials(project: Any) -> None:
    "A function and a notebook, pruned by the median, twice each: all four are the same, to the last bit, with the same trials pruned."
    path, space = project.write(*NOTEBOOK), {"x": "uniform(-3, 3)", "lr": "loguniform(1e-3, 1)"}
    found = []
    for target in (reporting, path, reporting, path):
        done = mlc.tune(target, space, metric="loss", trials=18, seed=3, store=project.store, progress=False)
        found.append([(row.number, row.status, list(row.params.items()), row.values) for row in done.rows])
    assert found[0] == found[1] == found[2] == found[3]
    assert {row[1] for row in found[0]} == {"finished", "pruned"}
