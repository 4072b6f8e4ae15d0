"Commands that only read: what they import, and that they show what the store holds, whatever it holds."
from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mlcycle.store import facts, metrics, runs
from mlcycle.store.connect import open_store
from mlcycle.store.models import create_version, move_alias
from mlcycle.track.active import ActiveRun

HEAVY = ("sqlalchemy", "pandas", "numpy", "sklearn", "psycopg", "IPython", "optuna")
COMMAND = ("import sys\nfrom mlcycle.ui.cli import main\ntry: main()\nexcept SystemExit as e: code = e.code\n"
           f"print([name for name in {HEAVY} if name in sys.modules], code or 0, file=sys.stderr)")


def reading(*words: str, cwd: Path) -> tuple[str, str]:
    "What a command prints, and its last words: the heavy modules that it imported, and its exit code."
    done = subprocess.run([sys.executable, "-c", COMMAND, *words], cwd=cwd, capture_output=True, text=True, stdin=subprocess.DEVNULL,
                          env={**os.environ, "COLUMNS": "200"})
    return done.stdout, done.stderr.splitlines()[-1]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    "A project with runs, and one version of a model."
    folder = tmp_path_factory.mktemp("project")
    with open_store(folder / ".mlcycle" / "mlcycle.db") as store:
        for i in range(4):
            run = ActiveRun(store, runs.create(store, "churn", f"run-{i}"))
            run.log_params({"lr": i / 10, "model": "hgb" if i % 2 else "forest"})
            run.log_metrics({"auc": 0.5 + i / 10})
            run.set_tags({"team": "red"})
            if i == 3:
                run.log_bytes(b"m", "model/model.skops")
                create_version(store, "churn", run.run, "d" * 64, "sklearn", metrics={"auc": 0.8})
                move_alias(store, "churn", "champion", 1, "better")
            run.finish()
        runs.create(store, "churn", "goes-on")
    return folder


@pytest.mark.parametrize("words", [
    ("runs",), ("runs", "--json"), ("runs", "metrics.auc > 0.55 and params.model == 'hgb' or 'goes' in name", "-o", "-metrics.auc"),
    ("runs", "max(metrics.auc) > 0.7", "-n", "1"), ("runs", "-e", "churn", "-o", "params.lr"), ("runs", "status == 'finished'", "-n", "2"),
    ("show", "run-1"), ("show", "goes-on"), ("show", "churn/1"), ("show", "churn@champion"), ("show", "churn"), ("models",), ("models", "--json"),
    ("artifacts", "run-3"), ("events",)], ids=" ".join)
def test_reading_commands_import_nothing_heavy(project: Path, words: tuple[str, ...]) -> None:
    "Who looks at an SQLite store waits for no library: neither SQLAlchemy, which takes longer than any of these queries, nor pandas."
    printed, last = reading(*words, cwd=project)
    assert last == "[] 0" and printed


def test_commands_show_what_is_there(project: Path) -> None:
    "The rows, their order, and the number of those that are left out."
    rows = json.loads(reading("runs", "--json", "-o", "-params.lr", cwd=project)[0])
    assert [row["name"] for row in rows] == ["run-3", "run-2", "run-1", "run-0", "goes-on"] and rows[0]["params"] == {"lr": 0.3, "model": "hgb"}
    assert "2 of 4 runs" in reading("runs", "status == 'finished'", "-n", "2", cwd=project)[0]
    shown = json.loads(reading("show", "churn/1", "--json", cwd=project)[0])
    assert shown["aliases"] == ["champion"] and shown["metrics"] == {"auc": 0.8} and shown["files"][0]["name"] == "model/model.skops"
    assert json.loads(reading("show", "churn", "--json", cwd=project)[0])["history"][0]["why"] == "better"


@pytest.mark.parametrize("folder", ["metrics", "params", "tags"])
def test_a_name_that_no_run_has_is_an_error(project: Path, folder: str, tmp_path: Path) -> None:
    "In a condition and in an order, with what is near; in a store without any run there is nothing to be near, and no run to show."
    near = {"metrics": ("auk", "auc"), "params": ("modle", "model"), "tags": ("taem", "team")}[folder]
    for words in ((f"{folder}.{near[0]} == 1",), ("-o", f"-{folder}.{near[0]}"), ("not name == 'a'", "-o", f"{folder}[{near[0]!r}]")):
        done = subprocess.run([sys.executable, "-m", "mlcycle", "runs", *words], cwd=project, capture_output=True, text=True)
        assert done.returncode == 2 and f"No run has {folder}.{near[0]}. Did you mean {folder}.{near[1]}?" in done.stderr
    with open_store(tmp_path / ".mlcycle" / "mlcycle.db") as store:
        for words in ((f"{folder}.a == 1",), ("-o", f"-{folder}.a")):
            printed, last = reading("runs", *words, cwd=tmp_path)
            assert last == "[] 0" and "No runs fit" in printed
        run = runs.create(store, "e", "first")
        assert "none yet" in subprocess.run([sys.executable, "-m", "mlcycle", "runs", "-o", f"{folder}.a"], cwd=tmp_path, capture_output=True,
                                            text=True).stderr
        metrics.log(store, run.pk, {"a": 1.0}, {"a": 0})
        facts.put_params(store, run.pk, {"a": 1})
        facts.put_tags(store, run.pk, {"a": "1"})
    assert reading("runs", "-o", f"-{folder}.a", cwd=tmp_path)[1] == "[] 0"
