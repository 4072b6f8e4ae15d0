"Every notebook's cells run, the package is exactly what the notebooks export, and the code is lint-free."
from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.tree import ROOT, copy_tree, digests, environment

NOTEBOOKS = sorted(path for path in (ROOT / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in path.parts)
FOLDERS = sorted({path.parent.relative_to(ROOT / "nbs").as_posix() for path in NOTEBOOKS})


def tool(name: str, *words: str, tree: Path) -> subprocess.CompletedProcess[str]:
    "Run one of this environment's command-line tools in a tree."
    return subprocess.run([Path(sys.executable).parent / name, *words], cwd=tree, env=environment(tree), stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True)


class Executor:
    "A process that executes the notebooks of a tree: what they import takes longer than what most of them do, and is imported once for all."

    def __init__(self, tree: Path):
        self.tree = tree
        self.process = subprocess.Popen([sys.executable, ".ci/outputs.py", "--check", "--jobs", "1", "--requests"], cwd=tree, text=True,
                                        env=environment(tree), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)

    def check(self, folder: str) -> dict[str, Any]:
        "Execute the notebooks directly in a folder: how many are not as they should be, and the report."
        print(f"nbs/{folder}", file=self.process.stdin, flush=True)
        return json.loads(self.process.stdout.readline())


@pytest.fixture(scope="session")
def executor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Executor]:
    "One for each worker of pytest."
    started = Executor(copy_tree(tmp_path_factory.mktemp("executed") / "tree"))
    yield started
    started.process.stdin.close()
    started.process.wait(30)


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_cell_runs(executor: Executor, folder: str) -> None:
    "Every notebook of a folder executes, its assertions are tests; its examples show what their notebook says they show."
    before = digests(executor.tree)
    done = executor.check(folder)
    assert not done["bad"], done["report"][-20_000:]
    assert digests(executor.tree) == before, "a notebook wrote into the source tree"


def test_export_gate(tmp_path: Path) -> None:
    "Exporting and cleaning change nothing: what is committed is what the notebooks say."
    tree = copy_tree(tmp_path / "tree")
    before = digests(tree)
    for name in ("nbdev-export", "nbdev-clean"):
        done = tool(name, tree=tree)
        assert done.returncode == 0, done.stdout
    after = digests(tree)
    assert sorted(path for path in before.keys() | after.keys() if before.get(path) != after.get(path)) == [], "run nbdev-export && nbdev-clean"


def test_ruff() -> None:
    "The linter has nothing to say."
    done = tool("ruff", "check", "--no-cache", tree=ROOT)
    assert done.returncode == 0, done.stdout


def test_every_module_has_its_notebook() -> None:
    "Modules and notebooks mirror each other: same folder, same name after the number, none left behind by a renamed one."
    exported = {}
    for path in NOTEBOOKS:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        found = [m[1] for cell in cells if (m := re.search(r"^#\|\s*default_exp\s+(\S+)", "".join(cell["source"]), re.M))]
        if found:
            exported[found[0].replace(".", "/") + ".py"] = path
    modules = {path.relative_to(ROOT / "mlcycle").as_posix() for path in (ROOT / "mlcycle").rglob("*.py")}
    assert set(exported) == {m for m in modules if m != "_modidx.py" and (m in exported or not m.endswith("__init__.py"))}
    homes = {module: path.parent.relative_to(ROOT / "nbs").as_posix() for module, path in exported.items() if "/versions/r" not in module}
    assert {module: home for module, home in homes.items() if home != Path(module).parent.as_posix()} == {}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.relative_to(ROOT / "nbs").as_posix())
def test_cells_have_readable_ids(path: Path) -> None:
    "Ids are given by hand and unique: without them each export differs."
    ids = [cell.get("id", "") for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]]
    assert len(set(ids)) == len(ids) and [i for i in ids if not re.fullmatch(r"[a-z][a-z0-9-]*", i) or re.fullmatch(r"[0-9a-f]{8,}", i)] == []
