"The pages of a run, a version and a model in a real kernel: what a front end gets and sends, with nobody at it and with somebody."
from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.ui.kernels import Kernel, shown, started

WIDGET = "application/vnd.jupyter.widget-view+json"
SETUP = """
%load_ext mlcycle
import mlcycle as mlc, pandas as pd
from sklearn.linear_model import LogisticRegression
X = pd.DataFrame({"calls": [0, 1, 2, 3], "fee": [1.5, 2.5, 3.5, 4.5]})
with mlc.run("logistic", "churn") as run:
    mlc.log_input(X, "calls")
    mlc.log_model(LogisticRegression().fit(X, ["stays", "stays", "gone", "gone"]), input_example=X)
"""


class FrontEnd(Kernel):
    "A kernel with a person in front of it, which is what `allow_stdin` says."

    def run(self, code: str) -> tuple[str, list[dict[str, Any]]]:
        outputs: list[dict[str, Any]] = []
        reply = self.client.execute_interactive(code, timeout=60, allow_stdin=True, stdin_hook=lambda message: None,
                                                output_hook=lambda m: outputs.append({"type": m["msg_type"], **m["content"]}))
        return reply["content"]["status"], outputs

    def send(self, comm: str, content: dict[str, Any]) -> dict[str, Any]:
        "A message of the widget's script; the states that come back, the newest last."
        message = self.client.session.msg("comm_msg", {"comm_id": comm, "data": {"method": "custom", "content": content}})
        self.client.shell_channel.send(message)
        state: dict[str, Any] = {}
        while True:
            found = self.client.get_iopub_msg(timeout=60)
            if found["parent_header"].get("msg_id") != message["header"]["msg_id"]:
                continue
            if found["msg_type"] == "comm_msg":
                state |= found["content"]["data"].get("state", {})
            if found["msg_type"] == "status" and found["content"]["execution_state"] == "idle":
                return state


@pytest.fixture(scope="module")
def front_end(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FrontEnd]:
    folder = tmp_path_factory.mktemp("project")
    (folder / ".mlcycle").mkdir()
    with started(folder) as (manager, client):
        found = FrontEnd(manager, client)
        assert found.run(SETUP)[0] == "ok"
        yield found


def bundle(outputs: list[dict[str, Any]]) -> dict[str, Any]:
    return next(o["data"] for o in outputs if o["type"] == "execute_result")


def test_a_page_is_a_widget_for_a_person_and_a_picture_for_nobody(front_end: FrontEnd) -> None:
    "A notebook that was executed in batch must not hold a widget that no kernel answers for."
    code = "%mlcycle show logistic"
    live = bundle(front_end.run(code)[1])
    assert {WIDGET, "text/html", "text/plain"} <= live.keys()
    quiet: list[dict[str, Any]] = []
    front_end.client.execute_interactive(code, timeout=60, allow_stdin=False,
                                         output_hook=lambda m: quiet.append({"type": m["msg_type"], **m["content"]}))
    found = bundle(quiet)
    assert WIDGET not in found and "data:image/svg+xml;base64," in found["text/html"] and "data calls" in found["text/plain"]
    assert not [o for o in quiet if o["type"] == "comm_open"]


def test_a_result_that_was_kept_has_its_data(front_end: FrontEnd) -> None:
    "The live view is how a result looks, not what it is."
    front_end.run("found = %mlcycle show logistic")
    assert shown(front_end.run("found.data['name']")[1]) == "'logistic'"


def test_messages_of_the_page_do_what_they_say(front_end: FrontEnd) -> None:
    "From a comm to the store and back: registered, promoted, predicted; what is wrong is said and nothing else happens."
    comm = bundle(front_end.run("%mlcycle show logistic")[1])[WIDGET]["model_id"]
    state = front_end.send(comm, {"do": "register", "values": {"name": "chu/rn"}})
    assert state["reply"]["ok"] is False and "cannot be the name of a model" in state["reply"]["text"]
    state = front_end.send(comm, {"do": "register", "values": {"name": "churn"}})
    assert state["reply"]["text"].startswith("Registered churn/1") and [a["id"] for a in state["actions"]] == ["register", "promote", "predict"]
    state = front_end.send(comm, {"do": "promote", "values": {"alias": "champion", "why": "first"}})
    assert state["reply"]["ok"] and "@champion" in state["body"]
    assert shown(front_end.run("mlc.resolve_version('churn@champion').ref")[1]) == "'churn/1'"
    state = front_end.send(comm, {"do": "predict", "values": {"calls": "3", "fee": "4.5"}})
    assert state["reply"]["answer"]["prediction"] == {"": "gone"}
    state = front_end.send(comm, {"do": "predict", "values": {"calls": "3.5", "fee": "4.5"}})
    assert state["reply"]["problems"] == {"calls": "'3.5' is not a whole number"}


def test_a_pickle_runs_no_code_until_somebody_says_so(front_end: FrontEnd) -> None:
    "A click on Predict is no consent to run whatever a file contains."
    front_end.run("with mlc.run('pickled', 'churn') as run:\n"
                  "    mlc.log_model(LogisticRegression().fit(X, [0, 0, 1, 1]), input_example=X, flavour='pickle', allow_pickle=True)")
    comm = bundle(front_end.run("%mlcycle show pickled")[1])[WIDGET]["model_id"]
    assert front_end.send(comm, {"do": "form"})["form"]["unsafe"] is True
    values = {"calls": "3", "fee": "4.5"}
    state = front_end.send(comm, {"do": "predict", "values": values})
    assert not state["reply"]["ok"] and "runs whatever code" in state["reply"]["text"]
    assert front_end.send(comm, {"do": "predict", "values": values, "allow": True})["reply"]["answer"]["prediction"] == {"": "1"}
