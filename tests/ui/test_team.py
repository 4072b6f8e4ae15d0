"A team's set-up from end to end: metadata in PostgreSQL, content in S3, notebooks run from two machines' folders."
from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mlcycle.ui.sample import write_project
from tests.conftest import need


@pytest.mark.needs("postgresql", "s3")
def test_a_team_shares_runs_models_and_content(s3_url: str, tmp_path: Path) -> None:
    "What one person trains and registers, another finds, promotes and predicts with; the kernel reaches both services by itself."
    env = {**os.environ, "MLCYCLE_STORE": need("postgresql").new_database(), "MLCYCLE_ARTIFACTS": s3_url}

    def mlcycle(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
        done = subprocess.run([sys.executable, "-m", "mlcycle", *words], cwd=cwd, env=env, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        return done

    ann, bob = tmp_path / "ann", tmp_path / "bob"
    write_project(ann)
    bob.mkdir()
    run = json.loads(mlcycle("run", "train.ipynb", "-p", "folds", "3", "-e", "biopsies", "--register", "biopsy", "--json", cwd=ann).stdout)
    assert run["status"] == "finished" and run["version"] == "biopsy/1"
    mlcycle("promote", "biopsy/1", "champion", "--why", "first", cwd=bob)
    (bob / "in.csv").write_bytes((ann / "data" / "holdout.csv").read_bytes())
    mlcycle("predict", "biopsy@champion", "in.csv", "-o", "out.parquet", "--extra", "drop", cwd=bob)
    names = [a["name"] for a in json.loads(mlcycle("artifacts", run["run"][:8], "-d", "files", "--json", cwd=bob).stdout)]
    assert "roc.png" in names and (bob / "files" / "roc.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads(mlcycle("fsck", "--json", cwd=bob).stdout)["sound"]
    assert not (bob / ".mlcycle").exists() and list((ann / ".mlcycle").iterdir()) == []
