// The table of runs. The kernel sorts, filters and pages; this file shows the page that it sends and sends requests.

function render({ model, el: root }) {
  root.classList.add("mlc-w", "mlc-runs");
  const unwatch = settle(root);
  const uid = model.model_id ?? Math.random().toString(36).slice(2);
  const ask = (values) => { for (const [name, value] of Object.entries(values)) model.set(name, value); model.save_changes(); };
  const act = (what, more = {}) => model.send({do: what, ...more});
  const button = (text, onclick, more = {}) => el("button", {type: "button", ...more, class: `mlc-button ${more.class ?? ""}`, onclick}, text);

  const input = el("input", {
    type: "search", placeholder: "metrics.auc > 0.9 and params.model == 'hgb'", "aria-label": "Filter runs", spellcheck: "false", autocomplete: "off",
    "aria-describedby": `${uid}-problem`,
    onkeydown: (event) => { if (event.key === "Enter") ask({query: input.value, offset: 0}); },
    onsearch: () => { if (!input.value) ask({query: "", offset: 0}); },
  });
  const problem = el("div", {class: "mlc-problem", id: `${uid}-problem`, role: "alert"});
  const chooser = button("Columns", () => { open = !open; drawChoices(); }, {"aria-expanded": "false", "aria-controls": `${uid}-choices`});
  const choices = el("div", {class: "mlc-choices", id: `${uid}-choices`, role: "group", "aria-label": "Columns to show", hidden: true});
  const actions = el("div", {class: "mlc-bar mlc-actions", role: "toolbar", "aria-label": "Selected runs"});
  const notice = el("div", {"aria-live": "polite"});
  const table = el("table", {"aria-label": "Runs"});
  const pager = el("div", {class: "mlc-bar", role: "navigation", "aria-label": "Pages"});
  let open = false;
  root.append(
    el("div", {class: "mlc-bar"}, el("div", {class: "mlc-filter"}, input), button("Filter", () => ask({query: input.value, offset: 0})), chooser,
      button("Refresh", () => act("refresh"))),
    problem, choices, actions, notice, el("div", {class: "mlc-scroll", tabindex: "0", role: "region", "aria-label": "Table of runs"}, table), pager);

  // Elements are drawn anew; the one that had the focus is found again by its `data-at`.
  function keepFocus(holder, draw) {
    const at = holder.contains(document.activeElement) ? document.activeElement.dataset.at : null;
    draw();
    if (at) holder.querySelector(`[data-at="${CSS.escape(at)}"]`)?.focus();
  }

  function sortBy(column) {
    const order = model.get("page").order, down = order === `-${column.field}`, up = order === column.field;
    const first = column.number || column.key === "started" ? `-${column.field}` : column.field;
    ask({order_by: down ? column.field : up ? `-${column.field}` : first, offset: 0});
  }

  function pick(id, on) {
    const others = model.get("selected").filter((run) => run !== id);
    ask({selected: on ? [...others, id] : others});
  }

  // The name opens the page of its run; the button before it unfolds the runs that are part of it.
  function nameOf(row, text) {
    const unfolded = model.get("unfolded"), open = unfolded.includes(row.id);
    const fold = row.parts ? el("button", {type: "button", class: "mlc-unfold", "data-at": `fold-${row.id}`, "aria-expanded": String(open),
      "aria-label": `${row.parts} ${row.parts === 1 ? "run that is" : "runs that are"} part of ${row.name}`,
      onclick: () => ask({unfolded: open ? unfolded.filter((id) => id !== row.id) : [...unfolded, row.id]})}, `${open ? "▾" : "▸"} ${row.parts}`) : null;
    const name = el("button", {type: "button", class: "mlc-open", "data-at": `open-${row.id}`, title: text, onclick: () => act("page", {id: row.id})}, text);
    return [el("span", {class: "mlc-named", style: `padding-left:${18 * row.depth}px`}, fold, name)];
  }

  function drawTable() {
    const page = model.get("page"), selected = new Set(model.get("selected"));
    const every = page.rows.length > 0 && page.rows.every((row) => selected.has(row.id));
    const all = el("input", {type: "checkbox", "aria-label": "Select all on this page", "data-at": "all", onchange: () => {
      const here = page.rows.map((row) => row.id), others = model.get("selected").filter((id) => !here.includes(id));
      ask({selected: all.checked ? [...others, ...here] : others});
    }});
    all.checked = every;
    all.indeterminate = !every && page.rows.some((row) => selected.has(row.id));
    const heads = page.columns.map((column) => {
      const way = page.order === column.field ? "ascending" : page.order === `-${column.field}` ? "descending" : "none";
      return el("th", {scope: "col", "aria-sort": way, class: column.key === "name" ? "mlc-name" : column.number ? "mlc-num" : ""},
        el("button", {type: "button", class: "mlc-sort", "data-at": `sort-${column.key}`, title: `Sort by ${column.field}`, onclick: () => sortBy(column)},
          column.title, way === "none" ? null : el("span", {class: "mlc-arrow", "aria-hidden": "true"}, way === "ascending" ? "↑" : "↓")));
    });
    const looks = {id: "mlc-id", name: "mlc-name", num: "mlc-num", good: "mlc-good", bad: "mlc-bad", warn: "mlc-warn", dim: "mlc-dim"};
    const rows = page.rows.map((row) => {
      const on = selected.has(row.id);
      const box = el("input", {type: "checkbox", "aria-label": `Select ${row.name} (${row.id.slice(0, 8)})`, "data-at": row.id, onchange: () => pick(row.id, box.checked)});
      box.checked = on;
      const open = (event) => {
        if (event.target.closest("button, input, a") || String(window.getSelection())) return;  // text that is being selected is no click
        act("page", {id: row.id});
      };
      return el("tr", {"aria-selected": String(on), "aria-current": row.id === model.get("opened") ? "true" : null, onclick: open}, el("td", {class: "mlc-pick"}, box),
        ...row.cells.map(([text, look, title], i) => el("td", {class: looks[look] ?? "", title: title || (text.length > 16 ? text : null)},
          ...(page.columns[i].key === "name" ? nameOf(row, text) : [text]))));
    });
    table.replaceChildren(el("thead", {}, el("tr", {}, el("th", {class: "mlc-pick", scope: "col"}, all), ...heads)), el("tbody", {}, ...rows));
    if (!rows.length) {
      table.lastChild.append(el("tr", {}, el("td", {colspan: String(heads.length + 1), class: "mlc-dim"},
        model.get("query") ? "No run fits." : "No runs yet. `mlcycle run NOTEBOOK` or %%track makes one.")));
    }
  }

  function drawPager() {
    const page = model.get("page"), end = page.end, n = (x) => x.toLocaleString("en");
    const to = (offset) => ask({offset: Math.max(0, offset)});
    const last = Math.max(0, Math.floor((page.total - 1) / page.size) * page.size);
    const size = el("select", {"aria-label": "Runs on a page", "data-at": "size", onchange: () => ask({size: Number(size.value), offset: 0})},
      ...[...new Set([10, 20, 50, 100, page.size])].sort((a, b) => a - b).map((k) => el("option", {value: String(k), selected: k === page.size}, `${k} a page`)));
    const start = page.offset === 0, finish = end >= page.total;
    pager.replaceChildren(
      button("«", () => to(0), {"aria-label": "First page", disabled: start, "data-at": "first"}),
      button("‹", () => to(page.offset - page.size), {"aria-label": "Previous page", disabled: start, "data-at": "previous"}),
      el("span", {class: "mlc-count", role: "status"}, page.total ? `${n(page.offset + 1)}–${n(end)} of ${n(page.total)} ${page.total === 1 ? "run" : "runs"}` : "0 runs"),
      button("›", () => to(page.offset + page.size), {"aria-label": "Next page", disabled: finish, "data-at": "next"}),
      button("»", () => to(last), {"aria-label": "Last page", disabled: finish, "data-at": "last"}), el("span", {class: "mlc-right"}, size));
  }

  function drawActions() {
    const n = model.get("selected").length;
    const one = n === 1, few = n >= 2 && n <= 12;
    actions.replaceChildren(
      button("Compare", () => act("compare"), {disabled: !few, title: few ? "" : "Select 2 to 12 runs", "data-at": "compare", class: few ? "mlc-primary" : ""}),
      button("Register…", () => act("ask-register"), {disabled: !one, title: one ? "" : "Select one run", "data-at": "register"}),
      button("Open notebook", () => act("open"), {disabled: !one, title: one ? "" : "Select one run", "data-at": "open"}),
      button("Delete…", () => act("ask-delete"), {disabled: !n, "data-at": "delete", class: n ? "mlc-danger" : ""}),
      el("span", {class: "mlc-count"}, n ? `${n} selected` : ""),
      ...(n ? [button("Clear", () => ask({selected: []}), {"data-at": "clear"})] : []),
      ...(model.get("comparing") ? [button("Close comparison", () => act("close"), {class: "mlc-right"})] : []),
      ...(model.get("opened") ? [button("Close page", () => act("close"), {class: "mlc-right", "data-at": "close-page"})] : []));
  }

  function drawChoices() {
    chooser.setAttribute("aria-expanded", String(open));
    choices.hidden = !open;
    if (!open) return;
    const shown = model.get("page").columns.map((column) => column.key);
    choices.replaceChildren(...Object.entries(model.get("choices")).map(([group, columns]) => el("fieldset", {}, el("legend", {}, group),
      ...columns.map(([key, title]) => {
        const box = el("input", {type: "checkbox", "data-at": `column-${key}`, onchange: () => {
          const next = box.checked ? [...shown, key] : shown.filter((k) => k !== key);
          ask({columns: next});
        }});
        box.checked = shown.includes(key);
        return el("label", {class: "mlc-check"}, box, title);
      }))), button("As by default", () => ask({columns: []}), {"data-at": "default"}));
  }

  // The outcome of an action, or a question before it is done.
  function box(look, ...children) {
    const made = el("div", {class: `mlc-box ${look}`}, ...children);
    made.addEventListener("keydown", (event) => { if (event.key === "Escape") dismiss(); });
    return made;
  }
  function dismiss() {
    ask({notice: {}});
    (actions.querySelector("button:not(:disabled)") ?? input).focus();
  }
  function drawNotice() {
    const said = model.get("notice");
    const close = () => button("Close", dismiss);
    if (said.kind === "error") notice.replaceChildren(box("mlc-danger", el("p", {class: "mlc-bad", role: "alert"}, said.text), close()));
    else if (said.kind === "done") notice.replaceChildren(box("", el("p", {class: "mlc-good"}, `✓ ${said.text}`), close()));
    else if (said.kind === "link") notice.replaceChildren(box("", el("p", {}, "The executed notebook: ", fileLink(said)), close()));
    else if (said.kind === "delete") drawDelete(said);
    else if (said.kind === "register") drawRegister(said);
    else notice.replaceChildren();
  }

  function drawDelete(said) {
    const n = said.runs.length, with_them = el("input", {type: "checkbox"});
    const cancel = button("Cancel", dismiss);
    const shown = said.runs.slice(0, 10).map((run) => el("li", {}, run));
    const made = box("mlc-danger", el("p", {id: `${uid}-ask`}, `Delete ${n === 1 ? "this run" : `these ${n} runs`} for good, with params, metrics and artifacts?`),
      el("ul", {}, ...shown, n > 10 ? el("li", {class: "mlc-dim"}, `and ${n - 10} more`) : null),
      said.children ? el("label", {class: "mlc-check"}, with_them, `Also the ${said.children} ${said.children === 1 ? "run that is" : "runs that are"} part of ${n === 1 ? "it" : "them"}`) : null,
      el("div", {class: "mlc-bar"}, button(`Delete ${n === 1 ? "1 run" : `${n} runs`}`, () => act("delete", {children: with_them.checked}), {class: "mlc-danger"}), cancel));
    made.setAttribute("role", "alertdialog");
    made.setAttribute("aria-labelledby", `${uid}-ask`);
    notice.replaceChildren(made);
    cancel.focus();
  }

  function drawRegister(said) {
    const name = el("input", {type: "text", "aria-label": "Model name", list: `${uid}-models`, placeholder: "model name", onkeydown: (event) => { if (event.key === "Enter") go(); }});
    const go = () => { if (name.value.trim()) act("register", {name: name.value.trim()}); };
    const made = box("", el("p", {id: `${uid}-ask`}, `Register the model of ${said.run} as the next version of`),
      el("div", {class: "mlc-bar"}, name, el("datalist", {id: `${uid}-models`}, ...said.models.map((model) => el("option", {value: model}))),
        button("Register", go, {class: "mlc-primary"}), button("Cancel", dismiss)));
    made.setAttribute("role", "dialog");
    made.setAttribute("aria-labelledby", `${uid}-ask`);
    notice.replaceChildren(made);
    name.focus();
  }

  function drawQuery() {
    if (document.activeElement !== input) input.value = model.get("query");
  }
  function drawProblem() {
    problem.textContent = model.get("problem");
    input.setAttribute("aria-invalid", String(Boolean(model.get("problem"))));
  }
  const watched = {
    "change:page": () => { keepFocus(table, drawTable); keepFocus(pager, drawPager); keepFocus(choices, drawChoices); },
    "change:selected": () => { keepFocus(table, drawTable); keepFocus(actions, drawActions); },
    "change:comparing": () => keepFocus(actions, drawActions), "change:opened": () => { keepFocus(table, drawTable); keepFocus(actions, drawActions); }, "change:notice": drawNotice, "change:problem": drawProblem, "change:query": drawQuery, "change:choices": () => keepFocus(choices, drawChoices),
  };
  for (const [name, draw] of Object.entries(watched)) { model.on(name, draw); draw(); }
  return () => { unwatch(); for (const [name, draw] of Object.entries(watched)) model.off(name, draw); };
}

export default { render };
