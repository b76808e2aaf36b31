// The dialog with the cards of the model and its solver.
import { readAbout } from "./backend.js";
import { make, makeDialog } from "./dom.js";

export function makeAbout() {
  const named = { tabindex: "0", role: "region", "aria-label": "About" };
  const text = make("div", "about-text", "Loading …", named);
  const dialog = makeDialog("about", [text], { "aria-label": "About" });

  async function open() {
    dialog.showModal();
    try {
      // eslint-disable-next-line no-restricted-properties -- the server has shown any HTML of the cards as text
      text.innerHTML = await readAbout();
    } catch {
      text.textContent = "This could not be loaded. Please try again.";
    }
  }

  return { node: dialog, open };
}
