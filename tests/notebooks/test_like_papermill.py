"""Papermill's own test notebooks, and the situations of its issue list, by Papermill's engine and by ours: equal, apart from what is wanted.

A further way to execute is another line in COLUMNS.
"""
from __future__ import annotations

import functools
import json
import re
import signal
import tempfile
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nbformat
import psutil
import pytest

PAPERMILL = "nbclient"  # Papermill's own engine
COLUMNS: dict[str, dict[str, Any]] = {  # Name to what is held against Papermill: the engine, more for `execute_notebook`, variables to set
    "mlcycle": {"engine_name": "mlcycle", "options": {}, "environment": {}},  # in a fork of a warm process, where that is safe
    "own process": {"engine_name": "mlcycle", "options": {"fresh": True}, "environment": {}},
}
STOPPED = {"raised": (None, "NotebookRunError")}  # Papermill takes it for success, although cells below did not run
ENDED = {  # Papermill marks every cell as completed, and none as the one where it ended
    "statuses": (["completed"] * 3, ["completed", "failed", "pending"]), "exceptions": ([False, False, None], [False, True, None]),
    "exception": (False, True), "language": (None, "said")}


@dataclass(frozen=True)
class Situation:
    "A notebook, how it is executed, and where we differ from Papermill on purpose."
    name: str
    cells: Sequence[Any]                         # Text is code; a pair is a cell's tags and its code; `#` and a space begin markdown
    options: Mapping[str, Any] = field(default_factory=dict)                  # For `execute_notebook`
    wanted: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)       # Fact to what Papermill gives and what we give
    metadata: Mapping[str, Any] = field(default_factory=lambda: {"kernelspec": {"name": "python3", "display_name": "p", "language": "python"}})
    minor: int = 5                               # Of the notebook's format


PARAMETERS = (["parameters"], "msg = None")
SITUATIONS = [
    # Papermill's test notebooks
    Situation("simple_execute", [PARAMETERS, "#papermill_description=DESC\nprint(msg)", "# "], {"parameters": {"msg": "Hello"}}),
    Situation("no_parameters", ["msg = None", "print(msg)", ""], {"parameters": {"msg": "Hello"}}),
    Situation("quoted and backslashed", [PARAMETERS, "print(msg, foo)"], {"parameters": {"msg": '"Hello"', "foo": r'\\"bar\\" do\ not\ crash'}}),
    Situation("complex_parameters",
              [(["parameters"], "a: float = 2.25 # Variable a\nb = [\n 'Hello',\n 'World'\n] # type: List[str] Nice\nc = None"), "a, b, c"],
              {"parameters": {"a": float("inf"), "b": [1, "x", None, True], "c": {"k": {"v": [1.5]}}}}),
    Situation("report_mode_test", [(["parameters"], "a = 1\nb = 1"), "def add(x, y):\n    return x + y", "print(add(a, b))"],
              {"parameters": {"a": 0}, "report_mode": True}),
    Situation("broken1", [(["papermill-error-cell-tag"], "# An exception of last time"), "print('good')", "# Markdown", "assert False",
                          "print('never')"]),
    Situation("broken2", ["print('good')", "from IPython.display import display\ndisplay('shown')\nraise AssertionError('too')", "print('never')"]),
    Situation("sysexit", ["import sys", "sys.exit()", "print('never')"], wanted=STOPPED),
    Situation("sysexit0", ["import sys", "sys.exit(0)", "print('never')"], wanted=STOPPED),
    Situation("systemexit", ["import sys", "raise SystemExit", "print('never')"], wanted=STOPPED),
    Situation("sysexit1", ["import sys", "sys.exit(1)", "print('never')"]),
    Situation("line_magic_error", ["%undefined-line-magic", "print('never')"]),
    Situation("nb_version_4.4", [(["parameters"], "# Parameters\nvar = 1"), "print(var)"], {"parameters": {"var": "It works"}}, minor=4),
    Situation("blank-vscode", [""], {"parameters": {"var": "It works"}, "kernel_name": "python3"}, metadata={"language_info": {"name": "python"}}),
    Situation("read_check", ["import os", "print(os.path.basename(os.getcwd()))\nassert os.path.isfile('check.txt')"], {"cwd": "FOLDER"}),
    Situation("test_logging", ["import logging\nlogging.basicConfig(level=logging.INFO)\nlogging.getLogger('test').info('text')", "print('hello')",
                               "from nowhere_at_all import mpg", ""]),
    # Its issues
    Situation("unicode", ["print('héé ☃ 日本語 🎉 \\u202e')", "name = 'Ünï'\nf'{name} ≤ ∑'", "raise ValueError('日本 🎉')"]),
    Situation("many outputs", ["import sys\nfor i in range(3000):\n    print(i)", "for i in range(3000):\n    print(-i, file=sys.stderr)",
                               "from IPython.display import display\nfor i in range(200):\n    display(i)", "print('x' * 2_000_000)"]),
    Situation("display updates", ["from IPython.display import display, update_display\nhandle = display('one', display_id='it')",
                                  "handle.update('two')\ndisplay('other')",
                                  "update_display({'a': 1}, display_id='it')\ndisplay('one', display_id='it')"]),
    Situation("clear_output", ["from IPython.display import clear_output, display\nprint('gone')\nclear_output()\nprint('kept')",
                               "for i in range(5):\n    clear_output(wait=True)\n    display(i)", "print('last')\nclear_output(wait=True)"]),
    Situation("progress bars", [
        "import sys\nfor i in range(4):\n    print(f'\\r{i * 33} %', end='')\nsys.stdout.flush()\nsys.stderr.write('a\\rb\\x08c\\n');"]),
    Situation("rich outputs", ["from IPython.display import HTML, Latex, Markdown, display",
                               "display(HTML('<b>x</b>'), Latex('$x$'), Markdown('*x*'))",
                               "display({'application/x-own+json': {'a': [1]}, 'text/plain': 'own'}, raw=True, metadata={'k': 1})",
                               "import matplotlib.pyplot as plt\nplt.plot([1, 2]); plt.show()"]),
    Situation("widgets", ["import ipywidgets\nslider = ipywidgets.IntSlider(3, description='s')\nslider",
                          "out = ipywidgets.Output()\nwith out:\n    print('inside')\nout"]),
    Situation("syntax error", ["x = 1", "def broken(:\n    pass", "x"]),
    Situation("custom traceback", ["class Odd(Exception):\n    def _render_traceback_(self):\n        return ['odd', 'indeed']",
                                   "raise Odd('x')", "1"]),
    Situation("KeyboardInterrupt in a cell", ["raise KeyboardInterrupt", "print('never')"]),
    Situation("allowed to raise", [(["raises-exception"], "1 / 0"), "print('on')", (["skip-execution"], "print('skipped')"), "2 + 2"],
              wanted={"statuses": (["completed"] * 4, ["completed", "completed", "skipped", "completed"])}),  # what was left out is not called done
    Situation("input is refused", ["input('name?')", "1"]),
    Situation("shell and await", ["!echo shell", "%%bash\necho bash", "%%bash\necho error >&2",
                                  "import asyncio\nawait asyncio.sleep(0.01, 'slept')"]),
    Situation("stays with Jupyter's counts", ["", "1", "%%capture captured\nprint('caught')\n2", "captured.stdout", "_ = 3", "In[-1], len(Out)"]),
    Situation("an unknown kernel", ["1 + 1"], wanted={"raised": ("NoSuchKernel", None), "*": (None, None)},
              metadata={"kernelspec": {"name": "conda-env-x-py", "display_name": "x", "language": "python"}, "language_info": {"name": "python"}}),
    Situation("a dead kernel", ["1", "import os, time; time.sleep(1); os.kill(os.getpid(), 9)", "3"], wanted=ENDED),
    Situation("a timeout", ["1", "import time; time.sleep(30)", "3"], {"execution_timeout": 1}, ENDED),
]


def written(situation: Situation, folder: Path) -> Path:
    "The situation as a notebook file."
    cells = []
    for i, each in enumerate(situation.cells):
        tags, source = ([], each) if isinstance(each, str) else each
        make = nbformat.v4.new_markdown_cell if source.startswith("# ") and not source.startswith("# Parameters") else nbformat.v4.new_code_cell
        cell = make(source, id=f"c{i}", metadata={"tags": tags} if tags else {})
        if situation.minor < 5:
            del cell["id"]
        cells.append(cell)
    path = folder / "in.ipynb"
    nb = nbformat.v4.new_notebook(cells=cells, metadata=dict(situation.metadata))
    nb.nbformat_minor = situation.minor
    path.write_text(json.dumps(nb))
    return path


def steady(value: Any) -> Any:
    "What differs between any two kernels, blanked."
    text = json.dumps(value)
    text = re.sub(r"\b[0-9a-f]{32}\b", "<id>", re.sub(r"ipykernel_\d+/\d+", "ipykernel", text))
    return json.loads(re.sub(r"(?<=at )0x[0-9a-f]+", "0x", text))


def facts(nb: Any, error: BaseException | None) -> dict[str, Any]:
    "Everything about an execution that has to be the same."
    told = nb.metadata.get("papermill", {})
    timeless = {k: v for k, v in told.items() if k not in ("start_time", "end_time", "duration", "output_path", "input_path", "exception")}
    papermill = [cell.metadata.get("papermill", {}) for cell in nb.cells]
    code = [i for i, cell in enumerate(nb.cells) if cell.cell_type == "code"]
    shown = re.sub(r"\x1b\[[0-9;]*m", "", str(error)) if type(error).__name__ == "PapermillExecutionError" else None
    return steady({
        "raised": None if error is None else type(error).__name__, "message": shown,
        "kinds": [cell.cell_type for cell in nb.cells], "ids": [cell.get("id") for cell in nb.cells if not _made(cell)],
        "sources": [cell.source.strip() for cell in nb.cells], "tags": [cell.metadata.get("tags") for cell in nb.cells],
        "hidden": [cell.metadata.get("jupyter") for cell in nb.cells],
        "counts": [nb.cells[i].execution_count for i in code], "outputs": [nb.cells[i].outputs for i in code],
        "statuses": [papermill[i].get("status") for i in code], "exceptions": [papermill[i].get("exception") for i in code],
        "timed": [papermill[i].get("duration") is not None for i in code], "exception": bool(told.get("exception")), "papermill": timeless,
        "ended": told.get("end_time") is not None, "language": nb.metadata.get("language_info"),
        "widgets": sorted(nb.metadata.get("widgets", {})), "format": [nb.nbformat, nb.nbformat_minor]})


def _made(cell: Any) -> bool:
    "Whether Papermill put it there."
    return bool({"injected-parameters", "papermill-error-cell-tag"} & set(cell.metadata.get("tags", [])))


def executed(situation: Situation, folder: Path, engine: str, more: Mapping[str, Any]) -> dict[str, Any]:
    "Execute a situation, and say what became of it."
    import papermill

    (folder / "check.txt").touch()
    options = {"progress_bar": False, **situation.options, **more, "engine_name": engine}
    if options.get("cwd") == "FOLDER":
        options["cwd"] = str(folder)
    path, out, error = written(situation, folder), folder / "out.ipynb", None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            papermill.execute_notebook(str(path), str(out), **options)
        except Exception as e:
            error = e
        nb = nbformat.read(out, 4) if out.exists() else nbformat.v4.new_notebook()
        nbformat.validate(nb)
    found = facts(nb, error)
    if situation.minor < 5:  # ids are made up when the notebook is read
        del found["ids"]
    return found


@functools.cache
def by_papermill(number: int, attempt: int) -> dict[str, Any]:
    "Once for all columns."
    situation = SITUATIONS[number]
    more = {"iopub_timeout": 120}  # after 4 s it gives outputs up that a busy machine brings late
    if "execution_timeout" not in situation.options:
        more["execution_timeout"] = 45  # its client may lose the wake-up for a reply while output widgets are at work, and would wait for ever
    folder = Path(tempfile.mkdtemp(prefix="p"), "folder")
    folder.mkdir()
    return executed(situation, folder, PAPERMILL, more)


def differences(situation: Situation, theirs: dict[str, Any], ours: dict[str, Any]) -> dict[str, Any]:  # Fact to theirs and ours
    "Where two executions differ; of a situation with `*`, only the facts that are wanted."
    if "*" in situation.wanted:
        return {fact: (theirs[fact], ours[fact]) for fact in situation.wanted if fact != "*"}
    different = {fact: (theirs[fact], ours[fact]) for fact in theirs if ours[fact] != theirs[fact]}
    if different.get("language", ("",))[0] is None:
        different["language"] = (None, "said" if different["language"][1]["name"] == "python" else "wrong")
    return different


@pytest.mark.parametrize("column", COLUMNS)
@pytest.mark.parametrize("number", range(len(SITUATIONS)), ids=[situation.name for situation in SITUATIONS])
def test_as_papermill(project, monkeypatch, number, column):
    "The executed notebook, its counts, its metadata and what is raised are Papermill's, where nothing else is wanted."
    situation, how = SITUATIONS[number], COLUMNS[column]
    for name, value in how["environment"].items():
        monkeypatch.setenv(name, value)
    folder = project.folder / "folder"
    folder.mkdir()
    ours = executed(situation, folder, how["engine_name"], how["options"])
    wanted = {fact: pair for fact, pair in situation.wanted.items() if fact != "*"}
    for attempt in range(5):  # Papermill's own client is not the same each time where output widgets are at work; ours is executed once
        different = differences(situation, by_papermill(number, attempt), ours)
        if different == wanted:
            break
    assert sorted(different) == sorted(wanted)  # the facts' names first: the values may be long
    assert different == wanted


def interrupted(engine: str, project) -> tuple[int, list[str], list[str]]:  # Exit code, what became of the cells, the lines of the error
    "Papermill as a process of its own, given Ctrl-C while its second cell runs."
    project.write("1", "import pathlib, time\npathlib.Path('begun').touch()\ntime.sleep(60)", "3",
                  kernelspec={"name": "python3", "display_name": "p", "language": "python"})
    code = f"import papermill; papermill.execute_notebook('train.ipynb', 'out.ipynb', progress_bar=False, engine_name={engine!r})"
    process, begun = project.start(code), project.folder / "begun"
    end = time.monotonic() + 60
    while not begun.exists() and time.monotonic() < end:
        time.sleep(0.05)
    spent, still = None, 0
    while still < 10:  # Papermill loses an interrupt that comes while it is at work on a message: wait until it only waits
        still = still + 1 if psutil.Process(process.pid).cpu_times()[:2] == spent else 0
        spent = psutil.Process(process.pid).cpu_times()[:2]
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    error = process.communicate(timeout=60)[1].strip().splitlines()
    begun.unlink()
    nb = nbformat.read(project.folder / "out.ipynb", 4)
    return process.returncode, [cell.metadata["papermill"]["status"] for cell in nb.cells], error


def test_keyboard_interrupt(project):
    "Both end by KeyboardInterrupt; Papermill's notebook says that the cell was completed."
    theirs, ours = interrupted(PAPERMILL, project), interrupted("mlcycle", project)
    assert theirs[0] == -signal.SIGINT and ours[0] == 1  # ours is a KeyboardInterrupt of its own, which Python reports as any exception
    # below it, asyncio may complain of tasks of nbclient that the interrupt left behind
    assert "KeyboardInterrupt" in theirs[2] and any("NotebookInterrupted" in line for line in ours[2])
    assert (theirs[1][1], ours[1]) == ("completed", ["completed", "failed", "pending"])
