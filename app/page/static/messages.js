// Messages that go away by themselves, and those for screen readers alone.
/** @import { Notice } from "./types.d.ts" */
import { make, makeButton, plain } from "./dom.js";

const SHOWN_MS = 9000;
const SHOWN_WITH_BUTTON_MS = 20_000;
const SPOKEN_MS = 10_000; // later, a screen reader would come upon it as if it were new
const RECENT_S = 20;
const MAX_SHOWN = 3;

export const toasts = make("div", "toasts");
export const spoken = make("div", "unseen", [], { role: "log", "aria-live": "polite" });
export const labels = { close: "Close this message" };

/**
 * Show a message.
 * @param {string} text
 * @param {"info" | "warning"} [kind]
 * @param {{ label: string, run: () => void } | null} [action] a button beside it
 * @param {string} [about] what was tried; a message about a later try of the same replaces it
 */
export function toast(text, kind = "warning", action = null, about = "") {
  const node = make("div", `toast toast-${kind}`, [make("p", "", plain(text))], { "data-about": about });
  if (about) dismiss(about);
  node.setAttribute("role", kind === "warning" ? "alert" : "status");
  const remove = () => node.remove();
  if (action) {
    const button = makeButton("plain", action.label, action.run);
    button.addEventListener("click", remove);
    node.append(button);
  }
  node.append(makeButton("toast-close", "×", remove, { "aria-label": labels.close }));
  toasts.append(node);
  while (toasts.children.length > MAX_SHOWN) toasts.firstChild?.remove();
  setTimeout(remove, action ? SHOWN_WITH_BUTTON_MS : SHOWN_MS);
}

/** Take away the message about a try, as there is another one. @param {string} about */
export function dismiss(about) {
  for (const node of toasts.querySelectorAll(`[data-about="${about}"]`)) node.remove();
}

/** Tell a message to screen readers: a node of its own, so that two at once are both heard. @param {string} text */
export function say(text) {
  if (!text) return;
  const node = make("p", "", text);
  spoken.append(node);
  setTimeout(() => node.remove(), SPOKEN_MS);
}

/** @type {Set<string>} */
const known = new Set();

/** Return the server's messages that have not come before. @param {Notice[]} [notices] */
export function newNotices(notices = []) {
  const fresh = notices.filter((notice) => !known.has(notice.id));
  for (const notice of fresh) known.add(notice.id);
  return fresh;
}

/**
 * Show a message of the server's, unless it is old: it was shown before a refresh.
 * @param {Notice} notice
 * @param {{ label: string, run: () => void } | null} [action]
 */
export function showNotice(notice, action = null) {
  if (Date.now() / 1000 - notice.time < RECENT_S) {
    toast(notice.text, notice.kind, action, notice.about);
  }
}
