"What each package offers by name: there, from one of its own modules, and not called as one of these."
from __future__ import annotations

import ast
from importlib import import_module
from pathlib import Path
from types import FunctionType, ModuleType

import pytest

from tests.tree import ROOT

PACKAGES = sorted(path.parent.relative_to(ROOT).as_posix().replace("/", ".") for path in (ROOT / "mlcycle").rglob("__init__.py")
                  if "migrations" not in path.parts)


def modules_of(package: ModuleType) -> set[str]:
    "Names of the modules and packages that lie directly in a package."
    folder = Path(package.__file__).parent
    return {path.stem for path in folder.glob("*.py")} | {path.parent.name for path in folder.glob("*/__init__.py")}


@pytest.mark.parametrize("name", PACKAGES)
def test_names_are_there(name: str) -> None:
    "Every name that a package lists can be imported from it, is in `dir`, and an unknown one is an AttributeError."
    package = import_module(name)
    assert package.__doc__ and package.__all__ and dir(package) == sorted(package.__all__)
    for public in package.__all__:
        value = getattr(package, public)
        assert vars(package).get(public, value) is value
        if isinstance(value, type | FunctionType):
            home = value.__module__
            assert home == name or home.startswith(f"{name}."), f"{name}.{public} lies in {home}"
    with pytest.raises(AttributeError, match="nothing_like_that"):
        package.nothing_like_that()


@pytest.mark.parametrize("name", PACKAGES)
def test_names_are_not_those_of_modules(name: str) -> None:
    "Python binds a module to its name in the package when it is imported, over whatever stood there. Two packages are called like their function."
    package = import_module(name)
    assert set(package.__all__) & modules_of(package) == ({"tune", "serve"} if name == "mlcycle" else set())


def test_every_package_has_a_notebook() -> None:
    "The list of a package is written in the notebook `99_init` of its folder."
    missing = [name for name in PACKAGES if not (ROOT / "nbs" / Path(*name.split(".")[1:]) / "99_init.ipynb").is_file()]
    assert missing == []


def test_lists_are_read_by_lazy_names_alone() -> None:
    "Each `__init__` gets its names by `mlcycle.lazy`, so that all packages behave alike."
    for name in PACKAGES:
        source = (ROOT / Path(*name.split(".")) / "__init__.py").read_text(encoding="utf-8")
        calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "lazy_names"]
        assert len(calls) == 1, name
