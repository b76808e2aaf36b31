// The picture to start from, or to edit, as `start_view` in app/page/views.py describes it.
/** @import { StartView } from "./types.d.ts" */
import { act, base, sendStart } from "./backend.js";
import { make, makeButton, makeChooser } from "./dom.js";
import { focusPrompt } from "./form.js";
import { say, toast } from "./messages.js";

const START = ["Starts from this picture", "Describe the picture that you want."];
const EDIT = ["Picture to edit", "Describe what to change."];

/** @typedef {ReturnType<typeof makeStart>} Start */

/** Make the picture to start from. */
export function makeStart() {
  const image = make("img", "start-picture");
  const title = make("strong", "", "", { id: "start-title" });
  const hint = make("span");
  const percent = make("b");
  const strength = make("input", "", "", { type: "range", min: "5", max: "100", step: "5" });
  const slider = make("label", "start-strength", [
    make("span", "", ["Strength ", percent]),
    strength,
    make("span", "start-ends", [make("span", "", "near to it"), make("span", "", "far from it")], { "aria-hidden": "true" }),
  ]);
  const chooser = makeChooser("image/png, image/jpeg, image/webp, image/avif", send);
  const choose = () => chooser.click();
  const replace = makeButton("plain start-replace", "Replace", choose);
  const remove = makeButton("plain start-remove", "Remove", () => {
    act("begin_anew");
    say("The picture is removed.");
    focusPrompt();
  });
  const words = make("p", "start-words", [title, hint]);
  const content = [image, words, slider, replace, remove];
  const root = make("section", "start", content, { "aria-labelledby": "start-title", hidden: "" });
  /** @type {StartView | null} */
  let start = null;
  let edits = false;
  let busy = false;
  let sending = Promise.resolve();

  function show() {
    if (!root.isConnected) document.querySelector("#start")?.append(root, chooser);
    root.setAttribute("aria-busy", `${busy}`);
    root.hidden = !start && !busy;
    document.querySelector("#begin")?.toggleAttribute("hidden", !root.hidden);
    [title.textContent, hint.textContent] = edits ? EDIT : START;
    if (busy) hint.textContent = "Sending the picture …";
    image.hidden = !start;
    image.alt = title.textContent;
    slider.hidden = edits || !start;
    percent.textContent = `${strength.value} %`;
    strength.setAttribute("aria-valuetext", `${strength.value} %: more is farther from the picture`);
    replace.disabled = remove.disabled = busy;
  }
  strength.addEventListener("input", show);

  /** @param {File} file */
  async function upload(file) {
    busy = true;
    show();
    try {
      await sendStart(file);
      say("The picture is there.");
    } catch (error) {
      toast(/** @type {Error} */ (error).message, "warning", null, "start");
    }
    busy = false;
    show();
  }

  /** Send a picture to start from. @param {File} file */
  function send(file) {
    return (sending = upload(file));
  }

  return {
    choose,
    send,
    /** Return what previews are asked for with, once the picture has arrived. */
    async asked() {
      await sending;
      return start ? { strength: Number(strength.value) / 100 } : {};
    },
    /** @param {StartView | null} view @param {boolean} forEdits whether the model edits pictures */
    render(view, forEdits) {
      edits = forEdits;
      if (view && (view.picture !== start?.picture || view.strength !== start?.strength)) {
        image.src = base + view.picture;
        strength.value = `${view.strength}`;
      }
      start = view;
      show();
    },
  };
}
