// The notebook's file is to have the present picture, not that of the cell's beginning: the trait `picture`, {id, mime type: text, …}, is put into the
// output when the notebook is saved, beside the widget while `live(model)` is true and in its place afterwards. `update_display` does the same, but
// not after the page was loaded again.
function keeping(live) {
  return ({model}) => {
    const context = model.widget_manager?.context, mime = "application/vnd.jupyter.widget-view+json";
    if (!context?.saveState || !context.model?.cells) return;
    function keep() {
      const {id, ...data} = model.get("picture"), stays = live(model);
      if (!id) return;
      for (const cell of context.model.cells) {
        for (let i = 0; i < (cell.outputs?.length ?? 0); i++) {
          const output = cell.outputs.get(i).toJSON();
          if (output.data?.[mime]?.model_id !== id || (stays && output.data["text/html"] === data["text/html"])) continue;
          cell.outputs.set(i, {...output, data: stays ? {...data, [mime]: output.data[mime]} : data});
        }
      }
    }
    function ended() { if (!live(model)) setTimeout(keep, 1500); }  // the kernel's own update comes first
    function saving(_, state) { if (state === "started") keep(); }
    context.saveState.connect(saving);
    model.on("change:picture", ended);
    return () => { context.saveState.disconnect(saving); model.off("change:picture", ended); };
  };
}
