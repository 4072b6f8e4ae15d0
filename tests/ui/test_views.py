"Views of runs, versions and files, from what a store holds: previews of files that anybody has written, the best of some values, folded runs."
from __future__ import annotations

import io
import json
import math
import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mlcycle as mlc
from mlcycle.display import Result
from mlcycle.store import artifacts
from mlcycle.store.connect import Store, connect, open_store
from mlcycle.track.begin import start
from mlcycle.ui.tree import Face, invoke
from mlcycle.ui.views import previews
from mlcycle.ui.views.ranks import ranks
from mlcycle.ui.widgets.drawings import step_ticks

HOSTILE = "</td></pre></details><script>alert(1)</script><img src=x onerror=alert(1)>"
WHOLE = {"csv": f"id,{HOSTILE}\n1,{HOSTILE}\n".encode(), "tsv": f"id\t{HOSTILE}\n".encode(), "html": HOSTILE.encode(), "md": HOSTILE.encode(),
         "ipynb": json.dumps({"cells": [{"cell_type": "markdown", "source": [HOSTILE]}, {"cell_type": "code", "source": HOSTILE, "outputs": [
             {"text": HOSTILE}, {"data": {"text/plain": HOSTILE, "text/html": HOSTILE}}, {"traceback": [HOSTILE]}]}]}).encode(),
         "svg": f"<svg xmlns='http://www.w3.org/2000/svg'>{HOSTILE}</svg>".encode(), "png": b"\x89PNG", "parquet": b"PAR1PAR1"}


class Tags(HTMLParser):
    "The elements and the attributes of a page."

    def __init__(self, page: str):
        super().__init__()
        self.seen: set[str] = set()
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.seen |= {tag, *(name for name, _ in attributes if name.startswith("on"))}
        self.seen |= {value for name, value in attributes if name == "src" and not (value or "").startswith("data:image/")}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return open_store(tmp_path_factory.mktemp("views") / "mlcycle.db")


def page_of(store: Store, name: str, data: bytes) -> str:
    active = start("files", store=store, capture=False)
    active.log_bytes(data, name)
    active.finish()
    return Result(None, previews.preview_parts(store, artifacts.listing(store, active.run))).body()


@pytest.mark.parametrize("ending", WHOLE)
def test_a_preview_is_text_and_pictures_only(store: Store, ending: str) -> None:
    "What is written in a file becomes no element of the page: no script, no handler, no address that the page would load."
    allowed = {"details", "summary", "pre", "p", "div", "table", "thead", "tbody", "tr", "th", "td", "img"}
    page = page_of(store, f"file.{ending}", WHOLE[ending])
    assert "<details>" in page and Tags(page).seen <= allowed, page


@settings(deadline=None, max_examples=60)
@given(ending=st.sampled_from(sorted(WHOLE)), data=st.binary(max_size=400) | st.text(max_size=200).map(lambda text: text.encode("utf-8", "replace")))
def test_no_file_breaks_the_page_of_its_run(store: Store, ending: str, data: bytes) -> None:
    "Bytes of any kind under any ending: the page says what it can, and stays small."
    page = page_of(store, f"file.{ending}", data)
    assert page.count("<details>") == 1 and len(page) < 20_000 and "<script" not in page


def test_a_preview_is_bounded(store: Store) -> None:
    "A file of any size costs a page little: the first rows, the first lines; a picture or a notebook that is too large is named only."
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = "\n".join(",".join(str(i) for i in range(50)) for _ in range(100_000)).encode()
    assert "38 columns more" in page_of(store, "wide.csv", table) and len(page_of(store, "wide.csv", table)) < 20_000
    assert len(page_of(store, "long.txt", b"x" * 3_000_000)) < 2_000
    for name in ("large.png", "large.ipynb", "large.parquet"):
        assert "too much for a preview" in page_of(store, name, b" " * 4_100_000)
    out = io.BytesIO()
    pq.write_table(pa.table({"zeros": [b"\0" * 1_000_000] * 80}), out, compression="zstd", use_dictionary=False)
    assert len(out.getvalue()) < 1_000_000 and "too large for a preview" in page_of(store, "bomb.parquet", out.getvalue())


NUMBERS = st.none() | st.floats() | st.integers(-5, 5)


@given(values=st.lists(NUMBERS, max_size=8), way=st.sampled_from(["maximize", "minimize", None]))
def test_ranks_mark_the_ends(values: list[float | None], way: str | None) -> None:
    "A mark stands at an end, and only where values differ by more than rounding."
    marked = ranks(values, way)
    present = [value for value in values if value is not None and math.isfinite(value)]
    assert len(marked) == len(values) and set(marked) <= ({"", "best"} if way else {"", "greatest", "least"})
    if not present or math.isclose(min(present), max(present), rel_tol=1e-9):
        assert not any(marked)
    elif way:
        best = max(present) if way == "maximize" else min(present)
        assert {value for value, mark in zip(values, marked, strict=True) if mark == "best"} >= {best}


@given(low=st.integers(0, 10**6), length=st.integers(0, 10**9))
def test_the_last_step_has_a_label(low: int, length: int) -> None:
    "Steps ascend, are whole, and end where the curve ends, with room between the labels."
    steps = step_ticks(low, low + length)
    assert steps[-1] == low + length and steps == sorted(set(steps)) and all(step == int(step) for step in steps)
    assert all(after - before > length / 10 for before, after in pairwise(steps))


def test_runs_are_folded_where_one_looks_at_all(tmp_path: Path) -> None:
    "A study and its trials are one line; who names a condition or sorts by a metric finds each; JSON has them all, as ever."
    connect(tmp_path / "mlcycle.db")
    for name in ("first", "second"):
        with mlc.run(name, "churn", capture=False):
            for i in range(3):
                with mlc.run(f"{name}-{i}", capture=False) as part:
                    part.log_metric("auc", i)

    def names(*words: str) -> list[str]:
        return re.findall(r"(?:first|second)\S*(?: \+\d+)?", repr(Result(None, invoke(["runs", *words], Face()).parts)))

    assert names() == names("-e", "churn") == ["second +3", "first +3"] and names("-n", "1") == ["second +3"]
    assert len(names("--children")) == 8 and names("-o", "-metrics.auc", "-n", "2") == ["second-2", "first-2"]
    assert names("name == 'first-1'") == ["first-1"]
    assert len(invoke(["runs", "--json"], Face(json=True)).data) == len(invoke(["runs"], Face()).data) == 8


def test_what_nobody_chose_and_what_judges_no_model_give_way(tmp_path: Path) -> None:
    "Two autologged kinds of models and a sweep: held-out scores first, defaults of libraries nowhere, parts of runs unfold in the saved table."
    from sklearn.datasets import make_classification
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    from mlcycle.evaluate.comparison import compare
    from mlcycle.ui.widgets.comparison_parts import axes, compare_view

    X_train, y_train = make_classification(200, 5, random_state=0)
    X_test, y_test = make_classification(100, 5, random_state=0)
    models = {"forest": RandomForestClassifier(5, max_depth=2, random_state=0),
              "logistic": make_pipeline(StandardScaler(), LogisticRegression(C=0.5))}
    with connect(tmp_path / "runs.db") as store:
        mlc.autolog(models=False)
        try:
            for name, model in models.items():
                with mlc.run(name, capture=False) as run:
                    model.fit(X_train, y_train).score(X_test, y_test)
                    run.log_metric("fold_accuracy", 0.5)
        finally:
            mlc.autolog(False)
        with mlc.run("sweep", capture=False), mlc.run("part <b>", capture=False):
            pass
        table = invoke(["runs"], Face(notebook=True))
        heads = re.findall(r"<th scope='col'[^>]*>([^<]*)", table._repr_html_().partition("</thead>")[0])
        assert heads[:4] == ["name", "status", "started", "test_accuracy"] and heads.index("fold_accuracy") > heads.index("training_accuracy")
        assert not {"verbose", "warm_start", "memory"} & set(heads) and {"n_iter", "fit_seconds"} <= set(heads)
        assert "test_accuracy" in repr(table).splitlines()[1] and "verbose" not in repr(table)  # no heading is cut for columns that say nothing
        page = table._repr_html_()
        assert page.count("<summary class='dim' style='cursor:pointer'>1 part</summary>") == 1
        assert "part &lt;b&gt;" in page and "part <b>" not in page
        both = compare(store, "forest", "logistic")
        shown = repr(compare_view(store, both))
        assert "≠ 0.5" in shown and "At their defaults: " in shown and "standardscaler__copy  " not in shown, shown
        names = [name for name, _ in axes(both)]
        assert names[-1] == "test_accuracy" and not {"verbose", "fit_seconds", "fold_accuracy"} & set(names)
        assert {line.name for line in both.params if line.unchosen} > {"verbose", "warm_start"}
        whole = {line["name"] for line in both.data()["params"] if line["differs"]}
        assert "verbose" in whole  # a program has everything
