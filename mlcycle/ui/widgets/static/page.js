// The page of a run, a version or a model: its static form, and its actions. Python sends `body` as HTML that mlcycle wrote.

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
