"Grid, random and Bayesian search at equal budget on a real objective, in one report. `ADULT_CSV=… pytest -s` runs it on the census data."
from __future__ import annotations

import os
from pathlib import Path

import pandas as pd
import pytest
from sklearn.datasets import load_breast_cancer
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.model_selection import StratifiedKFold

import mlcycle as mlc
from mlcycle.store.connect import Store
from mlcycle.tune.comparing import best_so_far, plot_best_so_far

SPACE = {"learning_rate": "loguniform(0.005, 1)", "max_leaf_nodes": "int(3, 63, log=true)", "l2_regularization": "loguniform(1e-4, 100)"}
GRID = {"learning_rate": [0.01, 0.1, 0.5], "max_leaf_nodes": [4, 15, 63], "l2_regularization": [0.001, 1.0]}


def adult(path: str) -> tuple[pd.DataFrame, pd.Series]:
    "The census data, its words as categories."
    data = pd.read_csv(path)
    X = data.drop(columns="class")
    words = X.select_dtypes(exclude="number").columns
    return X.astype(dict.fromkeys(words, "category")), (data["class"].str.startswith(">50K")).astype(int)


@pytest.fixture
def data() -> tuple[pd.DataFrame, pd.Series, int]:
    "Rows, targets, and how many iterations to boost."
    if os.environ.get("ADULT_CSV"):
        return *adult(os.environ["ADULT_CSV"]), 60
    return *load_breast_cancer(return_X_y=True, as_frame=True), 8


def test_three_samplers_at_equal_budget(store: Store, data: tuple[pd.DataFrame, pd.Series, int], tmp_path: Path) -> None:
    "The same estimator, folds and number of trials; a curve of each, and a picture of all."
    X, y, iterations = data
    model = HistGradientBoostingClassifier(max_iter=iterations, categorical_features="from_dtype", early_stopping=False, random_state=0)
    folds = StratifiedKFold(3, shuffle=True, random_state=0)
    found = {name: mlc.tune(model, GRID if name == "grid" else SPACE, X=X, y=y, cv=folds, scoring="roc_auc", sampler=name, study=name, seed=3, jobs=2,
                            trials=18, pruner="none", store=store, progress=False) for name in ("grid", "random", "tpe")}
    curves = best_so_far(found)
    assert list(curves.columns) == ["grid", "random", "tpe"] and len(curves) == 18 and curves.notna().all().all()
    assert (curves.diff().dropna() >= 0).all().all() and {name: f.best_value for name, f in found.items()} == curves.iloc[-1].to_dict()
    figure = plot_best_so_far(found)
    figure.savefig(tmp_path / "best-so-far.png", dpi=110)
    assert len(figure.axes[0].lines) == 3 and (tmp_path / "best-so-far.png").stat().st_size > 5000
    print(curves.iloc[[0, 4, 9, 17]].round(5), {name: f.best_params for name, f in found.items()}, tmp_path / "best-so-far.png", sep="\n")
