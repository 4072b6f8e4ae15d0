"Every estimator's file, bent at random: it is refused, or whoever loads it gets an answer or an exception; nothing ends a process by a signal."
from __future__ import annotations

import io
import json
import os
import pickle
import random
import selectors
import signal
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.utils import all_estimators

from mlcycle.errors import ModelError
from mlcycle.registry.flavours.sklearn import flavour
from mlcycle.registry.safety.trusted import ALLOWED
from tests.conftest import SOAK
from tests.registry.test_every_estimator import NEVER_STORED, NOT_BUILT, fitted

BENDS = 2  # Bent files of each estimator; MLCYCLE_SOAK times as many, each time others
NUMBERS = (0, -1, 1, 2, 3, 5, 255, 2**31 - 1, -(2**31), 2**40, -(2**40), 2**62, 1e300, -1.5, float("nan"), float("inf"), True, None, "", "drop",
           [], [7])
WORKER = """
import json, os, pickle, resource, sys, warnings
answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # a bent `verbose` prints whatever it likes
warnings.simplefilter("ignore")
resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30))
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
from pathlib import Path
from mlcycle.errors import ModelError
from mlcycle.registry.flavours.sklearn import flavour
rows = pickle.loads(Path(sys.argv[1]).read_bytes())
VERBS = ("predict", "predict_proba", "decision_function", "transform", "score_samples", "apply", "decision_path", "kneighbors", "kneighbors_graph",
         "radius_neighbors_graph")
for line in sys.stdin:
    name, folder, facts = json.loads(line)
    try:
        model = flavour.load(Path(folder), facts)
    except ModelError:
        print("refused", file=answers, flush=True)
        continue
    for verb in VERBS:
        try:
            answer = getattr(model, verb)(rows[name])
            answer.toarray() if hasattr(answer, "toarray") and answer.shape[0] * answer.shape[1] < 1e7 else None
        except Exception:
            pass
    del model
    print("answered", file=answers, flush=True)
"""


class Worker:
    "A process that loads bent files one after the other."

    def __init__(self, rows: Path) -> None:
        self.rows = rows
        self.start()

    def start(self) -> None:
        "Begin, or begin again after an end."
        threads = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        self.process = subprocess.Popen([sys.executable, "-c", WORKER, str(self.rows)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        stderr=subprocess.DEVNULL, text=True, env={**os.environ, **threads}, start_new_session=True)

    def ask(self, *request: Any) -> str:
        "`refused`, `answered`, `slow`, or the name of the signal that ended it."
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            slow = not selector.select(timeout=120)
        if slow:  # a bent number of rounds or columns may take hours: no harm that a user could not interrupt
            os.killpg(self.process.pid, signal.SIGKILL)  # with the processes that a bent `n_jobs` started
        line = self.process.stdout.readline().strip()
        if line:
            return line
        code = self.process.wait()
        self.start()
        return "slow" if slow or code == -signal.SIGKILL else signal.Signals(-code).name if code < 0 else f"exit {code}"

    def end(self) -> None:
        "Let it end."
        self.process.communicate()


# ---- bending: each takes the parts of a file and a source of chance, and says whether it changed something

def nodes(schema: Any) -> Iterator[dict[str, Any]]:
    "All entries of a file."
    stack = [schema]
    while stack:
        item = stack.pop()
        if isinstance(item, dict):
            if isinstance(item.get("__loader__"), str):
                yield item
            stack.extend(item.values())
        elif isinstance(item, list):
            stack.extend(item)


def bent_array(array: np.ndarray, chance: random.Random) -> np.ndarray:
    "Another shape, another type, or other numbers in some places."
    array = np.array(array)
    ways: list[Callable[[], np.ndarray]] = [
        lambda: array[:0], lambda: array[: len(array) // 2], lambda: np.concatenate([array, array]), lambda: array.ravel(), lambda: array[..., :1],
        lambda: array.astype("float32"), lambda: array.astype("int64"), lambda: array[None], lambda: array.T, lambda: np.asfortranarray(array)]
    if array.ndim and array.size and (array.dtype.names or array.dtype.kind in "iufb") and chance.random() < 0.6:
        part = array[chance.choice(array.dtype.names)] if array.dtype.names else array
        if part.dtype.kind in "iufb":
            for _ in range(chance.choice((1, 1, 4))):
                place = tuple(chance.randrange(length) for length in part.shape)
                low, high = (np.iinfo(part.dtype).min, np.iinfo(part.dtype).max) if part.dtype.kind in "iu" else (-1e308, 1e308)
                number = chance.choice([low, high, 0, 1, min(high, 2**20), max(low, -1), part.size])
                with np.errstate(all="ignore"):
                    part[place] = np.clip(number, low, high) if part.dtype.kind != "b" else bool(number)
            return array
    try:
        return chance.choice(ways)() if array.ndim else array
    except (TypeError, ValueError):  # records and texts are no numbers
        return array[:0]


def bend_content(parts: dict[str, bytes], chance: random.Random) -> bool:
    "Bend an array, or an array in a sparse matrix."
    # in the order of the description: the names are made of addresses, and differ each time
    names = [node["file"] for node in nodes(json.loads(parts["schema.json"])) if str(node.get("file")).endswith((".npy", ".npz"))]
    if not names:
        return False
    name = chance.choice(names)
    content, out = np.load(io.BytesIO(parts[name])), io.BytesIO()
    if name.endswith(".npy"):
        np.save(out, bent_array(content, chance))
    else:
        arrays = dict(content)
        member = chance.choice(sorted(set(arrays) - {"format"}))
        arrays[member] = bent_array(arrays[member], chance)
        np.savez(out, **arrays)
    parts[name] = out.getvalue()
    return True


def bend_number(parts: dict[str, bytes], chance: random.Random) -> bool:
    "Another number, text or nothing in an attribute."
    schema = json.loads(parts["schema.json"])
    chosen = [node for node in nodes(schema) if node["__loader__"] == "JsonNode"]
    for _ in range(chance.choice((1, 1, 3))):
        node = chance.choice(chosen)
        node["content"] = json.dumps(chance.choice(NUMBERS))
        node.pop("__id__", None)  # as one that no other entry shares
    parts["schema.json"] = json.dumps(schema).encode()
    return True


def bend_entry(parts: dict[str, bytes], chance: random.Random) -> bool:
    "Another name, loader or number of an entry, an entry in place of another, or a list that is shorter or longer."
    schema = json.loads(parts["schema.json"])
    chosen = list(nodes(schema))
    node, other = chance.choice(chosen), chance.choice(chosen)
    way = chance.randrange(6)
    if way == 0:
        node["__module__"], _, node["__class__"] = chance.choice(sorted(ALLOWED)).rpartition(".")
    elif way == 1:
        node["__loader__"] = other["__loader__"]
    elif way == 2:
        node["__id__"] = other.get("__id__", 1)
    elif way == 3 and other is not node and not any(part is node for part in nodes(other)) and not any(part is other for part in nodes(node)):
        node.clear()
        node.update({key: value for key, value in other.items() if key != "__id__"})
    else:
        lists = [item for item in chosen if isinstance(item.get("content"), list) and item["content"]]
        if lists:
            items = chance.choice(lists)["content"]
            items.pop() if way == 4 else items.append(items[0])
    parts["schema.json"] = json.dumps(schema).encode()
    return True


def bend(path: Path, chance: random.Random) -> str:
    "Rewrite a file, bent in one way; the way's name."
    with zipfile.ZipFile(path) as source:
        parts = {name: source.read(name) for name in source.namelist()}
    way = chance.choice((bend_content, bend_content, bend_number, bend_entry))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if not way(parts, chance):
            way = bend_number
            way(parts, chance)
    with zipfile.ZipFile(path, "w") as target:
        for name, data in parts.items():
            target.writestr(name, data)
    return way.__name__


@pytest.mark.filterwarnings("ignore")
def test_bent_models_end_no_process(tmp_path: Path) -> None:
    "All estimators that scikit-learn has, each bent several times: no process ends by a signal, and most bent files are noticed."
    rows, files = {}, {}
    for name, estimator_class in all_estimators():
        if name in NEVER_STORED | NOT_BUILT:
            continue
        model, rows[name] = fitted(estimator_class)
        (tmp_path / name).mkdir()
        try:
            files[name] = flavour.save(model, tmp_path / name)
        except ModelError:
            continue
    (tmp_path / "rows.pkl").write_bytes(pickle.dumps(rows))
    worker = Worker(tmp_path / "rows.pkl")
    outcomes: dict[str, int] = {}
    harmful = []
    for name, facts in files.items():
        own = (tmp_path / name / flavour.file).read_bytes()
        # what the file of an honest model would need is allowed, and whatever else an attacker writes into a manifest
        types = {"types": sorted(ALLOWED)} if facts["types"] else facts
        for seed in range(BENDS * SOAK):
            path = tmp_path / name / flavour.file
            path.write_bytes(own)
            way = bend(path, random.Random(f"{name} {seed}"))
            outcome = worker.ask(name, str(tmp_path / name), types)
            outcomes[outcome] = outcomes.get(outcome, 0) + 1
            if outcome not in ("refused", "answered", "slow"):
                kept = tmp_path / f"{name}-{seed}.skops"
                kept.write_bytes(path.read_bytes())
                harmful.append(f"{name}, seed {seed}, {way}: {outcome} ({kept})")
    worker.end()
    assert not harmful, "\n".join(harmful)
    assert outcomes["refused"] > 50 and outcomes["answered"] > 50, outcomes
    assert outcomes.get("slow", 0) <= 3 * SOAK, outcomes
