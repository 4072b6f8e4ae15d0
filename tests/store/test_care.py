"`fsck` and `gc` over both databases: what is found, what is mended, what must never be removed."
from __future__ import annotations

import threading
from pathlib import Path

from mlcycle.store import artifacts, events, facts, models, runs
from mlcycle.store.check import fsck
from mlcycle.store.connect import Store
from mlcycle.store.gc import gc


def test_fsck_finds_and_mends(store: Store) -> None:
    "Damaged and missing content and an alias to nothing are named by what they concern; repairing leaves a sound store and a warning with the run."
    run = runs.create(store, "care", "baseline")
    kept, bent, lost = (artifacts.put_bytes(store, run, text.encode(), f"{text}.txt") for text in ("kept", "bent", "lost"))
    manifest = artifacts.put_bytes(store, run, b"{}", "model/manifest.json")
    models.create_version(store, "churn", run, manifest.digest, "sklearn")
    models.move_alias(store, "churn", "champion", 1)
    assert fsck(store).problems == ()
    Path(store.blobs.path(bent.digest)).write_bytes(b"bend")
    store.blobs.delete(lost.digest)
    found = {(p.kind, p.subject.split(" ")[0]) for p in fsck(store).problems}
    assert found == {("damaged", "bent.txt"), ("missing", "lost.txt")}
    assert fsck(store, repair=True).sound and fsck(store).problems == ()
    assert [a.name for a in artifacts.listing(store, run)] == ["kept.txt", "model/manifest.json"]
    assert store.blobs.read(kept.digest) == b"kept" and len(facts.warnings(store, run)) == 2
    assert {e.subject for e in events.listing(store, action="artifact.lost")} == {run.id}


def test_a_version_with_lost_content_stays_on_record(store: Store) -> None:
    "What a registered version was made of cannot be made up: fsck says so, and does not pretend to have mended it."
    run = runs.create(store, "care")
    manifest = artifacts.put_bytes(store, run, b"{}", "model/manifest.json")
    models.create_version(store, "churn", run, manifest.digest, "sklearn")
    store.blobs.delete(manifest.digest)
    report = fsck(store, repair=True)
    assert not report.sound and any("churn/1" in p.subject for p in report.problems)
    assert models.get_version(store, "churn", 1).digest == manifest.digest


def test_gc_removes_only_what_nothing_names(store: Store) -> None:
    "Dry by default; what a run or a version names stays, also while others log the very content that is garbage."
    run = runs.create(store, "care")
    for content in (b"first", b"second"):
        artifacts.put_bytes(store, run, content, "notes.txt")
    garbage = gc(store)
    assert garbage.bytes == len(b"first") and not garbage.removed and gc(store).bytes == len(b"first")
    failures: list[BaseException] = []

    def log(i: int) -> None:
        try:
            other = runs.create(store, "care")
            for j in range(10):
                artifacts.put_bytes(store, other, b"first", f"{i}-{j}.txt")
        except BaseException as e:
            failures.append(e)

    writers = [threading.Thread(target=log, args=(i,)) for i in range(3)]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        gc(store, remove=True)
    for writer in writers:
        writer.join()
    assert failures == [] and fsck(store).problems == ()
    assert gc(store, remove=True).bytes == 0
