"The harness itself: what the other tests here rely on."
from __future__ import annotations

from tests.browser.lab import Opener


def test_cells_run_and_a_widget_appears(notebook: Opener) -> None:
    "A cell that is run at once after opening must run, and anywidget's extension must be there."
    opened = notebook("import anywidget\nclass Hello(anywidget.AnyWidget):\n"
                      "    _esm = 'export default {render({el}) { el.innerHTML = \"<b>hello</b>\"; }}'\nHello()", "1 + 1")
    opened.run()
    opened.idle()
    opened.output(0).get_by_text("hello").wait_for()
    assert "2" in opened.output(1).inner_text()
    assert opened.saved()["cells"][1]["outputs"][0]["data"]["text/plain"] == "2"
    opened.shot("harness")
