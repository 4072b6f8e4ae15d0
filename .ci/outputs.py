"""Keep the outputs of every notebook's examples, and check them: executing once tests the cells and compares what they show.

    python .ci/outputs.py nbs/store nbs/00_tour.ipynb  # execute and store; a folder stands for the notebooks directly in it, nothing for all
    python .ci/outputs.py --check                      # execute and compare, exit 1 where a cell fails or shows something else

A cell marked `#| varies` shows something else each time: it is stored for the reader, and need only show something.
"""
from __future__ import annotations

import argparse
import difflib
import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from execute import UNSTORED, Executed, environment, execute, read
from settle import ROOT, settled

CELL_BYTES, NOTEBOOK_BYTES = 60_000, 400_000
NOTEBOOKS = ROOT / "nbs"


def notebooks(words: Iterable[str]) -> list[Path]:
    "The notebooks that the command line names; all of them when it names none. Raises `SystemExit` when there are none."
    found: dict[Path, None] = {}
    for path in map(Path, words):
        found |= dict.fromkeys(sorted(path.glob("*.ipynb")) if path.is_dir() else [path])
    chosen = list(found) if words else sorted(NOTEBOOKS.rglob("*.ipynb"))
    chosen = [path.resolve() for path in chosen if not any(part.startswith((".", "_")) for part in path.parts[-2:])]
    if not chosen or (missing := [path for path in chosen if not path.is_file()]):
        raise SystemExit(f"No notebooks: {', '.join(map(str, missing if chosen else words))}")
    return chosen


def size(outputs: Any) -> int:
    "Bytes that outputs take in the file."
    return len(json.dumps(outputs, ensure_ascii=False).encode())


def too_large(sizes: dict[str, int]) -> list[str]:
    "What is said of the cells that keep more than a page should carry."
    problems = [f"cell {cell}: {n:,} bytes of outputs, more than {CELL_BYTES:,}: show less" for cell, n in sizes.items() if n > CELL_BYTES]
    if sum(sizes.values()) > NOTEBOOK_BYTES:
        largest = sorted(sizes, key=lambda cell: -sizes[cell])[:3]
        problems.append(f"{sum(sizes.values()):,} bytes of outputs, more than {NOTEBOOK_BYTES:,}; the largest are of the cells {', '.join(largest)}")
    return problems


def difference(cell: str, old: list[Any], new: list[Any], varies: bool) -> str:
    "What of a cell's outputs is not as stored, empty when nothing: both are compared as settled."
    before, now = settled(old), settled(new)
    if before == now or (varies and before and now):
        return ""
    lines = difflib.unified_diff(before.splitlines(), now.splitlines(), "stored", "now", lineterm="", n=1)
    return f"cell {cell}\n" + "\n".join(f"    {line if len(line) < 500 else line[:500] + ' …'}" for line in lines)


def compare(nb: dict[str, Any], done: Executed) -> list[str]:
    "What is wrong with the stored outputs of a notebook that was executed."
    problems, sizes = [], {}
    for cell in nb["cells"]:
        old = cell.get("outputs", [])
        sizes[cell["id"]] = max(size(old), size(done.outputs.get(cell["id"], [])))
        if cell["id"] in done.outputs:
            problems.append(difference(cell["id"], old, done.outputs[cell["id"]], cell["id"] in done.varies))
        elif old and any(f"#| {name}" in "".join(cell["source"]) for name in UNSTORED):
            problems.append(f"cell {cell['id']}: hidden and exported cells keep no outputs")
    return [*filter(None, problems), *too_large(sizes)]


def store(path: Path, nb: dict[str, Any], done: Executed) -> list[str]:
    "Write into the notebook what its cells show, where that differs from what is there. What is too large is said, and nothing written."
    from fastcore.nbio import write_nb
    from nbdev.clean import clean_nb

    sizes = {}
    for cell in nb["cells"]:
        if cell["id"] in done.outputs and difference(cell["id"], cell["outputs"], done.outputs[cell["id"]], cell["id"] in done.varies):
            cell["outputs"] = done.outputs[cell["id"]]
        elif any(f"#| {name}" in "".join(cell["source"]) for name in UNSTORED) and cell["cell_type"] == "code":
            cell["outputs"] = []
        sizes[cell["id"]] = size(cell.get("outputs", []))
    problems = too_large(sizes)
    if not problems:
        clean_nb(nb)
        write_nb(nb, path)
    return problems


def carry_out(paths: list[Path], check: bool, jobs: int) -> tuple[int, str]:  # How many are not as they should be, and the report
    "Execute notebooks, then store or compare what they show."
    bad, report = 0, []
    for done in execute(paths, jobs):
        nb = read(done.path)
        problems = [done.failure] if done.failure else compare(nb, done) if check else store(done.path, nb, done)
        name = os.path.relpath(done.path, ROOT)
        bad += bool(problems)
        summary = "; ".join(problem.splitlines()[0] for problem in problems) or "ok"
        print(f"{done.seconds:6.1f} s  {name}: {summary}", flush=True, file=sys.stderr)
        report += [f"== {name}, {problem}\n" for problem in problems]
    advice = ": mend the cells, or store what they show now with python .ci/outputs.py" if check else ""
    report.append(f"{bad} notebooks {'differ, fail or keep too much' + advice}" if bad else "Success.")
    return bad, "\n".join(report)


def main(words: list[str] | None = None) -> int:
    "Execute, then store or compare; the exit code."
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="*", metavar="FOLDER|NOTEBOOK", help="the notebooks directly in a folder, or one notebook (default: all)")
    parser.add_argument("--check", action="store_true", help="compare with what is stored, and write nothing")
    parser.add_argument("--jobs", type=int, default=2, help="notebooks executed at a time (default: 2)")
    parser.add_argument("--requests", action="store_true", help="read paths from the input, a line of JSON for each line")
    args = parser.parse_args(words)
    if os.environ.get("PYTHONHASHSEED") != "0":  # read when Python starts
        os.execve(sys.executable, [sys.executable, *sys.argv], environment())
    if args.requests:
        for line in sys.stdin:
            bad, report = carry_out(notebooks(line.split()), args.check, args.jobs)
            print(json.dumps({"bad": bad, "report": report}), flush=True)
        return 0
    bad, report = carry_out(notebooks(args.paths), args.check, args.jobs)
    print(report)
    return min(bad, 1)


if __name__ == "__main__":
    sys.exit(main())
