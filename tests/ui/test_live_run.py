"Following a run in a real kernel, without a page: what is sent while a cell runs, and what a busy kernel answers."
from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mlcycle.store import query, runs
from mlcycle.store.connect import open_store
from tests.ui.kernels import started

SETUP = "import time\nimport mlcycle as mlc\nfrom mlcycle.ui.widgets.live_run import LiveRun"
TRAIN = """with mlc.run('baseline', capture=False) as run:
    live = LiveRun(run)
    display(live)
    for i in range({}):
        run.log_metric('loss', 1 / (i + 1))
        time.sleep(0.05)
live.wait()"""


class Kernel:
    "A kernel with everything that it publishes."

    def __init__(self, folder: Path, client: Any):
        self.folder, self.client = folder, client
        self.seen: list[dict[str, Any]] = []

    def start(self, code: str, person: bool = True) -> str:
        return self.client.execute(code, allow_stdin=person)

    def until(self, wanted: Callable[[dict[str, Any]], Any], seconds: float = 60) -> dict[str, Any]:
        "Take messages until one is as wanted."
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            message = self.client.get_iopub_msg(timeout=max(0.1, end - time.monotonic()))
            self.seen.append(message)
            if wanted(message):
                return message
        raise AssertionError(f"not within {seconds} s: {[m['msg_type'] for m in self.seen][-20:]}")

    def finish(self, request: str) -> dict[str, Any]:
        self.until(lambda m: m["msg_type"] == "status" and m["content"]["execution_state"] == "idle" and m["parent_header"].get("msg_id") == request)
        while True:
            if (reply := self.client.get_shell_msg(timeout=120))["parent_header"].get("msg_id") == request:
                return reply["content"]

    def run(self, code: str, person: bool = True) -> dict[str, Any]:
        return self.finish(self.start(code, person))

    def shown(self, kind: str = "display_data") -> list[dict[str, Any]]:
        return [m["content"]["data"] for m in self.seen if m["msg_type"] == kind]


@pytest.fixture
def kernel(tmp_path: Path) -> Iterator[Kernel]:
    (tmp_path / ".mlcycle").mkdir()
    with started(tmp_path) as (_, client):
        made = Kernel(tmp_path, client)
        assert made.run(SETUP)["status"] == "ok"
        yield made


def points(message: dict[str, Any]) -> int:
    "How many points of its first chart an update of the widget tells of."
    data = message["content"].get("data", {}).get("state", {}).get("data", {}) if message["msg_type"] == "comm_msg" else {}
    return data["charts"][0]["series"][0]["count"] if data.get("charts") else 0


def test_updates_come_while_the_cell_runs_and_a_picture_stays(kernel: Kernel) -> None:
    "The thread must get through while the main thread is at work, at most ten times a second."
    request = kernel.start(TRAIN.format(60))
    kernel.until(lambda m: points(m) >= 5)
    began, before = time.monotonic(), len(kernel.seen)
    for _ in range(4):  # however long they take on a busy machine
        kernel.until(points)
    seen = kernel.seen[before:]
    assert not [m for m in seen if m["msg_type"] == "status" and m["parent_header"].get("msg_id") == request], "the cell is over"
    assert len([m for m in seen if points(m)]) <= 10 * (time.monotonic() - began) + 2
    assert kernel.finish(request)["status"] == "ok"
    assert "application/vnd.jupyter.widget-view+json" in kernel.shown()[0]
    last = kernel.shown("update_display_data")[-1]
    assert set(last) == {"text/plain", "text/html"} and "finished" in last["text/plain"] and "data:image/svg+xml" in last["text/html"]


def test_a_busy_kernel_says_who_it_is_and_takes_a_stop(kernel: Kernel) -> None:
    "What a page sends that was loaded again, before it knows of subshells: the questions must not wait for the cell."
    request = kernel.start(TRAIN.format(2000))
    kernel.until(lambda m: points(m) >= 2)
    widget = kernel.shown()[0]["application/vnd.jupyter.widget-view+json"]["model_id"]
    asked = kernel.client.kernel_info()
    while (reply := kernel.client.get_shell_msg(timeout=120))["parent_header"].get("msg_id") != asked:
        pass
    assert reply["content"]["language_info"]["name"] == "python"
    session, channel = kernel.client.session, kernel.client.shell_channel
    channel.send(session.msg("comm_open", {"comm_id": "c0", "target_name": "jupyter.widget.control", "data": {}}, metadata={"version": "1.0.0"}))
    channel.send(session.msg("comm_msg", {"comm_id": "c0", "data": {"method": "request_states"}}))
    states = kernel.until(lambda m: m["msg_type"] == "comm_msg" and m["content"]["comm_id"] == "c0")["content"]["data"]["states"]
    assert states[widget]["state"]["data"]["run"]["name"] == "baseline"
    channel.send(session.msg("comm_msg", {"comm_id": widget, "data": {"method": "custom", "content": {"do": "stop"}}}))
    reply = kernel.finish(request)
    assert (reply["status"], reply["ename"]) == ("error", "KeyboardInterrupt")
    with open_store(kernel.folder / ".mlcycle/mlcycle.db") as store:
        assert runs.resolve(store, "baseline").status == "cancelled"
    assert kernel.run("print('still here')")["status"] == "ok"


def test_a_batch_gets_no_widget(kernel: Kernel) -> None:
    "Papermill and nbconvert allow no input: what they execute must hold the picture, not a model that will be gone."
    assert kernel.run(TRAIN.format(3) + "\ndisplay(live)", person=False)["status"] == "ok"
    assert all(set(data) == {"text/plain", "text/html"} for data in kernel.shown())
    assert "finished" in kernel.shown()[-1]["text/plain"] and "data:image/svg+xml" in kernel.shown()[-1]["text/html"]
    assert not [m for m in kernel.seen if m["msg_type"].startswith("comm")]


def test_a_program_in_the_background_is_stopped_too(tmp_path: Path) -> None:
    "A shell starts a program in the background deaf to SIGINT; it is to end cancelled all the same."
    from mlcycle.ui.widgets.stopping import stop

    code = "import time\nimport mlcycle as mlc\nwith mlc.run('deaf', capture=False) as run:\n    run.log_metric('loss', 1)\n    time.sleep(120)"
    with open_store(tmp_path / "mlcycle.db") as store:
        program = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, **store.environment},
                                   preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN))
        while not (rows := query.page(store)):
            time.sleep(0.05)
        time.sleep(0.5)
        stop(store, runs.to_run(rows[0]))
        assert program.wait(120) == 143
        assert runs.resolve(store, "deaf").status == "cancelled"


def test_a_million_points_are_read_once(tmp_path: Path) -> None:
    "A long run costs its new points only: reading on must be hundreds of times faster than reading it all."
    from mlcycle.store import schema
    from mlcycle.track.begin import start
    from mlcycle.ui.widgets.live_run import LiveRun

    with open_store(tmp_path / "mlcycle.db") as store:
        active = start("long", store=store, capture=False)
        active.log_metric("loss", 0.0)
        now = time.time()
        with store.db.write() as con:
            con.exec_driver_sql("INSERT INTO points (run, name, step, seq, value, time) VALUES (:run, :name, :step, 0, :value, :time)",
                                [{"run": active.run.pk, "name": "loss", "step": step, "value": (step % 977) / step, "time": now}
                                 for step in range(1, 1_000_000)])
            con.execute(schema.metrics.update().values(count=1_000_000, step=999_999))
        live = LiveRun(active)
        began = time.process_time()  # what it costs, whatever else the machine does
        live.reader.read()
        whole = time.process_time() - began
        sent = live.data()["charts"][0]["series"][0]
        assert sent["count"] == 1_000_000 and len(sent["x"]) <= 8 * 1200
        active.log_metric("loss", 7.0, step=1_000_000)
        began = time.process_time()
        live.reader.read()
        live.data()
        assert whole < 2 and time.process_time() - began < whole / 20
        assert live.reader.curves["loss"].points()[1].max() == 7.0
        print(f"a million points {whole:.2f} s, one more {1000 * (time.process_time() - began):.1f} ms")
        active.finish()
