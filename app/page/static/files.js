// Pictures that are dropped, pasted or chosen: to start from, or to bring back how they were made.
/** @import { Start } from "./start.js" */
import { Refusal, readPicture } from "./backend.js";
import { makeChooser } from "./dom.js";
import { useAsStart } from "./form.js";
import { toast } from "./messages.js";

/** @param {DragEvent} event */
const hasFiles = (event) => !!event.dataTransfer?.types.includes("Files");

const UNREADABLE = 422; // the picture carries how it was made, but in a way that can't be read
/** @type {{ name: string, file: File } | undefined} the picture that was dropped last */
let dropped;

/** Bring back how a picture was made; throws if it does not say. @param {File} file @param {object} [more] */
const reuse = async (file, more) => useAsStart({ picture: await readPicture(file), ...more });

/** Make a hidden input that asks for a picture to reuse. */
export const makeReader = () =>
  makeChooser("image/png, image/jpeg, image/webp, image/avif", (file) => reuse(file).catch((error) => toast(error.message, "warning", null, "fill")),
  );

/**
 * Accept pictures that are dropped on the page or pasted. Returns a function for the button beside the server's
 * answer to a dropped one.
 * @param {Start} start
 */
export function acceptFiles(start) {
  /** A dropped picture that says how it was made brings that back; the user may still start from it. @param {File} file */
  async function take(file) {
    dropped = { file, name: crypto.getRandomValues(new Uint32Array(2)).join("-") };
    try {
      await reuse(file, { dropped: dropped.name });
    } catch (error) {
      if (error instanceof Refusal && error.status === UNREADABLE) toast(error.message, "info", null, "fill");
      start.send(file);
    }
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

  /** @param {string} [name] */
  return (name) => {
    const { file } = (name && name === dropped?.name && dropped) || {};
    return file ? { label: "Start from it instead", run: () => start.send(file) } : null;
  };
}
