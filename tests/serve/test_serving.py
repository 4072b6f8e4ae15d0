"A server as a process: what it answers, what it refuses, and what it survives."
from __future__ import annotations

import gzip
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from urllib.parse import urlsplit

import psutil
import pytest

from mlcycle.registry.predict import predict
from mlcycle.serve.guard import is_loopback
from mlcycle.store.connect import Store
from mlcycle.store.keys import create_key, revoke_key
from tests.serve.conftest import Running, Starter, people

ROW = {"age": 30, "income": None, "city": "Ulm", "member": True}


@pytest.fixture(scope="module")
def server(serving: Starter) -> Iterator[Running]:
    with serving("churn", "--max-body", "1", "--max-rows", "5000") as running:
        yield running


def test_answers_are_those_of_predict(server: Running, store: Store) -> None:
    "Records, columns and one row get what `mlc.predict` gives, with the version that answered and an id of their own."
    table = people(40)
    wanted = predict("churn", table, store=store)
    columns = {name: [None if value != value else value for value in table[name].tolist()] for name in table}
    records = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    for body in ({"records": records}, {"columns": columns}):
        status, answer, _ = server.ask("/v1/models/churn/predict", {**body, "probabilities": True})
        assert status == 200 and answer["predictions"] == wanted["prediction"].tolist() and (answer["model"], answer["version"]) == ("churn", 1)
        assert [row["yes"] for row in answer["probabilities"]] == pytest.approx(wanted["probability_yes"].tolist(), rel=1e-6)
    ids = set()
    for row in records[:5]:
        _, answer, _ = server.ask("/v1/predict", {"row": row})
        ids.add(answer["id"])
        assert answer["prediction"] == wanted["prediction"][records.index(row)] and "probability" not in answer
    assert len(ids) == 5


@pytest.mark.parametrize(("body", "status", "kind", "finding"), [
    ({"row": {**ROW, "age": 30.5}}, 422, "misfit", {"column": "age", "row": 1, "found": "30.5", "expected": "int64, a whole number"}),
    ({"row": {**ROW, "age": 2**63}}, 422, "misfit", {"column": "age", "row": 1}),
    ({"row": {**ROW, "age": "30"}}, 422, "misfit", {"column": "age", "row": 1, "found": "'30'"}),
    ({"records": [ROW, {**ROW, "member": None}]}, 422, "misfit", {"column": "member", "row": 2, "found": "null"}),
    ({"records": [ROW, {**ROW, "colour": 1}]}, 422, "misfit", {"column": "colour", "row": 2}),
    ({"row": {name: value for name, value in ROW.items() if name != "city"}}, 422, "misfit", {"column": "city"}),
    ({"row": {**ROW, "city": ["Ulm"]}}, 422, "misfit", {"column": "city", "found": "a list of 1"}),
    ({"row": {**ROW, "city": "\ud800"}}, 422, "misfit", {"column": "city"}),
    (b'{"row": {"age": 30, "age": 31, "income": 1, "city": "Ulm", "member": true}}', 400, "malformed", None),
    (b'{"row": {"age": 30, "income": NaN, "city": "Ulm", "member": true}}', 400, "malformed", None),
    (b'{"row": {"age": 30, "income": 1e999, "city": "Ulm", "member": true}}', 422, "misfit", {"column": "income"}),
    (b'{"row": \xff}', 400, "malformed", None), (b"", 400, "malformed", None), (b"[" * 90_000, 400, "malformed", None),
    (b'{"row": {"age": ' + b"9" * 5000 + b"}}", 400, "malformed", None),
    ([ROW], 422, "nesting", None), ({"rows": [ROW]}, 422, "nesting", None), ({"records": ROW}, 422, "nesting", None),
    ({"records": []}, 422, "nesting", None),
    ({"columns": {"age": [1], "income": [1, 2], "city": ["Ulm"], "member": [True]}}, 422, "nesting", None),
    ({"row": ROW, "records": [ROW]}, 422, "nesting", None), ({"row": ROW, "probabilities": "yes"}, 422, "nesting", None),
    ({"records": [ROW] * 5001}, 413, "too-many-rows", None), (b" " * (1 << 20) + b"{}", 413, "too-large", None),
])
def test_what_does_not_fit_is_named(server: Running, body: object, status: int, kind: str, finding: dict[str, object] | None) -> None:
    "A refusal is a problem document that names the column, the row, what is there and what is expected."
    got, document, headers = server.ask("/v1/predict", body)
    assert (got, document["type"], headers["content-type"]) == (status, f"urn:mlcycle:problem:{kind}", "application/problem+json")
    if finding is not None:
        assert finding.items() <= document["problems"][0].items()


def test_headers_and_addresses(server: Running) -> None:
    "Compression, deadlines, methods, paths and types, each with its own answer; a bomb is not unpacked."
    packed = {"Content-Encoding": "gzip"}
    assert server.ask("/v1/predict", gzip.compress(json.dumps({"row": ROW}).encode()), packed)[0] == 200
    assert server.ask("/v1/predict", gzip.compress(bytes(500 << 20), 1), packed)[0] == 413
    assert server.ask("/v1/predict", b"{}", {"Content-Encoding": "br"})[0] == 415
    assert server.ask("/v1/predict", {"row": ROW}, {"Content-Type": "text/html"})[0] == 415
    assert server.ask("/v1/predict", {"row": ROW}, {"X-Request-Timeout": "soon"})[0] == 400
    status, _, headers = server.ask("/v1/predict")
    assert status == 405 and headers["allow"] == "POST"
    assert server.ask("/v1/models/nobody/predict", {"row": ROW})[0] == 404


def test_pages_of_others_are_refused(server: Running) -> None:
    "A page of another origin cannot ask, neither by name nor after its name was pointed to this machine."
    assert server.ask("/v1/predict", {"row": ROW}, {"Origin": "https://evil.example"})[0] == 403
    assert server.ask("/v1/predict", {"row": ROW}, {"Host": "evil.example"})[0] == 400
    status, _, headers = server.ask("/v1/predict", {"row": ROW}, {"Origin": server.url})
    assert status == 200 and not any(name.lower().startswith("access-control") for name in headers)


def test_state_and_counts(server: Running) -> None:
    "The server says what it serves; what it counted is what was sent."
    facts = server.ask("/version")[1]["models"][0]
    assert (facts["name"], facts["version"], len(facts["digest"])) == ("churn", 1, 64)
    assert server.ask("/readyz")[0] == server.ask("/healthz")[0] == 200
    before = _counted(server)
    for _ in range(7):
        server.ask("/v1/predict", {"records": [ROW, ROW]})
    server.ask("/v1/predict", {"row": {}})
    after = _counted(server)
    grown = {name: after[name] - before.get(name, 0) for name in after}
    assert grown['mlcycle_requests_total{model="churn",route="predict",status="200",version="1"}'] == 7
    assert grown['mlcycle_requests_total{model="churn",route="predict",status="422",version="1"}'] == 1
    assert grown['mlcycle_rows_total{model="churn",version="1"}'] == 14 and grown['mlcycle_request_seconds_count{route="predict"}'] == 8
    assert sum(value for name, value in grown.items() if name.startswith("mlcycle_predictions_total")) == 14


def _counted(server: Running) -> dict[str, float]:
    lines = [line for line in server.ask("/metrics")[1].decode().splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


def _connect(server: Running) -> socket.socket:
    place = urlsplit(server.url)
    return socket.create_connection((place.hostname, place.port), 60)


def test_slow_and_greedy_clients_do_no_harm(server: Running) -> None:
    "Half a head, a head without an end, a body that was announced and never comes, a thousand idle connections: the others are served."
    others = [_connect(server) for _ in range(1000)]
    half, endless, silent = _connect(server), _connect(server), _connect(server)
    half.sendall(b"POST /v1/predict HTTP/1.1\r\nHost: loc")
    silent.sendall(b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nX-Request-Timeout: 0.5\r\nContent-Length: 100\r\n\r\n{")
    assert silent.recv(1000).startswith(b"HTTP/1.1 408")
    with pytest.raises(OSError):  # it is cut off
        for _ in range(10_000):
            endless.sendall(b"GET /" + b"a" * 1000 if not _ else b"a" * 1000)
            time.sleep(0)
        assert endless.recv(1000) == b""
        raise OSError
    huge = _connect(server)
    huge.sendall(b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000000\r\n\r\n")
    assert huge.recv(1000).startswith(b"HTTP/1.1 413")
    assert server.ask("/v1/predict", {"row": ROW})[0] == 200
    assert half.recv(1000) == b""  # after the time that a head may take
    for connection in (*others, half, endless, silent, huge):
        connection.close()
    assert server.ask("/v1/predict", {"row": ROW})[0] == 200


def test_a_failing_model_tells_nothing(serving: Starter) -> None:
    "A model that raises gives an id; the message of its error is in the log only, and the server goes on."
    with serving("positive") as running:
        status, document, _ = running.ask("/v1/predict", {"row": {"age": 30, "height": -1.0}})
        assert status == 500 and document["id"] and "Box-Cox" not in json.dumps(document)
        assert running.ask("/v1/predict", {"row": {"age": 30, "height": 170.0}})[0] == 200


@pytest.mark.kills
def test_a_killed_worker_is_replaced(serving: Starter, soak: int) -> None:
    "Of two workers one is killed under load: no request fails but those that it had, and another takes its place."
    with serving("scale", "--workers", "2") as running:
        place = urlsplit(running.url)
        body = json.dumps({"row": {"age": 30, "height": 170.0}}).encode()
        outcomes: list[tuple[float, float, bool]] = []
        killed = threading.Event()
        answered_after = threading.Semaphore(0)
        enough = threading.Event()

        def ask() -> None:
            while not enough.is_set():
                begun, right = time.monotonic(), False
                connection = http.client.HTTPConnection(place.hostname, place.port, timeout=60)
                try:
                    connection.request("POST", "/v1/predict", body, {"Content-Type": "application/json"})
                    right = connection.getresponse().status == 200
                except (OSError, http.client.HTTPException):
                    pass
                finally:
                    connection.close()
                outcomes.append((begun, time.monotonic(), right))
                if killed.is_set():
                    answered_after.release()
                time.sleep(0.02)

        clients = [threading.Thread(target=ask) for _ in range(4)]
        before = running.workers()
        for client in clients:
            client.start()
        while len(outcomes) < 100:
            time.sleep(0.01)
        os.kill(before[soak % 2], signal.SIGKILL)
        moment = time.monotonic()
        killed.set()
        for _ in range(200):
            answered_after.acquire()
        while len(running.workers()) < 2 or _counted(running)["mlcycle_worker_starts_total"] < 3:
            time.sleep(0.05)
        enough.set()
        for client in clients:
            client.join()
        failed = [(begun, ended) for begun, ended, right in outcomes if not right]
        assert all(begun <= moment <= ended for begun, ended in failed) and len(failed) <= len(clients)
        assert before[soak % 2] not in running.workers() and _counted(running)["mlcycle_in_flight"] <= 1


def test_stopping_finishes_what_is_in_flight(serving: Starter) -> None:
    "After SIGTERM a request whose body was on its way is answered, no connection is taken any more, and the exit code is 0."
    with serving("scale") as running:
        body = json.dumps({"row": {"age": 30, "height": 170.0}}).encode()
        late = _connect(running)
        late.sendall(b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body[:5])
        while _counted(running)["mlcycle_in_flight"] < 2:
            time.sleep(0.01)
        workers = running.workers()
        running.process.terminate()
        while True:
            try:
                _connect(running).close()
            except ConnectionRefusedError:
                break
            time.sleep(0.01)
        late.sendall(body[5:])
        assert late.recv(10_000).startswith(b"HTTP/1.1 200")
        late.close()
        assert running.process.wait(60) == 0 and not any(psutil.pid_exists(pid) for pid in workers)


def test_workers_end_with_their_server(serving: Starter) -> None:
    "A server that is killed leaves no worker behind."
    with serving("scale", "--workers", "2") as running:
        workers = [psutil.Process(pid) for pid in running.workers()]
        running.process.kill()
        _, alive = psutil.wait_procs(workers, 60)
        assert alive == []


@pytest.mark.parametrize("leave", ["", "os._exit(0)"], ids=["it ends", "it dies"])
def test_a_server_ends_with_its_kernel_and_says_nothing(store: Store, leave: str) -> None:
    "A process that leaves while its server runs: the server ends too, without a traceback in the terminal that they share."
    script = f"import os, mlcycle as mlc; server = mlc.serve('scale'); print(server.url, flush=True); {leave}"
    done = subprocess.run([sys.executable, "-c", script], env={**os.environ, **store.environment}, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr  # its end is that of all processes which write there
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(f"{done.stdout.strip()}/healthz")


def test_keys(serving: Starter, store: Store) -> None:
    "Who listens where others reach it needs keys; a key that is revoked stops working while the server runs."
    address = next((address.address for cards in psutil.net_if_addrs().values() for address in cards
                    if address.family == socket.AF_INET and not is_loopback(address.address)), None)
    if address is None:
        pytest.skip("this machine has no address besides loopback")
    _, text = create_key(store, "client")
    with serving("scale", "--host", address) as running:
        body = {"row": {"age": 30, "height": 170.0}}
        assert running.ask("/v1/predict", body)[0] == 401 and running.ask("/v1/predict", body, {"Authorization": f"Bearer {text}"})[0] == 200
        assert running.ask("/v1/predict", body, {"Authorization": f"Bearer {text[:-1]}"})[0] == 401
        revoke_key(store, "client")
        while running.ask("/v1/predict", body, {"Authorization": f"Bearer {text}"})[0] != 401:
            time.sleep(0.2)
