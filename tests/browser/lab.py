"A JupyterLab server with a home of its own, and its pages in headless Chromium. The waits here are what makes the tests reliable: use them."
from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.services import free_port, wait_until

SHOTS = os.environ.get("MLCYCLE_SHOTS")  # where screenshots are put for somebody who looks at them; before the fixtures take such variables away
CHROMIUM = ["--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync",
            "--disable-dev-shm-usage"]
PATIENCE = 180  # Seconds after which what a test waits for will not come: two cores shared with other tests are slow
# Predicates are synchronous: wait_for_function takes a promise for true.
READY = """() => {
  const panel = window.jupyterapp && window.jupyterapp.shell.currentWidget, session = panel && panel.sessionContext && panel.sessionContext.session;
  return !!(session && session.kernel && session.kernel.status === 'idle');
}"""
# Without the request, cells that are run before the kernel answers are dropped silently.
ANSWERS = """async () => {
  const panel = window.jupyterapp.shell.currentWidget;
  await panel.context.ready; await panel.revealed;
  const kernel = panel.sessionContext.session.kernel;
  await kernel.info; await kernel.requestExecute({code: '1', silent: true}).done;
}"""
# The kernel's status alone is not enough: comms that a subshell answers make it idle while a cell still runs.
DONE = """(cells) => {
  const all = window.jupyterapp.shell.currentWidget.content.widgets;
  if (cells === null && window.mlcyclePending) return false;
  return (cells ?? all.keys().toArray()).every((i) => all[i].model.type !== 'code' || all[i].model.executionState !== 'running');
}"""
RUN = """(index) => {
  const app = window.jupyterapp, panel = app.shell.currentWidget;
  if (index !== null) { panel.content.activeCellIndex = index; panel.content.deselectAll(); }
  window.mlcyclePending = (window.mlcyclePending ?? 0) + 1;
  app.commands.execute(index === null ? 'notebook:run-all-cells' : 'notebook:run-cell').finally(() => { window.mlcyclePending -= 1; });
}"""
OPEN = "async (path) => { await window.jupyterapp.commands.execute('docmanager:open', {path, factory: 'Notebook'}); }"
# Nothing is asked about changes that were not saved; a dialog that a test left open keeps the page from being used again.
CLOSE = """() => {
  if (document.querySelector('.jp-Dialog')) return false;
  for (const widget of [...window.jupyterapp.shell.widgets('main')]) {
    if (widget.context) { widget.context.model.dirty = false; widget.dispose(); }
  }
  return document.querySelectorAll('.jp-NotebookPanel').length === 0;
}"""
THEME = "(theme) => window.jupyterapp.commands.execute('apputils:change-theme', {theme})"


class Lab:
    "JupyterLab, which keeps its settings, kernels and workspaces in a folder of its own."

    def __init__(self, options: dict[str, Any]):
        from playwright.sync_api import sync_playwright

        self.home, self.port, self.token = Path(tempfile.mkdtemp(prefix="mlcycle-lab-")), free_port(), secrets.token_hex(8)
        self.root, log = self.home / "notebooks", self.home / "log"
        self.root.mkdir()
        quiet = self.home / "settings/@jupyterlab/apputils-extension/notification.jupyterlab-settings"  # no pop-up that asks about news
        quiet.parent.mkdir(parents=True)
        quiet.write_text('{"fetchNews": "false", "checkForUpdates": false}', encoding="utf-8")
        own = {f"JUPYTER_{name}_DIR": str(self.home / name.lower()) for name in ("CONFIG", "RUNTIME")}
        environment = {name: value for name, value in os.environ.items() if not name.startswith("MLCYCLE_")}
        environment |= own | {"JUPYTERLAB_SETTINGS_DIR": str(self.home / "settings"), "JUPYTERLAB_WORKSPACES_DIR": str(self.home / "workspaces"),
                              "IPYTHONDIR": str(self.home / "ipython")}
        with log.open("wb") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ServerApp.ip=127.0.0.1", f"--ServerApp.port={self.port}",
                 "--ServerApp.port_retries=0", f"--IdentityProvider.token={self.token}", f"--ServerApp.root_dir={self.root}", "--LabApp.news_url=",
                 "--LabApp.expose_app_in_browser=True", "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
                 "--LabApp.collaborative=False"], env=environment, stdout=out, stderr=out)
        try:
            wait_until(lambda: self._answers(), self.process, log)
            self.playwright = sync_playwright().start()
            self.browser = self.playwright.chromium.launch(**options | {"args": [*options["args"], *CHROMIUM]})
            self.empty_page: Any = None  # JupyterLab without a document, for the next notebook: loading it costs more than what most tests do
        except BaseException:
            self.process.kill()
            raise

    def api(self, method: str, path: str) -> Any:
        "Ask the server."
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}/api/{path}", method=method, headers={"Authorization": f"token {self.token}"})
        with urllib.request.urlopen(request, timeout=30) as reply:
            return json.loads(reply.read() or "null")

    def _answers(self) -> bool:
        try:
            return bool(self.api("GET", "status"))
        except OSError:
            return False

    def end_kernels(self) -> None:
        "Two cores are few: no kernel outlives its test."
        for session in self.api("GET", "sessions"):
            self.api("DELETE", f"sessions/{session['id']}")

    def stop(self) -> None:
        self.browser.close()
        self.playwright.stop()
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        shutil.rmtree(self.home, ignore_errors=True)


class Notebook:
    "A notebook that is open in JupyterLab. Its folder is a project: `.mlcycle` is there."

    def __init__(self, lab: Lab, path: Path, width: int = 1280, height: int = 900, theme: str = "JupyterLab Light"):
        self.lab, self.path, self.theme = lab, path, theme
        self.page, lab.empty_page = lab.empty_page, None
        self.errors: list[str] = []  # What the page complained about
        self._listeners = {"console": lambda m: self.errors.append(m.text) if m.type == "error" else None,
                           "pageerror": lambda e: self.errors.append(str(e))}
        self._place, self._reloaded = path.relative_to(lab.root).as_posix(), False
        if self.page is None:
            context = lab.browser.new_context(viewport={"width": width, "height": height})
            context.set_default_timeout(PATIENCE * 1000)
            self.page = context.new_page()
            self._listen()
            self.page.goto(f"{self._address}&reset")
        else:
            self.page.set_viewport_size({"width": width, "height": height})
            self.page.mouse.move(0, 0)
            self._listen()
            self.page.evaluate(OPEN, self._place)
        self._opened(READY)

    @property
    def context(self) -> Any:
        "The browser's context, which the next notebook may be opened in."
        return self.page.context

    @property
    def _address(self) -> str:
        return f"http://127.0.0.1:{self.lab.port}/lab/tree/{self._place}?token={self.lab.token}"

    def _listen(self) -> None:
        for event, listener in self._listeners.items():
            self.page.on(event, listener)

    def _opened(self, ready: str) -> None:
        self.page.wait_for_selector(".jp-NotebookPanel .jp-Notebook")
        self.page.wait_for_function(ready)
        self.page.evaluate("() => window.jupyterapp.shell.collapseLeft()")
        self.use(self.theme)

    def use(self, theme: str) -> None:
        "Change the colours of the page."
        self.theme = theme
        self.page.evaluate(THEME, theme)
        light = "true" if "Light" in theme else "false"
        self.page.wait_for_function("(light) => document.body.dataset.jpThemeLight === light", arg=light)

    def run(self, *cells: int) -> None:
        "Run these cells, or all; comes back at once: wait with `idle`, or for what the page is to show."
        self.page.evaluate(ANSWERS)
        for cell in cells or (None,):
            self.page.evaluate(RUN, cell)

    def idle(self, *cells: int, seconds: float = PATIENCE) -> None:
        "Wait until these cells, or all, have run."
        self.page.wait_for_function(DONE, arg=list(cells) or None, timeout=seconds * 1000)

    def running(self, cell: int) -> bool:
        "Is this cell still running?"
        return not self.page.evaluate(DONE, [cell])

    def cell(self, index: int) -> Any:
        "A cell as Playwright's locator: `notebook.cell(2).get_by_role(\"button\", name=\"Stop\")`."
        return self.page.locator(".jp-NotebookPanel:not(.lm-mod-hidden) .jp-Notebook .jp-Cell").nth(index)

    def output(self, index: int) -> Any:
        "The outputs of a cell as Playwright's locator."
        return self.cell(index).locator(".jp-Cell-outputArea")

    def wait(self, javascript: str, arg: Any = None, seconds: float = PATIENCE) -> None:
        "Wait until a synchronous predicate of the page is true."
        self.page.wait_for_function(javascript, arg=arg, timeout=seconds * 1000)

    def reload(self) -> None:
        "Reload the page, as a person does with the kernel still at work."
        self.save()
        self._reloaded = True
        self.page.goto(self._address)
        self._opened("() => !!window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel")

    def save(self) -> None:
        "Save the notebook."
        self.page.evaluate("async () => { await window.jupyterapp.shell.currentWidget.context.save(); }")

    def saved(self) -> dict[str, Any]:
        "The notebook's file, saved now."
        import nbformat

        self.save()
        return nbformat.read(self.path, as_version=4)

    def shot(self, name: str, of: Any = None) -> None:
        "A screenshot of the page or of a locator, to be looked at: taken where `MLCYCLE_SHOTS` names a folder for it."
        if SHOTS:
            Path(SHOTS).mkdir(parents=True, exist_ok=True)
            (of or self.page).screenshot(path=str(Path(SHOTS) / f"{re.sub(r'[^a-z0-9_-]+', '-', name.lower())}.png"))

    def close(self) -> None:
        "Leave the page to the next notebook, or close it where it is not as it was."
        from playwright.sync_api import Error

        for event, listener in self._listeners.items():
            self.page.remove_listener(event, listener)
        try:
            clean = self.lab.empty_page is None and not self._reloaded and self.page.evaluate(CLOSE)
        except Error:
            clean = False
        if clean:
            self.lab.empty_page = self.page
        else:
            self.context.close()


def write(folder: Path, *cells: str, name: str = "notebook.ipynb") -> Path:
    "A notebook file with these code cells, in a project of its own."
    import nbformat

    (folder / ".mlcycle").mkdir(parents=True, exist_ok=True)
    nodes = [nbformat.v4.new_code_cell(cell, id=f"c{i}") for i, cell in enumerate(cells)]
    spec = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=nodes, metadata=spec), folder / name)
    return folder / name


Opener = Callable[..., Notebook]
