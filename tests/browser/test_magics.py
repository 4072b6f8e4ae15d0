"The magics in JupyterLab: what only a real front end sends (cell ids, the notebook's path) and does (replace a cell)."
from __future__ import annotations

from tests.browser.lab import Notebook, Opener

SET = "([index, text]) => window.jupyterapp.shell.currentWidget.content.widgets[index].model.sharedModel.setSource(text)"
CELLS = ("%load_ext mlcycle\n%params lr=0.1", "%track start exploring -e churn", "import mlcycle as mlc\noffset = 0",
         "score = lr + offset\nprint('score', score)\nmlc.log_metric('score', score)", "%track stop", "%mlcycle run this -p lr=0.1")


def run(opened: Notebook, *cells: int) -> None:
    for cell in cells:
        opened.run(cell)
        opened.idle(cell)


def test_hidden_state_is_found_in_jupyterlab(notebook: Opener) -> None:
    "A cell is edited, run, and edited back: the session says so by the cell's place, and `run this` shows what it did to the numbers."
    opened = notebook(*CELLS)
    run(opened, 0, 1, 2, 3)
    opened.page.evaluate(SET, [2, "offset = 1"])
    run(opened, 2, 3, 4)
    said = opened.output(4).inner_text()
    assert "Session: hidden state" in said and "cell 3 ran 2 times, with different sources" in said
    opened.page.evaluate(SET, [2, CELLS[2]])
    opened.save()
    run(opened, 5)
    said = opened.output(5).inner_text()
    for part in ("if the page shows that one, save it", "+offset = 1", "The batch run differs", "score 1.1", "score 0.1"):
        assert part in said, (part, said)
    opened.output(5).scroll_into_view_if_needed()
    opened.shot("run-this", opened.cell(5))


def test_params_and_help_in_jupyterlab(notebook: Opener) -> None:
    "The cell becomes plain assignments; help is a page with headings."
    opened = notebook("%load_ext mlcycle", "%params --cell depth=6 model='hgb'", "%%track --help")
    run(opened, 0, 1, 2)
    opened.wait("() => window.jupyterapp.shell.currentWidget.content.widgets[1].model.sharedModel.getSource() === \"depth = 6\\nmodel = 'hgb'\"")
    assert "depth" in opened.output(1).inner_text()
    opened.output(2).get_by_role("heading", name="Options").wait_for()
    opened.shot("track-help", opened.cell(2))
