"The runs table and the comparison in JupyterLab, by clicking and by keyboard."
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mlcycle.store import events, query
from mlcycle.store.connect import open_store
from mlcycle.track.begin import start
from tests.browser.lab import OPEN, Opener

pytestmark = pytest.mark.needs("chromium")
SHOW = "%load_ext mlcycle"


def notebook_json(lr: float, extra: bool) -> bytes:
    cells = [("markdown", "title", "# Churn"), ("code", "params", f"lr = {lr}\ndepth = 3"), ("code", "load", "data = load()"),
             ("code", "fit", "model = fit(data, lr)\nscore = model.score(data)" if extra else "model = fit(data, lr)")]
    if extra:
        cells.append(("code", "plot", "plot(score)"))
    made = [{"cell_type": kind, "id": id_, "metadata": {}, "source": text} | ({"outputs": [], "execution_count": None} if kind == "code" else {})
            for kind, id_, text in cells]
    spec = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    return json.dumps({"nbformat": 4, "nbformat_minor": 5, "metadata": spec, "cells": made}).encode()


def environment(numpy: str, *more: str) -> bytes:
    return json.dumps({"format": 1, "python": {"version": "3.11.2", "implementation": "cpython"}, "platform": "linux-x86_64",
                       "distributions": [{"name": "numpy", "version": numpy}, *({"name": n, "version": "1.0"} for n in more)]}).encode()


@pytest.fixture
def seeded(folder: Path) -> Path:
    "A project with 45 runs; the last three have curves, notebooks and environments."
    with open_store(folder / ".mlcycle/mlcycle.db", folder / ".mlcycle/artifacts") as store:
        for i in range(42):
            active = start(f"trial {i}", "churn", params={"lr": round(0.001 * (i + 1), 4), "model": ("logistic", "forest", "boosting")[i % 3]},
                           store=store, capture=False)
            active.log_metrics({"auc": 0.7 + i / 200, "loss": 0.6 - i / 100})
            active.finish("failed" if i % 20 == 7 else "finished")
        for name, lr in (("baseline", 0.01), ("slower", 0.003), ("deeper", 0.03)):
            active = start(name, "churn", kind="notebook", params={"lr": lr, "model": "boosting", "seed": 0}, tags={"team": "risk"}, store=store,
                           capture=False)
            for step in range(60):
                active.log_metrics({"loss": 1 / (1 + lr * 8 * step), "val/auc": 0.95 - 0.4 / (1 + lr * 20 * step)})
            active.log_metric("auc", 0.93 + lr)
            active.log_bytes(notebook_json(lr, name == "deeper"), "notebook/source.ipynb", "notebook")
            active.log_bytes(notebook_json(lr, name == "deeper"), "notebook/executed.ipynb", "notebook")
            installed = environment("2.3") if name == "baseline" else environment("2.4", *(["xgboost"] if name == "deeper" else []))
            active.log_bytes(installed, "environment.json", "environment")
            active.log_bytes(b"the same", "model/manifest.json", "model")
            active.finish()
    return folder


def table_of(opened: Any, cell: int) -> Any:
    table = opened.output(cell).locator(".mlc-runs")
    table.locator("tbody tr").first.wait_for()
    return table


def names(table: Any) -> list[str]:
    return table.locator("tbody td.mlc-name").all_inner_texts()


def test_filter_sort_page_compare_delete(notebook: Opener, seeded: Path) -> None:
    "What a person does with a day's runs: filter, sort, page, choose columns, compare, open, delete after being asked; the store agrees."
    opened = notebook(SHOW, "table = %mlcycle runs\ntable", "print(table.view.selected)", height=1500)
    opened.run(0, 1)
    opened.idle(0, 1)
    table = table_of(opened, 1)
    page = opened.page
    assert names(table)[:3] == ["deeper", "slower", "baseline"]
    table.get_by_role("status").get_by_text("1–20 of 45 runs").wait_for()
    opened.shot("runs-table", table)

    table.get_by_role("button", name="Next page").click()
    table.get_by_text("21–40 of 45 runs").wait_for()
    table.get_by_role("button", name="auc", exact=True).click()  # numbers: greatest first, and back to the first page
    table.get_by_text("1–20 of 45 runs").wait_for()
    assert names(table)[0] == "deeper" and table.locator("th[aria-sort=descending]").inner_text().startswith("auc")

    field = table.get_by_role("searchbox", name="Filter runs")
    field.fill("metrics.auk > 0.9")
    field.press("Enter")
    table.get_by_role("alert").get_by_text("Did you mean metrics.auc?").wait_for()
    assert field.get_attribute("aria-invalid") == "true" and len(names(table)) == 20
    opened.shot("runs-table-error", table)
    field.fill("kind == 'notebook' and metrics.auc > 0.9")
    table.get_by_role("button", name="Filter", exact=True).click()
    table.get_by_text("1–3 of 3 runs").wait_for()
    assert table.get_by_role("alert").inner_text() == ""

    table.get_by_role("button", name="Columns").click()
    table.get_by_role("checkbox", name="team").click()
    table.get_by_role("columnheader", name="team").wait_for()
    opened.shot("runs-table-columns", table)
    table.get_by_role("button", name="Columns").click()

    for name in ("baseline", "deeper", "slower"):
        table.get_by_role("checkbox", name=f"Select {name}").click()
    table.get_by_text("3 selected").wait_for()
    table.get_by_role("button", name="Compare", exact=True).click()
    both = opened.output(1).locator(".mlc-compare")
    both.get_by_role("rowheader", name="lr").wait_for()
    assert both.locator("td.mlc-mark", has_text="0.03").count() >= 1
    opened.shot("compare-overview", both)
    for tab, seen in (("Curves", "svg .mlc-chart"), ("Parallel", "svg .mlc-line"), ("Data & files", "td.mlc-mark"), ("Environment", "td.mlc-mark"),
                      ("Code", "article.mlc-changed")):
        both.get_by_role("tab", name=tab).click()
        both.locator(seen).first.wait_for()
        opened.shot(f"compare-{tab.split()[0]}", both)
    both.get_by_role("combobox").select_option("deeper")
    both.locator("article.mlc-added", has_text="plot(score)").wait_for()
    opened.run(2)
    opened.idle(2)
    assert opened.output(2).inner_text().count("'") == 6

    table.get_by_role("button", name="Clear").click()
    table.get_by_role("checkbox", name="Select slower").click()
    table.get_by_role("button", name="Open notebook").click()
    link = table.get_by_role("link", name="executed/slower")
    link.click()
    page.locator(".lm-TabBar-tabLabel", has_text="slower-").first.wait_for()
    page.evaluate(OPEN, opened.path.relative_to(opened.lab.root).as_posix())
    assert len(list((seeded / "executed").glob("slower-*.ipynb"))) == 1 and (seeded / "executed/.gitignore").exists()

    table.get_by_role("button", name="Delete…").click()
    dialog = table.get_by_role("alertdialog")
    dialog.get_by_text("slower").wait_for()
    opened.shot("runs-table-delete", table)
    dialog.get_by_role("button", name="Cancel").click()
    dialog.wait_for(state="detached")
    with open_store(seeded / ".mlcycle/mlcycle.db", seeded / ".mlcycle/artifacts") as store:
        assert query.count(store) == 45
        table.get_by_role("button", name="Delete…").click()
        dialog.get_by_role("button", name="Delete 1 run").click()
        table.get_by_text("1 run deleted.").wait_for()
        table.get_by_text("1–2 of 2 runs").wait_for()
        assert query.count(store) == 44 and events.listing(store, limit=1)[0].action == "run.delete"
    assert names(table) == ["deeper", "baseline"] and both.is_visible()
    table.get_by_role("button", name="Close comparison").click()
    both.wait_for(state="detached")


def test_by_keyboard_at_600_pixels_in_the_dark(notebook: Opener, seeded: Path) -> None:
    "Everything is reached with Tab and used with Enter and Space; the notebook's own shortcuts stay out of it; nothing is cut off at 600 px."
    opened = notebook("import mlcycle.ui.widgets.runs_table as t\nt.RunsTable(\"kind == 'notebook'\", size=10)", theme="JupyterLab Dark",
                      width=760, height=1000)
    opened.run()
    opened.idle()
    table = table_of(opened, 0)
    page, seen = opened.page, []
    table.get_by_role("searchbox").focus()
    for _ in range(40):
        page.keyboard.press("Tab")
        label = page.evaluate("""() => document.activeElement.closest('.mlc-runs')
            && (document.activeElement.getAttribute('aria-label') || document.activeElement.innerText)""")
        if label is None:
            break
        seen.append(label)
        if label.startswith(("Select baseline", "Select deeper")):
            page.keyboard.press("Space")
            table.get_by_text(f"{1 if 'deeper' in label else 2} selected").wait_for()
    assert {"Filter", "Columns", "Refresh", "name", "Select all on this page", "Runs on a page"} <= {s.strip() for s in seen}, seen
    table.get_by_role("button", name="Compare", exact=True).press("Enter")
    both = opened.output(0).locator(".mlc-compare")
    both.get_by_role("tab", name="Params").wait_for()
    both.get_by_role("tab", name="Params").focus()
    page.keyboard.press("ArrowRight")
    both.locator("svg .mlc-chart").first.wait_for()
    assert page.evaluate("() => document.activeElement.innerText") == "Curves"
    opened.shot("compare-dark-600", opened.output(0))
    page.keyboard.press("d")
    page.keyboard.press("d")
    assert table.is_visible()  # in the notebook's command mode this deletes the cell
    assert table.evaluate("""(node) => [...node.querySelectorAll('.mlc-bar > *')].filter(
        (part) => part.getBoundingClientRect().right > node.getBoundingClientRect().right + 1).length""") == 0
    table.get_by_role("button", name="Delete…").focus()
    page.keyboard.press("Enter")
    table.get_by_role("alertdialog").wait_for()
    assert page.evaluate("() => document.activeElement.innerText") == "Cancel"
    page.keyboard.press("Escape")
    table.get_by_role("alertdialog").wait_for(state="detached")
    opened.shot("runs-table-dark-600", table)


TRAIN = """import mlcycle as mlc
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression
X, y = load_iris(return_X_y=True, as_frame=True)
with mlc.run("iris", capture=False) as run:
    run.log_model(LogisticRegression(max_iter=200).fit(X, y), input_example=X.head())
with mlc.run("whole", capture=False):
    for i in range(2):
        with mlc.run(f"fold-{i}", capture=False): pass"""


def test_register_by_clicking_and_reload(notebook: Opener, folder: Path) -> None:
    "A run becomes a version by clicking, cannot be deleted from then on, and the table is as it was after the page is loaded again."
    opened = notebook(TRAIN, "%load_ext mlcycle\n%mlcycle runs \"name == 'iris'\"", "%mlcycle runs")
    opened.run()
    opened.idle()
    table = table_of(opened, 1)
    table.get_by_role("checkbox", name="Select iris").click()
    table.get_by_role("button", name="Register…").click()
    table.get_by_role("combobox", name="Model name").fill("flowers")
    opened.shot("runs-table-register", table)
    table.get_by_role("dialog").get_by_role("button", name="Register").click()
    table.get_by_text("Registered flowers/1").wait_for()
    table.get_by_role("button", name="Delete…").click()
    table.get_by_role("alertdialog").get_by_role("button", name="Delete 1 run").click()
    table.get_by_role("alert").get_by_text("flowers/1 came from it").wait_for()
    every = table_of(opened, 2)
    assert [name.split()[-1] for name in names(every)] == ["whole", "iris"]  # its parts are folded
    every.get_by_role("button", name="2 runs that are part of whole").click()
    every.locator("td.mlc-name", has_text="fold-1").wait_for()
    assert [name.split()[-1] for name in names(every)] == ["whole", "fold-0", "fold-1", "iris"]
    every.get_by_text("1–2 of 2 runs", exact=True).wait_for()
    every.locator("tbody tr", has_text="fold-1").locator("td").last.click()
    page = opened.output(2).locator(".mlc-page")
    page.get_by_role("heading", name="Run fold-1").wait_for()
    opened.shot("runs-table-page", opened.output(2))
    every.get_by_role("button", name="Close page").click()
    page.wait_for(state="detached")
    every.get_by_role("button", name="iris", exact=True).press("Enter")
    page.get_by_role("heading", name="Run iris").wait_for()
    opened.reload()
    table = table_of(opened, 1)
    table.get_by_text("1 selected").wait_for()
    assert table.get_by_role("searchbox").input_value() == "name == 'iris'" and names(table) == ["iris"]
    table.get_by_role("button", name="Open notebook").click()
    table.get_by_role("alert").get_by_text("has no executed notebook").wait_for()
