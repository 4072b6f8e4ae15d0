"A copy of the source tree to work on, since no test writes into the checkout."
from __future__ import annotations

import hashlib
import os
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
_LEFT = shutil.ignore_patterns(".git", ".venv", "venv", "__pycache__", "*.egg-info", "build", "dist", ".mlcycle", ".hypothesis", ".*_cache",
                               ".benchmarks", "_docs", "_proc", ".quarto", ".ipynb_checkpoints")


def copy_tree(
    dest: Path,  # Folder that does not exist yet
) -> Path:       # The same
    "Copy the checkout without what tools leave in it."
    return shutil.copytree(ROOT, dest, ignore=_LEFT, symlinks=True)


def digests(tree: Path) -> dict[str, str]:  # Relative path to digest
    "Every file of a tree."
    skipped = {"__pycache__", ".ruff_cache", ".git"}
    return {path.relative_to(tree).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(tree.rglob("*")) if path.is_file() and not skipped & set(path.relative_to(tree).parts)}


def environment(tree: Path) -> dict[str, str]:
    "Variables with which a child process uses the package of that tree and the tools of this Python."
    return {**os.environ, "PYTHONPATH": str(tree), "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])}
