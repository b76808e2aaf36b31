// The page: puts the parts together, and shows what the server tells.
/** @import { StatusView, Trigger, Views } from "./types.d.ts" */
import { makeAbout } from "./about.js";
import { act, base, connect, fillForm, follow } from "./backend.js";
import { make } from "./dom.js";
import { acceptFiles, makeReader } from "./files.js";
import { focusPrompt, keepForm, typedPrompt } from "./form.js";
import { makeGrid } from "./grid.js";
import { makeHistory } from "./history.js";
import { listenToKeys, makeHelp } from "./keys.js";
import { dismiss, newNotices, showNotice, spoken, toast, toasts } from "./messages.js";
import { makeStage } from "./stage.js";
import { makeStart } from "./start.js";

/** Whether the user has come back to this page, instead of following a link to it. */
function isReloaded() {
  const [visit] = /** @type {PerformanceNavigationTiming[]} */ (performance.getEntriesByType("navigation"));
  return visit?.type === "reload" || visit?.type === "back_forward";
}

/**
 * Open the page.
 * @param {HTMLElement} element the place for it
 * @param {Trigger} trigger Gradio's
 */
export function open(element, trigger) {
  connect(trigger, () => {
    const why = logIn.hidden ? "The connection is lost" : "You are logged out";
    toast(`${why}, so this was not done. Please do it again afterwards.`, "warning", null, "lost");
    showPictures(); // what was expected is not going to come
  });
  const start = makeStart();
  const grid = makeGrid(act);
  const stage = makeStage(act);
  const history = makeHistory();
  const insteadOf = acceptFiles(start);
  const heldForm = keepForm();
  const lostText = new Text("The connection is lost. Trying again …");
  const logIn = make("a", "", "Log in again", { href: base, hidden: "" });
  const lost = make("p", "lost", [lostText, logIn], { role: "status", hidden: "" });
  const status = make("p", "status", "Connecting …", { role: "status" });
  const warnings = make("ul", "model-warnings", "", { "aria-label": "About this model" });
  const bench = make("div", "bench", [grid.node, stage.node]);
  const [reader, help, about] = [makeReader(), makeHelp(), makeAbout()];
  element.replaceChildren(lost, status, warnings, bench, history.node, spoken, toasts, reader, help, about.node);

  /** @type {Views} */
  const now = {};
  let filled = false; // whether the form has been fitted to the model
  let opened = false; // whether the first views have come; they repeat what was told before a refresh

  const showPictures = () => {
    grid.render(now.grid || null, now.stage || null);
    stage.render(now.stage || null);
    document.querySelector(".ideas")?.toggleAttribute("hidden", !!now.grid); // room for all previews
  };

  /** @param {StatusView} view */
  function showStatus(view) {
    status.textContent = view.message;
    status.hidden = !view.message;
    warnings.replaceChildren(...view.warnings.map((text) => make("li", "", text)));
    document.querySelector("#model-line")?.replaceChildren(view.model);
    if (view.login && !document.querySelector(".log-out")) {
      document.querySelector("#kept-for")?.replaceChildren(`your login, ${view.login},`);
      const out = make("a", "log-out", "Log out", { href: `${base}logout`, title: `You are ${view.login}` });
      document.querySelector(".masthead")?.append(out);
    }
    stage.begin.textContent = view.edits ? "Edit this picture" : "Start from this picture";
    if (!view.ready || filled) return;
    filled = true;
    const held = heldForm(view.model, view.login || "");
    const link = Object.fromEntries(new URLSearchParams(location.search));
    const { prompt, size } = now.grid || {};
    const shown = prompt && { picture: { prompt, settings: { Size: size?.join("x") } } };
    const typed = typedPrompt(); // while the model was loading
    if (link.prompt && !(held && isReloaded())) fillForm({ new: true, link });
    else if (typed || held) fillForm({ new: true, held: typed ? { ...held, prompt: typed } : held });
    else fillForm({ new: true, ...shown });
  }

  follow(
    (views) => {
      Object.assign(now, views);
      if (views.status) showStatus(views.status);
      if ("status" in views || "start" in views) start.render(now.start || null, !!now.status?.edits);
      const notices = newNotices(views.notices);
      // After a notice, what was expected is not going to come.
      if ("grid" in views || "stage" in views || notices.length) showPictures();
      if (views.history) history.render(views.history);
      for (const notice of notices) {
        const undo = { label: "Undo", run: () => act("delete", { entry: notice.undo, undo: true }) };
        if (opened || notice.undo) showNotice(notice, notice.undo ? undo : insteadOf(notice.dropped));
      }
      opened = true;
    },
    (connected, refused) => {
      lost.hidden = connected;
      lostText.data = refused ? "You are logged out. " : "The connection is lost. Trying again …";
      logIn.hidden = !refused;
      if (!connected && opened) showPictures(); // what was expected is not going to come
    },
  );

  listenToKeys(() => grid, { v: () => grid.press("vary"), "/": focusPrompt, "?": () => help.showModal() });

  // Gradio takes a moment to pass on an Enter or a click; Esc in that moment cancels it.
  let lastKey = ""; // "" after a click
  addEventListener("keydown", (event) => (lastKey = event.key), true);
  addEventListener("click", () => (lastKey = ""), true);

  /** @type {Record<string, () => void>} */
  const buttons = {
    preview() {
      if (lastKey === "Escape") return toast("Cancelled.", "info");
      dismiss("preview");
      act("preview", start.asked());
      grid.expect();
      grid.node.focus({ preventScroll: true }); // out of the prompt, so that the keys work
    },
    begin: start.choose,
    read: () => reader.click(),
    help: () => help.showModal(),
    about: about.open,
  };
  // Buttons of Gradio's tell of a click by this event, see `_dispatch` in app/page/layout.py.
  addEventListener("studio", (event) => buttons[/** @type {CustomEvent} */ (event).detail]?.());
}
