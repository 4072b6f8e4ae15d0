"House rules on words that no linter knows."
from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = [path for path in sorted((ROOT / "nbs").rglob("*.ipynb")) if ".ipynb_checkpoints" not in path.parts]


def public(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.ClassDef]:
    "Functions and classes of a module that others may use."
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield node


def undocumented(path: Path) -> Iterator[str]:
    "What lacks a docstring, or a comment on a parameter. Commands show their options' own help."
    source = path.read_text(encoding="utf-8")
    lines = source.splitlines()
    for node in public(ast.parse(source)):
        if not ast.get_docstring(node):
            yield f"{path.relative_to(ROOT)}: {node.name} has no docstring"
        if isinstance(node, ast.FunctionDef) and not any("click" in ast.unparse(part) for part in node.decorator_list):
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            bare = [a.arg for a in arguments if "  # " not in lines[a.lineno - 1]]
            if bare:
                yield f"{path.relative_to(ROOT)}: {node.name} does not say what {', '.join(bare)} is"


def test_public_functions_are_documented() -> None:
    "Every public function and class says what it does, and what each parameter is."
    modules = [path for path in sorted((ROOT / "mlcycle").rglob("*.py")) if path.name != "_modidx.py"]
    assert [text for path in modules for text in undocumented(path)] == []


def test_notebooks_have_title_and_summary() -> None:
    "The first cell is `# Title` and a `>` line, which the module's docstring and the site are made of."
    first = {path: "".join(json.loads(path.read_text(encoding="utf-8"))["cells"][0]["source"]) for path in NOTEBOOKS}
    assert [path.name for path, text in first.items() if not text.startswith("# ") or "\n\n> " not in text] == []


def test_cell_ids_are_given_by_hand() -> None:
    "A random id is no name: it stands in the module, and nobody can say which cell is meant."
    ids = {(path.name, cell["id"]) for path in NOTEBOOKS for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]}
    assert [pair for pair in sorted(ids) if re.fullmatch(r"(?=.*\d)[0-9a-f-]{8,}", pair[1])] == []
