"What can be read: every text and every line of the widgets against what lies behind it, by WCAG 2's level AA; and that each stands in its box."
from __future__ import annotations

import pytest

from tests.browser.lab import Notebook, Opener
from tests.browser.test_pages import SETUP

pytestmark = pytest.mark.needs("chromium")
# As WCAG 2.2 has it: text 4.5:1 (1.4.3), graphics and the borders of fields 3:1 (1.4.11); what is disabled or only for screen readers is exempt.
POOR = """() => {
  const parse = (text) => {
    const n = (text.match(/[\\d.]+(e-?\\d+)?/g) ?? []).map(Number), scale = text.startsWith('color(') ? 255 : 1;
    return text === 'transparent' || n.length < 3 ? [0, 0, 0, 0] : [n[0] * scale, n[1] * scale, n[2] * scale, n[3] ?? 1];
  };
  const over = (a, b) => [0, 1, 2].map((i) => a[i] * a[3] + b[i] * (1 - a[3])).concat(1);
  const light = (c) => { const [r, g, b] = c.map((v) => { v /= 255; return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; });
                         return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const ratio = (a, b) => { const [x, y] = [light(a), light(b)].sort((p, q) => q - p); return (x + 0.05) / (y + 0.05); };
  const behind = (node) => {
    const layers = [];
    for (let at = node; at; at = at.parentElement) layers.push(parse(getComputedStyle(at).backgroundColor));
    return layers.reverse().reduce((below, layer) => over(layer, below), [255, 255, 255, 1]);
  };
  const opacity = (node) => { let all = 1; for (let at = node; at; at = at.parentElement) all *= Number(getComputedStyle(at).opacity); return all; };
  const found = new Map(), seen = {text: 0, graphics: 0};
  const judge = (node, colour, ground, least, what) => {
    const full = parse(colour), mixed = over([...full.slice(0, 3), full[3] * opacity(node)], ground), got = ratio(mixed, ground);
    seen[least === 3 ? 'graphics' : 'text'] += 1;
    const where = `${node.tagName.toLowerCase()}.${node.getAttribute('class') ?? ''}`, on = ground.slice(0, 3).map(Math.round);
    if (got < least - 0.005) found.set(`${where} ${colour} on ${on}: ${got.toFixed(2)} (${what})`, 1);
  };
  for (const root of document.querySelectorAll('.mlc-w, .mlc')) {
    const walk = document.createTreeWalker(root, NodeFilter.SHOW_TEXT);
    while (walk.nextNode()) {
      const text = walk.currentNode.textContent.trim(), node = walk.currentNode.parentElement, box = node.getBoundingClientRect();
      if (!text || !box.width || node.closest('.mlc-sr, style, title, option, :disabled')) continue;
      const style = getComputedStyle(node), svg = node.closest('svg');
      const mark = text === '●';
      judge(node, svg ? style.fill : style.color, behind(svg ? svg.parentElement : node), mark ? 3 : 4.5, text.slice(0, 30));
    }
    for (const node of root.querySelectorAll(`svg .mlc-line path, svg .lin-line, svg .lin-subject rect, .mlc-swatch path, input[type=text],
                                              input[type=search], select, textarea, .mlc-plot path.js-line, .mlc-plot path.point,
                                              .mlc-plot .barlayer path, .mlc-progress, .mlc-progress span`)) {
      if (!node.getBoundingClientRect().width) continue;
      const style = getComputedStyle(node), svg = node.closest('svg');
      const ringed = node.matches('.point') && parseFloat(style.strokeWidth) >= 2;  // seen by its ring on whatever colour lies below it
      if (svg && !ringed && node.matches('.point, .barlayer path')) judge(node, style.fill, behind(svg.parentElement), 3, 'mark');
      else if (svg) judge(node, style.stroke, behind(svg.parentElement), 3, 'line');
      else if (node.matches('.mlc-progress span')) judge(node, style.backgroundColor, behind(node.parentElement), 3, 'mark');
      else judge(node, style.borderTopColor, behind(node.parentElement), 3, 'border');
    }
    for (const node of root.querySelectorAll('.mlc-live-legend i')) {
      judge(node, getComputedStyle(node).backgroundColor, behind(node.parentElement), 3, 'mark');
    }
  }
  return {poor: [...found.keys()], seen};
}"""
# What of a text lies outside of the page's width, or is cut where nothing says so: what scrolls is no cut, an ellipsis with a tooltip is none either.
OUTSIDE = """() => {
  const found = new Map(), style = (node) => getComputedStyle(node);
  for (const root of document.querySelectorAll('.mlc-w, .mlc')) {
    const limit = root.closest('.jp-OutputArea-output').getBoundingClientRect(), walk = document.createTreeWalker(root, NodeFilter.SHOW_TEXT);
    while (walk.nextNode()) {
      const text = walk.currentNode.textContent.trim(), node = walk.currentNode.parentElement;
      if (!text || node.closest('.mlc-sr, style, title, option, datalist, .js-plotly-plot')) continue;
      const range = document.createRange();
      range.selectNodeContents(walk.currentNode);
      const box = range.getBoundingClientRect();
      if (!box.width) continue;
      const where = `${node.tagName.toLowerCase()}.${node.getAttribute('class') ?? ''} ${JSON.stringify(text.slice(0, 40))}`;
      let open = true;  // whether nothing around the text cuts it or scrolls
      for (let at = node; at && root.contains(at); at = at.parentElement) {
        const flow = style(at).overflowX, edge = at.getBoundingClientRect();
        const beside = at.tagName === 'svg' && (box.left < edge.left - 2 || box.right > edge.right + 2);
        if (beside) found.set(`${where} outside of its picture`, 1);
        if (flow === 'visible' || at.tagName === 'svg') continue;
        if (flow === 'auto' || flow === 'scroll') { open = false; break; }
        if (box.right > edge.right + 1.5) {
          open = false;
          if (style(at).textOverflow !== 'ellipsis') found.set(`${where} cut by ${at.tagName}.${at.getAttribute('class')} without an ellipsis`, 1);
          else if (!node.closest('[title]')) found.set(`${where} cut without a title`, 1);
          break;
        }
      }
      if (open && box.right > limit.right + 1.5) found.set(`${where} sticks out by ${Math.round(box.right - limit.right)}`, 1);
      if (open && box.left < limit.left + 3) found.set(`${where} touches the bar of its cell`, 1);
    }
    for (const svg of root.querySelectorAll('svg')) {  // headings that run into each other
      const boxes = [...svg.querySelectorAll('text')].map((node) => [node.getBoundingClientRect(), node.textContent]).filter(([box]) => box.width);
      boxes.forEach(([a, one], i) => boxes.slice(i + 1).forEach(([b, other]) => {
        const wide = Math.min(a.right, b.right) - Math.max(a.left, b.left), high = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
        if (wide > 2 && high > 5) found.set(`${JSON.stringify(one)} over ${JSON.stringify(other)}`, 1);
      }));
    }
  }
  return [...found.keys()];
}"""
WHOLE = """() => { const content = window.jupyterapp.shell.currentWidget.content;  // cells out of sight stay in the page
                    content.notebookConfig = {...content.notebookConfig, windowingMode: 'none'}; }"""
STATIC = """from IPython.display import HTML
from mlcycle.display import Facts, Result, Text
from mlcycle.store.refs import newest
from mlcycle.store.connect import current_store
long = newest(current_store(), NAMES[-2]).id
lines = ("runs", "show churn", "show failed", f"show {long}", f"compare run-1 {long}", "lineage churn/1")
looks = Result(None, [*(Text(f"text {look}", look) for look in ("good", "bad", "warn", "dim", "head", "")), Facts({"a": "cancelled", "b": "pruned"})])
HTML("".join(r._repr_html_() for r in (looks, *(get_ipython().run_line_magic("mlcycle", line) for line in lines))))"""
LIVE = """import time
with mlc.run("curves", "churn", params={"learning_rate": 1.0}, capture=False) as run:
    from mlcycle.ui.widgets.live_run import LiveRun
    display(LiveRun(run))
    for i in range(100_000):
        mlc.log_metrics({"train/loss": 1 / (i + 1), "val/loss": 1.2 / (i + 1), "auc": 0.7})
        if i == 20: mlc.log_metric("once", 1.0)
        time.sleep(0.05)"""


WIDTHS = (600, 700, 1400)
THEMES = ("JupyterLab Light", "JupyterLab Dark")


class Contrasts:
    "What cannot be read on a page, of all the states in which it is looked at."

    def __init__(self, opened: Notebook):
        self.opened, self.poor, self.seen, self.measured = opened, set(), {}, set()

    def look(self, state: str = "") -> None:
        "Judge the page as it stands; the transitions of colours are waited for."
        self.opened.page.mouse.move(2, 2)
        self.opened.page.wait_for_timeout(400)
        found = self.opened.page.evaluate(POOR)
        self.poor |= {f"{self.opened.theme}, {state}: {each}" for each in found["poor"]}
        before = self.seen.get(self.opened.theme, {})
        self.seen[self.opened.theme] = {kind: max(before.get(kind, 0), number) for kind, number in found["seen"].items()}

    def measure(self, state: str = "") -> None:
        "Judge where things stand: at three widths of the window in the first theme, in the other one at the narrowest, where it shows first."
        for width in WIDTHS if self.opened.theme == THEMES[0] else (WIDTHS[0], WIDTHS[-1]):
            self.opened.page.set_viewport_size({"width": width, "height": 1400})
            self.opened.page.wait_for_timeout(250)  # charts are drawn anew
            if width == WIDTHS[-1] and self.opened.theme != THEMES[0]:
                return  # as wide as the page was before
            self.measured.add((self.opened.theme, width))
            self.poor |= {f"{self.opened.theme}, {width} px, {state}: {each}" for each in self.opened.page.evaluate(OUTSIDE)}

    def check(self) -> None:
        "Fail for what cannot be read, and where too little was seen."
        assert not self.poor, "\n".join(sorted(self.poor))
        assert self.measured == {(THEMES[0], width) for width in WIDTHS} | {(THEMES[1], WIDTHS[0])}
        assert set(self.seen) == set(THEMES) and all(seen["text"] > 300 and seen["graphics"] > 20 for seen in self.seen.values()), self.seen


def test_everything_can_be_read(notebook: Opener) -> None:
    "Every widget and every static form, in both themes of JupyterLab: no text below 4.5:1, no line below 3:1."
    failing = "with mlc.run('failed', 'churn', capture=False):\n    raise ValueError('bad data')"
    curves = ("NAMES = [*(f'run-{i}' for i in range(6)), 'a name of some sixty letters as a person gives it to a model', '実験の長い名前' * 5]\n"
              "LONG = 'histgradientboostingclassifier__validation_fraction_of_the_rest'\n"
              "for i, name in enumerate(NAMES):\n"
              "    with mlc.run(name, 'many', params={'lr': float(i), LONG: i / 7, '長い名前のパラメータ' * 4: name}, capture=False):\n"
              "        mlc.log_text('line ' * 80, 'notes-' + LONG + '.txt')\n"
              "        for step in range(20):\n            mlc.log_metrics({'loss': (i + 1) / (step + 1), 'val_' + LONG: i + step})")
    setup = SETUP + "mlc.register('boosting-0.2', 'churn')\nmlc.promote('churn/1', why='the first')\n" + curves
    opened = notebook(setup, failing, "%mlcycle runs -n 5", "mlc.Compare(*NAMES)", "%mlcycle show churn/1",
                      STATIC, "%mlcycle show nothing", LIVE, height=1400)
    opened.page.evaluate(WHOLE)
    opened.run(0)
    opened.idle(0)
    for cell in range(1, 7):
        opened.run(cell)
        opened.idle(cell)
    table, both, page = (opened.output(2).locator(".mlc-runs"), opened.output(3).locator(".mlc-compare"), opened.output(4).locator(".mlc-page"))
    table.get_by_role("button", name="Columns").click()
    table.locator("tbody input").first.click()
    table.get_by_role("button", name="Delete…").click()
    table.get_by_role("alertdialog").wait_for()
    page.get_by_role("button", name="Predict").first.click()
    page.get_by_label("calls").wait_for()
    page.get_by_label("calls").fill("many")
    page.get_by_label("calls").press("Enter")
    page.locator(".mlc-hint.mlc-bad").wait_for()
    opened.run(7)  # from here on the kernel is busy
    opened.wait("() => document.querySelectorAll('.mlc-live canvas').length >= 2")
    contrasts = Contrasts(opened)
    for theme in THEMES:
        opened.use(theme)
        for tab in ("Params", "Curves", "Parallel", "Data & files", "Environment", "Code"):
            both.get_by_role("tab", name=tab).click()
            contrasts.look(tab)
            contrasts.measure(tab)
        opened.shot(f"contrast-{theme.split()[1]}", opened.output(2))
    contrasts.check()


TABS = ("History", "Importances", "Slices", "Contour", "Parallel", "Steps", "Timeline", "Trials")
STUDY = """
%load_ext mlcycle
import mlcycle as mlc, time
def fit(C, depth, model):
    time.sleep(0.03)
    if depth == 7:
        raise ValueError("depth 7 does not work")
    for step in range(5):
        mlc.report((C - 3) ** 2 + 5 - step, step)
    return (C - 3) ** 2 + depth / 10 + (model == "flat")
space = {"C": "loguniform(0.01, 10)", "depth": "int(2, 8)", "model": ["tree", "flat"]}
_ = mlc.tune(fit, space, trials=60, sampler="random", seed=1, study="valley", progress=False)
_ = mlc.tune(lambda x: (x, (x - 1) ** 2), {"x": "uniform(-1, 3)"}, trials=20, sampler="random", seed=1, metric="up,down", study="two", progress=False)
"""
GOES_ON = "mlc.tune(fit, trials=400, sampler='random', study='valley', resume=True)"


def test_a_study_can_be_read(notebook: Opener) -> None:
    "The page of a study with finished, pruned and failed trials: each picture, the table, what it asks and what it answers."
    pytest.importorskip("plotly")
    opened = notebook(STUDY, "mlc.StudyView('valley')", "mlc.StudyView('two')", GOES_ON, height=1400)
    opened.page.evaluate(WHOLE)
    opened.run(0, 1, 2)
    opened.idle(0, 1, 2)
    opened.output(1).locator(".mlc-counts .mlc-bad", has_text="failed").wait_for()
    opened.output(1).locator(".mlc-counts .mlc-dim", has_text="pruned").wait_for()
    contrasts = Contrasts(opened)
    for theme in THEMES:
        opened.use(theme)
        for cell, tab in [*((1, tab) for tab in TABS), (2, "Pareto front")]:
            page = opened.output(cell).locator(".mlc-study")
            page.get_by_role("tab", name=tab).click()
            page.locator("tbody tr.mlc-top" if tab == "Trials" else f".mlc-canvas[aria-label^='{tab}'] .main-svg").first.wait_for()
            if tab == "Trials":
                page.get_by_role("button", name="Register best…").click()
                page.get_by_role("dialog").wait_for()
            contrasts.look(tab)
            if tab in ("Importances", "Trials"):
                contrasts.measure(tab)
            opened.shot(f"contrast-study-{tab}-{theme.split()[1]}", page)
            if tab == "Trials":
                page.get_by_role("dialog").get_by_role("button", name="Close").click()
    opened.run(3)
    opened.output(1).locator(".mlc-now", has_text="of 400 trials").wait_for()
    opened.wait("() => document.querySelector('.mlc-progress span').getBoundingClientRect().width > 0")
    for theme in THEMES:
        opened.use(theme)
        contrasts.look("at work")
        opened.shot(f"contrast-study-live-{theme.split()[1]}", opened.output(1).locator(".mlc-study"))
    contrasts.check()
