"A command opens its notebook once: what was checked is what is executed."
from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mlcycle.notebooks.params import values
from mlcycle.ui.tree import Face, invoke

PARAMETERS = {"source": "lr: float = 0.1", "tags": ["parameters"]}


@pytest.mark.parametrize("words", [["run", "-p", "lr", "0.5"], ["run", "-P", "lr=[0.5]"]], ids=["one", "many"])
def test_a_file_that_is_saved_after_it_was_opened(project, monkeypatch: pytest.MonkeyPatch, words: list[str]) -> None:
    "Somebody saves the notebook between reading the command line's values by its declarations and running it: the run has the opened one."
    path = project.write(PARAMETERS, "import mlcycle as mlc\nmlc.log_metric('loss', lr)")
    gather = values.gather

    def gather_and_save(*given: Any) -> dict[str, Any]:
        gathered = gather(*given)
        Path(path).write_text("{}")  # no notebook any more
        return gathered

    monkeypatch.setattr(values, "gather", gather_and_save)
    shown = invoke([words[0], str(path), *words[1:]], Face())
    rows = shown.data.get("rows", [shown.data])
    assert [(row["status"], row["metrics"]) for row in rows] == [("finished", {"loss": 0.5})]
    assert project.artifact(rows[0]["run"], "notebook/source.ipynb") != b"{}"
