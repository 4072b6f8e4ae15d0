// A run while it runs: its state, its values, and a small chart for each group of metrics. The kernel sends curves that are thinned out already.
const LOOKS = {running: "mlc-running", finished: "mlc-good", failed: "mlc-bad", lost: "mlc-bad", cancelled: "mlc-warn", pruned: "mlc-dim"};
const FRAME = 100;  // Milliseconds between two drawings at least
const chosenFor = {};  // By run
const FIRST = 12;   // Charts that are shown at once

function numbers(view, Type) {
  return new Type(view.buffer.slice(view.byteOffset, view.byteOffset + view.byteLength));  // a copy: its place may not be aligned
}

function ticks(low, high, about) {
  if (!(high > low)) return [low];
  const rough = (high - low) / Math.max(about, 1), power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((m) => m * power).find((s) => s >= rough * 0.999) ?? 10 * power;
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) found.push(Number((i * step).toPrecision(12)));
  return found;
}

// Whole numbers between two steps, and the last step itself.
function stepTicks(low, high, about) {
  const whole = [...new Set(ticks(low, high, about).map(Math.round))].filter((v) => v >= low && high - v > (high - low) / (2 * about));
  return [...whole, high];
}

function short(value) {
  const size = Math.abs(value);
  for (const [unit, letter] of [[1e9, "G"], [1e6, "M"], [1e3, "k"]]) {
    if (size >= 1e4 && size >= unit && size < 1e13) return Number((value / unit).toPrecision(4)) + letter;
  }
  if (size >= 1e13 || (size > 0 && size < 1e-4)) return value.toExponential(3).replace(/\.?0+e/, "e").replace("e+", "e");
  return String(Number(value.toPrecision(4)));
}

function span(arrays, keep) {
  let low = Infinity, high = -Infinity;
  for (const array of arrays) for (const v of array) if (keep(v)) { if (v < low) low = v; if (v > high) high = v; }
  if (low > high) return [0, 1];
  const pad = Math.abs(low) * 0.1 || 0.5;
  return high > low ? [low, high] : [low - pad, high + pad];
}

// The index of the nearest step; steps ascend.
function nearest(steps, step) {
  let low = 0, high = steps.length - 1;
  while (low < high) { const middle = (low + high) >> 1; if (steps[middle] < step) low = middle + 1; else high = middle; }
  return low > 0 && step - steps[low - 1] < steps[low] - step ? low - 1 : low;
}

class Chart {
  constructor(changed) {
    this.at = null;  // The step under the pointer
    this.title = el("span", {class: "mlc-live-title"});
    this.legend = el("span", {class: "mlc-live-legend"});
    this.canvas = el("canvas", {role: "img", tabindex: "0"});
    this.node = el("figure", {}, el("figcaption", {}, this.title, this.legend), this.canvas);
    this.canvas.addEventListener("pointermove", (e) => {
      const box = this.canvas.getBoundingClientRect();
      this.at = this.steps ? this.steps(e.clientX - box.left) : null;
      changed();
    });
    for (const leave of ["pointerleave", "blur"]) this.canvas.addEventListener(leave, () => { this.at = null; changed(); });
    this.canvas.addEventListener("keydown", (e) => {
      const by = {ArrowLeft: -1, ArrowRight: 1}[e.key], first = this.series?.[0];
      if (!by || !first || !first.x.length) return;
      const now = this.at === null ? (by > 0 ? -1 : first.x.length) : nearest(first.x, this.at);
      this.at = first.x[Math.min(Math.max(now + by, 0), first.x.length - 1)];
      e.preventDefault();
      changed();
    });
  }

  set(chart) {
    this.series = chart.series.map((s) => ({...s, x: numbers(s.x, Float64Array), y: numbers(s.y, Float64Array)}));
    this.title.textContent = chart.title;
    this.canvas.setAttribute("aria-label", chart.title + ": " + chart.series.map(
      (s) => `${s.label === chart.title ? "" : s.label + " "}${s.count} points, last ${s.value}, least ${s.low}, greatest ${s.high}`).join("; "));
  }

  caption() {
    const many = this.series.length > 1;
    const entries = this.series.map((s, i) => {
      const value = this.at === null || !s.x.length ? s.value : showNumber(s.y[nearest(s.x, this.at)], true);
      const mark = el("i"), bad = value === "nan" || value.endsWith("inf");
      mark.style.background = s.colour;
      return el("span", {class: bad ? "mlc-bad" : null}, mark, many ? `${s.label} ${value}` : value);
    });
    if (this.at !== null) entries.unshift(el("span", {class: "mlc-dim"}, `step ${showNumber(this.at)}`));
    this.legend.replaceChildren(...entries);
  }

  draw(log, style) {
    const width = this.canvas.clientWidth, height = this.canvas.clientHeight, ratio = window.devicePixelRatio || 1;
    if (!width || !this.series) return;
    if (this.canvas.width !== Math.round(width * ratio) || this.canvas.height !== Math.round(height * ratio)) {
      this.canvas.width = Math.round(width * ratio);
      this.canvas.height = Math.round(height * ratio);
    }
    const context = this.canvas.getContext("2d");
    const dim = style.getPropertyValue("--mlc-dim") || "#57606a", line = style.getPropertyValue("--mlc-faint") || "#e7eaee";
    this.caption();
    const usable = log ? (v) => Number.isFinite(v) && v > 0 : Number.isFinite, scale = log ? Math.log10 : (v) => v;
    const [a, b] = span(this.series.map((s) => s.x), Number.isFinite);
    let [low, high] = span(this.series.map((s) => s.y), usable).map((v) => (log && v <= 0 ? 0 : scale(v)));
    const margin = (high - low) * 0.06 || 0.5;
    low -= margin; high += margin;
    const left = 46, right = width - 8, top = 6, bottom = height - 20;
    const atX = (v) => left + (v - a) / (b - a) * (right - left), atY = (v) => bottom - (scale(v) - low) / (high - low) * (bottom - top);
    this.steps = (x) => a + Math.min(Math.max((x - left) / (right - left), 0), 1) * (b - a);
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, width, height);
    context.font = "11px " + (style.getPropertyValue("font-family") || "sans-serif");
    context.lineWidth = 1;
    context.textBaseline = "middle";
    context.textAlign = "right";
    for (const v of ticks(low, high, 5)) {
      const y = Math.round(bottom - (v - low) / (high - low) * (bottom - top)) + 0.5;
      context.strokeStyle = line;
      context.beginPath(); context.moveTo(left, y); context.lineTo(right, y); context.stroke();
      context.fillStyle = dim;
      context.fillText(short(log ? Number((10 ** v).toPrecision(3)) : v), left - 6, y);
    }
    context.fillText("step", left - 14, bottom + 12);
    const steps = stepTicks(a, Math.max(...this.series.map((s) => s.x.at(-1) ?? a)), 4);
    steps.forEach((v, i) => {
      context.textAlign = i && i === steps.length - 1 ? "right" : "center";  // there is no room on both sides of the last
      context.fillText(short(v), atX(v), bottom + 12);
    });
    this.series.forEach((s) => {
      context.strokeStyle = context.fillStyle = s.colour;
      context.setLineDash(s.dash ? s.dash.split(" ").map(Number) : []);
      context.lineWidth = 1.5;
      context.lineJoin = "round";
      let piece = [];
      const end = () => {
        if (piece.length === 1) { context.beginPath(); context.arc(...piece[0], 2, 0, 7); context.fill(); }
        if (piece.length > 1) { context.beginPath(); piece.forEach(([x, y], n) => (n ? context.lineTo(x, y) : context.moveTo(x, y))); context.stroke(); }
        piece = [];
      };
      for (let n = 0; n < s.x.length; n++) { if (usable(s.y[n])) piece.push([atX(s.x[n]), atY(s.y[n])]); else end(); }
      end();
    });
    context.setLineDash([]);
    if (this.at === null) return;
    const first = this.series[0], x = Math.round(atX(first.x.length ? first.x[nearest(first.x, this.at)] : this.at)) + 0.5;
    context.strokeStyle = dim;
    context.lineWidth = 1;
    context.beginPath(); context.moveTo(x, top); context.lineTo(x, bottom); context.stroke();
    this.series.forEach((s) => {
      const n = s.x.length ? nearest(s.x, this.at) : -1;
      if (n < 0 || !usable(s.y[n])) return;
      context.fillStyle = s.colour;
      context.beginPath(); context.arc(atX(s.x[n]), atY(s.y[n]), 3, 0, 7); context.fill();
    });
  }
}

const initialize = keeping((model) => model.get("data").run?.status === "running");

function render({model, el: root}) {
  // Saving draws the widget anew; the choices are kept.
  const chosen = chosenFor[model.get("data").run?.id] ??= {log: false, all: false};
  let charts = new Map(), last = 0, timer = null, stopping = null, offset = 0;
  const status = el("span", {class: "mlc-live-status", role: "status"}), name = el("span", {class: "mlc-live-name"});
  const about = el("span", {class: "mlc-dim"}), time = el("span", {class: "mlc-live-time", "aria-label": "elapsed time"});
  const scale = el("button", {class: "mlc-button", type: "button", "aria-pressed": String(chosen.log), title: "Logarithmic scale", onclick: () => {
    chosen.log = !chosen.log;
    scale.setAttribute("aria-pressed", String(chosen.log));
    later();
  }}, "log scale");
  const stop = el("button", {class: "mlc-button mlc-danger", type: "button", onclick: askToStop}, "Stop");
  const values = el("div", {class: "mlc"}), grid = el("div", {class: "mlc-live-grid"}), below = el("div", {class: "mlc-live-below"});
  const more = el("button", {class: "mlc-button mlc-live-more", type: "button", onclick: () => { chosen.all = true; later(); }});
  const note = el("div", {class: "mlc-live-note mlc-warn", role: "status"});
  const box = el("section", {class: "mlc-w mlc-live", "aria-label": "Live view of a run"},
    el("div", {class: "mlc-live-head"}, status, name, about, el("span", {class: "mlc-live-tools"}, time, scale, stop)), values, grid, more, below, note);
  root.append(box);

  function askToStop() {
    stop.disabled = true;
    stop.textContent = "Stopping…";
    model.send({do: "stop"});
    // A front end whose messages wait for the running cell gets no answer: then the kernel itself is interrupted.
    stopping = setTimeout(() => { if (model.get("data").run?.here) model.widget_manager?.kernel?.interrupt?.(); }, 1500);
  }

  function answered(message) {
    if (message.stop === undefined) return;
    clearTimeout(stopping);
    note.textContent = message.stop;
    if (message.refused) { stop.disabled = false; stop.textContent = "Stop"; }
  }

  function tick() {
    const run = model.get("data").run;
    if (!run) return;
    time.textContent = showSeconds(Math.max(0, (run.ended ?? Date.now() / 1000 - offset) - run.started));
  }

  // Written by Python, names and values escaped. What is the same stays, with what a person has unfolded in it.
  function put(node, html) {
    if (put.shown.get(node) === html) return;
    put.shown.set(node, html);
    node.innerHTML = html;
    node.hidden = !html;
  }
  put.shown = new Map();

  function update() {
    const {run, values: single, charts: shown, note: said} = model.get("data");
    if (!run) return;
    offset = Date.now() / 1000 - run.now;
    if (status.textContent !== run.status) {  // else a screen reader repeats it ten times a second
      status.textContent = run.status;
      status.className = `mlc-live-status ${LOOKS[run.status] ?? ""}`;
    }
    name.textContent = run.name;
    about.textContent = `${run.id.slice(0, 8)} in ${run.experiment}`;
    stop.hidden = run.status !== "running";
    if (run.status !== "running") { clearTimeout(stopping); note.textContent = run.reason ?? ""; } else if (said) note.textContent = said;
    scale.hidden = !shown.length;
    put(values, single);
    put(below, model.get("below"));
    const kept = new Map(), wanted = chosen.all ? shown : shown.slice(0, FIRST);
    for (const chart of wanted) {
      const held = charts.get(chart.title) ?? new Chart(later);
      held.set(chart);
      kept.set(chart.title, held);
    }
    const nodes = [...kept.values()].map((chart) => chart.node);
    if (nodes.length !== grid.children.length || nodes.some((node, i) => node !== grid.children[i])) grid.replaceChildren(...nodes);
    charts = kept;
    more.hidden = wanted.length === shown.length;
    more.textContent = `Show all ${shown.length} charts`;
    tick();
  }

  function draw() {
    timer = null;
    if (last && !box.isConnected) return;  // scrolled out of a long notebook, or drawn anew elsewhere
    last = performance.now();
    if (fresh) { fresh = false; update(); }
    const style = getComputedStyle(box);
    for (const chart of charts.values()) chart.draw(chosen.log, style);
  }

  let fresh = true;
  function later() {
    if (timer === null) timer = setTimeout(() => requestAnimationFrame(draw), Math.max(0, FRAME - (performance.now() - last)));
  }
  function changed() { fresh = true; later(); }

  model.on("change:data change:below", changed);
  model.on("msg:custom", answered);
  const clock = setInterval(tick, 500), sizes = new ResizeObserver(later);
  sizes.observe(box);
  const unwatch = settle(box, later);
  draw();
  return () => { model.off("change:data change:below", changed); model.off("msg:custom", answered); clearInterval(clock); clearTimeout(timer); sizes.disconnect(); unwatch(); };
}

export default { initialize, render };
