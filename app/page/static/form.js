// Gradio's form: its prompt, what fills it in again, and what keeps it over a refresh.
/** @import { Form } from "./types.d.ts" */
import { fillForm } from "./backend.js";
import { make, scrolling } from "./dom.js";
import { toast } from "./messages.js";

const STORED = "diffusion-preview.form";

/** @returns {HTMLInputElement | null} */
const promptBox = () => document.querySelector("#prompt input");

/** Return what is typed so far. */
export const typedPrompt = () => promptBox()?.value || "";

export function focusPrompt() {
  promptBox()?.focus();
  scrollTo({ top: 0, behavior: scrolling() });
}

/** Bring prompt, seed and settings of a picture back. @param {object} source see app/page/filling.py */
export function useAsStart(source) {
  fillForm(source);
  focusPrompt();
}

/**
 * Keep the form in the tab's storage. Returns a function that gives what the tab had there before: nothing of
 * another login's, and of another model's the texts alone. Until it is called, nothing is kept.
 */
export function keepForm() {
  /** @type {{ model?: string, login?: string, form?: Form }} */
  let before = {};
  /** @type {{ model: string, login: string } | undefined} */
  let owner;
  try {
    before = JSON.parse(sessionStorage.getItem(STORED) || "{}");
  } catch {
    // without storage the form begins anew
  }
  tellReplaced();
  addEventListener("form", (event) => {
    const form = /** @type {CustomEvent<Form>} */ (event).detail;
    noteSettings(form);
    try {
      if (owner) sessionStorage.setItem(STORED, JSON.stringify({ ...owner, form }));
    } catch {
      // as above
    }
  });

  /** @param {string} model @param {string} login @returns {Partial<Form> | undefined} */
  return (model, login) => {
    owner = { model, login };
    if (!before.form || before.login !== login) return undefined;
    const { prompt, negative_prompt } = before.form;
    return before.model === model ? before.form : { prompt, negative_prompt };
  };
}

/** Tell where Gradio is going to replace a number that was typed, as it lies beyond a slider. */
function tellReplaced() {
  document.addEventListener(
    "blur",
    ({ target }) => {
      if (!(target instanceof HTMLInputElement) || !target.matches(".settings input[type=number]")) return;
      const { value, min, max } = target;
      if (!value || !min || !max || (Number(value) >= Number(min) && Number(value) <= Number(max))) return;
      const name = target.closest(".block")?.querySelector("[data-testid=block-info]")?.textContent?.trim() || "It";
      const kept = Math.min(Math.max(Number(value), Number(min)), Number(max));
      toast(`${name} can be ${min} to ${max}. ${value} became ${kept}.`, "warning", null, "replaced");
    },
    true,
  );
}

/** Say beside "Settings" what would surprise those who forgot it behind the closed drawer. @param {Form} form */
function noteSettings(form) {
  const label = document.querySelector(".settings .label-wrap");
  if (!label) return;
  let note = label.querySelector(".settings-note");
  if (!note) label.insertBefore((note = make("span", "settings-note")), label.lastChild);
  const seed = form.variation ? `first seed ${form.seed} ~ ${form.variation}` : `first seed ${form.seed}`;
  note.textContent = [!form.random_seeds && seed, form.negative_prompt.trim() && "a negative prompt"]
    .filter(Boolean)
    .join(" · ");
}
