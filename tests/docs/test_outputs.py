"The tool that keeps and compares the outputs of examples: it sees what changed, and nothing else; what it stores says nothing of this machine."
from __future__ import annotations

import getpass
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    "A checkout with the tool and no notebooks."
    shutil.copytree(ROOT / ".ci", tmp_path / "checkout" / ".ci", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path / "checkout")
    (tmp_path / "checkout" / "nbs").mkdir()
    return tmp_path / "checkout"


def write(project: Path, **cells: str) -> Path:
    "A notebook with a code cell for each name, without outputs."
    made = [{"cell_type": "code", "execution_count": None, "id": name.replace("_", "-"), "metadata": {}, "outputs": [],
             "source": source.splitlines(keepends=True)} for name, source in cells.items()]
    kernel = {"kernelspec": {"display_name": "python3", "language": "python", "name": "python3"}}
    path = project / "nbs" / "example.ipynb"
    nb = {"cells": made, "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}
    path.write_text(json.dumps(nb, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return path


def run(project: Path, *words: str, tool: str = ".ci/outputs.py") -> subprocess.CompletedProcess[str]:
    "The tool, on all notebooks of the project."
    return subprocess.run([sys.executable, tool, *words], cwd=project, capture_output=True, text=True, timeout=300)


def outputs(path: Path) -> dict[str, list[dict]]:
    "What a notebook stores, by cell."
    return {cell["id"]: cell["outputs"] for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]}


def replace(path: Path, old: str, new: str) -> None:
    "Edit a notebook's file."
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


def test_changes_and_failures_are_reported(project: Path) -> None:
    "A cell that shows something else is named with both texts, a cell that fails with its traceback; neither changes the file."
    path = write(project, hidden="#| hide\nprint('secret')", exported="#| export\nprint('module')", skipped="#| eval: false\nraise ValueError",
                 sum_cell="print('first')\n6 * 7", noise="#| varies\nimport uuid\nprint(*uuid.uuid4().hex)", sure="assert 6 * 7 == 42")
    assert run(project).returncode == 0
    kept = outputs(path)
    assert {cell for cell, held in kept.items() if held} == {"sum-cell", "noise"}
    assert [held.get("text") or held["data"]["text/plain"] for held in kept["sum-cell"]] == [["first\n"], ["42"]]
    assert run(project, "--check").returncode == 0
    replace(path, '"6 * 7"', '"6 * 8"')
    before = path.read_bytes()
    changed = run(project, "--check", "nbs")
    assert changed.returncode == 1 and "nbs/example.ipynb, cell sum-cell\n" in changed.stdout
    assert re.search(r"^ +-42\n +\+48$", changed.stdout, re.M) and "cell noise" not in changed.stdout
    replace(path, "== 42", "== 43")
    failed = run(project, "--check", "nbs/example.ipynb")
    assert failed.returncode == 1 and "nbs/example.ipynb, cell sure\nAssertionError" in failed.stdout and "Traceback" in failed.stdout
    assert run(project).returncode == 1 and path.read_bytes() == before.replace(b"== 42", b"== 43"), "a notebook that fails was written"


VARYING = """
import datetime, os, random, sys, tempfile, time, uuid, warnings
began = time.perf_counter()
print(f"run {uuid.uuid4().hex} as {uuid.uuid4().hex[:8]} and {uuid.uuid4()}")
print(f"{random.random():>8.3f} s, ETA {random.randint(1, 59)} min, {random.randint(1, 999)} ms | {random.choice(['', '    '])}x")
print(f"{datetime.datetime.now()} {datetime.datetime.now():%H:%M}, pid {os.getpid()}, port {random.randint(1000, 60000)}")
print(f"{tempfile.mkdtemp(prefix='x-')}/data.csv, {random.randint(1, 900)}.{random.randint(1, 9)} MiB of memory")
print(f"\\r 10%|#   | 1/10\\r100%|####| 10/10 {random.random():.2f}it/s\\nstate 1\\rstate 2")
warnings.warn("once", stacklevel=1)
object()
"""
SHOWN = """
import matplotlib.pyplot as plt
import pandas as pd
import random
from IPython.display import HTML, display
import ipywidgets
plt.plot([random.random() for _ in range(9)])
plt.show()
display(HTML(f"<b id='{random.randbytes(16).hex()}'>bold</b><img src='data:image/png;base64,{random.randbytes(90).hex()}'>"))
display(ipywidgets.IntSlider())
pd.DataFrame({"auc": [0.5, 1.0]})
"""


def test_what_differs_each_time_is_no_change(project: Path) -> None:
    "Ids, times, addresses, paths and pictures differ with each execution: the check passes, executing again leaves the file, and nbdev-clean does."
    path = write(project, varying=VARYING, shown=SHOWN)
    first = run(project)
    assert first.returncode == 0, first.stdout
    kept, before = outputs(path), path.read_bytes()
    assert [held["output_type"] for held in kept["shown"]] == ["display_data", "display_data", "display_data", "execute_result"]
    assert set(kept["shown"][0]["data"]) == {"text/plain", "image/png"} and set(kept["shown"][3]["data"]) == {"text/plain", "text/html"}
    assert "widget-view" not in before.decode() and len(kept["shown"][0]["data"]["image/png"]) < 20_000
    assert "state 2\n" in kept["varying"][0]["text"] and "it/s" not in before.decode().split('"source"')[0]
    for words in ([".ci/outputs.py", "--check"], [".ci/outputs.py"], ["-c", "from nbdev.clean import nbdev_clean; nbdev_clean()"]):
        done = run(project, *words[1:], tool=words[0])
        assert done.returncode == 0, done.stdout + done.stderr
        assert path.read_bytes() == before


def test_what_is_stored_names_no_machine(project: Path) -> None:
    "Paths below the home folder, the checkout and temporary folders, host and user are replaced before they are stored."
    path = write(project, places="import getpass, os, socket, sys, tempfile\nfrom pathlib import Path\nimport pwd\n"
                 f"print(Path.home() / 'a', tempfile.mkdtemp() + '/b', os.getcwd(), sys.prefix, {str(project)!r}[:-1] + 't/c', object())\n"
                 "print(f'{getpass.getuser()}@{socket.gethostname()}')")
    assert run(project).returncode == 0
    (place, who) = outputs(path)["places"][0]["text"]
    assert place == "/home/user/a /tmp/example/b /tmp/example /home/user/venv /home/user/mlcycle/c <object object>\n" and who == "user@host\n"
    private = {str(Path.home()), sys.prefix, socket.gethostname(), getpass.getuser()} - {"root", "user", "host", "localhost"}
    assert not [name for name in private if name in place + who]


def test_limits(project: Path) -> None:
    "Outputs that are too large for a page, and files left in the working folder, are refused with the cell or the file."
    path = write(project, much="print('many words ' * 6000)")
    before = path.read_bytes()
    refused = run(project)
    assert refused.returncode == 1 and "cell much: 66," in refused.stdout and path.read_bytes() == before
    write(project, leaves="open('left.txt', 'w').close()")
    left = run(project, "--check")
    assert left.returncode == 1 and "left.txt" in left.stdout and not (project / "nbs" / "left.txt").exists()
    assert run(project, "nbs/none.ipynb").returncode == 1 and os.listdir(project / "nbs") == ["example.ipynb"]
