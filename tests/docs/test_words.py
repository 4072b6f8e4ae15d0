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


PLAIN = {"Store", "Run", "Version", "Model"}  # Parameters of these types are what their type says


def plain(annotation: ast.expr | None) -> bool:
    "Does a type say all there is to say of a parameter?"
    return annotation is not None and ast.unparse(annotation).strip("'\"") in PLAIN


def undocumented(path: Path) -> Iterator[str]:
    "What lacks a docstring, or a comment on a parameter. Commands show their options' own help."
    source = path.read_text(encoding="utf-8")
    lines = source.splitlines()
    for node in public(ast.parse(source)):
        if not ast.get_docstring(node):
            yield f"{path.relative_to(ROOT)}: {node.name} has no docstring"
        if isinstance(node, ast.FunctionDef) and not any("click" in ast.unparse(part) for part in node.decorator_list):
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            bare = [a.arg for a in arguments if "  # " not in lines[a.lineno - 1] and not plain(a.annotation)]
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


def subject_words(title: str, name: str) -> set[str]:
    "The beginnings of the words that name a notebook's subject."
    joining = {"the", "and", "for", "from", "with", "what", "that"}
    words = re.findall(r"[A-Za-z]+", f"{title} {name.replace('_', ' ')}")
    return {word.lower()[:4] for word in words if len(word) > 2 and word.lower() not in joining}


def test_summaries_name_their_subject() -> None:
    "The `>` line becomes the module's docstring, where nobody sees the title: it shares a noun with the title or the module's name."
    nameless = []
    for path in NOTEBOOKS:
        if path.name == "index.ipynb":  # the front page is no module
            continue
        title, _, rest = "".join(json.loads(path.read_text(encoding="utf-8"))["cells"][0]["source"]).partition("\n\n> ")
        summary = {word.lower()[:4] for word in re.findall(r"[A-Za-z]+", rest.split("\n")[0])}
        if not summary & subject_words(title, re.sub(r"^\d+_", "", path.stem)):
            nameless.append(f"{path.relative_to(ROOT)}: {rest.splitlines()[0]}")
    assert nameless == []


VAGUE = {"found", "told", "said", "words", "more", "most", "made", "held"}


def own_nodes(scope: ast.AST) -> Iterator[ast.AST]:
    "The nodes of a function or a module without those of functions and classes inside."
    for child in ast.iter_child_nodes(scope):
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield child
            yield from own_nodes(child)


def vague_names(path: Path) -> Iterator[str]:
    "Parameters, fields and variables of a module that do not say what they hold; a variable may be vague for three lines."
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for scope in ast.walk(tree):
        if isinstance(scope, ast.ClassDef):
            fields = [node for node in scope.body if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)]
            yield from (f"{path}:{node.lineno} field {node.target.id}" for node in fields if node.target.id in VAGUE)
        if not isinstance(scope, ast.FunctionDef | ast.AsyncFunctionDef | ast.Module):
            continue
        if not isinstance(scope, ast.Module):
            args = [*scope.args.posonlyargs, *scope.args.args, *scope.args.kwonlyargs, *filter(None, [scope.args.vararg, scope.args.kwarg])]
            yield from (f"{path}:{arg.lineno} parameter {arg.arg}" for arg in args if arg.arg in VAGUE)
        uses: dict[str, list[ast.Name]] = {}
        for node in own_nodes(scope):
            if isinstance(node, ast.Name) and node.id in VAGUE:
                uses.setdefault(node.id, []).append(node)
        for name, nodes in uses.items():
            stored = [node.lineno for node in nodes if isinstance(node.ctx, ast.Store)]
            if stored and max(node.lineno for node in nodes) - min(stored) > 3:
                yield f"{path}:{min(stored)} variable {name}"


def test_names_say_what_they_hold() -> None:
    "A reader who meets a name twenty lines below its assignment must know what it is."
    modules = [path for path in sorted((ROOT / "mlcycle").rglob("*.py")) if path.name != "_modidx.py"]
    assert [text for path in modules for text in vague_names(path)] == []


def test_cell_ids_are_given_by_hand() -> None:
    "A random id is no name: it stands in the module, and nobody can say which cell is meant."
    ids = {(path.name, cell["id"]) for path in NOTEBOOKS for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]}
    assert [pair for pair in sorted(ids) if re.fullmatch(r"(?=.*\d)[0-9a-f-]{8,}", pair[1])] == []
