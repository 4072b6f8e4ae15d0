"RunView, VersionView and ModelView in JupyterLab: what is done by clicking is done in the store, and seen on the page."
from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.browser.lab import Notebook, Opener

SETUP = """
%load_ext mlcycle
import numpy as np, pandas as pd, mlcycle as mlc
import matplotlib.pyplot as plt
from sklearn.compose import make_column_transformer
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OrdinalEncoder
rng = np.random.default_rng(0)
X = pd.DataFrame({"calls": rng.integers(0, 12, 300), "fee": rng.normal(40, 9, 300).round(2), "plan": rng.choice(["basic", "plus", "family"], 300),
                  "member": rng.random(300) < 0.5})
y = np.where(X["calls"] + 4 * X["member"] + rng.normal(0, 2, 300) > 7, "leaves", "stays")
for rate in (0.05, 0.2):
    with mlc.run(f"boosting-{rate}", "churn", params={"learning_rate": rate, "max_iter": 20}) as run:
        encode = make_column_transformer((OrdinalEncoder(), ["plan"]), remainder="passthrough")
        model = make_pipeline(encode, HistGradientBoostingClassifier(max_iter=20, learning_rate=rate)).fit(X, y)
        mlc.log_metrics({"auc": 0.9 + rate / 4, "accuracy": model.score(X, y)})
        mlc.log_input(X.assign(left=y), "customers", source="data/customers.csv")
        fig, ax = plt.subplots(figsize=(4, 2.4))
        ax.hist(model.predict_proba(X)[:, 0], bins=20)
        mlc.log_figure(fig, "scores.png")
        plt.close(fig)
        mlc.log_model(model, input_example=X.head())
"""


def page_of(notebook: Notebook, cell: int) -> Any:
    "The page in a cell's output, once it is there."
    page = notebook.output(cell).locator(".mlc-page")
    page.wait_for()
    return page


def said(page: Any, text: str) -> None:
    page.locator(".mlc-message").get_by_text(text).wait_for()


def press(page: Any, name: str) -> None:
    "A button of the toolbar."
    page.get_by_role("toolbar").get_by_role("button", name=name).click()


def submit(page: Any, name: str) -> None:
    "The button that does what an open form asks."
    page.locator("form").get_by_role("button", name=name, exact=True).click()


def champion(notebook: Notebook, cell: int) -> str:
    "What the store says, asked in a cell."
    notebook.run(cell)
    notebook.idle(cell)
    return notebook.saved()["cells"][cell]["outputs"][0]["data"]["text/plain"].strip("'")


@pytest.mark.needs("chromium")
def test_register_promote_roll_back_and_predict_by_clicking(notebook: Opener) -> None:
    "The whole way of a model without typing code: from a run to a champion, and back when it was a mistake."
    opened = notebook(SETUP, "%mlcycle show boosting-0.05", "mlc.register('boosting-0.2', 'churn')", "%mlcycle show churn/1",
                      "%mlcycle show churn", "mlc.resolve_version('churn@champion').ref")
    opened.run(0, 1)
    opened.idle(0, 1)
    page = page_of(opened, 1)
    press(page, "Register")
    page.get_by_label("Model").fill("churn")
    submit(page, "Register")
    said(page, "Registered churn/1 from run")
    press(page, "Promote")
    page.get_by_label("Reason").fill("the first one that works")
    opened.shot("page-run-promote", page)
    submit(page, "Promote")
    said(page, "churn@champion now points to churn/1.")
    page.locator(".lin-alias").get_by_text("@champion").wait_for()  # the lineage on the page has changed with it
    opened.shot("page-run", page)
    page.get_by_role("link", name="version churn/1").press("Enter")
    page.get_by_role("heading", name="Version churn/1 @champion").wait_for()
    page.get_by_role("button", name="Back to Run boosting-0.05").click()
    page.get_by_role("heading", name="Run boosting-0.05").wait_for()

    opened.run(2)
    opened.idle(2)
    opened.run(3)
    version = page_of(opened, 3)
    assert version.get_by_role("toolbar").get_by_role("button", name="Roll back").count() == 0  # there is nowhere to go back to
    opened.run(4)
    model = page_of(opened, 4)
    press(model, "Promote")
    assert model.get_by_label("Version", exact=True).input_value() == "churn/2"
    model.get_by_label("Reason").fill("better on the newest month")
    submit(model, "Promote")
    said(model, "churn@champion now points to churn/2 (was churn/1).")
    press(model, "Roll back @champion")
    model.get_by_text("churn@champion will go from churn/2 back to churn/1.").wait_for()
    opened.shot("page-model-rollback", model)
    submit(model, "Cancel")
    assert champion(opened, 5) == "churn/2"  # asked, but not confirmed
    press(model, "Roll back @champion")
    model.get_by_label("Reason").fill("complaints")
    submit(model, "Roll back")
    said(model, "churn@champion is back at churn/1 (was churn/2).")
    assert champion(opened, 5) == "churn/1"
    opened.shot("page-model", model)
    assert not [error for error in opened.errors if "mlc" in error.lower()], opened.errors


@pytest.mark.needs("chromium")
@pytest.mark.parametrize(("theme", "width"), [("JupyterLab Light", 1280), ("JupyterLab Dark", 700)])
def test_a_row_typed_into_the_form_is_predicted(notebook: Opener, theme: str, width: int) -> None:
    "The form has the right fields, begins with the example, says what is wrong next to the field, and shows probabilities."
    opened = notebook(SETUP, "mlc.register('boosting-0.2', 'churn')", "%mlcycle show churn/1", theme=theme, width=width)
    opened.run()
    opened.idle()
    page = page_of(opened, 2)
    press(page, "Predict")
    calls = page.get_by_label("calls")
    calls.wait_for()
    assert calls.input_value().isdigit()
    assert page.get_by_label("plan").evaluate("(node) => [...node.options].map((option) => option.text)") == ["basic", "family", "plus"]
    calls.fill("many")
    submit(page, "Predict")
    page.locator(".mlc-field[data-name=calls]").get_by_text("'many' is not a whole number").wait_for()
    assert calls.get_attribute("aria-invalid") == "true" and calls.evaluate("(node) => document.activeElement === node")
    opened.shot(f"page-form-bad-{width}", page)
    calls.fill("11")
    page.get_by_label("fee").fill("")  # the model takes nulls here
    page.get_by_label("plan").select_option("family")
    calls.press("Enter")
    answer = page.locator(".mlc-answer")
    answer.get_by_text("Prediction: leaves").wait_for()
    assert answer.locator("tr").count() == 2 and answer.locator("tr").first.inner_text().startswith("leaves")
    opened.shot(f"page-form-{width}", page)
    assert page.evaluate("(node) => node.scrollWidth <= node.clientWidth + 1")  # nothing sticks out, at 600 pixels either


@pytest.mark.needs("chromium")
def test_keys_belong_to_the_page(notebook: Opener) -> None:
    "Keys that are commands of the notebook must not delete its cells while a person uses a select or a button of the page."
    opened = notebook(SETUP, "mlc.register('boosting-0.2', 'churn')", "%mlcycle show churn/1")
    opened.run()
    opened.idle()
    page = page_of(opened, 2)
    press(page, "Predict")
    page.get_by_label("plan").wait_for()
    page.get_by_label("plan").focus()
    for key in ("d", "d", "a", "b"):
        opened.page.keyboard.press(key)
    assert opened.page.locator(".jp-Notebook .jp-Cell").count() == 3
    opened.page.keyboard.press("Escape")
    page.locator("form").wait_for(state="detached")
    assert opened.page.evaluate("() => document.activeElement.dataset.id") == "predict"


@pytest.mark.needs("chromium")
def test_the_page_is_a_picture_once_the_kernel_is_gone(notebook: Opener, folder: Path) -> None:
    "A saved notebook that is opened again shows the static form: facts, figures and the lineage."
    opened = notebook(SETUP, "mlc.register('boosting-0.2', 'churn')", "%mlcycle show boosting-0.2")
    opened.run()
    opened.idle()
    page_of(opened, 2)
    data = opened.saved()["cells"][2]["outputs"][0]["data"]
    assert "data:image/svg+xml;base64," in data["text/html"] and "scores.png" in data["text/html"] and "churn/1" in data["text/plain"]
