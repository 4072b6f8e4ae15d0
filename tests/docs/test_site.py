"The documentation site: complete navigation, and notebooks that nbdev's documentation build can process."
from __future__ import annotations

import json
import os
import runpy
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
NBS = ROOT / "nbs"
SITE = yaml.safe_load((ROOT / "_quarto.yml").read_text(encoding="utf-8"))["website"]


def pages(entry: Any) -> Iterator[str]:
    "Every page that a part of the navigation names."
    if isinstance(entry, str):
        yield entry
    elif isinstance(entry, list):
        for part in entry:
            yield from pages(part)
    elif isinstance(entry, dict):
        yield from pages(entry.get("href", []))
        yield from pages(entry.get("contents", []))


def test_every_notebook_is_in_the_sidebar_once() -> None:
    "A notebook that nobody can reach is not documented; an entry without a notebook is a dead link."
    there = sorted(path.relative_to(NBS).as_posix() for path in NBS.rglob("*.ipynb") if ".ipynb_checkpoints" not in path.parts)
    assert sorted(pages(SITE["sidebar"]["contents"])) == there


def test_navbar_leads_to_pages() -> None:
    "The navigation bar names notebooks that exist."
    bar = list(pages(SITE["navbar"]["left"]))
    assert bar and not [page for page in bar if not (NBS / page).is_file()]


def test_site_is_configured_once() -> None:
    "nbdev looks for _quarto.yml among the notebooks, people look for it at the top: it is one file."
    assert (NBS / "_quarto.yml").resolve() == ROOT / "_quarto.yml" and (NBS / "nbdev.yml").is_file()


def shown(path: Path) -> dict[str, str]:
    "What the cells of a notebook file show, settled; those that show nothing left out."
    settled = runpy.run_path(str(ROOT / ".ci" / "settle.py"))["settled"]
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return {cell["id"]: settled(cell["outputs"]) for cell in cells if cell.get("outputs")}


PROCESS = """
import os, sys, warnings
from nbdev.serve import proc_nbs
if __name__ == "__main__":
    warnings.filterwarnings("error", "Found cells containing imports and other code")
    proc_nbs("nbs", n_workers=0)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # each notebook's shell would collect all garbage at the end of the process: two minutes for nothing
"""


def test_documentation_build_processes_every_notebook(tmp_path: Path) -> None:
    "All that `nbdev-docs` does before it calls Quarto: the imports of an example need a cell of their own, annotations must resolve."
    for name in ("nbs", "mlcycle"):
        shutil.copytree(ROOT / name, tmp_path / name, symlinks=False, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    done = subprocess.run([sys.executable, "-c", PROCESS], cwd=tmp_path, capture_output=True, text=True, timeout=600,
                          env=os.environ | {"PYTHONPATH": str(tmp_path)})
    assert done.returncode == 0, done.stderr[-3000:]
    made = {path.relative_to(tmp_path / "_proc").as_posix() for path in (tmp_path / "_proc").rglob("*.ipynb")}
    assert made == {path.relative_to(NBS).as_posix() for path in NBS.rglob("*.ipynb") if ".ipynb_checkpoints" not in path.parts}
    pages_shown = {page: shown(tmp_path / "_proc" / page) for page in made}
    lost = {page: [cell for cell, said in shown(NBS / page).items() if pages_shown[page].get(cell) != said] for page in made}
    assert {page: cells for page, cells in lost.items() if cells} == {}, "the build drops what an example shows"
