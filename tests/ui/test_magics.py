"The magics in a real kernel: comms, completion and errors are not there in nbdev's in-process runner."
from __future__ import annotations

import queue
import re

import nbformat

from tests.ui.kernels import Kernel, shown


def test_track_shows_what_became_of_a_cell(kernel: Kernel) -> None:
    "The first thing a person tries: a tracked cell with its own output, and the run below it."
    status, outputs = kernel.run("%%track baseline -e churn -t team=risk\nimport mlcycle as mlc\nmlc.log_metric('auc', 0.91)\n6 * 7")
    assert status == "ok"
    assert "42" in shown(outputs)
    assert "baseline" in shown(outputs, "text/html") and "0.91" in shown(outputs, "text/html")
    status, outputs = kernel.run("%mlcycle runs \"metrics.auc > 0.9 and tags.team == 'risk'\"")
    assert "finished" in shown(outputs) and "<td" in shown(outputs, "text/html")


def test_params_of_a_tracked_cell_come_from_variables(kernel: Kernel) -> None:
    "A param is what the variable held when the cell began, with its type."
    kernel.run("lr, depth = 0.1, 6")
    kernel.run("%%track -e churn -p lr,depth\nlr = 99")
    _, outputs = kernel.run("import mlcycle as mlc\nf = mlc.runs()\n[*f['params.lr'], *f['params.depth']]")
    assert shown(outputs) == "[0.1, 6]"


def test_a_param_on_the_line_is_set_and_recorded(kernel: Kernel) -> None:
    "What is recorded is what the cell ran with; the run is left in the user's variable, even of a cell that fails."
    kernel.run("%%track -e churn -p lr=0.3 -p layers=[64,32] -p model=hgb --out best\ntried = lr * 10, len(layers), model")
    assert shown(kernel.run("tried, best.params, best.run.status")[1]) == (
        "((3.0, 2, 'hgb'), {'layers': [64, 32], 'lr': 0.3, 'model': 'hgb'}, 'finished')")
    kernel.run("%%track -e churn --out worst\n1 / 0")
    assert shown(kernel.run("worst.run.status")[1]) == "'failed'"


def test_the_run_is_seen_while_it_goes_on(kernel: Kernel) -> None:
    "Where a person sits, the cell shows a widget at once, and the same place holds the picture of the end, for the saved notebook."
    widget = "application/vnd.jupyter.widget-view+json"
    code = "import mlcycle as mlc\nprint('in the cell')\nmlc.log_metrics({'auc': 0.91})"
    status, outputs = kernel.run(f"%%track baseline -e churn\n{code}", live=True)
    assert status == "ok"
    shown_at = [i for i, o in enumerate(outputs) if widget in o.get("data", {})]
    printed = next(i for i, o in enumerate(outputs) if "in the cell" in o.get("text", ""))
    assert shown_at and shown_at[0] < printed
    place = outputs[shown_at[0]]["transient"]["display_id"]
    last = [o for o in outputs if o["type"] == "update_display_data" and o["transient"]["display_id"] == place][-1]
    assert widget not in last["data"] and "0.91" in last["data"]["text/html"] and "finished" in last["data"]["text/plain"]
    assert not [o for o in kernel.run(f"%%track batch -e churn\n{code}")[1] if widget in o.get("data", {})]


def test_a_semicolon_hides_the_last_value(kernel: Kernel) -> None:
    "As in any cell of Jupyter: the value is shown without a semicolon, not with one, and the next cell is not affected."
    assert "'seen'" in shown(kernel.run("%%track -e churn\n'se' + 'en'")[1])
    assert "hidden" not in shown(kernel.run("%%track -e churn\n'hid' + 'den';  # said")[1])
    assert "'seen'" in shown(kernel.run("'se' + 'en'")[1]) and "'seen'" in shown(kernel.run("%%track -e churn\n'se' + 'en'")[1])


def test_a_view_that_cannot_be_made_leaves_the_result(kernel: Kernel) -> None:
    "A person sees the static form and a warning; nobody else ever makes the view."
    kernel.run("from mlcycle.display import Result, Text\ndef broken(): raise OSError('no pixels')\n"
               "result = Result(None, [Text('two runs')], live=broken)")
    said = kernel.run("result", live=True)[1]
    assert "two runs" in shown(said, "text/html") and "no pixels" in shown(said)
    assert "no pixels" not in shown(kernel.run("result")[1])


def test_a_broken_display_loses_no_work(kernel: Kernel) -> None:
    "When mlcycle cannot draw a run, the cell has run, the run has ended, and a line on standard error says so."
    kernel.run("import sys, types\nsys.modules['mlcycle.ui.widgets.live_run'] = m = types.ModuleType('live_run')\n"
               "def follow(active): raise OSError('no pixels')\nm.follow = follow")
    status, outputs = kernel.run("%%track baseline -e churn --out best\nimport mlcycle as mlc\nmlc.log_metric('auc', 0.9)\nkept = 1")
    assert status == "ok" and any(o.get("name") == "stderr" and "no pixels" in o["text"] for o in outputs)
    assert shown(kernel.run("best.run.status, best.metrics, kept")[1]) == "('finished', {'auc': 0.9}, 1)"


def test_a_cell_that_fails_is_a_failed_run_and_a_failed_cell(kernel: Kernel) -> None:
    "A batch execution of the notebook must stop here, and the person must see the own traceback once."
    status, outputs = kernel.run("%%track broken -e churn\n1 / 0")
    assert status == "error"
    tracebacks = [o for o in outputs if o["type"] == "error" and o["ename"] == "ZeroDivisionError"]
    assert len(tracebacks) == 1
    _, outputs = kernel.run("%mlcycle show broken")
    assert "failed" in shown(outputs) and "ZeroDivisionError" in shown(outputs)


def test_an_error_of_a_tracked_cell_is_shown_once_and_is_the_users_own(kernel: Kernel) -> None:
    "One error output, as without `%%track`; other tracebacks of the cell stay, and an exception that takes no attributes is shown too."
    stubborn = "class Stubborn(Exception):\n    def __setattr__(self, name, value):\n        raise TypeError\n"
    for code, name, shows in [("1 / 0", "ZeroDivisionError", 1), ("int('x')", "ValueError", 1), (stubborn + "raise Stubborn('no')", "Stubborn", 2),
                              ("try:\n    1 / 0\nexcept Exception:\n    get_ipython().showtraceback()\nint('x')", "ValueError", 2)]:
        status, outputs = kernel.run(f"%%track cell\n{code}")
        errors = [o for o in outputs if o["type"] == "error"]
        assert (status, len(errors)) == ("error", shows) and name in [error["ename"] for error in errors], errors
        assert not any("site-packages" in "".join(error["traceback"]) or "magics" in "".join(error["traceback"]) for error in errors), errors
        card = next(o for o in outputs if o["type"] == "display_data")["data"]
        assert all((name in card[face]) is (name == "Stubborn") for face in ("text/plain", "text/html")), card
    kernel.run("import mlcycle as mlc\nbefore = len(mlc.runs())")
    for code in ("if 1\n    pass", "return 1", "x = (", "print('a'"):
        status, outputs = kernel.run(f"%%track nothing\n{code}")
        assert [o["ename"] for o in outputs if o["type"] == "error"] == ["SyntaxError", "MagicError"] and status == "error", outputs
        assert "no run was made" in outputs[-2]["evalue"]
    assert shown(kernel.run("len(mlc.runs()) == before")[1]) == "True"


def test_an_error_of_ours_ends_at_the_users_own_line(kernel: Kernel) -> None:
    "Whether in a plain cell, in a tracked one or in a function that mlcycle calls: no frame of mlcycle, and the debugger has all of them."
    kernel.run("import mlcycle as mlc")
    for code in ("mlc.runs('acc > 0.6')", "%%track\nmlc.runs('acc > 0.6')",
                 "def ask(rows):\n    return mlc.runs('acc > 0.6')\nimport pandas as pd\npd.Series([1]).map(ask)"):
        _, outputs = kernel.run(code)
        [error] = [o for o in outputs if o["type"] == "error"]
        text = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(error["traceback"]))
        assert error["ename"] == "QueryError" and text.count("acc' is not known") == 1, text
        assert "mlc.runs('acc > 0.6')" in text and "mlcycle/" not in text, text
    assert shown(kernel.run("import sys, traceback\n'query_conditions.py' in ''.join(traceback.format_tb(sys.last_traceback))")[1]) == "True"


def test_a_failing_batch_run_says_its_error_once(kernel: Kernel) -> None:
    "In the bar, in the card and in the cell's error together; in Python it is the exception, without the frames that executed the notebook."
    kernel.run("import nbformat.v4 as v4, mlcycle as mlc\nspec = {'name': 'python3', 'display_name': 'Python 3', 'language': 'python'}\n"
               "cells = [v4.new_code_cell('sizes = {}'), v4.new_code_cell(\"sizes['no-such-size']\")]\n"
               "nbformat = __import__('nbformat')\nnbformat.write(v4.new_notebook(cells=cells, metadata={'kernelspec': spec}), 'bad.ipynb')")
    _, outputs = kernel.run("%mlcycle run bad.ipynb")
    *seen, error = [o for o in outputs if o["type"] in ("display_data", "error")]
    last_bar = [o for o in outputs if o["type"] == "update_display_data"][-1]["data"]["text/plain"]
    card = seen[-1]["data"]["text/plain"]
    assert "KeyError" not in last_bar + error["evalue"] and "failed" in last_bar, (last_bar, error)
    assert card.count("KeyError: 'no-such-size'") == 1 and "cell        2" in card and "site-packages" not in card, card
    _, outputs = kernel.run("mlc.run_notebook('bad.ipynb')")
    error = next(o for o in outputs if o["type"] == "error")
    text = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(error["traceback"]))
    assert error["ename"] == "NotebookRunError" and "sizes['no-such-size']" in text and "runner.py" not in text and "nbclient" not in text, text


def test_an_interrupt_cancels_the_run(kernel: Kernel) -> None:
    "The stop button leaves a cancelled run with what it had logged, and a kernel that works on."
    message = kernel.client.execute("%%track long -e churn\nimport mlcycle as mlc, time\nmlc.log_metric('loss', 1.0)\n"
                                    "print('logged', flush=True)\ntime.sleep(60)")
    while True:
        found = kernel.client.get_iopub_msg(timeout=120)
        if found["msg_type"] == "stream" and "logged" in found["content"]["text"]:
            break
    kernel.manager.interrupt_kernel()
    while kernel.client.get_shell_msg(timeout=120)["parent_header"].get("msg_id") != message:
        pass
    while True:
        try:
            kernel.client.get_iopub_msg(timeout=0.5)
        except queue.Empty:
            break
    _, outputs = kernel.run("import mlcycle as mlc\nf = mlc.runs(\"name == 'long'\")\n[*f['status'], *map(float, f['metrics.loss'])]")
    assert shown(outputs) == "['cancelled', 1.0]"


def test_errors_of_a_command_have_no_traceback(kernel: Kernel) -> None:
    "A wrong word is answered with the next step, not with a stack."
    status, outputs = kernel.run("%mlcycle promot churn/1")
    error = next(o for o in outputs if o["type"] == "error")
    assert status == "error" and "Did you mean 'promote'?" in error["evalue"] and len(error["traceback"]) == 1
    kernel.run("import mlcycle as mlc\nwith mlc.run('first'):\n    pass")
    status, outputs = kernel.run("%mlcycle show nothing")
    error = next(o for o in outputs if o["type"] == "error")
    assert status == "error" and "There is no model, no run and no study 'nothing'" in error["evalue"]


def test_help_reads_as_help(kernel: Kernel) -> None:
    "--help of the magic and of a command print and do not fail."
    for line in ("%mlcycle --help", "%mlcycle run --help", "%track", "%track --help", "%track start --help", "%params --help",
                 "%%track --help", "%%track --help\npass"):
        status, outputs = kernel.run(line)
        assert status == "ok" and "Usage:" in shown(outputs), (line, outputs)
        assert "<h4>Options</h4>" in shown(outputs, "text/html"), line
    status, outputs = kernel.run("%mlcycle")
    assert status == "ok" and "%mlcycle runs" in shown(outputs) and "`%mlcycle --help` lists all" in shown(outputs)
    assert "<h4>Keep house</h4>" in shown(kernel.run("%mlcycle --help")[1], "text/html")


def test_completion_knows_the_store(kernel: Kernel) -> None:
    "Commands, options, run names and experiments complete on the tab key."
    kernel.run("%%track baseline -e churn\npass")
    assert kernel.complete("%mlcycle pro") == ["promote"]
    assert "--order-by" in kernel.complete("%mlcycle runs --or")
    assert kernel.complete("%mlcycle show base") == ["baseline"]
    assert kernel.complete("%mlcycle runs -e ch") == ["churn"]
    assert kernel.complete("best = %mlcycle sho") == ["show"]
    assert kernel.complete("%track st") == ["start", "status", "stop"]
    assert kernel.complete("%%track again -e ch") == ["churn"]
    kernel.run("import mlcycle as mlc\nwith mlc.run('big forest', params={'trees': 5}):\n    mlc.log_metric('auc', 0.9)")
    assert kernel.complete("%mlcycle runs -o -met") == ["-metrics.auc"] and kernel.complete("%%tune -m au") == ["auc"]
    assert kernel.complete('%mlcycle runs "metrics.auc > 0.5 and params.tr') == ["metrics.auc > 0.5 and params.trees"]
    assert kernel.complete("%mlcycle show big") == ["big\\ forest"]
    status, _ = kernel.run("%mlcycle show big\\ forest")
    assert status == "ok"
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("trees = 5", metadata={"tags": ["parameters"]})])
    kernel.run(f"import json, os; open(os.environ['JPY_SESSION_NAME'], 'w').write(json.dumps({dict(nb)!r}))")
    assert kernel.complete("%mlcycle run this -p tr") == ["trees"]


def test_a_result_can_be_kept(kernel: Kernel) -> None:
    "What a command shows is an object to go on with."
    kernel.run("%%track baseline -e churn\npass")
    _, outputs = kernel.run("found = %mlcycle runs\nfound.data[0]['name']")
    assert shown(outputs) == "'baseline'"
    _, outputs = kernel.run("%mlcycle runs --json")
    assert shown(outputs).startswith('[{"id": ')


def test_a_kept_table_is_a_frame(kernel: Kernel) -> None:
    "Rows, columns, sorting and the way back to a run, of every command that shows a table; an empty one too."
    kernel.run("import mlcycle as mlc, pandas as pd\nfor auc in (0.7, 0.9):\n    with mlc.run(f'r{auc}', 'churn', {'auc': 'a', 'C': 1}):\n"
               "        mlc.log_metric('auc', auc)")
    kernel.run("best = %mlcycle runs -o -metrics.auc")
    for code, value in (("best['auc'].tolist()", "[0.9, 0.7]"), ("best.iloc[0]['name']", "'r0.9'"), ("len(best)", "2"),
                        ("list(best) == list(best.columns)", "True"), ("best['params.auc'].unique().tolist()", "['a']"),
                        ("best[['name', 'metrics.auc']].shape", "(2, 2)"), ("best.sort_values('auc').iloc[0]['name']", "'r0.7'"),
                        ("best.data[0]['metrics']", "{'auc': 0.9}"), ("mlc.RunView(best.iloc[0]).run.name", "'r0.9'"),
                        ("float(best.auc.max()), 'auc' in best, 'iloc' in dir(best)", "(0.9, True, True)"),
                        ("bool(best), str(best).split()[0]", "(True, 'name')")):
        status, outputs = kernel.run(code)
        assert (status, shown(outputs)) == ("ok", value), (code, outputs)
    kernel.run("none = %mlcycle runs \"name == 'nothing'\"\nevents = %mlcycle events\nstudies = %mlcycle studies\nmodels = %mlcycle models")
    assert shown(kernel.run("len(none), len(studies), len(models), events['action'].iloc[-1]")[1]) == "(0, 0, 0, 'run.start')"


def test_top_level_await_in_a_tracked_cell(kernel: Kernel) -> None:
    "A magic cannot wait in a loop that runs already: it says so before anything runs, and names what works."
    status, outputs = kernel.run("%%track waiting -e churn\nimport asyncio\nawait asyncio.sleep(0.01)")
    error = next(o for o in outputs if o["type"] == "error")
    assert status == "error" and "with mlc.run(" in error["evalue"]
    works = ("import asyncio, mlcycle as mlc\nwith mlc.run('waiting', 'churn') as run:\n"
             "    await asyncio.sleep(0.01)\n    mlc.log_metric('auc', 1)\nrun.run.status")
    _, outputs = kernel.run(works)
    assert [o["data"]["text/plain"] for o in outputs if o["type"] == "execute_result"] == ["'finished'"]
    notes = [o for o in outputs if "A new store: " in o.get("text", "")]  # it was the first write in this folder
    assert notes and {o["name"] for o in outputs if o["type"] == "stream"} == {"stdout"}  # a notebook draws standard error as an error


def test_a_traceback_names_the_cell_and_its_lines(kernel: Kernel) -> None:
    "An error below %%track says the number and the line that the notebook shows, as the same error in a plain cell does."
    for below, line in (("x = 1\n\n1 / 0", 4), ("\n\n%time x = 1\n1 / 0", 5), ("x = = 1", 2),
                        ("# a note\nfor i in [1]:\n    raise ValueError", 4)):
        number = int(shown(kernel.run("print(get_ipython().execution_count)")[1]))
        status, outputs = kernel.run(f"%%track cell\n{below}")
        lines = [line for output in outputs if output["type"] == "error" for line in output["traceback"]]
        text = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(lines))
        assert status == "error" and re.search(rf"In\[{number}\], line {line}\b", text), (below, number, text)
    number = int(shown(kernel.run("print(get_ipython().execution_count)")[1]))
    _, outputs = kernel.run("%%track value\n40 + 2")
    assert [(o["execution_count"], o["data"]["text/plain"]) for o in outputs if o["type"] == "execute_result"] == [(number, "42")]
    assert int(shown(kernel.run("print(get_ipython().execution_count)")[1])) == number + 2
