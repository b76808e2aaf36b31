// Pictures that are dropped, pasted or chosen: to start from, or to bring back how they were made.
/** @import { Start } from "./start.js" */
import { readPicture } from "./backend.js";
import { makeChooser } from "./dom.js";
import { useAsStart } from "./form.js";
import { toast } from "./messages.js";

/** @param {DragEvent} event */
const hasFiles = (event) => !!event.dataTransfer?.types.includes("Files");

/** Bring back how a picture was made; throws if it does not say. @param {File} file */
const reuse = async (file) => useAsStart({ picture: await readPicture(file) });

/** Make a hidden input that asks for a picture to reuse. */
export const makeReader = () =>
  makeChooser("image/png", (file) => reuse(file).catch((error) => toast(error.message)));

/** Accept pictures that are dropped on the page or pasted. @param {Start} start */
export function acceptFiles(start) {
  /** A dropped picture that says how it was made brings that back; the user may still start from it. @param {File} file */
  async function take(file) {
    try {
      await reuse(file);
    } catch {
      return start.send(file);
    }
    const action = { label: "Start from it instead", run: () => start.send(file) };
    toast("Prompt, seed and settings of this picture are back.", "info", action);
  }

  addEventListener("dragover", (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    document.body.classList.add("is-dropping");
  });
  addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) document.body.classList.remove("is-dropping");
  });
  addEventListener("drop", (event) => {
    document.body.classList.remove("is-dropping");
    if (!hasFiles(event)) return;
    event.preventDefault();
    const file = event.dataTransfer?.files[0];
    if (file) take(file);
  });
  addEventListener("paste", (event) => {
    const file = [...(event.clipboardData?.files || [])].find((each) => each.type.startsWith("image/"));
    if (!file) return;
    event.preventDefault();
    start.send(file);
  });
}
