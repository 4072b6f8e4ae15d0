"A kernel with the extension loaded, in an empty project."
from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.ui.kernels import Kernel, started


@pytest.fixture
def kernel(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Kernel]:
    "For the notebook nb.ipynb; as Jupyter's server starts one in a module that says `STOCK_KERNEL = True`."
    (tmp_path / ".mlcycle").mkdir()
    monkeypatch.setenv("JPY_SESSION_NAME", str(tmp_path / "nb.ipynb"))
    with started(tmp_path, stock=getattr(request.module, "STOCK_KERNEL", False)) as (manager, client):
        found = Kernel(manager, client)
        assert found.run("%load_ext mlcycle")[0] == "ok"
        yield found
