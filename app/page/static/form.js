// Gradio's form: its prompt, and what fills it in again.
import { fillForm } from "./backend.js";
import { scrolling } from "./dom.js";

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
