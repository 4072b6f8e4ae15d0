"StudyView in JupyterLab: pictures, trials, runs and registering by clicking; what is left when the kernel is gone; a study that goes on elsewhere."
from __future__ import annotations

import time
from typing import Any

import pytest

from tests.browser.lab import PATIENCE, Notebook, Opener

SETUP = """
%load_ext mlcycle
import mlcycle as mlc, pandas as pd, optuna
from sklearn.linear_model import LogisticRegression
X = pd.DataFrame({"calls": [0, 1, 2, 3], "fee": [1.5, 2.5, 3.5, 4.5]})
def fit(C, depth, model):
    if abs(C - 3) < 0.5:  # the best can be registered
        mlc.log_model(LogisticRegression(C=C).fit(X, [0, 0, 1, 1]), input_example=X)
    if depth == 7:
        raise ValueError("depth 7 does not work")
    for step in range(5):
        mlc.report(C - depth * step, step)
    return (C - 3) ** 2 + depth / 10 + (model == "flat")
_ = mlc.tune(fit, {"C": "loguniform(0.01, 10)", "depth": "int(2, 8)", "model": ["tree", "flat"]}, trials=60, sampler="random", pruner="none", seed=1,
             study="valley", progress=False)
"""
PLAIN = """
import mlcycle.ui.widgets.study as page, mlcycle.ui.widgets.study_parts as parts
page.has_plotly = parts.has_plotly = lambda: False"""


def page_of(notebook: Notebook, cell: int) -> Any:
    "The page in a cell's output, once it is there."
    page = notebook.output(cell).locator(".mlc-study")
    page.wait_for()
    return page


def drawn(page: Any) -> None:
    page.locator(".mlc-canvas .main-svg").first.wait_for()


@pytest.mark.needs("chromium")
@pytest.mark.parametrize(("theme", "width"), [("JupyterLab Light", 1280), ("JupyterLab Dark", 700)])
def test_a_study_is_looked_through_and_its_best_registered(notebook: Opener, theme: str, width: int) -> None:
    "From the pictures to the trial, from the trial to its run, and the best one to a version: without typing code."
    pytest.importorskip("plotly")
    opened = notebook(SETUP, "%mlcycle show valley", "mlc.resolve_version('hills').ref", theme=theme, width=width, height=1000)
    opened.run(0, 1)
    opened.idle(0, 1)
    page = page_of(opened, 1)
    page.get_by_role("heading", name="Study valley").wait_for()
    drawn(page)
    opened.shot(f"study-history-{width}", page)
    for tab in ("Importances", "Slices", "Contour", "Parallel", "Steps", "Timeline"):
        page.get_by_role("tab", name=tab).click()
        page.locator(f".mlc-canvas[aria-label^='{tab}'] .main-svg").first.wait_for()
        opened.page.wait_for_timeout(400)
        opened.shot(f"study-{tab}-{width}", page)
        assert page.evaluate("(node) => node.scrollWidth <= node.clientWidth + 1"), tab
    page.get_by_role("tab", name="Contour").click()
    page.get_by_label("between").select_option("model")
    page.locator(".mlc-canvas .ytitle", has_text="model").wait_for()
    page.get_by_role("tab", name="Trials").click()
    rows = page.locator("tbody tr")
    assert rows.count() == 50 and page.get_by_text("1–50 of 60").count() == 1
    page.get_by_role("button", name="Next page").press("Enter")
    page.get_by_text("51–60 of 60").wait_for()
    page.get_by_role("button", name="objective").click()  # the largest first, then the best
    page.locator("th[aria-sort=descending]", has_text="objective").wait_for()
    page.get_by_role("button", name="objective").click()
    page.locator("th[aria-sort=ascending]", has_text="objective").wait_for()
    assert "mlc-top" in rows.first.get_attribute("class")
    opened.shot(f"study-trials-{width}", page)
    page.get_by_label("Only trials that are").select_option("failed")
    page.locator("td", has_text="depth 7 does not work").first.wait_for()
    assert set(page.locator("tbody .mlc-bad").all_inner_texts()) == {"failed"}
    page.get_by_label("Only trials that are").select_option("")
    page.locator("tr.mlc-top").wait_for()
    rows.first.get_by_role("button", name="Open the run of trial").click()
    run = opened.output(1).locator(".mlc-page")
    run.get_by_role("heading", name="Run valley-").wait_for()
    run.locator(".lin-node", has_text="valley, trial").wait_for()
    opened.shot(f"study-run-{width}", opened.output(1))

    page.get_by_role("button", name="Register best…").click()
    page.get_by_label("Model name").fill("hills")
    page.get_by_role("button", name="Register", exact=True).click()
    page.get_by_text("Registered hills/1 from trial").wait_for()
    opened.shot(f"study-registered-{width}", page)
    opened.run(2)
    opened.idle(2)
    assert opened.saved()["cells"][2]["outputs"][0]["data"]["text/plain"] == "'hills/1'"
    assert not [error for error in opened.errors if "mlc" in error.lower() or "plotly" in error.lower()], opened.errors


@pytest.mark.needs("chromium")
def test_the_study_is_a_picture_once_the_kernel_is_gone(notebook: Opener) -> None:
    "A saved notebook that is opened again shows the trials and the pictures; without plotly the live page shows the same pictures."
    opened = notebook(SETUP, PLAIN, "mlc.StudyView('valley')", width=900, height=1000)
    opened.run()
    opened.idle()
    page = page_of(opened, 2)
    page.locator(".mlc-canvas img").wait_for()
    page.get_by_role("tab", name="Contour").click()
    page.locator(".mlc-canvas img[alt^='contour']").wait_for()
    for theme in ("JupyterLab Light", "JupyterLab Dark"):
        opened.use(theme)
        opened.shot(f"study-plain-{theme.split()[1]}", page)
    data = opened.saved()["cells"][2]["outputs"][0]["data"]
    assert data["text/html"].count("<img class='mlc-drawn'") == 7 and data["text/html"].count("<details open>") == 2
    assert "study valley: " in data["text/html"] and "best (the least) objective" in data["text/plain"]


def saved_with(opened: Notebook, cell: int, text: str) -> Any:
    "The saved cells, as soon as the output of one of them says something: the kernel draws the pictures of the end in its own time."
    end = time.monotonic() + PATIENCE
    while text not in (cells := opened.saved()["cells"])[cell]["outputs"][0]["data"]["text/html"]:
        assert time.monotonic() < end, f"the saved output never said {text!r}"
        opened.page.wait_for_timeout(500)
    return cells


ELSEWHERE = """
%load_ext mlcycle
import subprocess, sys, time
import mlcycle as mlc
code = '''
import os, time, mlcycle as mlc
def work(x):
    time.sleep(0.1)
    while x >= 5 and not os.path.exists("page-shows-it"):
        time.sleep(0.1)
    return x ** 2
mlc.tune(work, {"x": [float(i) for i in range(40)]}, sampler="grid", study="slow", progress=False)
'''
child = subprocess.Popen([sys.executable, "-c", code])
from mlcycle.store.connect import current_store
from mlcycle.tune.storage import study_names
while "slow" not in study_names(current_store()):
    time.sleep(0.2)
"""


@pytest.mark.needs("chromium")
def test_a_study_that_goes_on_elsewhere_is_followed(notebook: Opener) -> None:
    "The page moves while another process works on the study, the table can be asked for, and the saved form is that of the end."
    until_clicked = "import os\nwhile not os.path.exists('clicked'): time.sleep(0.1)"
    opened = notebook(ELSEWHERE, "mlc.StudyView('slow')", until_clicked, "child.wait()")
    opened.run(0, 1)
    opened.idle(0, 1)
    page = page_of(opened, 1)
    page.locator(".mlc-now", has_text="of 40 trials, 1 running").wait_for()
    page.locator(".mlc-now", has_text="left").wait_for()
    opened.shot("study-live", page)
    opened.run(2)
    before = opened.page.evaluate("() => Number(document.querySelector('.mlc-study .mlc-counts strong').textContent)")
    (opened.path.parent / "page-shows-it").touch()
    opened.wait("(n) => Number(document.querySelector('.mlc-study .mlc-counts strong').textContent) >= n + 3", before)
    page.get_by_role("tab", name="Trials").click()
    page.get_by_role("button", name="objective").click()
    page.locator("th[aria-sort=descending]", has_text="objective").wait_for()
    assert opened.running(2), "the kernel is busy, and the table is asked for all the same"
    (opened.path.parent / "clicked").touch()
    page.locator(".mlc-now").wait_for(state="hidden")
    assert page.locator(".mlc-counts").inner_text() == "40 finished"
    opened.wait("() => window.jupyterapp.shell.currentWidget.content.widgets.every((cell) => cell.model.executionState !== 'running')")
    saved_with(opened, 1, "study slow: 40 finished")
    opened.run(3)
    opened.idle(3)


HOLD = """open("begun", "a").write("x")
{indent}while os.path.getsize("begun") > 30 and not os.path.exists("clicked"):  # most of it happens while somebody clicks
{indent}    time.sleep(0.05)"""
HILL = """
%load_ext mlcycle
import os, time
import mlcycle as mlc
def hill(x):
    time.sleep(0.1)
    """ + HOLD.format(indent=" " * 4) + """
    for step in range(2):
        mlc.report((x - 1) ** 2, step)
    return (x - 1) ** 2
_ = mlc.tune(hill, {"x": "uniform(-5, 5)"}, trials=5, sampler="random", pruner="none", seed=1, study="hill", progress=False)"""
CELL = """%%tune cell -n {trials} --sampler random --pruner none --seed 1 {more}
import os, time
time.sleep(0.1)
""" + HOLD.format(indent="") + """
(suggest("x", "uniform(-5, 5)") - 1) ** 2"""
CALL = "mlc.tune(hill, trials=50, sampler='random', pruner='none', study='hill', resume=True)"
MOVED = "(n) => Number(document.querySelector('.mlc-study .mlc-counts strong').textContent) >= n"


@pytest.mark.needs("chromium")
@pytest.mark.parametrize(("study", "first", "busy"), [("hill", HILL, CALL), ("cell", "%load_ext mlcycle\nimport mlcycle as mlc", CELL)])
def test_a_study_of_a_later_cell_is_followed_while_that_cell_runs(notebook: Opener, study: str, first: str, busy: str) -> None:
    "The kernel's main thread is at work, and the page of before moves with it, says how long it takes, and does what is clicked."
    pytest.importorskip("plotly")
    begin = CELL.format(trials=5, more="") if study == "cell" else "0"
    later = "import optuna; optuna.logging.get_verbosity()"
    opened = notebook(first, begin, f"mlc.StudyView('{study}')", busy.format(trials=50, more="--resume"), later)
    opened.run(0, 1, 2)
    opened.idle(0, 1, 2)
    page = page_of(opened, 2)
    drawn(page)
    assert page.locator(".mlc-counts").inner_text() == "5 finished" and page.locator(".mlc-now").is_hidden()
    points = page.locator(".mlc-canvas .point").count()

    opened.run(3)
    opened.wait(MOVED, 12)
    page.locator(".mlc-now", has_text="of 50 trials").wait_for()
    page.locator(".mlc-now", has_text="left").wait_for()
    opened.shot(f"study-busy-{study}", page)
    opened.wait("(n) => document.querySelectorAll('.mlc-study .mlc-canvas .point').length > n", points)
    page.get_by_role("tab", name="Trials").click()
    page.get_by_role("button", name="objective").click()
    page.locator("th[aria-sort=descending]", has_text="objective").wait_for()
    page.get_by_role("button", name="Register best…").click()
    page.get_by_role("dialog").get_by_text("logged no model").wait_for()
    page.get_by_role("dialog").get_by_role("button", name="Close").click()
    page.locator("tbody tr").first.get_by_role("button", name="Open the run of trial").click()
    opened.output(2).locator(".mlc-page").get_by_role("heading", name=f"Run {study}-").wait_for()
    assert opened.running(3), "all of this is to happen while the cell runs"
    (opened.path.parent / "clicked").touch()
    opened.shot(f"study-busy-opened-{study}", opened.output(2))

    opened.idle(3)
    page.locator(".mlc-now").wait_for(state="hidden")
    assert page.locator(".mlc-counts").inner_text() == "50 finished"
    opened.run(4)
    opened.idle(4)
    cells = saved_with(opened, 2, f"study {study}: 50 finished")
    assert {output["output_type"] for output in cells[3]["outputs"]} <= {"display_data", "execute_result"}
    assert cells[4]["outputs"][0]["data"]["text/plain"] == "20"  # drawing beside the study has left Optuna's log lines as they were
    assert not [error for error in opened.errors if "mlc" in error.lower() or "plotly" in error.lower()], opened.errors


TREE = """
%load_ext mlcycle
import mlcycle as mlc
from sklearn.datasets import load_iris
from sklearn.tree import DecisionTreeClassifier
X, y = load_iris(return_X_y=True)
estimator = DecisionTreeClassifier(random_state=0)
_ = mlc.tune(estimator, {"max_depth": [1, 2, 3]}, sampler="grid", X=X, y=y, cv=3, scoring="accuracy", study="tree", progress=False)"""
AGAIN = "mlc.tune(estimator, X=X, y=y, study='tree', resume=True, trials=3, metric='accuracy', register='NAME')"


@pytest.mark.needs("chromium")
def test_an_estimators_best_is_registered_by_the_code_that_the_page_offers(notebook: Opener) -> None:
    "Its trials log scores, no model: the page does not ask for a name in vain, it has the line that fits once more, to be copied."
    opened = notebook(TREE, "mlc.StudyView('tree')", AGAIN.replace("NAME", "irises"), "mlc.resolve_version('irises').ref")
    opened.context.grant_permissions(["clipboard-read", "clipboard-write"])
    opened.run(0, 1)
    opened.idle(0, 1)
    page = page_of(opened, 1)
    page.get_by_role("button", name="Register best…").click()
    dialog = page.get_by_role("dialog")
    assert dialog.locator("pre").inner_text() == AGAIN and dialog.get_by_label("Model name").count() == 0
    dialog.get_by_role("button", name="Copy").click()
    dialog.get_by_text("Copied.").wait_for()
    assert opened.page.evaluate("() => navigator.clipboard.readText()") == AGAIN
    opened.shot("study-estimator", page)
    opened.page.keyboard.press("Escape")
    dialog.wait_for(state="detached")
    opened.run(2, 3)
    opened.idle(2, 3)
    assert opened.saved()["cells"][3]["outputs"][0]["data"]["text/plain"] == "'irises/1'"
    assert page.locator(".mlc-counts").inner_text() == "3 finished"
