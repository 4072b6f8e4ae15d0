"Real services for the tests, started on free ports of this machine: PostgreSQL, S3 (moto's server), Chromium."
from __future__ import annotations

import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any


class Missing(Exception):
    "A service that this machine does not have; the message says how to install it."


_reserved: dict[int, int] = {}  # Port to the descriptor of its locked file
_LOCKS = Path(tempfile.gettempdir()) / f"mlcycle-test-ports-{os.getuid()}"


def free_port() -> int:  # A port that is this process's until it ends
    "A port of the loopback interface that nothing listens on, and that neither another worker nor the kernel gives to anybody else."
    first, last = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    _LOCKS.mkdir(exist_ok=True)
    for port in (port for port in range(15_000, 65_000) if not first <= port <= last and port not in _reserved):
        lock = os.open(_LOCKS / str(port), os.O_CREAT | os.O_RDWR)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with socket.socket() as s:
                s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                s.bind(("127.0.0.1", port))
        except OSError:  # another worker's, or some other program listens there
            os.close(lock)
            continue
        _reserved[port] = lock
        return port
    raise RuntimeError("no port is free")


def wait_until(
    ready: Callable[[], bool],    # Is it up?
    server: subprocess.Popen,     # Its process
    log: Path,                    # What it printed
    seconds: float = 60.0,        # How long to wait
) -> None:
    "Wait for a server to come up; raises with its log when it ends or does not come up in time."
    end = time.monotonic() + seconds
    while not ready():
        if server.poll() is not None or time.monotonic() > end:
            raise RuntimeError(f"{server.args[0]} did not come up:\n{log.read_text(errors='replace')[-4000:]}")
        time.sleep(0.05)


class Postgres:
    "A PostgreSQL cluster of its own, with a database for whoever asks."

    def __init__(self):
        debian = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: float(path.parts[-3]))
        found = str(debian[-1]) if debian else shutil.which("postgres")
        if not found:
            raise Missing("PostgreSQL is not installed (apt-get install postgresql)")
        if find_spec("psycopg") is None:
            raise Missing("PostgreSQL's driver is not installed (pip install 'mlcycle[postgres]')")
        self.bin = Path(found).parent
        self.folder = Path(tempfile.mkdtemp(prefix="mlcycle-postgres-"))
        self.port, self.count = free_port(), 0
        owner: dict[str, Any] = {}
        if os.getuid() == 0:  # the server refuses to run as root
            owner = {"user": "postgres", "group": "postgres", "extra_groups": []}
            shutil.chown(self.folder, "postgres", "postgres")
        data, log = self.folder / "data", self.folder / "log"
        # A linguistic collation, as most clusters have one: range queries that only work in C order must fail here.
        subprocess.run([self.bin / "initdb", "-D", data, "-U", "mlcycle", "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8",
                        "--locale-provider=icu", "--icu-locale=en-US", "--no-sync"], check=True, capture_output=True, cwd=self.folder, **owner)
        self._owner, self._log = owner, log
        self.start()

    def start(self) -> None:
        "Start the server, or start it again after `halt`."
        with self._log.open("ab") as out:
            self.process = subprocess.Popen(
                [self.bin / "postgres", "-D", self.folder / "data", "-p", str(self.port), "-h", "127.0.0.1", "-c", "unix_socket_directories=",
                 "-c", "fsync=off", "-c", "max_connections=200"], stdout=out, stderr=out, cwd=self.folder, start_new_session=True, **self._owner)
        wait_until(self._answers, self.process, self._log)

    def halt(self) -> None:
        "Stop the server and keep its databases; whoever is connected is thrown out."
        self.process.send_signal(signal.SIGINT)  # PostgreSQL's "fast" shutdown
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def _answers(self) -> bool:
        import psycopg

        try:
            psycopg.connect(self.address("postgres").replace("+psycopg", ""), connect_timeout=5).close()
        except psycopg.OperationalError:
            return False
        return True

    def address(self, database: str) -> str:
        return f"postgresql+psycopg://mlcycle@127.0.0.1:{self.port}/{database}"

    def new_database(self) -> str:  # URL of an empty database
        "A database that nobody else uses."
        import psycopg

        self.count += 1
        name = f"test_{self.count}"
        with psycopg.connect(self.address("postgres").replace("+psycopg", ""), autocommit=True) as con:
            con.execute(f"CREATE DATABASE {name}")
        return self.address(name)

    def stop(self) -> None:
        self.halt()
        shutil.rmtree(self.folder, ignore_errors=True)


class S3:
    "moto's S3 in a process of its own."

    def __init__(self):
        if any(find_spec(name) is None for name in ("moto", "flask", "s3fs")):
            raise Missing("moto's server and s3fs are not installed (pip install 'mlcycle[dev]')")
        self.folder, self.port, self.count = Path(tempfile.mkdtemp(prefix="mlcycle-s3-")), free_port(), 0
        self.endpoint = f"http://127.0.0.1:{self.port}"
        self.environment = {"AWS_ENDPOINT_URL": self.endpoint, "AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing",
                            "AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true"}
        log = self.folder / "log"
        with log.open("wb") as out:
            self.process = subprocess.Popen([sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)], stdout=out, stderr=out)
        wait_until(self._answers, self.process, log)

    def _answers(self) -> bool:
        try:
            urllib.request.urlopen(f"{self.endpoint}/moto-api/", timeout=5).close()
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            return False
        return True

    def new_bucket(self) -> str:  # fsspec URL
        "A bucket that nobody else uses."
        import boto3

        self.count += 1
        name = f"bucket-{self.count}"
        boto3.client("s3", endpoint_url=self.endpoint, aws_access_key_id="testing", aws_secret_access_key="testing",
                     region_name="us-east-1").create_bucket(Bucket=name)
        return f"s3://{name}/artifacts"

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(30)
        shutil.rmtree(self.folder, ignore_errors=True)


class Chromium:
    "Where the browser is, and how it is started here."

    def __init__(self):
        found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
        if not found:
            raise Missing("Chromium is not installed (apt-get install chromium)")
        if find_spec("playwright") is None:
            raise Missing("playwright is not installed (pip install playwright)")
        self.path = found
        self.options = {"executable_path": found, "args": ["--no-sandbox"] if os.getuid() == 0 else []}  # For playwright's chromium.launch

    def stop(self) -> None: ...


class Git:
    "Where git is."

    def __init__(self):
        if not (found := shutil.which("git")):
            raise Missing("git is not installed (apt-get install git)")
        self.path = found

    def stop(self) -> None: ...


SERVICES = {"postgresql": Postgres, "s3": S3, "chromium": Chromium, "git": Git}
