"A year of monthly windows times five models, here and on a cluster with PostgreSQL and S3: the same numbers from the same notebook."
from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mlcycle.notebooks.sweep.runner import run_many
from mlcycle.store import runs

MODELS = ["mean", "ridge", "tree", "forest", "hgb"]
WINDOWS = [str(month) for month in pd.period_range("2012-01", "2012-12", freq="M")]
CELLS = [
    """import numpy as np
import pandas as pd
from sklearn.dummy import DummyRegressor
from sklearn.ensemble import HistGradientBoostingRegressor, RandomForestRegressor
from sklearn.linear_model import Ridge
from sklearn.metrics import mean_absolute_error, r2_score
from sklearn.tree import DecisionTreeRegressor

import mlcycle as mlc""",
    {"source": "month = '2012-01'   # tested; everything before it is trained on\nmodel = 'ridge'\ndata = ''\nseed = 7", "tags": ["parameters"]},
    """rides = pd.read_csv(data, parse_dates=["dteday"])
features = ["season", "yr", "mnth", "hr", "holiday", "weekday", "workingday", "weathersit", "temp", "atemp", "hum", "windspeed"]
when = rides["dteday"].dt.to_period("M").astype(str)
train, test = rides[when < month], rides[when == month]
mlc.log_metrics({"train_rows": len(train), "test_rows": len(test)})""",
    """models = {"mean": DummyRegressor(), "ridge": Ridge(), "tree": DecisionTreeRegressor(max_depth=8, random_state=seed),
          "forest": RandomForestRegressor(20, max_depth=10, random_state=seed), "hgb": HistGradientBoostingRegressor(max_iter=40, random_state=seed)}
fitted = models[model].fit(train[features], train["cnt"])
predicted = fitted.predict(test[features])
mlc.log_metrics({"mae": mean_absolute_error(test["cnt"], predicted), "r2": r2_score(test["cnt"], predicted)})""",
]


def write_rides(path: Path) -> Path:
    "Two years of rides, four hours a day, of the shape of the UCI table: a daily rhythm, seasons, growth, noise."
    rng, hours = np.random.default_rng(3), pd.date_range("2011-01-01", "2012-12-31 23:00", freq="6h")
    day, hour = hours.day_of_year.to_numpy(), hours.hour.to_numpy()
    temp = 0.5 - 0.3 * np.cos(2 * np.pi * day / 365) + rng.normal(0, 0.05, len(hours))
    count = 60 + 120 * np.sin(np.pi * hour / 24) + 200 * temp + 40 * (hours.year.to_numpy() - 2011) + rng.normal(0, 20, len(hours))
    pd.DataFrame({"dteday": hours.strftime("%Y-%m-%d"), "season": hours.quarter, "yr": hours.year - 2011, "mnth": hours.month, "hr": hour,
                  "holiday": 0, "weekday": hours.day_of_week, "workingday": (hours.day_of_week < 5).astype(int),
                  "weathersit": rng.integers(1, 4, len(hours)), "temp": temp, "atemp": temp + 0.02, "hum": rng.random(len(hours)),
                  "windspeed": rng.random(len(hours)), "cnt": np.clip(count, 0, None).round().astype(int)}).to_csv(path, index=False)
    return path


def numbers(sweep) -> pd.DataFrame:
    "What must be equal: params and metrics of every row."
    frame = sweep.frame()
    return frame[[c for c in frame if c.startswith(("params.", "metrics."))]]


@pytest.mark.needs("postgresql", "s3")
def test_a_sweep_gives_the_same_numbers_here_and_on_a_cluster(project, cluster, team, tmp_path) -> None:
    "2 windows x 5 models; all 12 windows of the real table where RIDES_CSV names it."
    real = os.environ.get("RIDES_CSV")
    data, windows = (Path(real), WINDOWS) if real else (write_rides(tmp_path / "rides.csv"), WINDOWS[::6])
    path = project.write(*CELLS, name="monthly.ipynb")
    grid, fixed = {"month": windows, "model": MODELS}, {"data": str(data)}
    here = run_many(path, grid, fixed=fixed, jobs=2, progress=False)
    there = run_many(path, grid, fixed=fixed, executor=cluster(2).executor, store=team, progress=False)
    assert [row.reason for row in (*here.failed, *there.failed)] == [] and len(here) == len(there) == 5 * len(windows)
    pd.testing.assert_frame_equal(numbers(here), numbers(there), check_exact=True)
    mean = here.frame().groupby("params.model")["metrics.mae"].mean()
    assert mean["hgb"] < mean["ridge"] < mean["mean"]
    assert len(runs.children(team, runs.get(team, there.run))) == 5 * len(windows)
    print(f"\nhere {here.seconds:.1f} s, cluster {there.seconds:.1f} s\n{mean.round(3)}")
