"Tuning as one sees it in JupyterLab."
from __future__ import annotations

from tests.browser.lab import Notebook, Opener

CELL = """%%tune branin -n 60 --seed 1
from math import cos, pi
import time
x, y = suggest("x", "uniform(-5, 10)"), suggest("y", "uniform(0, 15)")
time.sleep(0.05)
(y - 5.1 / (4 * pi**2) * x**2 + 5 / pi * x - 6) ** 2 + 10 * (1 - 1 / (8 * pi)) * cos(x) + 10"""
DRAWN = "() => [...document.querySelectorAll('.jp-OutputArea svg circle')].length >= 5"


def test_a_study_grows_below_its_cell(notebook: Opener) -> None:
    "While it goes on: how far it is, the best so far and the history; at the end a table, and the picture stays."
    opened: Notebook = notebook("%load_ext mlcycle", CELL)
    opened.run(0)
    opened.idle(0)
    opened.run(1)
    opened.wait(DRAWN)
    said = opened.output(1).inner_text()
    assert "of 60 trials" in said and "best" in said and "left" in said
    opened.shot("tune-live", opened.cell(1))
    opened.idle(1)
    said = opened.output(1).inner_text()
    assert "study branin finished" in said and "60 finished" in said and "best (the least) objective" in said
    opened.shot("tune-done", opened.cell(1))
