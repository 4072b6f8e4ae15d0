"The other providers, in real processes and a real kernel: what a run records must be right and stable there."
from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import mlcycle
import pytest

from tests.ui.kernels import started

ENV = os.environ | {"PYTHONPATH": str(Path(mlcycle.__file__).resolve().parent.parent)}
REPORT = """
import json, sys
from pathlib import Path
from mlcycle.track.capture.providers import CaptureContext, capture_all
def report(**more):
    root = Path(r"{root}")
    found, warnings = capture_all(CaptureContext(**({{"run_id": "0" * 16, "kind": "script", "root": root, "cwd": Path.cwd()}} | more)))
    contents = lambda c: {{name: [content.decode(), c.kind] for name, content in c.documents.items()}}
    json.dump([{{name: [c.data, contents(c)] for name, c in found.items()}}, warnings], sys.stdout)
"""


def python(root: Path, *args: str, cwd: Path | None = None, stdin: str = "", env: dict[str, str] | None = None) -> tuple[dict, list[str]]:
    "What `capture_all` finds in a process of its own; `reporting` is the module that asks it."
    (root / "reporting.py").write_text(REPORT.format(root=root))
    environment = ENV | {"PYTHONPATH": f"{ENV['PYTHONPATH']}{os.pathsep}{root}"} | (env or {})
    done = subprocess.run([sys.executable, *args], cwd=cwd or root, input=stdin, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return tuple(json.loads(done.stdout))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    "A project outside any repository, with a script and a package."
    (tmp_path / "jobs").mkdir()
    for name in ("train.py", "jobs/__init__.py", "jobs/fit.py"):
        (tmp_path / name).write_text("" if "__init__" in name else f"from reporting import report\n# {name}\nreport()\n")
    return tmp_path


def test_a_script(root: Path) -> None:
    "Source, arguments without secrets and own modules, from wherever the script is started."
    found, warnings = python(root, str(root / "train.py"), "--lr", "0.1", "--api-key", "k123", "postgresql://ada:pw@db/x", cwd=Path("/"))
    data, documents = found["code"]
    assert warnings == [] and "git" not in found
    assert data["script"] == "train.py" and data["argv"] == ["--lr", "0.1", "--api-key", "***", "postgresql://ada:***@db/x"]
    assert documents == {"source/train.py": [(root / "train.py").read_text(), "source"]}
    digest = hashlib.sha256((root / "reporting.py").read_bytes()).hexdigest()
    assert data["modules"] == {"reporting": {"path": "reporting.py", "sha256": digest}}


def test_a_module(root: Path) -> None:
    "`python -m jobs.fit` runs a file too."
    found, _ = python(root, "-m", "jobs.fit", "--epochs", "3")
    assert found["code"][0]["module"] == "jobs.fit" and found["code"][0]["script"] == os.path.join("jobs", "fit.py")
    assert "source/fit.py" in found["code"][1]


@pytest.mark.parametrize("args", [["-c", "import reporting; reporting.report()", "--password=x"], ["-"], []])
def test_no_file(root: Path, args: list[str]) -> None:
    "A command or standard input has no file: nothing is recorded, and nothing is wrong."
    found, warnings = python(root, *args, stdin="import reporting; reporting.report()")
    assert warnings == [] and found["code"][1] == {} and found["code"][0]["argv"] == []


def test_a_script_that_is_gone_or_huge(root: Path) -> None:
    "A script that removes itself, or was generated with a megabyte of data in it, still runs."
    (root / "gone.py").write_text("import os, reporting\nos.unlink(__file__)\nreporting.report()\n")
    (root / "huge.py").write_text("import reporting\nreporting.report()\n#" + "x" * 2**20)
    assert python(root, "gone.py")[1] == ["code: gone.py cannot be read: No such file or directory"]
    assert python(root, "huge.py")[1] == ["code: huge.py is over 1 MiB and is not kept"]


def test_names_that_are_not_unicode(root: Path) -> None:
    "File names and arguments are bytes to the system; the database takes text only."
    script = os.fsencode(root) + b"/tr\xe9 in.py"
    with open(script, "wb") as f:
        f.write(b"from reporting import report\nreport()\n")
    found, warnings = python(root, os.fsdecode(script), os.fsdecode(b"\xff"))
    json.dumps(found).encode("utf-8")
    assert warnings == [] and found["code"][0]["script"] == r"tr\xe9 in.py" and found["code"][0]["argv"] == [r"\xff"]
    assert list(found["code"][1]) == ["source/tr_xe9_in.py"]


def test_one_environment_is_one_document(root: Path, tmp_path: Path) -> None:
    "Runs that differ in script, folder, time, process, arguments and variables must share it; an installation must change it."
    runs = [
        python(root, "train.py", env={"PYTHONHASHSEED": "1", "TZ": "Asia/Tokyo"}),
        python(root, str(root / "train.py"), "--lr", "1", cwd=Path("/"), env={"PYTHONHASHSEED": "2", "HOME": "/nowhere"}),
    ]
    one, two = (json.dumps(found["environment"][1]) for found, _ in runs)
    assert one == two and "/nowhere" not in one and str(root) not in one
    (root / "churn_tools-1.0.dist-info").mkdir()
    content = json.loads(python(root, "train.py")[0]["environment"][1]["environment.json"][0])
    assert {"name": "churn-tools", "version": "1.0"} in content["distributions"]


def test_providers_fail_alone(root: Path) -> None:
    "Plug-ins that cannot be imported, raise, exit, or return what the store could not hold: the others still report."
    (root / "plug.py").write_text(
        "from mlcycle.track.capture.providers import Captured\n"
        "def good(context): return Captured({'run': context.run_id}, {'a.txt': b'1'})\n"
        "def raises(context): raise ValueError('bad \\udcff news')\n"
        "def exits(context): raise SystemExit(0)\n"
        "def odd(context): return Captured({'x': object()})\n"
        "def nan(context): return Captured({'x': float('nan')})\n"
        "def text(context): return Captured(documents={'a': 'text'})\n"
    )
    names = ["good", "raises", "exits", "odd", "nan", "text", "missing"]
    (root / "plug-1.0.dist-info").mkdir()
    lines = [f"{n} = plug:{n}" for n in names] + ["absent = no_such_module_xyz:capture", "git = plug:raises"]
    (root / "plug-1.0.dist-info" / "entry_points.txt").write_text("[mlcycle.capture]\n" + "\n".join(lines))
    found, warnings = python(root, "train.py")
    assert set(found) == {"environment", "code", "hardware", "good"} and found["good"][0] == {"run": "0" * 16}
    assert sorted(w.split(" ")[0] for w in warnings) == ["absent", "exits", "missing", "nan", "odd", "raises", "text"]


def test_an_interactive_session(root: Path, tmp_path: Path) -> None:
    "In a notebook's kernel the launcher is not the code: the session's inputs are."
    (root / "reporting.py").write_text(REPORT.format(root=root))
    printed: list[str] = []
    with started(root, env=ENV) as (_, client):
        for cell in ("C = 0.5", "from reporting import report; report(kind='cell', cell_source='fit(C)')"):
            client.execute_interactive(cell, timeout=60, output_hook=lambda m: printed.append(m["content"].get("text", "")))
    data, documents = json.loads("".join(printed))[0]["code"]
    assert "argv" not in data and "script" not in data
    assert documents["source/cell.py"][0] == "fit(C)"
    assert documents["source/session.py"][0].startswith("# In [1]\nC = 0.5\n\n# In [2]\nfrom reporting import report")


def test_nothing_heavy_is_imported(root: Path) -> None:
    "Capture belongs to each run: it must not bring what a run without it does not need."
    (root / "heavy.py").write_text(
        "import contextlib, io, json, sys\nbefore = set(sys.modules)\nimport reporting\n"
        "with contextlib.redirect_stdout(io.StringIO()): reporting.report()\n"
        "json.dump([sorted(set(sys.modules) - before), []], sys.stdout)\n"
    )
    new, _ = python(root, "heavy.py")
    assert "mlcycle.track.capture.git" in new
    assert not set(new) & {"importlib.metadata", "email", "platform", "psutil", "IPython", "numpy", "pandas", "sqlalchemy"}
