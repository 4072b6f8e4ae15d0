"What tracking costs. `pytest tests/benchmarks --benchmark-enable` measures; without the option each body runs once, small."
from __future__ import annotations

import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from mlcycle.store.connect import Store
from mlcycle.track.begin import start
from mlcycle.track.current import run as tracked
from tests.benchmarks.conftest import Race


@pytest.fixture
def raw(tmp_path: Path) -> sqlite3.Connection:
    "The floor: autocommitted inserts into SQLite in WAL mode."
    con = sqlite3.connect(tmp_path / "raw.db", isolation_level=None)
    con.execute("PRAGMA journal_mode=WAL")
    con.execute("PRAGMA synchronous=NORMAL")
    con.execute("CREATE TABLE points (run INTEGER, name TEXT, step INTEGER, value REAL, time REAL)")
    yield con
    con.close()


def test_log_metric(race: Race, local: Store, raw: sqlite3.Connection) -> None:
    "Log one point, against a raw autocommitted insert."
    active, each = start(store=local, capture=False), race.size(200, 5)

    def ours() -> None:
        for i in range(each):
            active.log_metric("loss", 1 / (i + 1))

    def insert() -> None:
        for i in range(each):
            raw.execute("INSERT INTO points VALUES (?, ?, ?, ?, ?)", (1, "loss", i, 1 / (i + 1), time.time()))

    race.run("log_metric, against a raw insert", ours, insert, rounds=100, each=each, unit="us", bound=2, ratio=True)


def slowest(call: Callable[[int], Any], count: int) -> tuple[float, int]:
    "The longest of many calls in ms, and how many took more than 5 ms."
    longest, over, clock = 0.0, 0, time.perf_counter
    for number in range(count):
        begin = clock()
        call(number)
        if (taken := clock() - begin) > 0.005:
            over += 1
        longest = max(longest, taken)
    return longest * 1000, over


def test_slowest_point(race: Race, local: Store, raw: sqlite3.Connection) -> None:
    "A hundred thousand single calls, beside raw inserts, and beside a loop that only looks at the clock: how long the machine itself pauses."
    active, count = start(store=local, capture=False), race.size(100_000, 50)
    calls: dict[str, Callable[[int], Any]] = {
        "ours": lambda step: active.log_metric("loss", 1 / (step + 1)),
        "raw": lambda step: raw.execute("INSERT INTO points VALUES (?, ?, ?, ?, ?)", (1, "loss", step, 1 / (step + 1), time.time())),
        "idle": lambda step: [time.perf_counter() for _ in range(100)]}
    times: dict[str, list[tuple[float, int]]] = {name: [] for name in calls}

    def each_in_turn() -> None:
        for name, call in calls.items():
            times[name].append(slowest(call, count))

    race.benchmark.pedantic(each_in_turn, rounds=race.size(5, 1), iterations=1)
    if race.timed:
        text = {name: f"{median(longest for longest, _ in rounds):.1f} ms, {sum(over for _, over in rounds)} of {len(rounds) * count:,} over 5 ms"
                for name, rounds in times.items()}
        race.note("slowest of 100,000 calls", text["ours"], text["raw"], f"a loop without calls: {text['idle']}", "<= 5 ms",
                  median(longest for longest, _ in times["ours"]) <= 5)


_WRITERS = {
    "ours": """
from mlcycle.store.connect import open_store
from mlcycle.track.begin import start
run = start(store=open_store(sys.argv[1]), capture=False)
def log(step): run.log_metric("loss", 1 / (step + 1))
""",
    "raw": """
import sqlite3
con = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=60)
con.execute("PRAGMA journal_mode=WAL")
con.execute("PRAGMA synchronous=NORMAL")
con.execute("CREATE TABLE IF NOT EXISTS points (run INTEGER, name TEXT, step INTEGER, value REAL, time REAL)")
def log(step): con.execute("INSERT INTO points VALUES (?, ?, ?, ?, ?)", (1, "loss", step, 1 / (step + 1), time.time()))
"""}
_LOOP = """
print("ready", flush=True)
sys.stdin.readline()
begin = time.time()
longest = 0
for step in range(int(sys.argv[2])):
    before = time.perf_counter()
    log(step)
    longest = max(longest, time.perf_counter() - before)
print(begin, time.time(), longest)
"""


def eight_writers(how: str, path: Path, each: int) -> tuple[float, float]:
    "Points a second of eight processes into one file, from the first one's first point to the last one's last, and the longest call in ms."
    command = [sys.executable, "-c", "import sys, time" + _WRITERS[how] + _LOOP, str(path), str(each)]
    writers = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(8)]
    for writer in writers:
        assert writer.stdout.readline() == "ready\n"
    for writer in writers:
        writer.stdin.write("\n")
        writer.stdin.flush()
    spans = [tuple(map(float, writer.communicate()[0].split())) for writer in writers]
    begins, ends, longest = zip(*spans, strict=True)
    return 8 * each / (max(ends) - min(begins)), max(longest) * 1000


def test_eight_processes(race: Race, tmp_path: Path) -> None:
    "Eight processes that log into one SQLite store together, beside eight that insert without mlcycle."
    each, ours, raw = race.size(2000, 5), [], []
    race.benchmark.pedantic(lambda: ours.append(eight_writers("ours", tmp_path / "ours.db", each)),
                            setup=lambda: raw.append(eight_writers("raw", tmp_path / "raw.db", each)), rounds=race.size(7, 1), iterations=1)
    if race.timed:
        (rate, longest), (raw_rate, raw_longest) = (tuple(map(median, zip(*rounds, strict=True))) for rounds in (ours, raw))
        race.note("eight processes together", f"{rate:,.0f} points/s", f"{raw_rate:,.0f} points/s", "", ">= 10,000 points/s", rate >= 10_000)
        race.note("slowest call of eight processes", f"{longest:.0f} ms", f"{raw_longest:.0f} ms", f"worst round: {max(ms for _, ms in ours):.0f} ms",
                  "<= 150 ms", longest <= 150)


@pytest.mark.parametrize("again", [False, True], ids=["new", "again"])
def test_log_artifact(race: Race, local: Store, tmp_path: Path, again: bool) -> None:
    "A file of 2 GB, against one loop that reads, hashes and writes it; and the same content once more."
    import hashlib
    import os
    import random

    active, source, copy, size = start(store=local, capture=False), tmp_path / "weights.bin", tmp_path / "copy.bin", race.size(2 << 30, 1 << 20)
    piece = os.urandom(1 << 20)
    with source.open("wb") as f:
        for number in range(size >> 20):
            f.write(number.to_bytes(8, "big") + piece[8:])

    def loop() -> None:
        sha = hashlib.sha256()
        with source.open("rb") as f, copy.open("wb") as out:
            while part := f.read(1 << 20):
                sha.update(part)
                out.write(part)

    times: dict[str, list[float]] = {"ours": [], "raw": []}

    def each_in_turn() -> None:
        calls = [("raw", loop), ("ours", lambda: active.log_artifact(source))]
        for name, call in random.sample(calls, 2):
            begin = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - begin)
            copy.unlink(missing_ok=True)
            for digest, _ in () if again else local.blobs.digests():
                local.blobs.delete(digest)
            os.sync()  # what one has written must not slow down the other

    if again:
        active.log_artifact(source)
    race.benchmark.pedantic(each_in_turn, rounds=race.size(7, 1), iterations=1)
    if race.timed:
        ours, raw = median(times["ours"]), median(times["raw"])
        race.note(f"log_artifact of 2 GB{', stored before' if again else ''}", f"{ours:.2f} s", f"{raw:.2f} s", f"{ours / raw:.2f} x", "<= 0.8 x",
                  ours <= 0.8 * raw)


@pytest.mark.parametrize("capture", [False, True], ids=["plain", "captured"])
def test_start_and_end(race: Race, local: Store, repository: Path, monkeypatch: pytest.MonkeyPatch, capture: bool) -> None:
    "Start and end a run, with capture in a dirty Git repository, last edited over two seconds ago (a newer edit is snapshotted anew)."
    monkeypatch.chdir(repository)
    if capture:
        time.sleep(2.5)

    def ours() -> None:
        with tracked("baseline", store=local, capture=capture):
            pass

    ours()  # what the first run of a process pays is part of the process's time
    git = ["git", "rev-parse", "HEAD"]
    race.run(f"start and end a run, {'with capture (raw: one git call)' if capture else 'without capture'}", ours,
             (lambda: subprocess.run(git, check=True, capture_output=True)) if capture else None, rounds=100, bound=10 if capture else 2)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    "A Git repository of 200 files with changes that are not committed."
    root = tmp_path / "repository"
    for i in range(200):
        (root / f"package{i % 10}").mkdir(parents=True, exist_ok=True)
        (root / f"package{i % 10}" / f"module{i}.py").write_text(f"value = {i}\n" * 50)

    def git(*words: str) -> None:
        subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *words], cwd=root, check=True, capture_output=True)

    git("init", "-q")
    git("add", "-A")
    git("commit", "-qm", "first")
    (root / "package0" / "module0.py").write_text("changed = True\n")
    (root / "new.py").write_text("new = True\n")
    return root


def test_hundred_params(race: Race, local: Store) -> None:
    "A hundred params in one call."
    active = start(store=local, capture=False)
    values = {f"param_{i}": (i, i / 7, f"text {i}", i % 2 == 0, None)[i % 5] for i in range(100)}
    race.run("100 params in one call", lambda: active.log_params(values), rounds=100, bound=1)


def test_points_as_frame(race: Race, local: Store) -> None:
    "Read a long curve as a DataFrame, against a raw SELECT of the same rows."
    from mlcycle.store import metrics, schema

    active, count = start(store=local, capture=False), race.size(100_000, 100)
    rows = [{"run": active.run.pk, "name": "loss", "step": i, "seq": 0, "value": 1 / (i + 1), "time": 1.8e9 + i} for i in range(count)]
    with local.db.write() as con:
        con.execute(schema.points.insert(), rows)
    con = sqlite3.connect(local.db.where)
    query = "SELECT step, value, time FROM points WHERE run = ? AND name = ? ORDER BY step, seq"
    assert len(metrics.frame(local, active.run, "loss")) == len(con.execute(query, (active.run.pk, "loss")).fetchall()) == count
    race.run("100,000 points as a DataFrame, against SELECT", lambda: metrics.frame(local, active.run, "loss"),
             lambda: con.execute(query, (active.run.pk, "loss")).fetchall(), rounds=15, bound=3, ratio=True)
    con.close()


@pytest.mark.parametrize("filtered", [False, True], ids=["all", "filtered"])
def test_top_hundred(race: Race, local: Store, filtered: bool) -> None:
    "The hundred best of a hundred thousand runs, as a DataFrame."
    import random

    from mlcycle.store import schema
    from mlcycle.track.queries import runs

    count, rng = race.size(100_000, 300), random.Random(7)
    models = ["hgb", "forest", "linear"]
    with local.db.write() as con:
        con.execute(schema.runs.insert(), [
            {"pk": i, "id": f"{i:016x}", "name": f"churn-{i}", "experiment": f"e{i % 5}", "kind": "script",
             "status": "finished" if i % 10 else "failed", "started": 1.8e9 + i, "ended": 1.8e9 + i + 1, "actor": "me"} for i in range(1, count + 1)])
        values = {name: [rng.random() for _ in range(count)] for name in ("auc", "loss")}
        for name in values:
            con.execute(schema.metrics.insert(), [{"run": i, "name": name, "step": 0, "value": v, "low": v, "high": v, "count": 1}
                                                  for i, v in enumerate(values[name], 1)])
        for name in ("model", "depth"):
            con.execute(schema.params.insert(), [
                {"run": i, "name": name, "value": f'"{models[i % 3]}"' if name == "model" else str(i % 9),
                 "number": None if name == "model" else i % 9}
                for i in range(1, count + 1)])
    fits = [v for i, v in enumerate(values["auc"], 1) if not filtered or (v > 0.5 and i % 3 == 0 and i % 10)]
    best = sorted(fits, reverse=True)[:100]
    query = "metrics.auc > 0.5 and params.model == 'hgb' and status == 'finished'" if filtered else None

    def top() -> None:
        assert runs(query, order_by="-metrics.auc", limit=100, store=local)["metrics.auc"].tolist() == best

    race.run(f"top 100 of 100,000 runs{', three conditions' if filtered else ''}", top, rounds=15, bound=50)


# Whole processes


def python(code: str, folder: Path) -> None:
    "Run Python with `code` in a folder, to the end."
    subprocess.run([sys.executable, "-c", code], cwd=folder, check=True, stdout=subprocess.DEVNULL)


def test_import(race: Race, tmp_path: Path) -> None:
    "Importing mlcycle, on top of Python's own start."
    race.run("import mlcycle, on top of python", lambda: python("import mlcycle", tmp_path), lambda: python("pass", tmp_path),
             rounds=15, unit="s", bound=0.15, less=True)


_ONE = "import mlcycle as mlc\nwith mlc.run('baseline'{}) as run: run.log_metric('loss', 0.5)"


@pytest.mark.parametrize("options", ["", ", capture=False"], ids=["captured", "plain"])
@pytest.mark.parametrize("new", [True, False], ids=["new", "existing"])
def test_process(race: Race, repository: Path, new: bool, options: str) -> None:
    "A whole process that opens a store, runs and logs one metric, in a Git repository."
    import shutil

    code = _ONE.format(options)
    if not new:
        python(code, repository)
    race.run(f"process: {'new' if new else 'existing'} store, a run, a metric{'' if options else ', captured'}", lambda: python(code, repository),
             lambda: python("pass", repository), rounds=11, unit="s", bound=0.6,
             before=lambda: shutil.rmtree(repository / ".mlcycle", ignore_errors=True) if new else None)


def test_version(race: Race, tmp_path: Path) -> None:
    "`mlcycle --version`."
    from mlcycle.ui import cli  # the command must be there to be timed

    command = [sys.executable, "-c", "import sys; sys.argv = ['mlcycle', '--version']; from mlcycle.ui.cli import main; main()"]
    assert cli.main
    race.run("mlcycle --version", lambda: subprocess.run(command, cwd=tmp_path, check=True, stdout=subprocess.DEVNULL),
             lambda: python("pass", tmp_path), rounds=15, unit="s", bound=0.3)
