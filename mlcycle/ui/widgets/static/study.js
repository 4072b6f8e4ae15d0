// A study: its head, its pictures and its trials. Python sends plain data, and pictures as plotly's JSON or as an image.

const initialize = keeping(() => true);  // a study can be worked with when it has ended, too
const tabFor = {};  // What was looked at stays when saving draws the widget anew

// One copy of plotly for all widgets of the page; the kernel has it, so that no network is needed.
function plotly(model) {
  globalThis.mlcyclePlotly ??= new Promise((resolve, reject) => {
    const take = (message, buffers) => {
      if (!message.plotly) return;
      model.off("msg:custom", take);
      const script = el("script", {src: URL.createObjectURL(new Blob([buffers[0]], {type: "text/javascript"}))});
      script.onload = () => resolve(globalThis.Plotly);
      script.onerror = () => reject(new Error("plotly could not be loaded"));
      document.head.append(script);
    };
    model.on("msg:custom", take);
    model.send({do: "plotly"});
  });
  return globalThis.mlcyclePlotly;
}

const SEEN = {blue: "#2f81f7", red: "#e5484d", orange: "#d1791c", green: "#2a9d50", gray: "#858d96", grey: "#858d96", "#cccccc": "#858d96"};  // on white and on black
const COLOURS = ["#2f81f7", "#d1791c", "#2a9d50", "#e5484d", "#a06cd5", "#17899a", "#d6609a", "#9a8a1e", "#8c6d5a", "#858d96"];  // so are these
// Optuna's scales go from white to almost black. These differ from the page's colour at both ends; the best, or the latest, stands out most.
const ENDS = {blue: {light: ["#4f8bd0", "#08306b"], dark: ["#3d75ad", "#deebf7"]}, red: {light: ["#e0675c", "#67000d"], dark: ["#c9524a", "#fee0d2"]}};
const BLUES = [753, 704, 656, 585, 495, 406, 325, 245, 183];  // red + green + blue of the stops of plotly's Blues

const numbers = (colour) => (colour.match(/[\d.]+/g) ?? []).map(Number);
function along(colour, [from, to]) {  // one of plotly's Blues, as rgb(…), to the same place between two colours
  const sum = numbers(colour).slice(0, 3).reduce((a, b) => a + b, 0), last = BLUES.length - 1;
  let i = 0;
  while (i < last - 1 && BLUES[i + 1] > sum) i++;
  const t = Math.min(1, Math.max(0, (i + (BLUES[i] - sum) / (BLUES[i] - BLUES[i + 1])) / last));
  const parts = (hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
  return `rgb(${parts(from).map((value, at) => Math.round(value + t * (parts(to)[at] - value))).join(", ")})`;
}

// Optuna's figures in the colours of the page.
function themed(figure, root) {
  const style = getComputedStyle(root), colour = (name) => style.getPropertyValue(name).trim();
  const fg = colour("--mlc-fg"), dim = colour("--mlc-dim"), faint = colour("--mlc-faint"), size = 12;
  const font = {color: fg, size, family: style.fontFamily}, narrow = root.clientWidth < 560;
  const layout = {...figure.layout, template: undefined, font, autosize: true, width: undefined, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)"};
  for (const name of Object.keys(layout).concat("xaxis", "yaxis")) {
    if (/^[xy]axis\d*$/.test(name)) layout[name] = {...layout[name], gridcolor: faint, zerolinecolor: faint, linecolor: dim, tickcolor: dim, automargin: true};
  }
  layout.legend = {...layout.legend, font, bgcolor: "rgba(0,0,0,0)", ...(narrow ? {orientation: "h", y: 1.15} : {})};
  const data = figure.data.map((trace) => trace.type === "parcoords"
    ? {...trace, labelfont: font, tickfont: {...font, size: 11}, rangefont: {...font, size: 11}, unselected: {line: {color: dim, opacity: 0.15}}} : trace);
  layout.annotations = layout.annotations?.map((each) => ({...each, font: {...each.font, color: fg}, bgcolor: colour("--mlc-bg")}));  // among lines
  layout.colorway = COLOURS;
  const look = isDark(root) ? "dark" : "light";
  for (const [i, trace] of data.entries()) {
    const scale = trace.marker?.colorscale;
    if (Array.isArray(scale)) {
      const [red, , blue] = numbers(scale[Math.floor(scale.length / 2)][1]), ends = ENDS[red > blue ? "red" : "blue"][look];
      data[i] = {...trace, marker: {...trace.marker, colorscale: [[0, ends[0]], [1, ends[1]]]}};
    }
    if (trace.line?.color?.startsWith?.("rgb(")) data[i] = {...data[i], opacity: 1, line: {...trace.line, color: along(trace.line.color, ENDS.blue[look])}};
    if (trace.type === "contour" && look === "dark") data[i] = {...trace, reversescale: !trace.reversescale};  // there, too, the best stands out
    if (SEEN[trace.marker?.color]) data[i] = {...data[i], marker: {...data[i].marker, color: SEEN[trace.marker.color]}};
    if (trace.textfont) data[i] = {...data[i], textfont: {...trace.textfont, color: fg}};
  }
  if (data.some((trace) => trace.type === "parcoords")) layout.margin = {l: 70, r: 40, t: 60, b: 30};
  return {data, layout};
}

function render({ model, el: host }) {
  const act = (what, more = {}) => model.send({do: what, ...more});
  const button = (text, onclick, more = {}) => el("button", {type: "button", ...more, class: `mlc-button ${more.class ?? ""}`, onclick}, text);
  const uid = model.model_id ?? Math.random().toString(36).slice(2);
  const title = el("h3", {class: "mlc-title"}), goals = el("span", {class: "mlc-dim"}), counts = el("div", {class: "mlc-counts"});
  const bar = el("div", {class: "mlc-progress", role: "progressbar", "aria-label": "Trials that are done", "aria-valuemin": "0", "aria-valuemax": "100"}, el("span"));
  const now = el("span", {class: "mlc-now", role: "status"});
  const best = el("div", {class: "mlc-best"}), notice = el("div", {"aria-live": "polite"});
  const register = button("Register best…", () => ask(), {"data-at": "register"});
  const tabs = el("div", {class: "mlc-tabs", role: "tablist", "aria-label": "Pictures and trials"});
  const panel = el("div", {class: "mlc-panel", role: "tabpanel", tabindex: "0", id: `${uid}-panel`});
  const controls = el("div", {class: "mlc-bar mlc-controls"}), canvas = el("div", {class: "mlc-canvas"});
  const table = el("table", {"aria-label": "Trials"}), filter = el("div", {class: "mlc-bar"}), pager = el("div", {class: "mlc-bar", role: "navigation", "aria-label": "Pages"});
  const trials = el("div", {}, filter, el("div", {class: "mlc-scroll", tabindex: "0", role: "region", "aria-label": "Table of trials"}, table), pager);
  const root = el("div", {class: "mlc-w mlc-runs mlc-study", role: "region"},
    el("div", {class: "mlc-head"}, title, goals, el("span", {class: "mlc-toolbar"}, register, button("Refresh", () => act("refresh", {kind: pictured()}), {"data-at": "refresh"}))),
    el("div", {class: "mlc-bar mlc-state"}, counts, bar, now), best, notice, el("div", {class: "mlc-compare"}, el("div", {class: "mlc-bar"}, tabs), panel));
  host.append(root);
  let tab = tabFor[model.get("head").study] ?? null, figure = null, plotted = null;
  const pictured = () => (tab && tab !== "trials" ? tab : null);

  function keepFocus(holder, draw) {
    const at = holder.contains(document.activeElement) ? document.activeElement.dataset.at : null;
    draw();
    if (at) holder.querySelector(`[data-at="${CSS.escape(at)}"]`)?.focus();
  }

  function drawHead() {
    const head = model.get("head");
    title.textContent = `Study ${head.study}`;
    root.setAttribute("aria-label", `Study ${head.study}`);
    goals.textContent = [head.target, head.goals].filter(Boolean).join(" · ");
    counts.replaceChildren(...head.counts.map(([status, number, look]) => el("span", {class: `mlc-${look || "plain"}`}, el("strong", {}, String(number)), ` ${status}`)));
    if (!head.counts.length) counts.replaceChildren(el("span", {class: "mlc-dim"}, "no trial yet"));
    bar.hidden = head.share === null || head.share === undefined;
    bar.firstChild.style.width = `${(head.share ?? 0) * 100}%`;
    bar.setAttribute("aria-valuenow", String(Math.round((head.share ?? 0) * 100)));
    now.textContent = head.now;
    now.hidden = !head.now;
    register.disabled = !head.best?.run;
    const row = head.best;
    const pairs = (list) => list.flatMap(([name, value]) => [el("span", {class: "mlc-pair"}, el("span", {class: "mlc-dim"}, `${name} `), value)]);
    keepFocus(best, () => best.replaceChildren(...(row ? [
      el("div", {class: "mlc-line1"}, el("span", {class: "mlc-dim"}, head.several ? `one of ${head.front} on the front:` : "best"),
        ...row.values.map(([metric, value]) => el("span", {class: "mlc-value"}, head.several ? el("span", {class: "mlc-dim"}, `${metric} `) : null, value)),
        el("span", {class: "mlc-dim"}, "in"), link(`trial ${row.trial}`, () => act("open", {trial: row.trial}), {"data-at": "best"})),
      el("div", {class: "mlc-pairs"}, ...pairs(row.params)),
      head.importances.length ? el("div", {class: "mlc-pairs"}, el("span", {class: "mlc-dim"}, "importance"), ...pairs(head.importances.map(([name, share]) => [name, share < 0.005 ? "<0.01" : share.toFixed(2)]))) : null,
    ].filter(Boolean) : [el("span", {class: "mlc-dim"}, "No trial has finished yet.")])));
    keepFocus(tabs, drawTabs);
  }
  const link = (text, onclick, more = {}) => el("button", {type: "button", class: "mlc-link", onclick, ...more}, text);

  function drawTabs() {
    const kinds = model.get("kinds"), names = [...kinds.map(([kind, label, why]) => [kind, label, why]), ["trials", "Trials", ""]];
    if (tab === null || !names.some(([kind]) => kind === tab)) {
      const first = kinds.find(([, , why]) => !why)?.[0] ?? "trials";
      if (tab !== first) { show(first); return; }
    }
    tabs.replaceChildren(...names.map(([kind, label, why]) => el("button", {type: "button", role: "tab", class: `mlc-tab ${why ? "mlc-none" : ""}`, "data-at": kind,
      "aria-selected": String(kind === tab), "aria-controls": `${uid}-panel`, id: `${uid}-${kind}`, tabindex: kind === tab ? "0" : "-1", title: why || null,
      onclick: () => show(kind), onkeydown: (event) => {
        const step = {ArrowRight: 1, ArrowLeft: -1}[event.key];
        if (!step) return;
        event.preventDefault();
        const at = (names.findIndex(([each]) => each === kind) + step + names.length) % names.length;
        show(names[at][0]);
        tabs.querySelector(`[data-at="${names[at][0]}"]`).focus();
      }}, label, kind === "trials" ? el("span", {class: "mlc-count"}, String(model.get("head").trials)) : null)));
    panel.setAttribute("aria-labelledby", `${uid}-${tab}`);
  }

  function show(kind) {
    tab = tabFor[model.get("head").study] = kind;
    keepFocus(tabs, drawTabs);
    if (kind === "trials") { panel.replaceChildren(trials); drawTable(); return; }
    const why = model.get("kinds").find(([each]) => each === kind)?.[2];
    if (why) { panel.replaceChildren(el("p", {class: "mlc-dim"}, `There is nothing to draw yet: ${why}.`)); return; }
    if (model.get("drawing").kind === kind) { drawPicture(); return; }
    panel.replaceChildren(el("p", {class: "mlc-dim", role: "status"}, "Drawing…"));
    act("picture", {kind});
  }

  function drawControls(drawing) {
    const ask = (params, objective = drawing.objective) => act("picture", {kind: drawing.kind, params, objective});
    const made = [];
    const select = (label, value, options, onchange, at) => {
      const node = el("select", {"aria-label": label, "data-at": at, onchange: () => onchange(node.value)},
        ...options.map(([key, text]) => el("option", {value: String(key), selected: String(key) === String(value)}, text)));
      return el("label", {class: "mlc-check"}, label, node);
    };
    if (drawing.objectives?.length > 1) {
      made.push(select("objective", drawing.objective, drawing.objectives.map((name, i) => [i, name]), (i) => ask(drawing.params, Number(i)), "objective"));
    }
    const names = drawing.names ?? [];
    if (drawing.kind === "contour" && names.length > 2) {
      const pick = (at) => (name) => { const two = [...drawing.params]; const other = 1 - at; if (two[other] === name) two[other] = two[at]; two[at] = name; ask(two); };
      made.push(select("between", drawing.params[0], names.map((name) => [name, name]), pick(0), "first"), select("and", drawing.params[1], names.map((name) => [name, name]), pick(1), "second"));
    } else if ((drawing.kind === "slice" || drawing.kind === "parallel") && names.length > 1) {
      made.push(...names.map((name) => {
        const box = el("input", {type: "checkbox", "data-at": `param-${name}`, onchange: () => {
          const next = names.filter((each) => (each === name ? box.checked : drawing.params.includes(each)));
          if (next.length) ask(next); else box.checked = true;
        }});
        box.checked = drawing.params.includes(name);
        return el("label", {class: "mlc-check"}, box, name);
      }));
    }
    keepFocus(controls, () => controls.replaceChildren(...made));
    controls.hidden = !made.length;
  }

  function drawPicture() {
    const drawing = model.get("drawing");
    if (!drawing.kind || drawing.kind !== tab) return;
    if (drawing.why) { figure = null; panel.replaceChildren(el("p", {class: "mlc-dim"}, drawing.why)); return; }
    if (panel.firstChild !== controls) panel.replaceChildren(controls, canvas);
    drawControls(drawing);
    figure = drawing.figure ?? null;
    const label = model.get("kinds").find(([kind]) => kind === drawing.kind)?.[1] ?? drawing.kind;
    canvas.setAttribute("aria-label", `${label} of the study`);
    canvas.setAttribute("role", "img");
    if (figure) plot();
    else { plotted = null; canvas.innerHTML = drawing.html; }
  }

  async function plot() {
    try {
      const Plotly = await plotly(model);
      if (!figure || !canvas.isConnected) return;
      const {data, layout} = themed(figure, root);
      if (!plotted) { canvas.replaceChildren(); plotted = el("div", {class: "mlc-plot"}); canvas.append(plotted); }
      await Plotly.react(plotted, data, layout, {responsive: true, displaylogo: false, displayModeBar: "hover"});
    } catch (error) {
      canvas.replaceChildren(el("p", {class: "mlc-bad"}, `The picture could not be drawn: ${error.message}`));
    }
  }

  function drawTable() {
    if (tab !== "trials") return;
    const page = model.get("page"), opened = model.get("opened");
    const turn = (more) => act("turn", {by: page.by, down: page.down, status: page.status, offset: 0, ...more});
    const status = el("select", {"aria-label": "Only trials that are", "data-at": "status", onchange: () => turn({status: status.value})},
      el("option", {value: ""}, "all trials"), ...page.statuses.map((each) => el("option", {value: each, selected: each === page.status}, each)));
    keepFocus(filter, () => filter.replaceChildren(status, el("span", {class: "mlc-count", role: "status"}, `${page.total} ${page.total === 1 ? "trial" : "trials"}`),
      ...(opened ? [button("Close run", () => act("close"), {class: "mlc-right", "data-at": "close"})] : [])));
    const heads = page.columns.map((column) => {
      const way = page.by !== column.key ? "none" : page.down ? "descending" : "ascending";
      return el("th", {scope: "col", "aria-sort": column.sorts ? way : null, class: column.number ? "mlc-num" : ""}, column.sorts
        ? el("button", {type: "button", class: "mlc-sort", "data-at": `sort-${column.key}`, onclick: () => turn({by: column.key, down: page.by === column.key ? !page.down : column.number})},
          column.title, way === "none" ? null : el("span", {class: "mlc-arrow", "aria-hidden": "true"}, way === "ascending" ? "↑" : "↓"))
        : column.title);
    });
    const rows = page.rows.map((row) => el("tr", {"aria-selected": String(!!row.run && row.run === opened), class: row.best ? "mlc-top" : ""},
      el("td", {class: "mlc-num"}, ["waiting", "surplus", "infeasible"].includes(row.status) ? String(row.trial)
        : link(String(row.trial), () => act("open", {trial: row.trial}), {"data-at": `trial-${row.trial}`, "aria-label": `Open the run of trial ${row.trial}${row.best ? ", the best" : ""}`})),
      ...row.cells.map((text, i) => {
        const column = page.columns[i + 1], look = column.key === "status" ? page.looks[text] : "";
        return el("td", {class: [column.number ? "mlc-num" : "", look ? `mlc-${look}` : ""].join(" "), title: text.length > 30 ? text : null}, text);
      }),
      page.notebook ? el("td", {}, row.run ? link("notebook", () => act("notebook", {trial: row.trial}), {"data-at": `notebook-${row.trial}`, "aria-label": `Open the notebook of trial ${row.trial}`}) : "") : null));
    if (page.notebook) heads.push(el("th", {scope: "col"}, el("span", {class: "mlc-sr"}, "executed notebook")));
    keepFocus(table, () => {
      table.replaceChildren(el("thead", {}, el("tr", {}, ...heads)), el("tbody", {}, ...rows));
      if (!rows.length) table.lastChild.append(el("tr", {}, el("td", {colspan: String(heads.length), class: "mlc-dim"}, "There is no such trial.")));
    });
    const end = page.offset + page.rows.length, to = (offset) => turn({offset});
    pager.hidden = page.total <= page.size;
    keepFocus(pager, () => pager.replaceChildren(
      button("‹", () => to(page.offset - page.size), {"aria-label": "Previous page", disabled: page.offset === 0, "data-at": "previous"}),
      el("span", {class: "mlc-count"}, `${page.offset + 1}–${end} of ${page.total}`),
      button("›", () => to(page.offset + page.size), {"aria-label": "Next page", disabled: end >= page.total, "data-at": "next"})));
  }

  function box(look, ...children) {
    const made = el("div", {class: `mlc-box ${look}`}, ...children);
    made.addEventListener("keydown", (event) => { if (event.key === "Escape") dismiss(); });
    return made;
  }
  function dismiss() {
    notice.replaceChildren();
    register.focus();
  }
  function ask() {
    const models = model.get("models"), row = model.get("head").best;
    if (row.how) { explain(row.how); return; }
    const name = el("input", {type: "text", "aria-label": "Model name", list: `${uid}-models`, placeholder: "model name", autocomplete: "off",
      value: models.length === 1 ? models[0] : "", onkeydown: (event) => { if (event.key === "Enter") go(); }});
    const go = () => { if (name.value.trim()) act("register", {name: name.value.trim()}); };
    const made = box("", el("p", {id: `${uid}-ask`}, `Register the model of trial ${row.trial} as the next version of`),
      el("div", {class: "mlc-bar"}, name, el("datalist", {id: `${uid}-models`}, ...models.map((each) => el("option", {value: each}))),
        button("Register", go, {class: "mlc-primary"}), button("Cancel", dismiss)));
    made.setAttribute("role", "dialog");
    made.setAttribute("aria-labelledby", `${uid}-ask`);
    notice.replaceChildren(made);
    name.focus();
  }
  // A run without a model cannot be registered: the code that helps, to be copied into a cell.
  function explain({why, code}) {
    const copied = el("span", {class: "mlc-dim", role: "status"}), shown = el("pre", {class: "mlc-code", tabindex: "0"}, code);
    const copy = button("Copy", async () => {
      try { await navigator.clipboard.writeText(code); copied.textContent = "Copied."; }
      catch { getSelection().selectAllChildren(shown); copied.textContent = "Selected: press Ctrl+C."; }  // without https there is no clipboard
    }, {class: "mlc-primary"});
    const made = box("", el("p", {id: `${uid}-why`}, why), code ? shown : null, el("div", {class: "mlc-bar"}, code ? copy : null, button("Close", dismiss), copied));
    made.setAttribute("role", "dialog");
    made.setAttribute("aria-labelledby", `${uid}-why`);
    notice.replaceChildren(made);
    (code ? copy : made.querySelector("button")).focus();
  }
  function drawNotice() {
    const said = model.get("notice"), close = () => button("Close", dismiss);
    if (said.kind === "error") notice.replaceChildren(box("mlc-danger", el("p", {class: "mlc-bad", role: "alert"}, said.text), close()));
    else if (said.kind === "done") notice.replaceChildren(box("", el("p", {class: "mlc-good"}, `✓ ${said.text}`), close()));
    else if (said.kind === "link") notice.replaceChildren(box("", el("p", {}, "The executed notebook: ", fileLink(said)), close()));
    else notice.replaceChildren();
  }
  // The run stands below the widget, in an output of its own.
  function showOpened() {
    drawTable();
    if (model.get("opened")) setTimeout(() => host.closest(".jp-OutputArea-output, .widget-vbox")?.lastElementChild?.scrollIntoView?.({block: "nearest"}), 200);
  }

  const retab = () => { keepFocus(tabs, drawTabs); if (tab !== "trials" && model.get("drawing").kind !== tab) show(tab); };
  const watched = {"change:head": drawHead, "change:page": drawTable, "change:kinds": retab, "change:drawing": drawPicture, "change:notice": drawNotice, "change:opened": showOpened};
  for (const [name, draw] of Object.entries(watched)) model.on(name, draw);
  drawHead();
  if (tab && !panel.firstChild) show(tab);
  drawNotice();
  const unwatch = settle(root, () => { if (figure && plotted) plot(); });
  return () => { unwatch(); for (const [name, draw] of Object.entries(watched)) model.off(name, draw); if (plotted && globalThis.Plotly) globalThis.Plotly.purge(plotted); };
}

export default { initialize, render };
