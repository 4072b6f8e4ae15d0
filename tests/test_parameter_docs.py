"What a person reads with `mlc.NAME?` and Shift-Tab: each parameter of what mlcycle offers is explained."
from __future__ import annotations

import inspect
from typing import Any

import pytest
from IPython.core.interactiveshell import InteractiveShell

import mlcycle as mlc
from mlcycle.errors import MlcycleError

NAMES = [name for name in mlc.__all__ if name not in ("__version__", "load_ipython_extension")]


@pytest.fixture(scope="module")
def shell() -> Any:
    shell = InteractiveShell()
    shell.user_ns["mlc"] = mlc
    return shell


@pytest.mark.parametrize("name", NAMES)
def test_each_parameter_is_explained(shell: Any, name: str) -> None:
    "The signature stands without quotation marks, and every parameter has a line of its own with a comment below."
    value = getattr(mlc, name)
    if isinstance(value, type) and issubclass(value, MlcycleError | Exception):
        return
    info = shell.object_inspect(f"mlc.{name}")
    text = (info["init_docstring"] if isinstance(value, type) else info["docstring"]) or ""
    function = value.__init__ if isinstance(value, type) else value
    lines = text.splitlines()
    for parameter in inspect.signature(function).parameters.values():
        if parameter.name == "self":
            continue
        place = next((i for i, line in enumerate(lines) if line.lstrip("*").startswith(f"{parameter.name} : ")), None)
        assert place is not None and lines[place + 1].startswith("    ") and len(lines[place + 1].strip()) > 3, (name, parameter.name, text)
    assert ": '" not in (info["definition"] or "")  # annotations stand without quotation marks
    assert not info["class_docstring"] and not info["call_docstring"]  # a package that can be called says nothing about that
