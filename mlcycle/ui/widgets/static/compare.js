// Runs side by side. Text comes ready from Python; this file lays it out and switches between its parts.

const TABS = [["overview", "Metrics & params"], ["curves", "Curves"], ["parallel", "Parallel"], ["files", "Data & files"],
              ["environment", "Environment"], ["code", "Code"]];

function render({ model, el: root }) {
  root.classList.add("mlc-w", "mlc-compare");
  const unwatch = settle(root);
  const uid = model.model_id ?? Math.random().toString(36).slice(2);
  const tabs = el("div", {class: "mlc-tabs", role: "tablist", "aria-label": "Parts of the comparison"});
  const panel = el("div", {role: "tabpanel", id: `${uid}-panel`, tabindex: "0", class: "mlc-panel"});
  const only = el("input", {type: "checkbox", onchange: () => { model.set("only", only.checked); model.save_changes(); }});
  const legend = el("div", {class: "mlc-legend", role: "list", "aria-label": "Runs"});
  root.append(legend, el("div", {class: "mlc-bar"}, tabs, el("label", {class: "mlc-check"}, only, "Differences only")), panel);
  let other = 0;

  function counted(name) {
    const state = model.get("state");
    const n = {
      overview: [...state.params, ...state.metrics].filter((line) => line.differs).length,
      files: [...state.inputs, ...state.artifacts].filter((line) => line.differs).length,
      environment: Math.max(...state.environments.map((e) => Object.keys({...e.added, ...e.removed, ...e.changed}).length)),
      code: Math.max(...state.code.map((cells) => cells.filter((cell) => cell.how !== "same").length)),
    }[name];
    return n === undefined ? null : n;
  }

  function drawTabs() {
    const had = tabs.contains(document.activeElement);
    tabs.replaceChildren(...TABS.map(([name, title], i) => {
      const on = model.get("tab") === name, n = counted(name);
      return el("button", {
        type: "button", role: "tab", id: `${uid}-${name}`, "aria-selected": String(on), "aria-controls": `${uid}-panel`, tabindex: on ? "0" : "-1",
        class: "mlc-tab", onclick: () => go(name),
        onkeydown: (event) => {
          const step = {ArrowRight: 1, ArrowLeft: -1}[event.key];
          if (step) { event.preventDefault(); go(TABS[(i + step + TABS.length) % TABS.length][0], true); }
        },
      }, title, n ? el("span", {class: "mlc-count", title: `${n} differ`}, String(n), el("span", {class: "mlc-sr"}, " differ")) : null);
    }));
    panel.setAttribute("aria-labelledby", `${uid}-${model.get("tab")}`);
    if (had) tabs.querySelector("[aria-selected=true]").focus();
  }
  function go(name) { model.set("tab", name); model.save_changes(); }

  function swatch(run) {
    const svg = `<svg width="22" height="8" aria-hidden="true"><path d="M1 4h20" stroke="${run.colour}" stroke-width="3" stroke-dasharray="${run.dash}"/></svg>`;
    const holder = el("span", {class: "mlc-swatch"});
    holder.innerHTML = svg;
    return holder;
  }
  function light(index) {
    for (const line of panel.querySelectorAll(".mlc-line")) {
      line.style.opacity = index === null || Number(line.dataset.run) === index ? "1" : "0.15";
    }
  }
  function drawLegend() {
    legend.replaceChildren(...model.get("state").runs.map((run, i) => el("div", {
      role: "listitem", class: "mlc-run", tabindex: "0", onpointerenter: () => light(i), onpointerleave: () => light(null), onfocus: () => light(i), onblur: () => light(null),
      title: run.id,
    }, swatch(run), el("strong", {}, run.name), el("span", {class: "mlc-dim"}, `${run.id.slice(0, 8)}${i === 0 ? " · baseline" : ""}`),
       el("span", {class: {finished: "mlc-good", failed: "mlc-bad", lost: "mlc-bad", cancelled: "mlc-warn"}[run.status] ?? "mlc-dim"}, run.status),
       el("span", {class: "mlc-dim"}, run.took))));
  }

  function rank(line, i) {
    const [mark, title] = line.ranks?.[i] ?? [];
    return mark ? el("span", {class: `mlc-rank ${mark === "★" ? "mlc-good" : "mlc-dim"}`, title, role: "img", "aria-label": title}, mark) : null;
  }
  function row(line) {
    const title = line.note ? `${line.name}: ${line.note}` : line.name;
    return el("tr", {}, el("th", {scope: "row", title}, line.name), ...line.texts.map((text, i) => el("td", {class: line.marks[i] ? "mlc-mark" : "", title: line.note || text},
      line.marks[i] ? el("span", {class: "mlc-sr"}, "differs: ") : null, text || el("span", {class: "mlc-dim", "aria-label": "none"}, "–"), rank(line, i))));
  }
  // What is not shown, counted: a note whose tooltip lists it.
  function hiddenNote(lines, words) {
    const names = lines.map((line) => (line.note ? `${line.name} (${line.note})` : line.name)).join(", ");
    return lines.length ? el("span", {class: "mlc-dim mlc-note", title: names}, ` ${lines.length} ${words}`) : null;
  }
  // One table, so that every run is one column from top to bottom.
  function grid(label, empty, groups) {
    const runs = model.get("state").runs, held = groups.filter(([, lines]) => lines.length);
    if (!held.length) return [el("p", {class: "mlc-dim"}, empty)];
    return [el("div", {class: "mlc-scroll", tabindex: "0", role: "region", "aria-label": label}, el("table", {class: "mlc-grid"},
      el("thead", {}, el("tr", {}, el("th", {}), ...runs.map((run) => el("th", {scope: "col", title: run.name}, swatch(run), run.name)))),
      ...held.map(([title, lines]) => {
        const shown = only.checked ? lines.filter((line) => line.differs) : lines, hidden = lines.filter((line) => !shown.includes(line));
        return el("tbody", {}, el("tr", {class: "mlc-group"}, el("th", {scope: "rowgroup", colspan: String(runs.length + 1)}, title,
          hiddenNote(hidden.filter((line) => !line.unchosen), "the same"), hiddenNote(hidden.filter((line) => line.unchosen), "at their defaults"))),
          ...shown.map(row));
      })))];
  }

  function overview() {
    const state = model.get("state");
    return grid("Metrics, params and tags", "These runs have no metrics, params or tags.", [["Metrics", state.metrics], ["Tags", state.tags], ["Params", state.params]]);
  }

  function curvesTab() {
    const state = model.get("state"), held = model.get("curves");
    if (!state.curves.length) return [el("p", {class: "mlc-dim"}, "No metric of these runs has more than one point.")];
    const ask = (metrics, log) => model.send({do: "curves", metrics, log});
    const log = el("input", {type: "checkbox", onchange: () => ask(held.metrics, log.checked)});
    log.checked = held.log;
    const picks = state.curves.map((name) => {
      const box = el("input", {type: "checkbox", onchange: () => ask(state.curves.filter((n) => n === name ? box.checked : held.metrics.includes(n)), held.log)});
      box.checked = held.metrics.includes(name);
      return el("label", {class: "mlc-check"}, box, name);
    });
    const picture = el("div", {class: "mlc-picture"});
    picture.innerHTML = held.svg;
    const read = el("div", {class: "mlc-read mlc-dim", "aria-live": "off"}, "Point at a chart to read it off.");
    picture.addEventListener("pointermove", (event) => readOff(event, picture, read, held, state.runs));
    picture.addEventListener("pointerleave", () => { read.textContent = "Point at a chart to read it off."; picture.querySelector(".mlc-cursor")?.remove(); });
    return [el("div", {class: "mlc-bar", role: "group", "aria-label": "Metrics to draw"}, ...(state.curves.length > 1 ? picks : []),
      el("label", {class: "mlc-check mlc-right"}, log, "Logarithmic")), picture, read];
  }

  function readOff(event, picture, read, held, runs) {
    const svg = picture.querySelector("svg");
    if (!svg) return;
    const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
    picture.querySelector(".mlc-cursor")?.remove();
    for (const chart of svg.querySelectorAll(".mlc-chart")) {
      const [left, top, width, height] = chart.dataset.box.split(" ").map(Number), [x0, x1] = chart.dataset.x.split(" ").map(Number);
      if (at.x < left || at.x > left + width || at.y < top || at.y > top + height) continue;
      const step = x0 + (at.x - left) / width * (x1 - x0);
      const words = [], points = held.points[chart.dataset.metric] ?? [];
      let near = null;
      for (const [run, line] of points) {
        const best = line.reduce((a, b) => Math.abs(b[0] - step) < Math.abs(a[0] - step) ? b : a);
        near = near === null || Math.abs(best[0] - step) < Math.abs(near - step) ? best[0] : near;
        words.push(el("span", {class: "mlc-value"}, swatch(runs[run]), `${runs[run].name} ${best[1] === null ? "nan" : showNumber(best[1], true)}`));
      }
      const cursor = document.createElementNS("http://www.w3.org/2000/svg", "path");
      const x = left + (near - x0) / (x1 - x0) * width;
      cursor.setAttribute("d", `M${x} ${top}v${height}`);
      cursor.setAttribute("stroke", "var(--mlc-dim)");
      cursor.setAttribute("class", "mlc-cursor");
      chart.append(cursor);
      read.replaceChildren(el("span", {}, `${chart.dataset.metric} at step ${near}`), ...words);
      return;
    }
  }

  function parallelTab() {
    const picture = el("div", {class: "mlc-picture"});
    picture.innerHTML = model.get("state").parallel;
    return model.get("state").parallel ? [picture] : [el("p", {class: "mlc-dim"}, "It takes two params or metrics that differ.")];
  }

  function files() {
    const state = model.get("state");
    return grid("Data and artifacts", "These runs have no inputs and no artifacts.", [["Data", state.inputs], ["Artifacts", state.artifacts]]);
  }

  // Environment and code are compared with the baseline, one other run at a time.
  function chooser() {
    const runs = model.get("state").runs;
    other = Math.min(other, runs.length - 2);
    if (runs.length === 2) return el("p", {class: "mlc-dim"}, `${runs[0].name} → ${runs[1].name}`);
    const select = el("select", {"aria-label": "Run to compare with the baseline", onchange: () => { other = select.selectedIndex; draw(); panel.querySelector("select")?.focus(); }},
      ...runs.slice(1).map((run, i) => el("option", {selected: i === other}, run.name)));
    return el("p", {class: "mlc-dim"}, `${runs[0].name} → `, select);
  }

  function environment() {
    const found = model.get("state").environments[other], runs = model.get("state").runs;
    const rows = [...Object.entries(found.changed).map(([name, [a, b]]) => [name, a, b, "changed"]),
                  ...Object.entries(found.added).map(([name, b]) => [name, "", b, "added"]),
                  ...Object.entries(found.removed).map(([name, a]) => [name, a, "", "removed"])];
    if (found.missing) return [chooser(), el("p", {class: "mlc-dim"}, found.missing)];
    if (!rows.length) return [chooser(), el("p", {class: "mlc-good"}, "✓ The same Python, platform and distributions.")];
    return [chooser(), el("div", {class: "mlc-scroll", tabindex: "0", role: "region", "aria-label": "Distributions that differ"}, el("table", {class: "mlc-grid"},
      el("thead", {}, el("tr", {}, ...["", runs[0].name, runs[other + 1].name, ""].map((name) => el("th", {scope: "col", title: name}, name)))),
      el("tbody", {}, ...rows.map(([name, a, b, how]) => el("tr", {}, el("th", {scope: "row"}, name), el("td", {}, a || "–"), el("td", {class: "mlc-mark"}, b || "–"),
        el("td", {class: "mlc-dim"}, how))))))];
  }

  function code() {
    const cells = model.get("state").code[other];
    if (!cells.length) return [chooser(), el("p", {class: "mlc-dim"}, "Neither run recorded its code.")];
    const out = [];
    let same = 0;
    const flush = () => {
      if (same) out.push(el("p", {class: "mlc-dim mlc-fold"}, `${same} unchanged ${same > 1 ? "cells" : "cell"}`));
      same = 0;
    };
    for (const cell of cells) {
      if (cell.how === "same") { same += 1; continue; }
      flush();
      out.push(el("article", {class: `mlc-cell mlc-${cell.how}`}, el("header", {}, cell.title), cell.lines.length ? el("pre", {tabindex: "0", "aria-label": cell.title},
        ...cell.lines.map(([mark, line]) => el("span", {class: {"-": "mlc-minus", "+": "mlc-plus"}[mark] ?? ""}, `${mark} ${line}\n`))) : null));
    }
    flush();
    return [chooser(), ...out];
  }

  function draw() {
    only.checked = model.get("only");
    drawTabs();
    drawLegend();
    const tab = model.get("tab");
    only.parentElement.hidden = !["overview", "files"].includes(tab);
    panel.replaceChildren(...{overview, curves: curvesTab, parallel: parallelTab, files, environment, code}[tab]());
  }
  const events = ["change:state", "change:curves", "change:tab", "change:only"];
  for (const name of events) model.on(name, draw);
  draw();
  return () => { unwatch(); for (const name of events) model.off(name, draw); };
}

export default { render };
