// A form made of a signature's fields, what was typed into it, and the answer to it. Python checks the values.

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
    el("td", {class: "mlc-share", "aria-hidden": "true"}, el("span", {style: `width:${Math.max(0, Math.min(1, share)) * 100}%`})),
    el("td", {class: "mlc-num"}, `${(share * 100).toFixed(1)} %`)));
  return el("div", {class: "mlc-answer"}, el("p", {}, "Prediction: ", el("strong", {}, said)),
    bars.length ? el("table", {"aria-label": "Probabilities"}, el("tbody", {}, ...bars)) : null,
    answer.rest ? el("p", {class: "mlc-dim"}, `and ${answer.rest} more classes`) : null,
    el("p", {class: "mlc-dim"}, answer.by));
}
