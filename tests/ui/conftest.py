"A kernel with the extension loaded, in an empty project."
from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from jupyter_client.manager import start_new_kernel

from tests.ui.kernels import Kernel


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Kernel]:
    "As Jupyter's server starts one for the notebook nb.ipynb."
    (tmp_path / ".mlcycle").mkdir()
    monkeypatch.setenv("JPY_SESSION_NAME", str(tmp_path / "nb.ipynb"))
    manager, client = start_new_kernel(kernel_name="python3", cwd=str(tmp_path))
    try:
        found = Kernel(manager, client)
        assert found.run("%load_ext mlcycle")[0] == "ok"
        yield found
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
