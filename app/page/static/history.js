// What was made in this browser before, as `history_view` in app/page/views.py describes it.
/** @import { EntryView } from "./types.d.ts" */
import { act, base, exportHistory } from "./backend.js";
import { make, makeButton, plain, quoted, scrolling } from "./dom.js";
import { focusPrompt, useAsStart } from "./form.js";
import { toast } from "./messages.js";

export function makeHistory() {
  const list = make("ol", "entries");
  const save = makeButton("plain export", "Export all", download);
  const clear = makeButton("plain", "Delete all", () => ask(true));
  const no = makeButton("plain", "Keep it", () => ask(false));
  const yes = makeButton("strong", "Delete everything", () => {
    sure.hidden = true;
    act("clear");
    focusPrompt();
  });
  const question = "Delete all pictures that were made in this browser? This can't be undone.";
  const named = { role: "alertdialog", "aria-label": "Delete everything?", hidden: "" };
  const sure = make("div", "history-sure", [make("p", "", question), yes, no], named);
  const head = make("div", "history-head", [make("h2", "", "Earlier", { id: "history-title" }), save, clear]);
  const root = make("section", "history", [head, sure, list], { "aria-labelledby": "history-title", hidden: "" });
  /** @type {Map<string, { text: string, node: Node }>} by entry: what it shows */
  const items = new Map();

  /** @param {boolean} open */
  function ask(open) {
    sure.hidden = !open;
    (open ? no : clear).focus();
  }

  async function download() {
    save.disabled = true;
    try {
      const href = URL.createObjectURL(await exportHistory());
      make("a", "", "", { download: "diffusion-preview.zip", href }).click();
      setTimeout(() => URL.revokeObjectURL(href), 60_000);
    } catch (error) {
      toast(/** @type {Error} */ (error).message);
    }
    save.disabled = false;
  }

  /** @param {EntryView} entry */
  function makeEntry(entry) {
    const prompt = quoted(entry.prompt);
    const pictures = entry.pictures.map((picture) => {
      const kind = picture.final ? "Final" : "Preview";
      const alt = `${kind} of ${prompt}, seed ${picture.seed}`;
      const use = () => useAsStart({ entry: entry.id, picture: picture.name });
      const button = makeButton(`entry-picture${picture.final ? " is-final" : ""}`, "", use, {
        "aria-label": `Use prompt and seed of ${kind.toLowerCase()} with seed ${picture.seed}`,
        title: `Use prompt and seed: seed ${picture.seed}, ${picture.how}`,
      });
      button.append(make("img", "", "", { loading: "lazy", alt, src: base + picture.small }));
      if (picture.final) button.append(make("span", "entry-tag", "Final"));
      return button;
    });
    const show = () => {
      act("open", { entry: entry.id });
      document.querySelector("#grid")?.scrollIntoView({ behavior: scrolling(), block: "start" });
    };
    const remove = () => act("delete", { entry: entry.id });
    const when = new Date(entry.time * 1000).toLocaleString([], { dateStyle: "medium", timeStyle: "short" });
    return make("li", "entry", [
      make("div", "entry-pictures", pictures),
      make("p", "entry-prompt", entry.prompt, { title: plain(entry.prompt), dir: "auto" }),
      make("div", "entry-foot", [
        make("time", "", when),
        makeButton("plain open", "Open", show, { "aria-label": `Open the previews of ${prompt}` }),
        makeButton("plain delete", "Delete", remove, { "aria-label": `Delete ${prompt}` }),
      ]),
    ]);
  }

  /** @param {EntryView[]} entries the newest first */
  function render(entries) {
    root.hidden = entries.length === 0;
    const nodes = entries.map((entry) => {
      const text = JSON.stringify(entry);
      let item = items.get(entry.id);
      if (item?.text !== text) items.set(entry.id, (item = { text, node: makeEntry(entry) }));
      return item.node;
    });
    list.replaceChildren(...nodes);
    const ids = new Set(entries.map((entry) => entry.id));
    for (const id of items.keys()) if (!ids.has(id)) items.delete(id);
  }

  return { node: root, render };
}
