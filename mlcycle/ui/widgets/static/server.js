// A server beside the notebook: where it is, what it does now, a form that sends it a row, and a button that stops it.
const SVG = "http://www.w3.org/2000/svg";

function svg(tag, attributes = {}, ...children) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

// One line chart of the last minute. `lines` are arrays of numbers or nulls, newest last, one each second.
function chart(title, unit, lines, places) {
  const width = 320, height = 96, left = 40, right = width - 6, top = 8, bottom = height - 18;
  const values = lines.flatMap((line) => line.values).filter((v) => v !== null), high = Math.max(...values, 1e-9);
  const atX = (i) => left + i / (places - 1) * (right - left), atY = (v) => bottom - v / high * (bottom - top);
  const drawing = svg("svg", {viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label":
    `${title}: ${lines.map((line) => `${line.label} ${showNumber(line.values.at(-1) ?? 0)} ${unit}`).join(", ")}`});
  for (const [value, y] of [[high, top], [0, bottom]]) {
    drawing.append(svg("line", {x1: left, x2: right, y1: y, y2: y, class: "mlc-axis"}),
      svg("text", {x: left - 5, y: y + 4, "text-anchor": "end"}, values.length ? showNumber(value) : value === 0 ? "0" : ""));
  }
  drawing.append(svg("text", {x: left, y: height - 4}, `${places - 1} s ago`), svg("text", {x: right, y: height - 4, "text-anchor": "end"}, "now"));
  lines.forEach((line, number) => {
    let path = "";
    line.values.forEach((value, i) => {
      const at = i + places - line.values.length;
      if (value !== null) path += `${path && line.values[i - 1] !== null && i ? "L" : "M"}${atX(at).toFixed(1)} ${atY(value).toFixed(1)}`;
    });
    drawing.append(svg("path", {d: path, class: `mlc-line${number}`}));
  });
  const legend = lines.map((line, number) => el("span", {}, el("i", {class: `mlc-mark${number}`}),
    `${line.label} ${line.values.at(-1) === null || !line.values.length ? "–" : showNumber(line.values.at(-1))}`));
  return el("figure", {}, el("figcaption", {}, el("span", {class: "mlc-live-title"}, title), el("span", {class: "mlc-live-legend"}, ...legend,
    el("span", {class: "mlc-dim"}, unit))), drawing);
}

export default {
  render({model, el: host}) {
    const status = el("span", {class: "mlc-live-status", role: "status"}), title = el("span", {class: "mlc-live-name"});
    const link = el("a", {target: "_blank", rel: "noopener"}), totals = el("span", {class: "mlc-dim mlc-totals"});
    const stop = el("button", {type: "button", class: "mlc-button mlc-danger", onclick: () => { stop.disabled = true; model.send({do: "stop"}); }}, "Stop");
    const charts = el("div", {class: "mlc-live-grid"}), message = el("div", {class: "mlc-message", role: "status", "aria-live": "polite"});
    const result = el("div", {class: "mlc-result", "aria-live": "polite"});
    const root = el("div", {class: "mlc-w mlc-page mlc-live mlc-server", role: "region", "aria-label": "Server"},
      el("div", {class: "mlc-live-head"}, status, title, link, totals, el("span", {class: "mlc-live-tools"}, stop)), charts);
    host.append(root);
    const choice = el("select", {"aria-label": "Model"});
    const form = el("form", {class: "mlc-form mlc-try", "aria-label": "Send a row"});
    const send = el("button", {type: "submit", class: "mlc-button mlc-primary"}, "Send the row");
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      send.disabled = true;
      message.replaceChildren();
      model.send({do: "predict", model: choice.value, values: valuesOf(form)});
    });
    root.append(el("details", {open: true}, el("summary", {}, "Send a row"), form, result, message));

    function drawForm() {
      const models = model.get("models"), chosen = models.find((each) => each.name === choice.value) ?? models[0];
      if (!choice.options.length) choice.replaceChildren(...models.map((each) => el("option", {value: each.name}, each.ref)));
      form.replaceChildren(models.length > 1 ? choice : "", el("div", {class: "mlc-fields"}, ...(chosen?.fields ?? []).map((field) => fieldRow(field, "send"))),
        el("div", {class: "mlc-buttons"}, send));
      result.replaceChildren();
    }
    choice.addEventListener("change", drawForm);

    function drawState() {
      const state = model.get("state"), running = state.state === "running";
      status.textContent = state.state;
      status.className = `mlc-live-status ${running ? "mlc-running" : state.state === "failed" ? "mlc-bad" : "mlc-dim"}`;
      title.textContent = model.get("models").map((each) => each.ref + (each.compiled ? " (compiled)" : "")).join(", ");
      link.textContent = running ? state.url : "";
      link.href = running ? `${state.url}/docs` : "#";
      totals.textContent = `${state.requests ?? 0} requests, ${state.failed ?? 0} failed`;
      stop.hidden = !running;
      form.querySelectorAll("input, select, textarea, button").forEach((each) => { each.disabled = !running; });
      const series = state.series ?? {rate: [], median: [], slow: []}, places = 61;
      charts.replaceChildren(chart("Requests", "a second", [{label: "", values: series.rate}], places),
        chart("Latency", "ms", [{label: "median", values: series.median}, {label: "99 %", values: series.slow}], places));
      if (state.text) message.replaceChildren(el("p", {class: "mlc-bad"}, state.text));
    }

    const receive = (content) => {
      if (content.reply === undefined) return;
      send.disabled = model.get("state").state !== "running";
      complain(form, content.problems ?? {});
      result.replaceChildren(content.answer ? answerTable(content.answer) : "");
      message.replaceChildren(content.text ? el("p", {class: "mlc-bad", role: "alert"}, content.text) : "");
    };
    model.on("msg:custom", receive);
    model.on("change:state", drawState);
    drawForm();
    drawState();
    const end = settle(root);
    return () => { end(); model.off("msg:custom", receive); model.off("change:state", drawState); };
  },
};
