"One JupyterLab and one browser for all tests here. A test opens its notebook with `notebook(\"cell\", …)`; needs the service \"chromium\"."
from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.browser.lab import Lab, Notebook, Opener, write
from tests.conftest import need


@pytest.fixture(scope="package")
def lab() -> Iterator[Lab]:
    "JupyterLab, started when the first test asks for it."
    from importlib.util import find_spec

    chromium = need("chromium")
    if find_spec("jupyterlab") is None:
        pytest.skip("needs JupyterLab (pip install 'mlcycle[lab]')")
    started = Lab(chromium.options)
    yield started
    started.stop()


@pytest.fixture
def folder(lab: Lab, request: pytest.FixtureRequest) -> Path:
    "A project of the test's own, where the server finds it."
    made = lab.root / re.sub(r"\W+", "-", request.node.name).strip("-")
    (made / ".mlcycle").mkdir(parents=True)
    return made


@pytest.fixture
def notebook(lab: Lab, folder: Path, request: pytest.FixtureRequest) -> Iterator[Opener]:
    "`notebook(\"cell\", \"cell\", theme=\"JupyterLab Dark\")` opens a new notebook; a `Path` opens one that is there."
    opened: list[Notebook] = []

    def open_notebook(*cells: str | Path, name: str = "notebook.ipynb", **options: Any) -> Notebook:
        path = cells[0] if cells and isinstance(cells[0], Path) else write(folder, *map(str, cells), name=name)
        opened.append(Notebook(lab, path, **options))
        return opened[-1]

    yield open_notebook
    for each in opened:
        each.close()
    lab.end_kernels()
