"`fsck` and `gc` over both databases: what is found, what is mended, what must never be removed."
from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import delete, update

from mlcycle.errors import NotFoundError
from mlcycle.store import artifacts, compiled_forms, events, facts, metrics, models, runs, schema
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


def test_content_that_is_no_file_is_named_and_left_alone(store: Store) -> None:
    "A folder in the place of a content is found, and not recorded as lost: what lies there may be moved away, and the content be restored."
    run = runs.create(store, "care", "baseline")
    manifest = artifacts.put_bytes(store, run, b"{}", "model/manifest.json")
    models.create_version(store, "churn", run, manifest.digest, "sklearn")
    place = Path(store.blobs.path(manifest.digest))
    place.unlink()
    place.mkdir()
    for repair in (False, True):
        report = fsck(store, repair=repair)
        assert {p.subject.split(" of ")[1][:5] for p in report.problems} == {"churn", f"run {run.id[:1]}"} and not report.lost
        assert all(p.kind == "missing" and "cannot be read" in p.what and not p.repaired and not p.lost for p in report.problems)
    place.rmdir()
    place.write_bytes(b"{}")
    assert fsck(store).sound


def test_a_version_with_lost_content_stays_on_record(store: Store) -> None:
    "What a registered version was made of cannot be made up: fsck says so, and does not pretend to have mended it."
    run = runs.create(store, "care")
    manifest = artifacts.put_bytes(store, run, b"{}", "model/manifest.json")
    models.create_version(store, "churn", run, manifest.digest, "sklearn")
    store.blobs.delete(manifest.digest)
    report = fsck(store, repair=True)
    assert not report.sound and any("churn/1" in p.subject for p in report.problems)
    assert models.get_version(store, "churn", 1).digest == manifest.digest


def test_a_lost_model_is_said_wherever_its_run_is_listed(store: Store) -> None:
    "After `fsck --repair` the run lists what is gone, cannot be registered, and one damaged file is one problem; logged again, it is whole."
    from mlcycle.registry.loading import load_model
    from mlcycle.registry.versions import register
    from mlcycle.track.queries import runs_page
    from mlcycle.ui.views.runs import run_view, runs_view
    from mlcycle.ui.widgets.actions import logged_models

    hurt, whole = runs.create(store, "care", "hurt"), runs.create(store, "care", "whole")
    for run, text in ((hurt, b"weights"), (whole, b"others")):
        artifacts.put_bytes(store, run, text, "model/model.skops", "model")
        artifacts.put_bytes(store, run, b"{}" + text, "model/manifest.json", "model")
    Path(store.blobs.path(artifacts.get(store, hurt, "model/model.skops").digest)).write_bytes(b"weightz")
    (problem,) = fsck(store).problems
    (again,) = fsck(store, repair=True).problems
    assert (problem.kind, problem.repaired, problem.lost) == ("damaged", False, False) and (again.repaired, again.lost) == (False, True)
    known = fsck(store)
    assert known.sound and known.problems == () and known.lost == (f"model/model.skops of run {hurt.id[:8]} (hurt)",)
    page = runs_page(store=store)
    assert dict(zip(page.columns["name"], page.columns["lost"], strict=True)) == {"hurt": "model/model.skops", "whole": None}
    assert {r["name"]: r.get("lost") for r in runs_view(page).data} == {"hurt": ["model/model.skops"], "whole": None}
    assert "model.skops" in repr(runs_view(page)) and run_view(store, hurt).data["lost"] == ["model/model.skops"]
    assert logged_models(store, hurt) == [] and logged_models(store, whole) == ["model"]
    for refused, args in ((register, ("hurt", "churn")), (load_model, (hurt,))):
        with pytest.raises(NotFoundError, match="is lost"):
            refused(*args, store=store)
    with pytest.raises(NotFoundError, match="is lost"):
        models.create_version(store, "churn", hurt, "0" * 64, "sklearn")
    with pytest.raises(NotFoundError, match="is lost"):
        artifacts.get(store, hurt, "model/model.skops")
    assert models.list_models(store) == []
    artifacts.put_bytes(store, hurt, b"weights", "model/model.skops", "model")
    assert artifacts.lost(store, hurt) == [] and logged_models(store, hurt) == ["model"] and fsck(store).lost == ()


def test_gc_removes_only_what_nothing_names(store: Store) -> None:
    "Dry by default; what a run or a version names stays, also while others log the very content that is garbage."
    run = runs.create(store, "care")
    for content in (b"first", b"second"):
        artifacts.put_bytes(store, run, content, "notes.txt")
    garbage = gc(store, age=0)
    assert garbage.bytes == len(b"first") and not garbage.removed and gc(store, age=0).bytes == len(b"first")
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
        gc(store, remove=True, age=0)
    for writer in writers:
        writer.join()
    assert failures == [] and fsck(store).problems == ()
    assert gc(store, remove=True, age=0).bytes == 0


def grown_old(store: Store, digest: str, hours: float) -> None:
    "Make content look as if it had been stored so long ago."
    then = time.time() - hours * 3600
    os.utime(store.blobs.path(digest), (then, then))


def test_gc_keeps_what_somebody_may_be_about_to_name(store: Store) -> None:
    "A model is stored before it has a name: what is young, what is as young as a run that goes on, and old content stored again are kept."
    young, during, again, old = (store.blobs.put(text)[0] for text in (b"young", b"during", b"again", b"old"))
    run = runs.create(store, "long")
    with store.db.write() as con:
        con.execute(update(schema.runs).values(started=time.time() - 5 * 3600))
    for digest, hours in ((young, 0.9), (during, 4), (again, 40), (old, 6)):
        grown_old(store, digest, hours)
    assert store.blobs.put(b"again") == (again, 5)
    garbage = gc(store, remove=True)
    assert [digest for digest, _ in garbage.contents] == [old] and garbage.kept == 3
    runs.finish(store, run)
    assert [digest for digest, _ in gc(store, remove=True).contents] == [during] and store.blobs.read(again) == b"again"
    abandoned = runs.create(store, "elsewhere")  # on a host that nobody can ask, for ever
    with store.db.write() as con:
        con.execute(update(schema.runs).where(schema.runs.c.pk == abandoned.pk).values(host="elsewhere", started=0.0))
    grown_old(store, young, 25)
    assert [digest for digest, _ in gc(store).contents] == [young]


def test_fsck_counts_the_points_again(store: Store) -> None:
    "A summary that is not that of its points is named and made anew; one whose points are gone is named and kept, since it is all that is left."
    run, sound = runs.create(store, "care"), runs.create(store, "care")
    for step, value in enumerate([3.0, float("nan"), 1.0, float("inf"), 2.0]):
        for owner in (run, sound):
            metrics.log(store, owner.pk, {"loss": value, "gone": 1.0}, {"loss": step, "gone": step})
    metrics.log(store, sound.pk, {"loss": -0.5}, {"loss": 1})  # a second value of a step in the middle
    assert fsck(store).problems == ()
    points, summaries = schema.points.c, schema.metrics.c
    with store.db.write() as con:
        con.execute(delete(schema.points).where(points.run == run.pk, points.name == "loss", points.step == 3))
        con.execute(delete(schema.points).where(points.run == run.pk, points.name == "gone"))
        con.execute(update(schema.metrics).where(summaries.run == sound.pk, summaries.name == "gone").values(value=7.0))
        con.execute(delete(schema.metrics).where(summaries.run == sound.pk, summaries.name == "loss"))
    found = {(p.kind, p.subject) for p in fsck(store).problems}
    assert found == {("counts", f"{name} of run {owner.id[:8]}") for owner in (run, sound) for name in ("loss", "gone")}
    left = [p for p in fsck(store, repair=True).problems if not p.repaired]
    assert [p.subject for p in left] == [f"gone of run {run.id[:8]}"] and [p.subject for p in fsck(store).problems] == [left[0].subject]
    assert metrics.latest(store, run) == {"gone": 1.0, "loss": 2.0} and metrics.latest(store, sound) == {"gone": 1.0, "loss": 2.0}


def test_fsck_takes_no_alias_from_a_version_that_there_is(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    "An alias to nothing is taken away, unless somebody has moved it to a version between the look and the repair."
    run = runs.create(store, "care")
    artifacts.put_bytes(store, run, b"{}", "model/manifest.json")
    for _ in range(2):
        models.create_version(store, "churn", run, "d" * 64, "sklearn")
    for alias in ("champion", "canary"):
        models.move_alias(store, "churn", alias, 2)
    with store.db.write() as con:
        con.execute(delete(schema.version_files).where(schema.version_files.c.number == 2))
        con.execute(delete(schema.versions).where(schema.versions.c.number == 2))
    change = models.change_alias

    def late(*args: Any) -> Any:
        monkeypatch.setattr(models, "change_alias", change)
        models.move_alias(store, "churn", "champion", 1, "meanwhile")
        return change(*args)

    monkeypatch.setattr(models, "change_alias", late)
    fsck(store, repair=True)
    assert models.get_model(store, "churn").aliases == {"champion": 1}


def test_compiled_form_goes_with_its_model(store: Store) -> None:
    "The file of a compiled form stays as long as a run or a version names the model; a form without its file is forgotten, and made again."
    run = runs.create(store, "churn")
    model = artifacts.put_bytes(store, run, b"{}", "model/manifest.json", kind="model")
    (kept, _), (orphan, _) = store.blobs.put(b"onnx"), store.blobs.put(b"onnx of a model that is gone")
    compiled_forms.put(store, model.digest, "differs", None, {})
    compiled_forms.put(store, model.digest, "used", kept, {"rows": 1100})
    compiled_forms.put(store, "e" * 64, "used", orphan, {"rows": 1100})
    assert [digest for digest, _ in gc(store, remove=True, age=0).contents] == [orphan]
    row = compiled_forms.get(store, model.digest)
    assert (row.manifest, row.state, row.file, row.data) == (model.digest, "used", kept, {"rows": 1100}) and store.blobs.read(kept) == b"onnx"
    assert compiled_forms.get(store, "e" * 64) is None and fsck(store).problems == ()
    store.blobs.delete(kept)
    (problem,) = fsck(store).problems
    assert problem.kind == "missing" and "the model itself answers" in problem.what
    assert fsck(store, repair=True).sound and fsck(store).problems == () and compiled_forms.get(store, model.digest) is None
