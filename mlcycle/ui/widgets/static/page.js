// The page of a run, a version or a model: its static form, and its actions. Python sends `body` as HTML that mlcycle wrote.

let pages = 0;

function control(field, id, described) {
  const common = {id, name: field.name, "aria-describedby": described, autocomplete: "off", spellcheck: "false"};
  const option = (value, text) => el("option", {value, selected: value === String(field.value)}, text);
  if (field.kind === "choice" || (field.kind === "flag" && field.nullable)) {
    const choices = field.kind === "flag" ? [["true", "true"], ["false", "false"]] : field.choices;
    const select = el("select", common, field.nullable ? option("", "(empty)") : null, ...choices.map(([value, text]) => option(value, text)));
    select.value = field.value === "" ? (field.nullable ? "" : choices[0]?.[0] ?? "") : String(field.value);
    return select;
  }
  if (field.kind === "flag") return el("input", {...common, type: "checkbox", checked: field.value === true});
  if (field.kind === "json") return el("textarea", {...common, rows: "3"}, String(field.value));
  const numeric = field.kind === "number" || field.kind === "whole";  // not type=number, which hides what cannot be read
  const suggestions = field.suggest?.length ? el("datalist", {id: `${id}-list`}, ...field.suggest.map((value) => el("option", {value}))) : null;
  const input = el("input", {...common, type: "text", value: String(field.value ?? ""), inputmode: numeric ? "decimal" : null,
    list: suggestions ? suggestions.id : null, placeholder: field.kind === "time" ? "2026-01-31T12:00" : field.nullable ? "empty" : null,
    required: field.required ? true : null});
  return suggestions ? el("span", {class: "mlc-with-list"}, input, suggestions) : input;
}

function fieldRow(field, prefix) {
  const id = `${prefix}-${field.name}`.replace(/\W+/g, "-") + `-${++pages}`, hint = `${id}-hint`;
  const row = el("div", {class: `mlc-field mlc-${field.kind}`, "data-name": field.name},
    el("label", {for: id, title: field.label ?? field.name}, field.label ?? field.name), control(field, id, hint),
    el("span", {id: hint, class: "mlc-hint"}, field.hint ?? ""));
  return row;
}

function valuesOf(form) {
  const values = {};
  for (const row of form.querySelectorAll(".mlc-field")) {
    const input = row.querySelector("input, select, textarea");
    values[row.dataset.name] = input.type === "checkbox" ? input.checked
      : row.classList.contains("mlc-flag") ? {true: true, false: false}[input.value] ?? "" : input.value;
  }
  return values;
}

function complain(form, problems) {
  for (const row of form.querySelectorAll(".mlc-field")) {
    const said = problems[row.dataset.name], hint = row.querySelector(".mlc-hint"), input = row.querySelector("input, select, textarea");
    hint.dataset.usual ??= hint.textContent;
    hint.textContent = said ?? hint.dataset.usual;
    hint.classList.toggle("mlc-bad", !!said);
    if (said) input.setAttribute("aria-invalid", "true"); else input.removeAttribute("aria-invalid");
  }
  form.querySelector("[aria-invalid]")?.focus();
}

function answerTable(answer) {
  const said = Object.entries(answer.prediction).map(([name, value]) => (name ? `${name}: ${value}` : value)).join(", ");
  const bars = answer.bars.map(([name, share]) => el("tr", {}, el("th", {scope: "row"}, name),
    el("td", {class: "mlc-bar", "aria-hidden": "true"}, el("span", {style: `width:${Math.max(0, Math.min(1, share)) * 100}%`})),
    el("td", {class: "mlc-num"}, `${(share * 100).toFixed(1)} %`)));
  return el("div", {class: "mlc-answer"}, el("p", {}, "Prediction: ", el("strong", {}, said)),
    bars.length ? el("table", {"aria-label": "Probabilities"}, el("tbody", {}, ...bars)) : null,
    answer.rest ? el("p", {class: "mlc-dim"}, `and ${answer.rest} more classes`) : null,
    el("p", {class: "mlc-dim"}, answer.by));
}

export default {
  render({model, el: host}) {
    const toolbar = el("div", {class: "mlc-toolbar", role: "toolbar", "aria-label": "Actions"});
    const panel = el("div", {class: "mlc-panels"}), message = el("div", {class: "mlc-message", role: "status", "aria-live": "polite"});
    const body = el("div", {class: "mlc-body"});
    const way = el("span", {class: "mlc-way"});
    const title = el("h3", {class: "mlc-title"});
    const root = el("div", {class: "mlc-w mlc-page", role: "region"},
      el("div", {class: "mlc-head"}, way, title, toolbar), panel, message, body);
    host.append(root);
    let open = null, busy = false;

    const send = (content) => {
      busy = true;
      root.setAttribute("aria-busy", "true");
      root.querySelectorAll("button[type=submit]").forEach((button) => { button.disabled = true; });
      message.replaceChildren();
      model.send(content);
    };
    const button = (text, attributes) => el("button", {type: "button", class: "mlc-button", ...attributes}, text);

    const toggle = (id) => {
      open = open === id ? null : id;
      message.replaceChildren();
      drawPanel();
      drawToolbar();
      panel.querySelector("input, select, textarea, button")?.focus();
    };

    function drawToolbar() {
      const had = toolbar.contains(document.activeElement) ? document.activeElement.dataset.id : null;
      toolbar.replaceChildren(...model.get("actions").map((action) => button(action.label, {"data-id": action.id, "aria-expanded": String(open === action.id),
        onclick: () => toggle(action.id)})), button("Refresh", {"data-id": "refresh", onclick: () => send({do: "refresh"})}));
      if (had) toolbar.querySelector(`[data-id="${CSS.escape(had)}"]`)?.focus();
    }

    function drawPanel() {
      const action = model.get("actions").find((each) => each.id === open);
      if (!action) { open = null; panel.replaceChildren(); return; }
      if (action.id === "predict" && !model.get("form").fields) {
        panel.replaceChildren(el("p", {class: "mlc-dim"}, "Reading the signature…"));
        send({do: "form"});
        return;
      }
      const form = action.id === "predict" ? predictForm(action) : actionForm(action);
      form.addEventListener("keydown", (event) => { if (event.key === "Escape") cancel(); });
      panel.replaceChildren(form);
    }

    function actionForm(action) {
      const form = el("form", {class: "mlc-form", "aria-label": action.label, "data-action": action.id},
        action.says ? el("p", {}, action.says) : null, el("div", {class: "mlc-fields"}, ...action.inputs.map((input) => fieldRow(input, action.id))),
        el("div", {class: "mlc-buttons"}, el("button", {type: "submit", class: `mlc-button ${action.danger ? "mlc-danger" : "mlc-primary"}`}, action.verb),
          button("Cancel", {onclick: cancel})));
      form.addEventListener("submit", (event) => { event.preventDefault(); if (!busy) send({do: action.id, values: valuesOf(form)}); });
      return form;
    }

    function predictForm(action) {
      const spec = model.get("form");
      const allow = spec.unsafe ? el("label", {class: "mlc-allow"}, el("input", {type: "checkbox", name: "allow"}),
        " This model is a pickle: predicting runs whatever code its file contains. I trust where it comes from.") : null;
      const form = el("form", {class: "mlc-form", "aria-label": action.label, "data-action": "predict"}, el("p", {class: "mlc-dim"}, spec.says),
        el("div", {class: "mlc-fields"}, ...spec.fields.map((field) => fieldRow(field, "predict"))), allow,
        el("div", {class: "mlc-buttons"}, el("button", {type: "submit", class: "mlc-button mlc-primary"}, "Predict"),
          button("Cancel", {onclick: cancel})), el("div", {class: "mlc-result", "aria-live": "polite"}));
      form.addEventListener("submit", (event) => {
        event.preventDefault();
        if (!busy) send({do: "predict", values: valuesOf(form), allow: !!form.querySelector("[name=allow]")?.checked});
      });
      return form;
    }

    function drawReply() {
      const reply = model.get("reply");
      busy = false;
      root.removeAttribute("aria-busy");
      root.querySelectorAll("button[type=submit]").forEach((each) => { each.disabled = false; });
      if (reply.done === undefined) return;
      const form = panel.querySelector("form");
      const result = form?.querySelector(".mlc-result");
      if (form) complain(form, reply.problems ?? {});
      if (reply.answer && result) result.replaceChildren(answerTable(reply.answer));
      else if (result) result.replaceChildren();
      if (reply.done === "form") { if (reply.ok) { drawPanel(); panel.querySelector("input, select, textarea")?.focus(); } else panel.replaceChildren(); }
      if (reply.text) message.replaceChildren(el("p", {class: reply.ok ? "mlc-good" : "mlc-bad", role: reply.ok ? null : "alert"}, reply.text));
      if (reply.ok && open && !["form", "predict", "refresh", "open", "back"].includes(reply.done)) leave();
    }
    const cancel = () => { message.replaceChildren(); leave(); };
    const close = () => { open = null; drawPanel(); drawToolbar(); };
    function leave() {  // the focus goes back to the button that opened the form, where it still is
      const id = open;
      close();
      (toolbar.querySelector(`[data-id="${CSS.escape(id)}"]`) ?? toolbar.querySelector("button"))?.focus();
    }

    function drawBody() {
      title.textContent = model.get("title");
      root.setAttribute("aria-label", model.get("title"));
      const back = model.get("back");
      way.replaceChildren(...(back ? [button(`‹ ${back}`, {class: "mlc-button mlc-back", "aria-label": `Back to ${back}`,
        onclick: () => { close(); send({do: "back"}); }})] : []));
      body.innerHTML = model.get("body");
      for (const node of body.querySelectorAll(".lin-node[data-ref]")) {
        node.setAttribute("role", "link");
        node.setAttribute("tabindex", "0");
        const follow = () => { if (!busy) { close(); send({do: "open", ref: node.dataset.ref}); } };
        node.addEventListener("click", follow);
        node.addEventListener("keydown", (event) => { if (event.key === "Enter") { event.preventDefault(); follow(); } });
      }
    }
    const drawActions = () => { drawToolbar(); const held = model.get("actions").find((each) => each.id === open); if (!held) drawPanel(); };
    const drawForm = () => { if (open === "predict") drawPanel(); };
    model.on("change:body", drawBody);
    model.on("change:title", drawBody);
    model.on("change:back", drawBody);
    model.on("change:actions", drawActions);
    model.on("change:form", drawForm);
    model.on("change:reply", drawReply);
    drawBody();
    drawToolbar();
    const unwatch = settle(root);
    return () => {
      unwatch();
      for (const [event, listener] of [["body", drawBody], ["title", drawBody], ["back", drawBody], ["actions", drawActions], ["form", drawForm], ["reply", drawReply]])
        model.off(`change:${event}`, listener);
    };
  },
};
