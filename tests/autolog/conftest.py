"A store that autologging writes to, on for one test and off after it."
from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import select

import mlcycle as mlc
from mlcycle.entities import Run
from mlcycle.store import runs as store_runs
from mlcycle.store import schema
from mlcycle.store.connect import Store


@pytest.fixture
def logged(tmp_path: Path) -> Iterator[Store]:
    "The process's own store, with autologging on."
    store = mlc.connect(tmp_path / "store" / "mlcycle.db")
    mlc.autolog()
    yield store
    mlc.autolog(False)


def all_runs(store: Store) -> list[Run]:
    "Every run, oldest first."
    return [store_runs.to_run(row) for row in store.db.all(select(schema.runs).order_by(schema.runs.c.pk))]


@pytest.fixture
def python(tmp_path: Path) -> Callable[..., str]:
    "Run Python in a process of its own, with a store of its own; what it printed."
    def go(code: str, **environment: str) -> str:
        done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, text=True, capture_output=True, timeout=120,
                              env={**os.environ, "MLCYCLE_STORE": str(tmp_path / "mlcycle.db"), "OMP_NUM_THREADS": "1", **environment})
        assert done.returncode == 0, done.stderr
        return done.stdout
    return go


