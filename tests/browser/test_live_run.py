"A run that is watched while it runs: in a real page, with a real kernel that is busy."
from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path


from mlcycle.store import metrics, runs
from mlcycle.store.connect import Store, open_store
from tests.browser.lab import Notebook, Opener

SETUP = """import math, time
import mlcycle as mlc
from mlcycle.ui.widgets.live_run import LiveRun"""
TRAIN = """with mlc.run("baseline", experiment="churn", params={{"lr": 0.1, "model": "hgb"}}, capture=False) as run:
    live = LiveRun(run)
    display(live)
    for epoch in range({epochs}):
        run.log_metrics({{"train_loss": math.exp(-epoch / 40) + 0.02 * math.sin(epoch), "val_loss": math.exp(-epoch / 45) + 0.05,
                         "accuracy": 1 - 0.6 * math.exp(-epoch / 30)}}, step=epoch)
        time.sleep(0.1)
    run.log_metric("auc", 0.91)
live.wait()"""
TRACKED = """%%track baseline -e churn -p lr,model
for epoch in range(80):
    mlc.log_metrics({"train_loss": math.exp(-epoch / 40) + 0.02 * math.sin(epoch), "val_loss": math.exp(-epoch / 45) + 0.05,
                     "accuracy": 1 - 0.6 * math.exp(-epoch / 30)}, step=epoch)
    time.sleep(0.1)
mlc.log_metric("auc", 0.91)
while not Path("measured").exists():
    time.sleep(0.05)"""
POINTS = """([index, least]) => {
  const label = document.querySelectorAll('.mlc-live canvas')[index]?.ariaLabel;
  return Number((label?.match(/(\\d+) points/) ?? [0, 0])[1]) >= least;
}"""
# Places of the charts and the tables of a cell's output, and its height, all from its upper left corner.
PLACES = """(cell) => {
  const out = document.querySelectorAll('.jp-Notebook .jp-Cell')[cell].querySelector('.jp-Cell-outputArea'), corner = out.getBoundingClientRect();
  const place = (box) => [box.x - corner.x, box.y - corner.y, box.width, box.height].map(Math.round);
  const nodes = [...out.querySelectorAll('canvas, figure img, table')];
  return nodes.map((node) => place(node.getBoundingClientRect())).concat([[Math.round(corner.height)]]);
}"""


def store_of(opened: Notebook) -> Store:
    return open_store(opened.path.parent / ".mlcycle/mlcycle.db")


def shown(opened: Notebook) -> dict[str, str]:
    "The picture of the tracked cell as it is saved; the line on a new store may stand above it."
    return next(output["data"] for output in opened.saved()["cells"][1]["outputs"] if "data" in output)


def test_a_chart_grows_while_its_cell_runs_and_stays_as_a_picture(notebook: Opener) -> None:
    "The first thing a person sees of mlcycle: curves below the cell, while it runs."
    opened = notebook("%load_ext mlcycle\nimport math, time\nfrom pathlib import Path\nimport mlcycle as mlc\nlr, model = 0.1, 'hgb'", TRACKED)
    opened.run(0, 1)
    opened.wait(POINTS, [0, 5])
    assert opened.running(1)
    opened.wait(POINTS, [0, 30])
    assert opened.running(1)
    out = opened.output(1)
    assert out.get_by_role("status").first.inner_text() == "running"
    opened.shot("live-running")
    out.get_by_role("row", name="auc").wait_for()
    opened.wait(POINTS, [0, 80])
    live = opened.page.evaluate(PLACES, 1)
    (opened.path.parent / "measured").touch()  # until then the cell goes on
    opened.idle()
    out.locator("img.mlc-drawn").first.wait_for()
    assert opened.page.evaluate(PLACES, 1) == live and len(live) == 5  # two charts, auc, the params: the page stays as it was
    text = out.inner_text()
    assert "finished" in text and text.count("0.91") == 1 and text.index("auc") < text.index("accuracy") < text.index("Params")
    opened.shot("live-finished")
    bundle = shown(opened)
    assert set(bundle) == {"text/plain", "text/html"} and "data:image/svg+xml" in bundle["text/html"]
    assert not opened.errors


def test_the_stop_button_ends_a_busy_cell(notebook: Opener) -> None:
    "The kernel's main thread is at work: the button must reach it all the same, and the run keeps what it had."
    opened = notebook(SETUP, TRAIN.format(epochs=3000), "'the kernel is still here'")
    opened.run(0, 1)
    opened.wait(POINTS, [0, 10])
    opened.output(1).get_by_role("button", name="Stop").click()
    opened.wait("() => document.querySelector('.jp-NotebookPanel').innerText.includes('KeyboardInterrupt')")
    opened.idle(1)
    opened.output(1).locator("img.mlc-drawn").first.wait_for()
    assert "cancelled" in opened.output(1).inner_text()
    opened.shot("live-stopped")
    opened.run(2)
    opened.output(2).get_by_text("the kernel is still here").wait_for()
    with store_of(opened) as store:
        run = runs.resolve(store, "baseline")
        assert (run.status, run.reason) == ("cancelled", "interrupted")
        assert len(metrics.history(store, run, "accuracy")) >= 10


def test_a_page_that_is_loaded_again_goes_on(notebook: Opener) -> None:
    "A reload must not cost the chart: the run goes on in the kernel, and the page finds its curves complete."
    opened = notebook(SETUP, TRAIN.format(epochs=3000))
    opened.run(0, 1)
    opened.wait(POINTS, [0, 10])
    opened.reload()
    opened.wait(POINTS, [0, 20])
    opened.shot("live-reloaded")
    with store_of(opened) as store:
        assert runs.resolve(store, "baseline").status == "running"
        opened.output(1).get_by_role("button", name="Stop").click()
        opened.output(1).locator("img.mlc-drawn").first.wait_for()  # the widget's place is the picture's, though the page was loaded again
        assert runs.resolve(store, "baseline").status == "cancelled"
    opened.shot("live-reloaded-stopped")
    bundle = shown(opened)
    assert set(bundle) == {"text/plain", "text/html"} and "cancelled" in bundle["text/plain"] and "accuracy" in bundle["text/plain"]


def test_what_is_saved_during_a_run_is_the_picture_of_now(notebook: Opener) -> None:
    "Whoever opens the file later, or reads its diff, sees how far the run had come; what was chosen in the chart stays chosen."
    opened = notebook(SETUP, TRAIN.format(epochs=3000))
    opened.run(0, 1)
    opened.wait(POINTS, [0, 60])
    opened.output(1).get_by_role("button", name="log scale").click()
    bundle = shown(opened)
    assert "application/vnd.jupyter.widget-view+json" in bundle and "running" in bundle["text/plain"] and "running" in bundle["text/html"]
    points = int(re.search(r"accuracy .* (\d+) points", bundle["text/plain"])[1])
    assert points >= 10
    opened.wait(POINTS, [0, points + 30])
    assert opened.output(1).get_by_role("button", name="log scale").get_attribute("aria-pressed") == "true"
    opened.output(1).get_by_role("button", name="Stop").click()
    opened.output(1).locator("img.mlc-drawn").first.wait_for()


def test_keys_in_the_live_view_are_its_own(notebook: Opener) -> None:
    "Two times d deletes a cell in JupyterLab: not when a button of a widget, or a chart, has the focus."
    opened = notebook(SETUP, TRAIN.format(epochs=3000), "'below'")
    opened.run(0, 1)
    opened.wait(POINTS, [0, 5])
    for control in (opened.output(1).get_by_role("button", name="log scale"), opened.page.locator(".mlc-live canvas").first):
        control.focus()
        for key in ("Escape", "d", "d", "x", "a", "b", "ArrowDown", "d", "d"):
            opened.page.keyboard.press(key)
        assert opened.page.locator(".jp-Notebook .jp-Cell").count() == 3 and control.evaluate("(node) => document.activeElement === node")
    opened.output(1).get_by_role("button", name="Stop").click()
    opened.output(1).locator("img.mlc-drawn").first.wait_for()
    opened.page.evaluate("() => window.jupyterapp.commands.execute('notebook:enter-command-mode')")  # the proof that these keys delete cells
    opened.page.keyboard.press("d")
    opened.page.keyboard.press("d")
    opened.wait("() => document.querySelectorAll('.jp-NotebookPanel .jp-Notebook .jp-Cell').length === 2")


def test_a_run_of_another_process_in_the_dark(notebook: Opener, folder: Path) -> None:
    "A batch run is watched and stopped from a notebook, in the dark theme; what is exported then shows the picture."
    from nbconvert import HTMLExporter

    code = ("import math, time\nimport mlcycle as mlc\nwith mlc.run('far', experiment='batch', capture=False) as run:\n    for i in range(3000):\n"
            "        mlc.log_metrics({'train/loss': math.exp(-i / 40), 'val/loss': math.exp(-i / 45), 'lr': 1 / (i + 1), 'acc': i / (i + 9.5)})\n"
            "        time.sleep(0.03)")
    with open_store(folder / ".mlcycle/mlcycle.db") as store:
        program = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, **store.environment}, stderr=subprocess.DEVNULL)
        try:
            opened = notebook("from mlcycle.ui.widgets.live_run import LiveRun", "LiveRun('far')", theme="JupyterLab Dark", width=1100)
            opened.run(0)
            opened.idle(0)
            opened.run(1)
            opened.wait(POINTS, [0, 50])
            first = opened.page.locator(".mlc-live canvas").first
            first.focus()
            first.press("ArrowRight")
            opened.output(1).get_by_text("step 0").wait_for()
            opened.shot("live-dark")
            opened.output(1).get_by_role("button", name="Stop").click()
            opened.output(1).locator("img.mlc-drawn").first.wait_for()
            opened.shot("live-dark-stopped")
            assert program.wait(120) != 0
            assert runs.resolve(store, "far").status == "cancelled"
        finally:
            program.kill()
    opened.save()
    page, _ = HTMLExporter(embed_images=True).from_filename(str(opened.path))
    assert "data:image/svg+xml" in page and "cancelled" in page and "widget-view" not in page
    assert not opened.errors
