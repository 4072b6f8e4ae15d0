"The process that waits for the next `mlcycle run`: what the user sees is the same with it, and it keeps nothing that is not its own."
from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from mlcycle.notebooks.warm.waiting_start import waiting_processes
from mlcycle.notebooks.warm.wire import Gone, pair, receive, send
from mlcycle.store import query, runs
from mlcycle.store.connect import open_store

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="processes are forked on Linux only")
SHOW = "import json, os, sys\nprint(json.dumps([os.getppid(), os.environ.get('ONLY_HERE'), os.getcwd(), os.umask(0o022), x]))"


class Shell:
    "A project and the environment of a shell in it, with waiting processes of its own."

    def __init__(self, folder: Path, wait_for: Callable[..., Any]):
        self.folder, self.wait_for = folder, wait_for
        self.pid: int | None = None  # The waiting process that `ready` gave
        self.runtime = tempfile.mkdtemp(dir="/tmp")  # a socket's name must be short
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("MLCYCLE_", "PYTEST_", "COVERAGE_")) and name != "CI"}
        self.env = {**clean, "XDG_RUNTIME_DIR": self.runtime, "MLCYCLE_WARM_IDLE": "600"}
        (folder / ".git").mkdir()
        self.write("show.ipynb", "x = 1", SHOW)

    def write(self, name: str, parameters: str, *cells: str) -> Path:
        "Write a notebook whose first cell declares parameters."
        import nbformat
        from nbformat.v4 import new_code_cell, new_notebook

        nodes = [new_code_cell(parameters, id="p", metadata={"tags": ["parameters"]})]
        nodes += [new_code_cell(cell, id=f"c{i}") for i, cell in enumerate(cells)]
        nbformat.write(new_notebook(cells=nodes), self.folder / name)
        return self.folder / name

    def start(self, *words: str, **more: str) -> subprocess.Popen[str]:
        "Start `mlcycle …`."
        return subprocess.Popen([sys.executable, "-m", "mlcycle", *words], cwd=self.folder, env={**self.env, **more}, text=True,
                                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def mlcycle(self, *words: str, **more: str) -> tuple[int, str, str]:
        "Exit code, output and errors of `mlcycle …`."
        process = self.start(*words, **more)
        out, err = process.communicate(timeout=300)
        return process.returncode, out, err

    def shown(self, *words: str, name: str = "show.ipynb", **more: str) -> list[Any]:
        "What the notebook prints: the warm process, a variable, the folder, the mask, x."
        code, _, err = self.mlcycle("run", name, "--out", "out.ipynb", *words, **more)
        assert code == 0, err
        nb = json.loads((self.folder / "out.ipynb").read_text())
        return json.loads("".join(nb["cells"][-1]["outputs"][0]["text"]))

    def states(self) -> list[dict[str, Any]]:
        "The waiting processes of this shell, the one that `ready` gave first: a run with another umask leaves one of its own behind."
        with pytest.MonkeyPatch.context() as patch:  # asked here: a command for each question would be most of the work of these tests
            patch.setenv("XDG_RUNTIME_DIR", self.runtime)
            return sorted(waiting_processes(), key=lambda state: state["pid"] != self.pid)

    def ready(self) -> dict[str, Any]:
        "The waiting process, when its imports are done; started by a run where there is none."
        if not self.states():
            assert self.mlcycle("run", "show.ipynb")[0] == 0
        state = self.wait_for(lambda: next((state for state in self.states() if state["ready"] and state["imports"]), None))
        self.pid = state["pid"]
        return state

    def end(self) -> None:
        "Stop what waits."
        for state in self.states():
            psutil.Process(state["pid"]).kill()
        shutil.rmtree(self.runtime, ignore_errors=True)


@pytest.fixture(scope="module")
def wait_long() -> Callable[..., Any]:
    "As `wait_for`, for a fixture of the module."
    import time

    def wait(condition: Callable[[], Any], seconds: float = 120.0) -> Any:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if value := condition():
                return value
            time.sleep(0.05)
        raise AssertionError(f"not within {seconds} s")

    return wait


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory, wait_long: Callable[..., Any]) -> Iterator[Shell]:
    "One project for the tests that leave its waiting process as it is."
    made = Shell(tmp_path_factory.mktemp("project"), wait_long)
    yield made
    made.end()


@pytest.fixture
def own_shell(tmp_path: Path, wait_for: Callable[..., Any]) -> Iterator[Shell]:
    "A project whose waiting process a test may end."
    made = Shell(tmp_path, wait_for)
    yield made
    made.end()


def neutral(text: str) -> str:
    "Without what differs from run to run."
    return re.sub(r"[0-9a-f]{8}\b|-[0-9a-f]{4}\b|[\d.]+ (ms|s)\b|(?<=\[)\d+(?=,)", "#", text)


def warm_parent(pid: int) -> int:
    "The process that has started a kernel's parent."
    return psutil.Process(pid).ppid()


def test_the_second_run_is_forked_and_nothing_else_differs(shell: Shell) -> None:
    "Outputs, errors, exit codes, folder, variables and mask: with a waiting process as without."
    waiting = shell.ready()
    assert [state["pid"] for state in json.loads(shell.mlcycle("warm", "--json")[1])] == [waiting["pid"]]
    parent, *seen = shell.shown("-p", "x", "7", ONLY_HERE="yes")
    assert warm_parent(parent) == waiting["pid"] and seen == ["yes", str(shell.folder), 0o022, 7]
    assert shell.shown()[1] is None  # nothing is left of the command before
    shell.write("fails.ipynb", "x = 1", "print('before')", "1 / 0")
    for words, code in ((["show.ipynb"], 0), (["fails.ipynb"], 1), (["fails.ipynb", "--json"], 1), (["show.ipynb", "-p", "y", "1"], 2),
                        (["show.ipynb", "--nothing"], 2), (["none.ipynb"], 2), (["show.ipynb", "--follow"], 0), (["--help"], 0)):
        forked, plain = shell.mlcycle("run", *words), shell.mlcycle("run", *words, MLCYCLE_WARM="false")
        if "--json" in words:
            assert json.loads(forked[1]).keys() == json.loads(plain[1]).keys() and (forked[0], forked[2]) == (plain[0], plain[2])
        else:
            assert (forked[0], *map(neutral, forked[1:])) == (plain[0], *map(neutral, plain[1:])), words
        assert forked[0] == code


@pytest.mark.parametrize("how", ["CI", "variable", "fresh", "setting", "options", "mask"])
def test_it_is_not_used_where_it_must_not_be(shell: Shell, how: str) -> None:
    "In CI, with `--fresh`, where it is turned off, and by a command that differs in what a fork cannot change."
    waiting = shell.ready()
    more = {"CI": {"CI": "true"}, "variable": {"MLCYCLE_WARM": "false"}}.get(how, {})
    settings = shell.folder / "pyproject.toml"
    if how == "setting":
        settings.write_text("[tool.mlcycle]\nwarm = false\n")
    try:
        if how in ("options", "mask"):
            mask = 0o077 if how == "mask" else -1
            options = ["-X", "utf8"] if how == "options" else []
            subprocess.run([sys.executable, *options, "-m", "mlcycle", "run", "show.ipynb", "--out", "out.ipynb"],
                           cwd=shell.folder, env=shell.env, check=True, umask=mask, stdout=subprocess.DEVNULL)
            text = json.loads((shell.folder / "out.ipynb").read_text())["cells"][-1]["outputs"][0]["text"]
            parent, *_, umask, _ = json.loads("".join(text))
            assert umask == (mask if mask >= 0 else 0o022)
        else:
            parent = shell.shown(*(["--fresh"] if how == "fresh" else []), **more)[0]
    finally:
        settings.unlink(missing_ok=True)
    assert not psutil.pid_exists(parent) or warm_parent(parent) != waiting["pid"]


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_signals_reach_the_run(shell: Shell, signum: int, wait_for: Callable[..., Any]) -> None:
    "Ctrl-C and a polite kill end the run as cancelled, with the exit code that they have without a waiting process."
    shell.ready()
    codes = set()
    for warm in ("", "false"):
        begun = shell.folder / f"begun{warm}{signum}"
        shell.write("long.ipynb", "x = 1", f"open({str(begun)!r}, 'w').close()\nimport time; time.sleep(600)")
        process = shell.start("run", "long.ipynb", MLCYCLE_WARM=warm or "true")
        wait_for(begun.exists)
        process.send_signal(signum)
        out, err = process.communicate(timeout=120)
        codes.add((process.returncode, neutral(out), neutral(err)))
    assert len(codes) == 1, codes
    with open_store(shell.folder / ".mlcycle" / "mlcycle.db") as store:
        assert [runs.to_run(row).status for row in query.page(store)][:2] == ["cancelled", "cancelled"]


def test_a_killed_command_leaves_nothing_running(shell: Shell, wait_for: Callable[..., Any]) -> None:
    "What the user has started is killed: its fork and its kernel end, the waiting process goes on."
    waiting = shell.ready()
    wait_for(lambda: shell.states()[0]["commands"] == 0)  # those of the test before have ended
    begun = shell.folder / "begun"
    shell.write("long.ipynb", "x = 1", f"import os\nwith open({str(begun)!r} + '.new', 'w') as f: f.write(str(os.getpid()))\n"
                                       f"os.rename({str(begun)!r} + '.new', {str(begun)!r})\nimport time; time.sleep(600)")
    process = shell.start("run", "long.ipynb")
    wait_for(begun.exists)
    kernel = psutil.Process(int(begun.read_text()))
    forks = [child for child in psutil.Process(waiting["pid"]).children() if child.name() == "mlcycle"]
    assert len(forks) == 1 and shell.states()[0]["commands"] == 1
    process.kill()
    process.communicate()
    wait_for(lambda: not forks[0].is_running() and not kernel.is_running())
    wait_for(lambda: shell.states()[0]["commands"] == 0)
    assert warm_parent(shell.shown()[0]) == waiting["pid"]


def test_it_holds_no_secret_and_no_variable_of_a_command(own_shell: Shell) -> None:
    "Neither the environment nor the memory of what stays behind has the secret of the command that started it, or of one that was forked."
    own_shell.write("secret.ipynb", "x = 1\napi_key = ''", SHOW)
    value = f"s3cr3t-{os.urandom(8).hex()}"
    words, secret = ["--secret", "api_key=env:HF_LOGIN"], {"HF_LOGIN": value, "MY_DATABASE": value[::-1]}
    own_shell.shown(*words, name="secret.ipynb", **secret)
    waiting = own_shell.ready()
    parent = own_shell.shown(*words, name="secret.ipynb", **secret)[0]
    assert warm_parent(parent) == waiting["pid"]
    for pid in (waiting["pid"], parent):
        assert not {"HF_LOGIN", "MY_DATABASE", "MLCYCLE_WARM_IDLE"} & set(psutil.Process(pid).environ())
        memory = memory_of(pid)
        assert b"mlcycle" in memory and value.encode() not in memory and value[::-1].encode() not in memory


def memory_of(pid: int) -> bytes:
    "All memory of a process that can be written."
    parts = []
    with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb") as memory:
        for line in maps:
            span, mode, *_ = line.split()
            if mode.startswith("rw"):
                low, high = (int(part, 16) for part in span.split("-"))
                memory.seek(low)
                parts.append(memory.read(high - low))
    return b"".join(parts)


def test_what_an_import_reads_decides(own_shell: Shell) -> None:
    "A module of the project that reads a variable, or is edited, gives each run what a started process would."
    (own_shell.folder / "settings_here.py").write_text("import os\nLEVEL = os.environ.get('LEVEL_HERE', 'none')\n")
    own_shell.write("show.ipynb", "x = 1", "from settings_here import LEVEL", SHOW.replace("x]", "LEVEL]"))
    waiting = own_shell.ready()
    parent, *_, level = own_shell.shown()
    assert (warm_parent(parent), level) == (waiting["pid"], "none")
    assert own_shell.shown(LEVEL_HERE="high")[-1] == "high" and own_shell.shown()[-1] == "none"
    (own_shell.folder / "settings_here.py").write_text("LEVEL = 'edited'\n")
    assert own_shell.shown()[-1] == "edited"


def test_commands_at_the_same_time(shell: Shell) -> None:
    "Each has its own run, streams and exit code."
    shell.ready()
    processes = [shell.start("run", "show.ipynb", "-p", "x", str(i), "--json") for i in range(3)] + [shell.start("run", "show.ipynb", "-p", "z", "1")]
    outputs = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0, 2]
    assert len({json.dumps(json.loads(out)["run"]) for out, _ in outputs[:3]}) == 3 and "z" in outputs[3][1]


def test_stop_lets_a_command_go_on(own_shell: Shell, wait_for: Callable[..., Any]) -> None:
    "The run that goes on in a fork is not disturbed by `mlcycle warm stop`, and its exit code arrives."
    own_shell.ready()
    begun, end = own_shell.folder / "begun", own_shell.folder / "end"
    own_shell.write("long.ipynb", "x = 1", f"import os, time\nopen({str(begun)!r}, 'w').close()\n"
                                           f"while not os.path.exists({str(end)!r}): time.sleep(0.05)")
    process = own_shell.start("run", "long.ipynb")
    wait_for(begun.exists)
    code, out, _ = own_shell.mlcycle("warm", "stop")
    assert code == 0 and "The 1 running command will go on" in out and own_shell.states() == []
    end.touch()
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0 and "finished" in out, err


def test_papermill_uses_the_same_process(own_shell: Shell) -> None:
    "Papermill's command with this engine leaves a waiting process, and is given kernels by it; so is the magic in a notebook."
    def papermill() -> list[Any]:
        words = ["show.ipynb", "out.ipynb", "--engine", "mlcycle", "--kernel", "python3", "--no-progress-bar"]
        subprocess.run([sys.executable, "-m", "papermill", *words], cwd=own_shell.folder, env=own_shell.env, check=True, capture_output=True)
        return json.loads("".join(json.loads((own_shell.folder / "out.ipynb").read_text())["cells"][-1]["outputs"][0]["text"]))

    papermill()
    waiting = own_shell.wait_for(lambda: next((state for state in own_shell.states() if state["ready"] and state["imports"]), None))
    assert warm_parent(papermill()[0]) == waiting["pid"] and warm_parent(own_shell.shown()[0]) == waiting["pid"]
    own_shell.write("magic.ipynb", "x = 1", "%load_ext mlcycle", "%mlcycle run show.ipynb --out magic_out.ipynb")
    assert own_shell.mlcycle("run", "magic.ipynb")[0] == 0
    text = json.loads((own_shell.folder / "magic_out.ipynb").read_text())["cells"][-1]["outputs"][0]["text"]
    assert warm_parent(json.loads("".join(text))[0]) == waiting["pid"]


def test_stop_and_replacement(own_shell: Shell, wait_for: Callable[..., Any]) -> None:
    "`mlcycle warm stop` ends it; one that was made for other packages is not used, and replaced by the next run."
    first = own_shell.ready()
    entry = next(Path(own_shell.runtime).rglob("*.json"))
    entry.write_text(json.dumps({**json.loads(entry.read_text()), "code": "of other packages"}))
    assert warm_parent_or_none(own_shell.shown()[0]) != first["pid"]
    second = wait_for(lambda: next((state for state in own_shell.states() if state["pid"] != first["pid"]), None))
    wait_for(lambda: not psutil.pid_exists(first["pid"]) or psutil.Process(first["pid"]).status() == psutil.STATUS_ZOMBIE)
    code, out, _ = own_shell.mlcycle("warm", "stop")
    assert (code, out.strip()) == (0, "Stopped 1.") and own_shell.states() == []
    wait_for(lambda: not psutil.pid_exists(second["pid"]) or psutil.Process(second["pid"]).status() == psutil.STATUS_ZOMBIE)
    assert not [path for path in Path(own_shell.runtime).rglob("*") if path.is_file() or path.is_socket()]


def warm_parent_or_none(pid: int) -> int | None:
    "As `warm_parent`, for a process that may have ended."
    try:
        return warm_parent(pid)
    except psutil.Error:
        return None


def test_it_ends_when_nobody_asks(own_shell: Shell, wait_for: Callable[..., Any]) -> None:
    "After the idle time it is gone, with the process that has done the imports."
    own_shell.env["MLCYCLE_WARM_IDLE"] = "3"
    assert own_shell.mlcycle("run", "show.ipynb")[0] == 0
    wait_for(lambda: list(Path(own_shell.runtime).rglob("*.json")))
    wait_for(lambda: not list(Path(own_shell.runtime).rglob("*.s")))
    assert own_shell.mlcycle("run", "show.ipynb")[0] == 0


def test_it_ends_when_memory_is_short(own_shell: Shell, wait_for: Callable[..., Any]) -> None:
    "A process that waits gives its memory back: with a bound that no machine keeps it is gone at its first look, with one that all keep it stays."
    program = "from mlcycle.notebooks.warm.waiting_start import start_waiting; print(start_waiting([]))"

    def start(scarce: str) -> int:
        env = {**own_shell.env, "MLCYCLE_WARM_SCARCE": scarce}
        return int(subprocess.run([sys.executable, "-c", program], cwd=own_shell.folder, env=env, check=True, capture_output=True, text=True).stdout)

    pid = start("2")
    wait_for(lambda: has_ended(pid))
    assert own_shell.states() == [] and not list(Path(own_shell.runtime).rglob("*.s"))
    pid = start("0")
    wait_for(lambda: [state["pid"] for state in own_shell.states()] == [pid])


def has_ended(pid: int) -> bool:
    "Whether a process is gone, or waits for a parent that collects it."
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


LONG_LIFE = {
    "a warm process of its own": "from mlcycle.notebooks.warm.pool import warm_process\nprocess = warm_process(('json',))\npid = process.process.pid",
    "a waiting process": "from mlcycle.notebooks.warm.waiting_start import start_waiting\npid = start_waiting([])",
}


@pytest.mark.parametrize("what", LONG_LIFE)
def test_a_long_process_collects_what_has_ended(own_shell: Shell, what: str, wait_for: Callable[..., Any]) -> None:
    "A process that ends on its own, as after its idle time, does not stay as a zombie of JupyterLab's kernel until that asks for another one."
    program = f"{LONG_LIFE[what]}\nprint(pid, flush=True)\ninput()"
    with subprocess.Popen([sys.executable, "-c", program], cwd=own_shell.folder, env={**own_shell.env, "MLCYCLE_WARM": "true"}, text=True,
                          stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        pid = int(parent.stdout.readline())
        assert psutil.Process(pid).ppid() == parent.pid
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda: not psutil.pid_exists(pid))
        assert parent.poll() is None
        parent.stdin.write("\n")


def test_the_waiting_process_collects_its_warm_processes(own_shell: Shell, wait_for: Callable[..., Any]) -> None:
    "The same for what the waiting process itself has started; the next run starts another."
    waiting = own_shell.ready()
    warm, = psutil.Process(waiting["pid"]).children()
    warm.kill()
    wait_for(lambda: not psutil.pid_exists(warm.pid))
    assert own_shell.states()[0]["imports"] == []
    assert warm_parent(own_shell.shown()[0]) == waiting["pid"]


AS_NOBODY = """
import os, socket, sys
from mlcycle.notebooks.warm.wire import Gone, pair, receive, send
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
"""
ASK = AS_NOBODY + """
connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
connection.connect(sys.argv[1])
try:
    send(connection, {"token": sys.argv[2], "do": "status"})
    print(receive(connection, 60))
except Gone:
    print("refused")
"""
LISTEN = AS_NOBODY + """
listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
listener.bind(sys.argv[1])
os.chmod(sys.argv[1], 0o777)
listener.listen()
print("listens", flush=True)
connection, _ = listener.accept()
try:
    print(receive(connection, 60))
except Gone:
    print("nothing came")
"""
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another user")


@as_root
def test_another_user_is_not_answered(own_shell: Shell) -> None:
    "Who reaches the socket and has the token is refused all the same, where the process belongs to another user."
    own_shell.ready()
    path = next(Path(own_shell.runtime).rglob("*.s"))
    token = json.loads(path.with_suffix(".json").read_text())["token"]
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as same_user:
        same_user.connect(str(path))
        send(same_user, {"token": token, "do": "status"})
        assert "pid" in receive(same_user, 60)[0]
    modes = {each: each.stat().st_mode for each in (Path(own_shell.runtime), path.parent, path)}
    for each in modes:
        each.chmod(0o777)
    try:
        done = subprocess.run([sys.executable, "-c", ASK, str(path), token], capture_output=True, text=True)
    finally:
        for each, mode in modes.items():
            each.chmod(mode)
    assert (done.returncode, done.stdout.strip()) == (0, "refused"), done.stderr


@as_root
def test_a_process_of_another_user_is_told_nothing(own_shell: Shell) -> None:
    "A command that finds another user's process in the place of its own does not even send its token."
    from mlcycle.notebooks.warm.waiting_client import ask_waiting

    folder = Path(own_shell.runtime)
    folder.chmod(0o777)
    with subprocess.Popen([sys.executable, "-c", LISTEN, str(folder / "s")], text=True, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline().strip() == "listens"
        assert ask_waiting({"socket": str(folder / "s"), "token": "secret"}, {"do": "status"}, timeout=60) is None
        assert other.stdout.readline().strip() == "nothing came"


SERVE = "import os, socket, sys\nfrom mlcycle.notebooks.warm.forking import serve\nserve(socket.socket(fileno=int(sys.argv[1])))\nos._exit(5)"


@as_root
def test_a_checkpoint_forks_for_its_user_only() -> None:
    "A kept checkpoint holds a run's variables: another user who reaches its socket gets no fork of it."
    ours, theirs = pair()
    with tempfile.TemporaryDirectory(dir="/tmp") as folder, subprocess.Popen([sys.executable, "-c", SERVE, str(theirs.fileno())],
                                                                             pass_fds=[theirs.fileno()]):
        theirs.close()
        path = Path(folder) / "place" / "s"
        path.parent.mkdir()
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
            listener.bind(str(path))
            listener.listen()
            send(ours, {"listen": str(path), "until": time.time() + 600}, (listener.fileno(),))
        for each in (Path(folder), path.parent, path):
            each.chmod(0o777)
        done = subprocess.run([sys.executable, "-c", ASK, str(path), "none"], capture_output=True, text=True)
        assert (done.returncode, done.stdout.strip()) == (0, "refused"), done.stderr
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as same_user:
            same_user.connect(str(path))
            channel, given = pair()
            send(same_user, "fork", (given.fileno(), 0, 1, 2))
            given.close()
            messages = [receive(channel, 60), receive(channel, 60)]
            assert [list(message) for message, _ in messages] == [["pid"], ["exit"]] and messages[1][0]["exit"] == 5
            for fd in messages[0][1]:
                os.close(fd)
            channel.close()
        send(ours, "end")
    ours.close()


def test_strangers_are_refused(own_shell: Shell) -> None:
    "A folder that others can reach is not used, and said; without the token nothing is answered."
    waiting = own_shell.ready()
    path = str(next(Path(own_shell.runtime).rglob("*.s")))
    for request in ({"token": "0" * 32, "do": "status"}, {"do": "stop"}, ["stop"], {"token": None, "do": "command"}):
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as stranger:
            stranger.connect(path)
            send(stranger, request)
            with pytest.raises(Gone):
                receive(stranger, 60)
    folder = Path(path).parent
    assert folder.stat().st_mode & 0o777 == 0o700 and all(each.stat().st_mode & 0o077 == 0 for each in folder.iterdir())
    folder.chmod(0o755)
    try:
        assert warm_parent_or_none(own_shell.shown()[0]) != waiting["pid"]
        code, _, err = own_shell.mlcycle("warm")
        assert code == 2 and str(folder) in err.replace("\n", "") and "Remove it" in err
    finally:
        folder.chmod(0o700)
    assert own_shell.states()[0]["pid"] == waiting["pid"]

