"""Execute notebooks as nbdev-test does, in process and without a kernel, each in a process and a working folder of its own."""
from __future__ import annotations

import atexit
import importlib
import json
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from settle import ROOT, stored

UNSTORED = {"export", "exports", "exporti", "hide", "default_exp"}
# what takes long to import; none of them starts a thread or notes where it was imported
SHARED = {"IPython", "alembic", "ipykernel", "jupyter_client", "matplotlib", "mpl_toolkits", "nbclient", "nbformat", "numpy", "optuna", "pandas",
          "papermill", "plotly", "pyarrow", "scipy", "skops", "sklearn", "sqlalchemy"}
DPI = 50
LOG = "printed.log"


@dataclass
class Executed:
    "What became of one notebook."
    path: Path                                                          # Its file
    outputs: dict[str, list[dict[str, Any]]] = field(default_factory=dict)  # Cell id to outputs as they are stored
    varies: set[str] = field(default_factory=set)                       # Ids of the cells marked `#| varies`
    failure: str = ""                                                   # Traceback of the cell that failed
    seconds: float = 0.0                                                # How long it took
    imported: list[str] = field(default_factory=list)                   # Which modules of SHARED it needed


def environment() -> dict[str, str]:
    "Variables that make outputs independent of who executes them, and where."
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MLCYCLE_", "AWS_"))}
    for name in ("NO_COLOR", "FORCE_COLOR", "CI"):
        kept.pop(name, None)
    kept["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    kept["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    fixed = {"PYTHONHASHSEED": "0", "TZ": "UTC", "COLUMNS": "100", "LINES": "40", "TERM": "dumb", "USER": "user", "LOGNAME": "user", "IN_TEST": "1",
             "MLCYCLE_WARM": "false"}
    return kept | fixed


def _run(path: Path) -> Executed:
    "Execute one notebook here: this process ends afterwards."
    from execnb.shell import CaptureShell
    from nbdev.config import get_config
    from nbdev.process import NBProcessor
    from nbdev.test import _skip_cell

    config = get_config(path.parent)
    flags = config.tst_flags
    nb = NBProcessor(path, rm_directives=False, process=True).nb
    skipped = _skip_cell(nb, flags.split() if isinstance(flags, str) else flags)
    sys.path.insert(0, str(config.config_path))
    done = Executed(path)

    def keep(cell: Any) -> None:
        if not UNSTORED & cell.directives_.keys():
            done.outputs[cell.id] = stored(cell.outputs)
            if "varies" in cell.directives_:
                done.varies.add(cell.id)

    shell = CaptureShell(path, mpl_format="png", profile=bool(config.exec_profile))
    shell._run(f"import matplotlib as mpl\nmpl.rcParams['figure.dpi'] = {DPI}\ndel mpl")
    try:
        shell.run_all(nb, exc_stop=True, preproc=skipped, postproc=keep, cell_timeout=config.cell_timeout or None)
    except BaseException:
        cell = next((cell for cell in nb.cells if cell.idx_ + 1 == shell._cell_idx), None)
        name = f"cell {cell.id}\n" if cell else ""
        done.failure = name + (shell.prettytb(fname=path) or traceback.format_exc())
    if shell.leaks:
        done.failure += f"{path}: {len(shell.leaks)} tasks survived cancellation\n"
    return done


def _child(path: Path, own: str, answer: Connection) -> None:
    "The process of one notebook: works in an empty folder, answers, ends what the notebook began."
    atexit._clear()
    shared = set(sys.modules)
    os.environ["TMPDIR"] = tempfile.tempdir = own
    work = Path(own, "work")
    work.mkdir()
    os.chdir(work)
    with open(Path(own, LOG), "wb") as log:  # what threads and children of the notebook print past its cells
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    try:
        done = _run(path)
    except BaseException:
        done = Executed(path, failure=traceback.format_exc())
    done.imported = [name for name in list(sys.modules) if name.partition(".")[0] in SHARED and name not in shared]
    os.chdir(work)
    if not done.failure and (left := sorted(p.name for p in work.iterdir())):
        done.failure = f"{path} wrote into its working folder instead of a temporary one: {', '.join(left)}\n"
    answer.send(done)
    answer.close()
    with suppress(BaseException):
        atexit._run_exitfuncs()


def execute(paths: Iterable[Path], jobs: int = 2) -> Iterator[Executed]:
    "Each notebook's outputs, in the order in which they are done. What one has imported of SHARED, later ones find imported."
    waiting, running = list(paths), {}
    from execnb.shell import CaptureShell  # noqa: F401 - for the processes
    from nbdev.test import test_nb  # noqa: F401

    context = multiprocessing.get_context("fork")
    while waiting or running:
        while waiting and len(running) < jobs:
            path = waiting.pop(0)
            own = tempfile.mkdtemp(prefix="mlc-", dir="/tmp" if os.path.isdir("/tmp") else None)
            receive, send = context.Pipe(duplex=False)
            process = context.Process(target=_child, args=(path, own, send))
            process.start()
            send.close()
            running[receive] = path, own, process, time.monotonic()
        wait([*running, *(process.sentinel for *_, process, _ in running.values())])
        for receive in [receive for receive, (*_, process, _) in running.items() if receive.poll() or not process.is_alive()]:
            path, own, process, began = running.pop(receive)
            try:
                if not receive.poll():
                    raise EOFError
                done = receive.recv()
            except EOFError:
                process.join()
                printed = Path(own, LOG).read_text(errors="replace") if Path(own, LOG).exists() else ""
                done = Executed(path, failure=f"{path}: its process ended with {process.exitcode}\n{printed[-3000:]}\n")
            receive.close()
            done.seconds = time.monotonic() - began
            for name in done.imported:
                with suppress(Exception):  # such as a part that cannot be imported on its own
                    importlib.import_module(name)
            process.join(30)
            if process.is_alive():
                process.kill()
            shutil.rmtree(own, ignore_errors=True)
            yield done


def read(path: Path) -> dict[str, Any]:
    "A notebook as its file says."
    return json.loads(path.read_text(encoding="utf-8"))
