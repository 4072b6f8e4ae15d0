// Small helpers that the widgets share; `esm("common.js", "x.js")` puts this file in front of theirs.

// el("button", {class: "a", onclick: f, "aria-label": "x", disabled: true}, "text", node, …)
function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

// A number as display.show_value writes it: four significant digits, whole numbers whole; a whole float keeps its point.
function showNumber(value, float = false) {
  if (value === null || value === undefined || Number.isNaN(value)) return "nan";
  if (!Number.isFinite(value)) return value > 0 ? "inf" : "-inf";
  if (Number.isInteger(value) && Math.abs(value) < 1e15) return String(value) + (float ? ".0" : "");
  const size = Math.abs(value);
  if (size >= 1e4 || size < 1e-4) return value.toExponential(3).replace(/\.?0+e/, "e").replace("e+", "e");
  return String(Number(value.toPrecision(4)));
}

function showSeconds(seconds) {
  if (seconds === null || seconds === undefined) return "";
  if (seconds < 60) return seconds < 9.95 ? `${seconds.toFixed(1)} s` : `${Math.round(seconds)} s`;
  const whole = Math.round(seconds), minutes = Math.floor(whole / 60);
  return minutes >= 60 ? `${Math.floor(minutes / 60)} h ${String(minutes % 60).padStart(2, "0")} min`
                       : `${minutes} min ${String(whole % 60).padStart(2, "0")} s`;
}

function isDark(node) {
  const body = document.body;
  if (body.dataset.jpThemeLight) return body.dataset.jpThemeLight === "false";
  for (let at = node; at; at = at.parentElement) {
    const found = getComputedStyle(at).backgroundColor.match(/[\d.]+/g)?.map(Number);
    if (found && (found.length < 4 || found[3] > 0.5)) return 0.2126 * found[0] + 0.7152 * found[1] + 0.0722 * found[2] < 128;
  }
  return false;
}

// Every widget begins with this. Keys pressed in it are not the notebook's ("d d" on a button would delete the cell), and the class `mlc-dark`
// follows the theme. Returns a function that ends this.
function settle(node, changed = () => {}) {
  node.addEventListener("keydown", (event) => { if (!event.ctrlKey && !event.metaKey && !event.altKey) event.stopPropagation(); });
  const apply = () => { node.classList.toggle("mlc-dark", isDark(node)); changed(); };
  const observer = new MutationObserver(() => requestAnimationFrame(apply));
  observer.observe(document.body, {attributes: true, attributeFilter: ["data-jp-theme-light", "data-jp-theme-name", "class"]});
  apply();
  requestAnimationFrame(apply);
  return () => observer.disconnect();
}
