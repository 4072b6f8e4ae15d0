"Notes and tags that are written afterwards, on both databases: who wrote what stays, and a page shows them without obeying them."
from __future__ import annotations

import warnings
from html.parser import HTMLParser

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LinearRegression

import mlcycle as mlc
from mlcycle.errors import DataError, NotFoundError, UsageError
from mlcycle.store import artifacts, events, facts, models, runs
from mlcycle.store.connect import Store
from mlcycle.store.notes import notes
from mlcycle.ui.commands.annotations import read_changes
from mlcycle.ui.views.models import model_view, version_view
from mlcycle.ui.views.notes import safe_html
from mlcycle.ui.views.runs import run_view

ALLOWED = {"p", "em", "strong", "s", "code", "pre", "a", "ul", "ol", "li", "blockquote",
           "h4", "hr", "br", "table", "thead", "tbody", "tr", "th", "td"}


def test_notes_of_runs_and_versions(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    "Written, replaced and taken away after the end of a run; the former ones stay with their authors; every page shows the one in force."
    run = runs.create(store, "churn", "forest")
    manifest = artifacts.put_bytes(store, run, b"{}", "model/manifest.json", "model")
    version = models.create_version(store, "churn", run, manifest.digest, "sklearn")
    runs.finish(store, run)
    for actor, text in (("ann", "first"), ("bob", "overfits after *epoch 5*\n\n<script>alert(1)</script>")):
        monkeypatch.setenv("MLCYCLE_ACTOR", actor)
        assert mlc.note("forest", text, store=store).actor == actor
    assert mlc.note("churn/1", "the **good** one", store=store).text == mlc.note(version, store=store).text == "the **good** one"
    assert [(note.actor, note.text[:5]) for note in notes(store, run)] == [("bob", "overf"), ("ann", "first")]
    page = run_view(store, run)
    assert page.data["note"].startswith("overfits") and "<em>epoch 5</em>" in page._repr_html_() and "<script>" not in page._repr_html_()
    assert "overfits after epoch 5" in repr(page)
    for view in (version_view(store, version), model_view(store, models.get_model(store, "churn"))):
        assert "<strong>good</strong>" in view._repr_html_() and "Note on churn/1" in repr(view)
    assert mlc.note("forest", "", store=store) is None and mlc.note(run, store=store) is None and len(notes(store, run)) == 3
    assert run_view(store, run).data["note"] is None and mlc.note("churn/1", store=store) is not None


def test_what_is_wrong_changes_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    "A text that no database holds, one that is no text, too long a one, a name that nobody has; secrets are masked."
    run = runs.create(store, "churn", "forest")
    before = len(events.listing(store))
    for attempt in (lambda: mlc.note(run, "a\0b", store=store), lambda: mlc.note(run, "x" * 100_001, store=store),
                    lambda: mlc.note(run, 3, store=store), lambda: mlc.tag(run, **{"": "x"}, store=store),
                    lambda: mlc.tag(run, good="x", bad="\0", store=store)):
        with pytest.raises(DataError):
            attempt()
    for ref in ("nobody", "churn/1", "churn@champion"):
        with pytest.raises(NotFoundError):
            mlc.note(ref, "text", store=store)
    for pairs in (("team",), ("=x",), ("a=1", "a=2")):
        with pytest.raises(UsageError):
            read_changes(pairs)
    assert len(events.listing(store)) == before and facts.tags(store, run) == {}
    monkeypatch.setenv("MLCYCLE_SECRETS", "THE_TOKEN")
    monkeypatch.setenv("THE_TOKEN", "hunter2-hunter2")
    assert "hunter2" not in mlc.note(run, "the token is hunter2-hunter2", store=store).text


def test_tags_are_changed_after_the_end(store: Store) -> None:
    "In one transaction, with what was changed in the log; the tags that are not named stay."
    run = runs.create(store, "churn", "forest")
    facts.put_tags(store, run.pk, {"team": "risk", "draft": "yes"})
    runs.finish(store, run)
    assert mlc.tag("forest", draft=None, reviewed=True, missing=None, store=store) == {"team": "risk", "reviewed": "True"}
    (event,) = events.listing(store, run.id, "run.tags")
    assert event.data == {"changes": {"draft": None, "reviewed": "True", "missing": None}} and event.actor
    assert mlc.tag(run, store=store) == {"team": "risk", "reviewed": "True"} and len(events.listing(store, run.id, "run.tags")) == 1
    assert [row.name for row in mlc.runs("tags.reviewed == 'True'", store=store).itertuples()] == ["forest"]


class Elements(HTMLParser):
    "The elements of a page, and what is wrong with them."

    def __init__(self) -> None:
        super().__init__()
        self.wrong: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ALLOWED:
            self.wrong.append(tag)
        for name, value in attrs:
            if name == "href" and (value or "").lower().startswith(("https://", "http://", "mailto:")):
                continue
            if name not in ("target", "rel", "start", "title", "class") and not (name == "style" and (value or "").startswith("text-align:")):
                self.wrong.append(f"{tag} {name}={value}")


PIECES = st.sampled_from(["<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "[a](javascript:alert(1))", "![p](https://example.org/p.png)",
                          "[b](data:text/html;base64,PHNjcmlwdD4=)", "<https://example.org>", "<javascript:alert(1)>", "[r]: javascript:alert(1)",
                          "[r]",
                          "[c](https://example.org '\" onclick=alert(1)')",
                          "`code`", "```html\n<b>\n```",
                          "| a | b |\n|:-:|---|\n| 1 | <i>2</i> |",
                          "# head", "> quote", "- item", "&lt;b&gt;", "<!-- x -->", "<style>*{}</style>", "\n\n", "**", "_", "\x1b[31m", "\u202e"])


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(PIECES | st.text(max_size=8), max_size=12).map("".join))
@example("[x](  JaVaScRiPt:alert(1))")
@example("[x](&#106;avascript:alert(1))")
def test_a_note_is_shown_and_never_obeyed(text: str) -> None:
    "Whatever Markdown it is: only elements that show text, and links that lead to the web or to mail."
    page = Elements()
    page.feed(safe_html(text))
    assert page.wrong == []


def test_what_is_replaced_is_said_once(store: Store) -> None:
    "A second value of a param and a second model of one name take the place of the first: a warning on the run and in the cell, one of each."
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        with mlc.run("forest", params={"a": 1, "b": [1]}, store=store, capture=False) as active:
            active.log_params({"a": 1, "b": [1], "c": float("nan")})
            active.log_params({"c": float("nan")})
            assert facts.warnings(store, active.run) == [] and not shown
            for value in (2, 3):
                active.log_params({"a": value})
            for slope in (1.0, 2.0, 3.0):
                active.log_model(LinearRegression().fit([[0.0], [1.0]], [0.0, slope]), "line")
            active.log_model(LinearRegression().fit([[0.0], [1.0]], [0.0, 1.0]), "other")
    kept = facts.warnings(store, active.run)
    assert len(kept) == 2 and "The param 'a' had another value" in kept[0] and "The model 'line' takes the place" in kept[1]
    assert [str(warning.message) for warning in shown if "mlc.log_" in str(warning.message)] == kept and active.params["a"] == 3
