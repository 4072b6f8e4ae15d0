"A server that is started, asked and stopped from the page."
from __future__ import annotations

import re
import urllib.error
import urllib.request

import pytest

from tests.browser.lab import Opener

SETUP = """%load_ext mlcycle
import mlcycle as mlc, pandas as pd
from sklearn.tree import DecisionTreeClassifier
X = pd.DataFrame({"age": range(20, 60), "income": [100.5 * i for i in range(40)]})
with mlc.run("tree", experiment="churn", capture=False) as run:
    run.log_model(DecisionTreeClassifier(max_depth=2).fit(X, ["yes" if age > 40 else "no" for age in X["age"]]), input_example=X.head())
mlc.register(run, "churn")"""


def test_serve_from_a_cell(notebook: Opener) -> None:
    "The address answers, a row is sent from the form, the chart counts it, a wrong row is explained, the button ends the server."
    opened = notebook(SETUP, "%mlcycle serve churn --port 0", "1 + 1")
    opened.run(0, 1, 2)  # the kernel is free for the next cell
    page = opened.page
    send = page.locator(".mlc-server form button[type=submit]")
    send.wait_for()
    assert opened.output(2).inner_text().strip().endswith("2")
    url = page.locator(".mlc-server .mlc-live-head a").inner_text()
    with urllib.request.urlopen(f"{url}/readyz") as response:
        assert response.status == 200
    send.click()
    answer = page.locator(".mlc-server .mlc-answer", has_text="no")
    answer.wait_for()
    assert "churn/1, in " in answer.inner_text()
    shares = answer.locator("tr").evaluate_all("""(rows) => rows.map((row) => [parseFloat(row.querySelector('.mlc-num').textContent) / 100,
      row.querySelector('.mlc-share span').offsetWidth / row.querySelector('.mlc-share').clientWidth])""")
    assert shares and all(drawn >= 0.85 * share for share, drawn in shares), shares  # a bar is as long as its probability, but for the cell's edge
    page.locator(".mlc-server .mlc-totals", has_text=re.compile("^1 requests, 0 failed")).wait_for()
    page.locator(".mlc-server svg .mlc-line0[d^=M]").first.wait_for(state="attached")
    page.locator(".mlc-server [data-name=age] input").fill("old")
    send.click()
    page.locator(".mlc-server [data-name=age] .mlc-bad", has_text="not a whole number").wait_for()
    page.locator(".mlc-server .mlc-danger").click()
    page.locator(".jp-OutputArea", has_text="stopped").first.wait_for()
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(f"{url}/readyz")
