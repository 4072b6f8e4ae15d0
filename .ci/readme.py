"""Write README.md from nbs/index.ipynb: executes the notebook, keeps its outputs and renders it.

    python .ci/readme.py            # after every change of index.ipynb; nbdev-readme would need Quarto for the same
"""
from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import nbformat
from nbformat import NotebookNode

sys.path.insert(0, str(Path(__file__).resolve().parent))
from settle import ROOT, settled, stored

INDEX, README = ROOT / "nbs" / "index.ipynb", ROOT / "README.md"


def read(path: Path = INDEX) -> NotebookNode:
    "A notebook as it is stored."
    return nbformat.read(path, as_version=4)


def execute(nb: NotebookNode) -> NotebookNode:
    "The notebook with fresh outputs, from a kernel of its own, and nothing else changed."
    from nbclient import NotebookClient

    done = nbformat.from_dict(nb)
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    NotebookClient(done, timeout=300, kernel_name="python3").execute()
    for cell in done.cells:
        cell.metadata = {}
        if cell.cell_type == "code":
            cell.execution_count = None
            hidden = cell.source.startswith("#| hide")
            cell.outputs = [] if hidden else [nbformat.from_dict(output) for output in stored(cell.outputs)]
    done.metadata = nb.metadata
    return nbformat.reads(nbformat.writes(done), as_version=4)


def shown(nb: NotebookNode) -> list[str]:
    "What each code cell prints and shows, settled as `outputs.py` compares it."
    return [settled(cell.outputs) for cell in nb.cells if cell.cell_type == "code"]


def render(nb: NotebookNode) -> str:
    "The notebook as Markdown: cells without their directives, outputs as text, hidden cells left out."
    from nbconvert import MarkdownExporter
    from traitlets.config import Config

    plain = nbformat.from_dict(nb)
    plain.metadata = {"language_info": {"name": "python"}}
    plain.cells = [cell for cell in plain.cells if not cell.source.startswith("#| hide")]
    for cell in plain.cells:
        cell.source = "\n".join(line for line in cell.source.splitlines() if not line.startswith("#| "))
        for output in cell.get("outputs", []):  # GitHub shows neither styles nor widgets
            if "data" in output:
                output.data = {"text/plain": output.data["text/plain"]}
    text, _ = MarkdownExporter(config=Config({"NbConvertBase": {"display_data_priority": ["text/plain"]}})).from_notebook_node(plain)
    text = "\n".join(line.rstrip() for line in text.strip().splitlines())
    return re.sub(r"\n{3,}", "\n\n", text) + "\n"


def main() -> None:
    "Execute, keep what differs, render."
    nb = read()
    for cell, done in zip(nb.cells, execute(nb).cells, strict=True):
        if cell.cell_type == "code" and settled(cell.outputs) != settled(done.outputs):
            cell.outputs = done.outputs
    nbformat.write(nb, INDEX)
    README.write_text(render(nb), encoding="utf-8")
    print(f"{README.name} written from {INDEX.relative_to(ROOT)}", file=sys.stderr)


if __name__ == "__main__":
    main()
