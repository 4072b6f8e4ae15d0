"The order of the packages: no import runs up it, none goes in a circle, imports inside of functions and for annotations included."
from __future__ import annotations

import ast
import re
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

from tests.tree import ROOT

# From the foundations up. Packages on one line do not import each other. `""` is mlcycle itself: errors, display, entities, config, redact.
LAYERS = [
    [""],
    ["store"],
    ["data", "registry.safety"],
    ["registry.flavours"],
    ["registry"],
    ["registry.compiled"],
    ["track.capture", "serve"],
    ["track"],
    ["track.autolog", "notebooks.document"],
    ["notebooks.params"],
    ["notebooks.record", "notebooks.warm"],
    ["notebooks.checkpoints", "notebooks.follow"],
    ["notebooks.execute"],
    ["notebooks.sweep", "notebooks.resume", "notebooks.reproduce"],
    ["notebooks"],
    ["evaluate", "tune.spaces"],
    ["tune"],
    ["ui"],
    ["ui.views"],
    ["ui.widgets"],
    ["ui.session"],
    ["ui.commands"],
    ["ui.magics"],
]
HEIGHT = {package: height for height, layer in enumerate(LAYERS) for package in layer}
ENTRANCES = {"__main__": "`python -m mlcycle` starts the command line"}  # Modules above all layers


def package_of(module: str) -> str:
    "The package that a module lies in."
    return module.rpartition(".")[0]


def imports(path: Path, module: str, modules: set[str], inside: bool = True) -> set[str]:
    "Modules of mlcycle that a module imports anywhere in its text, or only outside of its functions and classes."
    here = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    named: set[str] = set()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree) if inside else tree.body:
        if isinstance(node, ast.ImportFrom):
            parts = (node.module or "").split(".") if node.module else []
            if node.level:
                parts = [*here[: len(here) - node.level + 1], *parts]
            elif parts[:1] != ["mlcycle"]:
                continue
            else:
                parts = parts[1:]
            source = ".".join(filter(None, parts))
            named |= {full if (full := f"{source}.{alias.name}".strip(".")) in modules else source for alias in node.names}
        elif isinstance(node, ast.Import):
            named |= {alias.name.removeprefix("mlcycle.") for alias in node.names if alias.name.startswith("mlcycle.")}
    return (named & modules) - {module}


@cache
def graph() -> dict[str, set[str]]:
    "What each module imports. A package is left out: its `__init__` only names what its modules offer, and loads it when asked."
    paths = {}
    for path in (ROOT / "mlcycle").rglob("*.py"):
        if path.name not in ("_modidx.py", "__init__.py") and "versions" not in path.parts:
            paths[path.relative_to(ROOT / "mlcycle").with_suffix("").as_posix().replace("/", ".")] = path
    return {module: imports(path, module, set(paths)) for module, path in paths.items()}


def test_every_package_has_its_layer() -> None:
    "A new package is put into the list above before anything imports it."
    packages = {package_of(module) for module in graph()} - {"store.migrations"}
    assert sorted(packages - set(HEIGHT)) == [] and sorted(set(HEIGHT) - packages - {"notebooks"}) == []


def test_imports_run_down() -> None:
    "A module imports from its own package and from packages below it."
    wrong = [f"{module} -> {other}" for module, others in graph().items() for other in others
             if module not in ENTRANCES and package_of(module) != package_of(other) and "migrations" not in module
             and HEIGHT[package_of(module)] <= HEIGHT[package_of(other)]]
    assert sorted(wrong) == []


def test_no_circle_of_modules() -> None:
    "Modules can be read in one order: none needs another that needs it."
    TopologicalSorter({module: others - set(ENTRANCES) for module, others in graph().items()}).prepare()  # raises CycleError


def test_numbers_follow_the_imports() -> None:
    "The notebooks of a folder can be read by their numbers: no number is there twice, none is left out, and no module needs a later one."
    numbers: dict[str, int] = {}
    for folder in sorted({path.parent for path in (ROOT / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in path.parts}):
        paths = sorted(path for path in folder.glob("[0-9]*.ipynb"))
        before_end = [int(path.name[:2]) for path in paths if int(path.name[:2]) < 97]  # the entrances and `__init__` come last
        first = 0 if folder == ROOT / "nbs" else 1
        assert before_end == list(range(first, first + len(before_end))), folder.relative_to(ROOT)
        for path in paths:
            exported = re.search(r"#\|\s*default_exp\s+([\w.]+)", path.read_text(encoding="utf-8"))
            if exported:
                numbers[exported[1]] = int(path.name[:2])
    wrong = [f"{module} -> {other}" for module, others in graph().items() for other in others
             if package_of(module) == package_of(other) and module not in ENTRANCES and numbers[module] <= numbers[other]]
    assert sorted(wrong) == []


def test_packages_import_nothing_up_front() -> None:
    "An `__init__` imports `lazy`, `moved` or `callable_package` and no other module, so that any module below it can be imported alone."
    modules = {path.relative_to(ROOT / "mlcycle").with_suffix("").as_posix().replace("/", ".") for path in (ROOT / "mlcycle").rglob("*.py")}
    packages = sorted((ROOT / "mlcycle").rglob("__init__.py"))
    for path in packages:
        package = path.parent.relative_to(ROOT / "mlcycle").as_posix().replace("/", ".").strip(".")
        assert imports(path, f"{package}.__init__".strip("."), modules, inside=False) <= {"lazy", "moved", "callable_package"}, package
    assert sum("lazy" in imports(path, "__init__", modules, inside=False) for path in packages) > 20  # the check sees what they import
