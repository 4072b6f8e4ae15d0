// A path below the server's root opens in JupyterLab itself; any other is shown as text. Comes between common.js and a widget's own script.
function fileLink(said) {
  let config = {};
  try { config = JSON.parse(document.getElementById("jupyter-config-data")?.textContent ?? "{}"); } catch { /* not a Jupyter page */ }
  const top = (config.serverRoot ?? "").replace(/^~/, said.home).replace(/\/$/, "");
  if (!top || !said.path.startsWith(`${top}/`)) return el("code", {}, said.path);
  const path = said.path.slice(top.length + 1);
  return el("a", {href: `${config.baseUrl ?? "/"}lab/tree/${path.split("/").map(encodeURIComponent).join("/")}`, target: "_blank",
    "data-commandlinker-command": "docmanager:open", "data-commandlinker-args": JSON.stringify({path})}, said.name);
}
