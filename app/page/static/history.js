// What was made in this browser before, see `history_view` in app/page/views.py.

function makeHistory(act, useAsStart) {
  const root = make("section", "history", "", { "aria-labelledby": "history-title", hidden: "" });
  const head = make("div", "history-head");
  const list = make("ol", "entries");
  const save = make("button", "plain export", "Export all");
  const clear = make("button", "plain clear", "Delete all");
  const sure = make("div", "history-sure", "", { role: "alertdialog", "aria-label": "Delete everything?", hidden: "" });
  const yes = make("button", "strong clear-yes", "Delete everything");
  const no = make("button", "plain clear-no", "Keep it");
  sure.append(make("p", "", "Delete all pictures that were made in this browser? This can't be undone."), yes, no);
  head.append(make("h2", "", "Earlier", { id: "history-title" }), save, clear);
  root.append(head, sure, list);
  const items = new Map(); // entry's id → its node and what it shows

  function makeEntry(entry) {
    const item = make("li", "entry");
    const row = make("div", "entry-pictures");
    const when = new Date(entry.time * 1000).toLocaleString([], { dateStyle: "medium", timeStyle: "short" });
    for (const picture of entry.pictures) {
      const kind = picture.final ? "Final" : "Preview";
      const button = make("button", `entry-picture${picture.final ? " is-final" : ""}`, "", {
        "aria-label": `Use prompt and seed of ${kind.toLowerCase()} with seed ${picture.seed}`,
        title: `Use prompt and seed: seed ${picture.seed}, ${picture.how}`,
      });
      const image = make("img", "", "", { loading: "lazy", alt: `${kind} of ${quoted(entry.prompt)}, seed ${picture.seed}` });
      image.src = base + picture.small;
      button.append(image);
      if (picture.final) button.append(make("span", "entry-tag", "Final"));
      button.addEventListener("click", () => useAsStart({ entry: entry.id, picture: picture.name }));
      row.append(button);
    }
    const open = make("button", "plain open", "Open", { "aria-label": `Open the previews of ${quoted(entry.prompt)}` });
    const remove = make("button", "plain delete", "Delete", { "aria-label": `Delete ${quoted(entry.prompt)}` });
    open.addEventListener("click", () => {
      act("open", { entry: entry.id });
      document.querySelector("#grid").scrollIntoView({ behavior: calm.matches ? "auto" : "smooth", block: "start" });
    });
    remove.addEventListener("click", () => act("delete", { entry: entry.id }));
    const foot = make("div", "entry-foot");
    foot.append(make("time", "", when), open, remove);
    item.append(row, make("p", "entry-prompt", entry.prompt, { title: plain(entry.prompt), dir: "auto" }), foot);
    return item;
  }

  function render(entries) {
    root.hidden = entries.length === 0;
    const shown = new Set();
    list.replaceChildren(
      ...entries.map((entry) => {
        const text = JSON.stringify(entry);
        shown.add(entry.id);
        if (items.get(entry.id)?.text !== text) items.set(entry.id, { text, node: makeEntry(entry) });
        return items.get(entry.id).node;
      }),
    );
    for (const id of items.keys()) if (!shown.has(id)) items.delete(id);
  }

  const ask = (open) => {
    sure.hidden = !open;
    (open ? no : clear).focus();
  };
  clear.addEventListener("click", () => ask(true));
  no.addEventListener("click", () => ask(false));
  yes.addEventListener("click", () => {
    sure.hidden = true;
    act("clear");
    document.querySelector("#prompt :is(input, textarea)").focus();
  });
  save.addEventListener("click", async () => {
    save.disabled = true;
    try {
      const answer = await post("export", JSON.stringify(me));
      const link = make("a", "", "", { download: "diffusion-preview.zip" });
      link.href = URL.createObjectURL(await answer.blob());
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
    } catch (error) {
      toast(error.message);
    }
    save.disabled = false;
  });
  return { node: root, render };
}
