"The project of the notebook tests, for studies."
from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from mlcycle.store.connect import Store, open_store
from tests.notebooks.conftest import kernels, project, wait_for

__all__ = ["kernels", "project", "wait_for"]


@pytest.fixture
def local(tmp_path: Path) -> Iterator[Store]:
    "An open store of the default kind."
    with open_store(tmp_path / "local" / "mlcycle.db") as store:
        yield store
