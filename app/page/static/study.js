// A study: shows the page of the phase that the server names, and tells what was clicked and painted, and when.
/** @import { Act, OnPainted, StudyView, Trigger, Views } from "./types.d.ts" */
import { act, connect, follow, me, report } from "./backend.js";
import { make } from "./dom.js";
import { listenToKeys } from "./keys.js";
import { labels, newNotices, showNotice, spoken, toasts } from "./messages.js";
import { makeClosing, makeConsent, makeRating, makeThanks, makeWait } from "./study-forms.js";
import { makeTrial } from "./study-trial.js";
import { words } from "./study-words.js";

const TICK_MS = 500;

/**
 * Open the study's page.
 * @param {HTMLElement} element the place for it
 * @param {Trigger} trigger Gradio's
 */
export function open(element, trigger) {
  connect(trigger);
  me.browser = me.tab; // a tab is a participant of its own, and nothing made here outlives it
  /** @type {Views} */
  const now = {};
  let shown = ""; // the page that is on
  /** @type {ReturnType<typeof makeTrial> | undefined} */
  let trial;
  const lost = make("p", "lost", "", { role: "status", hidden: "" });
  const status = make("p", "status", "", { role: "status", hidden: "" });
  const screen = make("main", "study-screen");
  element.replaceChildren(lost, status, screen, spoken, toasts);

  /** @type {Act} */
  const ask = (action, values = {}) => act(action, { ...values, trial: now.study?.trial, at: performance.now() });
  /** @type {(kind: string, body: object, at?: number) => void} */
  const note = (kind, body, at = performance.now()) => report({ trial: now.study?.trial, kind, at, body });
  /** @type {OnPainted} */
  const onPainted = (what, seed, at) => note("painted", { what, seed }, at);

  const pages = {
    consent: makeConsent,
    before: makeWait,
    /** @param {StudyView} view */
    trial: (view) => (trial = makeTrial(view, ask, onPainted)).nodes,
    rating: makeRating,
    closing: makeClosing,
    thanks: makeThanks,
  };

  /** @param {StudyView} view */
  function showPage(view) {
    const page = `${view.phase} ${view.trial || ""}`;
    if (page === shown) return;
    const first = !shown;
    shown = page;
    trial = undefined;
    Object.assign(words, view.words);
    labels.close = words.close;
    document.documentElement.lang = view.language;
    screen.className = `study-screen study-${view.phase}`;
    screen.replaceChildren(...pages[view.phase](view, ask));
    if (first) return;
    scrollTo({ top: 0 });
    /** @type {HTMLElement | null} */
    const focused = screen.querySelector("[data-first]") || screen.querySelector("h2");
    focused?.focus({ preventScroll: true });
  }

  follow(
    (views) => {
      Object.assign(now, views);
      if (views.status) {
        status.textContent = views.status.message;
        status.hidden = !views.status.message;
      }
      if (views.study) showPage(views.study);
      const notices = newNotices(views.notices);
      if ("clock" in views || views.study) trial?.setClock(now.clock);
      // After a notice, what was expected is not going to come.
      if ("grid" in views || "stage" in views || views.study || notices.length) trial?.render(now);
      for (const notice of notices) {
        for (const button of screen.querySelectorAll("button.study-go")) button.toggleAttribute("disabled", false);
        showNotice(notice);
      }
    },
    (connected) => {
      lost.textContent = words.lost || "…";
      lost.hidden = connected;
    },
  );
  setInterval(() => trial?.tick(), TICK_MS);
  document.addEventListener("visibilitychange", () => {
    if (trial) note("visibility_change", { visible: !document.hidden });
  });
  listenToKeys(() => trial?.grid, { s: () => trial?.satisfied.click() });
}
