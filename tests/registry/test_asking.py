"Another person's model is first loaded in a process of its own: what it does there harms nobody, and is an error here."
from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from sklearn.linear_model import LogisticRegression

from mlcycle.errors import ModelError
from mlcycle.registry import asking
from mlcycle.registry.flavours.base import flavours
from mlcycle.registry.loading import load_model
from mlcycle.registry.manifest import Manifest
from mlcycle.registry.packaging import model_files, package
from mlcycle.registry.safety.proofs import proofs_folder, read_proof
from mlcycle.registry.versions import register
from mlcycle.store import artifacts, models, runs
from mlcycle.store.connect import Store, open_store

FLAVOUR = '''
import os, signal
from mlcycle.errors import ModelError
from mlcycle.registry.flavours.base import Flavour

class Harm(Flavour):
    "Does what its file says."
    name = "harm"
    def handles(self, model):
        return False
    def load(self, folder, facts):
        if facts["does"] == "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        if facts["does"] == "fill":
            return bytearray(1 << 45)
        while facts["does"] == "spin":
            pass
        raise ModelError(" ".join(os.environ))

flavour = Harm()
'''


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    "A store on a machine without notes, where another distribution's flavour does harm whenever it loads something."
    packages = tmp_path / "packages"
    (packages / "harm-1.dist-info").mkdir(parents=True)
    (packages / "harm.py").write_text(FLAVOUR)
    (packages / "harm-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: harm\nVersion: 1\n")
    (packages / "harm-1.dist-info" / "entry_points.txt").write_text("[mlcycle.flavour]\nharm = harm:flavour\n")
    monkeypatch.syspath_prepend(packages)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("MLCYCLE_PASSWORD", "hunter2")
    monkeypatch.setattr(asking, "_proved", set())
    flavours.cache_clear()
    yield open_store(tmp_path / "mlcycle.db")
    flavours.cache_clear()
    sys.modules.pop("harm", None)


def logged(store: Store, does: str) -> tuple[str, Manifest]:
    "A run's model that somebody else has written: it does something when it is loaded."
    digest, _ = store.blobs.put(b"x")
    manifest = Manifest("harm", False, "harm.Model", {"model.bin": digest}, {"does": does})
    run = runs.create(store, "attack", does)
    return artifacts.put_bytes(store, run, manifest.to_bytes(), "model/manifest.json", kind="model").digest, manifest


def test_a_crash_is_an_error_and_remembered(store: Store) -> None:
    "Neither loading nor registering it ends this process, nothing is registered, and it is not tried again."
    digest, _ = logged(store, "crash")
    for use in (lambda: load_model("crash", store=store), lambda: register("crash", "good", store=store)):
        with pytest.raises(ModelError, match="SIGSEGV"):
            use()
    assert models.list_models(store) == []
    proof = read_proof(digest)
    assert proof and proof.how == "asked" and proof.refusal and proof.refusal.cause == "died"
    [note] = proofs_folder().rglob("*.json")
    note.write_text(json.dumps({**json.loads(note.read_text()), "refusal": None}))  # without the note it would have to crash again
    assert read_proof(digest) is not None


@pytest.mark.parametrize(("does", "cause"), [("fill", "memory"), ("spin", "time")])
def test_limits_end_what_does_not_end_by_itself(store: Store, does: str, cause: str) -> None:
    "Too much memory and too much time are causes of their own, and are not remembered: another time there may be enough."
    digest, manifest = logged(store, does)
    with model_files(store, manifest) as folder:
        refusal = asking.ask_apart(folder, manifest, asking.Limits(4 << 30, 3, 300))
    assert refusal and refusal.cause == cause and not refusal.lasting
    assert read_proof(digest) is None


def test_it_gets_no_secrets_of_this_process(store: Store) -> None:
    "Only what Python needs is in its variables, and what it raises arrives as it is."
    _, manifest = logged(store, "tell")
    with model_files(store, manifest) as folder:
        refusal = asking.ask_apart(folder, manifest)
    assert refusal and refusal.cause == "refused" and "PATH" in refusal.text and "MLCYCLE" not in refusal.text


def test_own_models_are_not_asked_and_others_once(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    "What this user logged here is loaded at once; on another machine it is asked, and then noted."
    rows = [[0.0], [1.0], [2.0], [3.0]]
    model = package(store, runs.create(store, "e", "own"), LogisticRegression().fit(rows, [0, 0, 1, 1]))
    own = read_proof(model.digest)
    assert own and own.how == "logged"
    asked: list[Path] = []
    ask = asking.ask_apart

    def counted(folder: Path, manifest: Manifest) -> object:
        asked.append(folder)
        return ask(folder, manifest)

    monkeypatch.setattr(asking, "ask_apart", counted)
    load_model("own", store=store)
    assert not asked
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    for _ in range(2):
        asking._proved.clear()
        load_model("own", store=store)
    other = read_proof(model.digest)
    assert len(asked) == 1 and other and other.how == "asked" and other.refusal is None


def test_a_note_that_others_could_have_written_does_not_count(store: Store) -> None:
    "A folder that others may write to proves nothing."
    model = package(store, runs.create(store, "e", "own"), LogisticRegression().fit([[0.0], [1.0]], [0, 1]))
    os.chmod(proofs_folder(), 0o777)
    assert read_proof(model.digest) is None
