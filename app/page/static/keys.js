// The keys, and the dialog that lists them.
/** @import { Grid } from "./grid.js" */
import { make, makeDialog, takesText } from "./dom.js";

const HELP = [
  ["1–8", "pick a preview"],
  ["Enter", "preview the prompt; refine the picked one"],
  ["R", "reroll what is not kept"],
  ["Shift R", "reroll all"],
  ["K", "keep the picked one"],
  ["V", "vary the picked one"],
  ["Esc", "cancel"],
  ["/", "back to the prompt"],
  ["← →", "move the comparison, once it has the focus"],
  ["?", "these keys"],
];

export function makeHelp() {
  const table = make("dl");
  for (const [keys, meaning] of HELP) {
    const caps = keys.split(" ").map((key) => make("kbd", "", key));
    table.append(make("dt", "", caps), make("dd", "", meaning));
  }
  const title = make("h2", "", "Keys", { id: "keys-title" });
  return makeDialog("keys", [title, table], { "aria-labelledby": "keys-title" });
}

/**
 * Have keys act on the previews, except where they write.
 * @param {() => Grid | undefined} shown the previews on the page, if any
 * @param {Record<string, () => void>} more what further keys do
 */
export function listenToKeys(shown, more) {
  addEventListener("keydown", (event) => {
    const grid = shown();
    if (!grid || event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented) return;
    if (takesText(event.target) || document.querySelector("dialog[open]")) return;
    const letter = event.key.length === 1 && !event.shiftKey;
    const key = letter ? event.key.toLowerCase() : event.key;
    const idle = [document.body, grid.node].includes(/** @type {HTMLElement} */ (document.activeElement));
    /** @type {Record<string, () => void>} */
    const actions = {
      r: () => grid.reroll(false),
      R: () => grid.reroll(true),
      k: () => grid.press("keep"),
      Escape: grid.cancel,
      ...(idle && { Enter: () => grid.press("refine") }),
      ...more,
    };
    const action = /^[1-8]$/.test(key) ? () => grid.select(Number(key)) : actions[key];
    if (!action) return;
    event.preventDefault();
    action();
  });
}
