# ruff: noqa: E501  (cells of notebooks)
"A notebook cannot tell a forked kernel from one that was started: each situation is run in both, and what comes out is compared."
from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import psutil
import pytest

from mlcycle.errors import NotebookRunError
from mlcycle.notebooks.execute.runner import run_notebook

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="kernels are forked on Linux only")


class Outcome:
    "What became of a notebook."

    def __init__(self, project: Any, cells: tuple[str, ...], fresh: bool, **settings: Any):
        began = time.monotonic()
        try:
            self.run = run_notebook(project.write(*cells), fresh=fresh, progress=False, **settings)
            self.error = None
        except NotebookRunError as e:
            self.run, self.error = e.result, e.result.error
        self.seconds = time.monotonic() - began
        self.nb = nbformat.reads(json.dumps(project.executed(self.run.run)), as_version=4)
        assert self.nb.metadata.mlcycle.kernel == ("fresh" if fresh else "forked"), self.nb.metadata.mlcycle

    @property
    def text(self) -> str:
        return "".join(out.text for cell in self.nb.cells for out in cell.get("outputs", []) if out.output_type == "stream").strip()

    def plain(self) -> list[Any]:
        "Everything that is shown, without what differs between any two processes."
        shown: list[Any] = []
        for cell in self.nb.cells:
            for out in cell.get("outputs", []):
                if out.output_type == "stream":
                    text = out.text
                elif out.output_type == "error":
                    text = "\n".join(out.traceback)
                else:
                    text = json.dumps({kind: data for kind, data in out.data.items() if kind != "application/vnd.jupyter.widget-view+json"}, sort_keys=True)
                text = re.sub(r"ipykernel_\d+/\d+|/tmp/ipykernel[^ ]*|0x[0-9a-f]+|\bpid \d+", "*", text)
                shown.append((out.output_type, out.get("name"), text, cell.get("execution_count")))
        return shown


@pytest.fixture
def both(project) -> Callable[..., tuple[Outcome, Outcome]]:
    "`both(*cells)`: the same notebook, in a forked and in a started kernel."

    def run(*cells: str, **settings: Any) -> tuple[Outcome, Outcome]:
        return Outcome(project, cells, False, **settings), Outcome(project, cells, True, **settings)

    return run


SAME = {
    "seeded": ["import random, numpy as np, pandas as pd", "random.seed(1); np.random.seed(1); rng = np.random.default_rng(1)",
               "print(random.random(), np.random.rand(3), rng.normal(size=3))", "pd.DataFrame(np.random.rand(3, 2)).describe()"],
    "openmp": ["from sklearn.ensemble import HistGradientBoostingClassifier as H\nfrom sklearn.datasets import make_classification",
               "X, y = make_classification(5000, 20, random_state=0)\nH(max_iter=20, random_state=0).fit(X, y).predict_proba(X)[:3]",
               "from threadpoolctl import threadpool_info\nsorted((i['user_api'], i['num_threads']) for i in threadpool_info())"],
    "blas": ["import numpy as np", "a = np.random.default_rng(0).random((400, 400))\nprint(repr(float((a @ a).sum())), repr(float(np.linalg.svd(a)[1][0])))"],
    "joblib": ["from joblib import Parallel, delayed\nfrom sklearn.ensemble import RandomForestClassifier as R\nfrom sklearn.datasets import load_breast_cancer as L\n"
               "from sklearn.model_selection import cross_val_score as cv", "X, y = L(return_X_y=True)\nprint(cv(R(10, random_state=0), X, y, n_jobs=2))",
               "def f(i): return i * i\nprint(Parallel(n_jobs=2)(delayed(f)(i) for i in range(9)))"],
    "multiprocessing": ["import multiprocessing as mp, math", "def f(i): return i * i\nwith mp.get_context('fork').Pool(2) as p: print(p.map(f, range(9)))",
                        "with mp.get_context('spawn').Pool(2) as p: print(p.map(math.sqrt, [4, 9]))"],
    "subprocess": ["import os, subprocess, time", "os.write(1, b'raw\\n'); subprocess.run(['echo', 'child']); time.sleep(.3)", "!echo shell"],
    "plots": ["import matplotlib, matplotlib.pyplot as plt", "plt.plot([1, 2, 3])", "print(matplotlib.get_backend(), plt.get_fignums())"],
    "widgets": ["import ipywidgets as w", "w.IntSlider(3)"],
    "await": ["import asyncio", "await asyncio.sleep(.01)\nprint(type(asyncio.get_running_loop()).__name__)"],
    "magics": ["x = 1", "%%bash\necho hi", "%timeit -n1 -r1 -q x", "print(In[1], len(Out))", "%history -n 1", "%who"],
    "warnings": ["import warnings, logging", "warnings.warn('one'); warnings.warn('two', DeprecationWarning)", "logging.warning('three')"],
    "main": ["import pickle, sys", "class A: pass\nprint(type(pickle.loads(pickle.dumps(A()))).__module__, sys.modules['__main__'].__dict__ is globals(), __name__)"],
    "large": ["print('x' * 3_000_000)"],
    "displays": ["from IPython.display import display, update_display, clear_output", "h = display('a', display_id='d'); update_display('b', display_id='d')",
                 "print('gone'); clear_output(); print('here')"],
    "traceback": ["def f():\n    return 1 / 0", "f()", "print('not run')"],
    "syntax": ["print('a'", "1"],
    "stdin": ["input('name?')"],
    "leave": ["import sys; sys.exit(0)", "print('x')"],
    "imports": ["import json, this", "print(json.__name__)"],
}


@pytest.mark.parametrize("name", SAME)
def test_same_outputs(both, name):
    "Streams, results, pictures, errors and counts are the same, bit for bit."
    forked, fresh = both(*SAME[name])
    assert forked.plain() == fresh.plain()
    assert (forked.run.status, forked.run.reason, forked.run.cell) == (fresh.run.status, fresh.run.reason, fresh.run.cell)
    assert [cell.metadata.papermill.get("status") for cell in forked.nb.cells] == [cell.metadata.papermill.get("status") for cell in fresh.nb.cells]
    assert bool(forked.nb.metadata.get("widgets")) == bool(fresh.nb.metadata.get("widgets"))


def test_same_process(both):
    "Environment, folder, signals, program, descriptors, limits and settings are those of a started kernel."
    asks = """
import sys, os, signal, gc, logging, locale, resource, json, warnings, threading
print(json.dumps(dict(argv=[os.path.basename(sys.argv[0]), sys.argv[1], len(sys.argv)], path=sys.path, flags=str(sys.flags), exe=sys.executable, name=__name__,
  env={k: v for k, v in os.environ.items() if k not in ('MLCYCLE_RUN', 'JPY_PARENT_PID', '_', 'PYDEVD_DISABLE_FILE_VALIDATION')}, cwd=os.getcwd(),
  signals={s.name: str(signal.getsignal(s)).split(' at ')[0] for s in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD, signal.SIGPIPE, signal.SIGHUP)},
  mask=str(signal.pthread_sigmask(signal.SIG_BLOCK, [])), gc=(gc.isenabled(), gc.get_threshold()), root=len(logging.root.handlers), level=logging.root.level,
  locale=locale.getlocale(), encoding=sys.stdout.encoding, limits={n: resource.getrlimit(getattr(resource, n)) for n in dir(resource) if n.startswith('RLIMIT_')},
  leads=(os.getsid(0) == os.getpid(), os.getpgid(0) == os.getpid()), main=getattr(sys.modules['__main__'], '__file__', None),
  names=sorted(k for k in globals() if not k.startswith('_')), cores=sorted(os.sched_getaffinity(0)), nice=os.nice(0), recursion=sys.getrecursionlimit(),
  filters=[str(f) for f in warnings.filters], hook=sys.excepthook.__name__,
  threads=sorted({t.name for t in threading.enumerate()} - {'mlcycle-lease', 'ParentPoller', 'Thread-1'}), digits=sys.get_int_max_str_digits()), default=str))"""
    forked, fresh = both(asks)
    a, b = json.loads(forked.text), json.loads(fresh.text)
    assert {key: a[key] for key in a if a[key] != b[key]} == {key: b[key] for key in a if a[key] != b[key]}


def test_nothing_is_shared_by_two_runs(project):
    "Two forked runs that seed nothing draw different numbers, keys and names."
    ask = ("import random, uuid, secrets, tempfile, os, json, numpy as np, multiprocessing as mp",
           "print(json.dumps([random.random(), np.random.rand(), np.random.default_rng().random(), str(uuid.uuid4()), str(uuid.uuid1()), secrets.token_hex(4), os.urandom(8).hex(),"
           " tempfile.mktemp(), bytes(mp.current_process().authkey).hex(), get_ipython().kernel.session.session, get_ipython().kernel.session.key.decode(), os.getpid()]))")
    one, two = (json.loads(Outcome(project, ask, False).text) for _ in range(2))
    assert [i for i, (a, b) in enumerate(zip(one, two, strict=True)) if a == b] == []


def test_nothing_leaks_into_the_next_run(project):
    "What one run does to libraries, environment and process, the next does not see."
    Outcome(project, ("import numpy as np, pandas as pd, matplotlib as m, os, sys, builtins",
                      "np.LEAK = builtins.LEAK = 1; os.environ['LEAK'] = '1'; sys.path.append('/LEAK'); m.rcParams['figure.dpi'] = 7; pd.set_option('display.max_rows', 3)\n"
                      "os.umask(0o77); os.nice(3); os.chdir('/'); x = 1"), False)
    seen = Outcome(project, ("import numpy as np, pandas as pd, matplotlib as m, os, sys, builtins",
                             "mask = os.umask(0); os.umask(mask)\nprint(hasattr(np, 'LEAK'), hasattr(builtins, 'LEAK'), 'LEAK' in os.environ, '/LEAK' in sys.path,"
                             " m.rcParams['figure.dpi'] == 7, pd.get_option('display.max_rows') == 3, mask == 0o77, os.nice(0) == 3, os.getcwd() == '/', 'x' in globals())"), False)
    assert set(seen.text.split()) == {"False"}


def test_ends_like_a_process(both, tmp_path):
    "Exit handlers run, threads are joined, files are flushed, objects are destroyed."
    def made(place: Path) -> tuple[str, ...]:
        return ("import atexit, weakref, threading, time, ctypes",
                f"P = {str(place)!r}\nfile = open(P + '.unclosed', 'w'); file.write('data')\natexit.register(lambda: open(P + '.atexit', 'w').write('1'))\n"
                "class A:\n    def __del__(self, P=P): open(P + '.del', 'w').write('1')\n"  # IPython deletes names in any order: P may be gone first
                "a, b = A(), A(); weakref.finalize(b, lambda P=P: open(P + '.finalize', 'w').write('1'))\n"
                "threading.Thread(target=lambda: (time.sleep(.3), open(P + '.thread', 'w').write('1'))).start()\n"
                "C = ctypes.CDLL(None); C.fopen.restype = ctypes.c_void_p; c = C.fopen((P + '.c').encode(), b'w'); C.fputs(b'abc', ctypes.c_void_p(c))")

    both(*made(tmp_path / "left"))
    assert {path.suffix: path.stat().st_size > 0 for path in tmp_path.glob("left.*")} == dict.fromkeys([".unclosed", ".atexit", ".del", ".finalize", ".thread", ".c"], True)


@pytest.mark.parametrize(("cells", "settings", "words"), [
    (("import time; time.sleep(60)", "1"), {"cell_timeout": 1}, "longer than 1 s"),
    (("while True:\n    try:\n        __import__('time').sleep(60)\n    except KeyboardInterrupt:\n        pass", "1"), {"timeout": 3}, "longer than 3 s"),
    (("import os, subprocess; subprocess.Popen(['sleep', '4321'])", "os.kill(os.getpid(), 9)", "1"), {}, "SIGKILL"),
    (("import ctypes; ctypes.string_at(0)", "1"), {}, "SIGSEGV"),
    (("import os; os._exit(3)", "1"), {}, "exit code 3"),
], ids=["cell timeout", "run timeout", "SIGKILL", "SIGSEGV", "exit"])
def test_same_deaths(both, wait_for, cells, settings, words):
    "Timeouts, kills and crashes are found, told in the same words, and leave no process behind."
    forked, fresh = both(*cells, **settings)
    assert words in forked.run.reason and forked.run.reason == fresh.run.reason and forked.error.type == fresh.error.type
    assert forked.seconds < 20
    wait_for(lambda: not [p.pid for p in psutil.process_iter(["cmdline"]) if p.info["cmdline"] == ["sleep", "4321"]])


def test_thread_limits_come_from_the_environment(both, monkeypatch):
    "`OMP_NUM_THREADS` counts, though the libraries were loaded before it was set."
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    forked, fresh = both("import numpy, scipy.linalg, sklearn.ensemble", "from threadpoolctl import threadpool_info\nfrom sklearn.utils._openmp_helpers import _openmp_effective_n_threads as n\n"
                         "print(sorted((i['user_api'], i['num_threads']) for i in threadpool_info()), n())")
    assert forked.text == fresh.text and "('openmp', 1)" in forked.text


def test_settings_in_the_folder_count(both, project):
    "A `matplotlibrc` beside the notebook is found."
    (project.folder / "matplotlibrc").write_text("figure.dpi: 33\n")
    forked, fresh = both("import matplotlib", "print(matplotlib.rcParams['figure.dpi'])")
    assert forked.text == fresh.text == "33.0"


def test_folders_without_modules_share_a_warm_process(project, monkeypatch):
    "Notebooks of several folders get kernels of one process, each with its own folder and settings; a folder whose module an import would find has its own."
    from mlcycle.notebooks.warm import pool

    cells = ("import os, sys, json, matplotlib, mlcycle", "print(os.getppid(), os.getcwd(), matplotlib.rcParams['figure.dpi'], '' in sys.path, sep='|')")
    shown, base = {}, project.folder
    for name in ("plain", "settings", "modules"):
        folder = base / name
        (folder / "data").mkdir(parents=True)
        if name == "settings":
            (folder / "matplotlibrc").write_text("figure.dpi: 33\n")
        if name == "modules":
            (folder / "mpl_toolkits.py").write_text("")
        monkeypatch.chdir(folder)
        monkeypatch.setattr(project, "folder", folder)
        shown[name] = Outcome(project, cells, False).text.split("|")
    assert shown["plain"][0] == shown["settings"][0] != shown["modules"][0]
    assert all(cwd == str(base / name) and own_path == "True" for name, (_, cwd, _, own_path) in shown.items())
    assert (shown["plain"][2], shown["settings"][2]) == ("100.0", "33.0")
    assert ("mlcycle",) not in {imports for imports, _ in pool.own_imports()} and ("matplotlib", "mlcycle") in {imports for imports, _ in pool.own_imports()}


def test_edited_module_is_imported_anew(project):
    "A module of the project that was edited between two runs is not the old one."
    module = project.folder / "mine.py"
    said = []
    for number in (1, 22):
        module.write_text(f"number = {number}")
        said.append(Outcome(project, ("import mine", "print(mine.number)"), False).text)
    assert said == ["1", "22"]


def test_threads_of_an_import_forbid_the_fork(project):
    "A module that leaves a thread behind is not imported early; the notebook imports it itself and finds its thread."
    (project.folder / "busy.py").write_text("import threading, time\nt = threading.Thread(target=time.sleep, args=(2,), daemon=True)\nt.start()")
    assert Outcome(project, ("import busy, json", "print(busy.t.is_alive())"), False).text == "True"


def test_any_jupyter_client_can_have_one(project, tmp_path, monkeypatch):
    "A kernel specification that names the provisioner is all that Jupyter needs."
    import papermill

    spec = {"argv": ["python", "-m", "ipykernel_launcher", "-f", "{connection_file}"], "display_name": "Warm", "language": "python",
            "metadata": {"kernel_provisioner": {"provisioner_name": "mlcycle-fork", "config": {"imports": ["statistics"]}}}}
    folder = tmp_path / "jupyter" / "kernels" / "warm"
    folder.mkdir(parents=True)
    (folder / "kernel.json").write_text(json.dumps(spec))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    path = project.write("import sys; print('statistics' in sys.modules, 'mlcycle.notebooks.warm.server' in sys.modules)")
    nb = papermill.execute_notebook(str(path), str(tmp_path / "out.ipynb"), kernel_name="warm", progress_bar=False)
    assert nb.cells[0].outputs[0].text == "True True\n"


def test_a_warm_process_is_given_back_and_renewed(project, monkeypatch, wait_for):
    "One that nobody asks ends by itself; one from before a package was installed is not asked any more."
    from mlcycle.notebooks.warm import imported, pool

    monkeypatch.setattr(imported, "IDLE", 0.3)
    first = pool.warm_process(("json",), str(project.folder))
    assert first.report["bad"] == {}
    wait_for(lambda: first.process.poll() is not None)
    monkeypatch.setattr(imported, "IDLE", 60.0)
    second = pool.warm_process(("json",), str(project.folder))
    assert pool.warm_process(("json",), str(project.folder)) is second
    site = project.folder / "site-packages"
    site.mkdir()
    monkeypatch.setattr(sys, "path", [*sys.path, str(site)])
    third = pool.warm_process(("json",), str(project.folder))
    (site / "new-1.0.dist-info").mkdir()
    fourth = pool.warm_process(("json",), str(project.folder))
    assert len({first, second, third, fourth}) == 4
    wait_for(lambda: second.process.poll() is not None)


def test_debugger_attaches(project):
    "What JupyterLab's debugger asks first is answered."
    import asyncio
    import tempfile

    from jupyter_client.manager import AsyncKernelManager

    from mlcycle.notebooks.document.kernels import spec_manager
    from mlcycle.notebooks.warm.manager import until_ready
    from mlcycle.notebooks.warm.provisioner import ForkProvisioner

    async def ask() -> list[bool]:
        manager = AsyncKernelManager(kernel_name="python3", kernel_spec_manager=spec_manager(), transport="ipc", ip=tempfile.mkdtemp() + "/k")
        manager.provisioner = ForkProvisioner(kernel_spec=manager.kernel_spec, parent=manager)
        with open(os.devnull, "wb") as null:
            await manager.start_kernel(stdout=null, stderr=null)
        client = manager.client()
        client.start_channels(hb=False, stdin=False)
        await until_ready(client, manager, 60)
        answers = []
        for number, command in enumerate(("initialize", "debugInfo")):
            message = client.session.msg("debug_request", {"type": "request", "command": command, "seq": number, "arguments": {"clientID": "t", "adapterID": ""}})
            client.control_channel.send(message)
            while (reply := await client.get_control_msg(timeout=20))["parent_header"].get("msg_id") != message["header"]["msg_id"]:
                pass
            answers.append(reply["content"]["success"])
        client.stop_channels()
        await manager.shutdown_kernel(now=True)
        return answers

    assert asyncio.run(ask()) == [True, True]


ASKS = """
import logging, os, sys
import IPython
from IPython import get_ipython as of_ipython
from ipykernel.zmqshell import ZMQInteractiveShell

shell = of_ipython()
told = [type(shell).__name__, shell.__class__.__name__, isinstance(shell, ZMQInteractiveShell), "IPKernelApp" in shell.config, hasattr(shell, "kernel"),
        get_ipython() is shell, __IPYTHON__, sys.stdout.isatty(), sys.stdout.encoding, sys.stdout.__class__.__name__, os.environ.get("TERM"),
        os.environ.get("PAGER"), os.path.basename(sys.argv[0]), IPython.InteractiveShell.initialized()]
log = logging.getLogger("asks")
log.addHandler(logging.StreamHandler(sys.stderr))
out = sys.stdout
shell.events.register("post_run_cell", lambda result: print("after a cell"))
"""


def test_an_import_is_told_what_a_kernel_tells_it(both, project):
    "A module that asks at import where it runs gets the same answers before a fork, and what it has kept works after it."
    (project.folder / "asks.py").write_text(ASKS)
    forked, fresh = both("import asks", "print(asks.told)", "asks.log.warning('kept')", "print('kept too', file=asks.out); asks.out.flush()",
                         "asks.shell.run_line_magic('who', '')", "asks.shell.user_ns['asks'] is asks")
    assert forked.plain() == fresh.plain() and "True, True" in fresh.text and "ZMQInteractiveShell" in fresh.text
    assert "after a cell" in forked.text and "kept too" in forked.text


def test_an_import_that_needs_the_shell_is_left_to_the_notebook(both, project):
    "A module that registers a magic when it is imported finds the shell of its kernel."
    (project.folder / "registers.py").write_text("get_ipython().register_magic_function(lambda line: print('magic', line), 'line', 'mine')")
    forked, fresh = both("import registers", "%mine works")
    assert forked.plain() == fresh.plain() and "magic works" in forked.text


OPTIONS = {
    "pandas": "import pandas as pd\n{name: pd.get_option(name) for name in pd._config.config._registered_options}",
    "numpy": "import numpy as np\n{name: str(value) for name, value in np.get_printoptions().items()}",
    "matplotlib": "import matplotlib.pyplot as plt\n{name: str(value) for name, value in plt.rcParams.items()} | {'used': plt.get_backend(), 'interactive': plt.isinteractive()}",
    "rich": "import rich.console\nconsole = rich.get_console()\n[console.is_jupyter, console.is_terminal, console.color_system, console.width, rich.console.Console().is_jupyter]",
    "tqdm": "from tqdm.auto import tqdm\n[tqdm.__mro__[0].__module__, tqdm.__name__]",
    "IPython": "import IPython.display\n[IPython.get_ipython().__class__.__name__, sorted(get_ipython().display_formatter.formatters), 'IPKernelApp' in get_ipython().config]",
    "plotly": "import plotly.io\n[plotly.io.renderers.default, sorted(plotly.io.templates), plotly.io.templates.default]",
    "polars": "import polars\nsorted(polars.Config.state().items(), key=str)",
}


@pytest.mark.parametrize("library", OPTIONS)
def test_options_of_libraries_are_those_of_a_kernel(both, library):
    "What a library chooses when it is imported is the same in a fork and in a kernel that was started."
    pytest.importorskip(library)
    imported, _, shown = OPTIONS[library].partition("\n")
    forked, fresh = both(imported, *shown.split("\n"), f"import pprint; pprint.pprint({shown.splitlines()[-1]})")
    assert forked.plain() == fresh.plain()
