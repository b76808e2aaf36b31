// The page of a trial: its task, the previews and the stage, and what ends it.
/** @import { Act, OnPainted, StudyView, Views } from "./types.d.ts" */
import { make, makeButton } from "./dom.js";
import { makeGrid } from "./grid.js";
import { toast } from "./messages.js";
import { makeStage } from "./stage.js";
import { makeHead } from "./study-forms.js";
import { fill, words } from "./study-words.js";

const SHORT_S = 30; // the time is shown only when so little is left, so that nobody is hurried before

/**
 * Make the page of a trial.
 * @param {StudyView} view
 * @param {Act} ask
 * @param {OnPainted} onPainted
 */
export function makeTrial(view, ask, onPainted) {
  /** @type {{ left: number, give_up: number, since: number } | undefined} as the server told it, and when */
  let clock;
  /** @type {string | undefined} */
  let picked;
  const grid = makeGrid(ask, onPainted, gridWords());
  const stage = makeStage(ask, onPainted, stageWords());
  const prompt = make("input", "", "", {
    type: "text", maxlength: "2000", autocomplete: "off", placeholder: words.words, "aria-label": words.words,
    "aria-describedby": "study-kind study-task", "data-first": "",
  });
  const go = make("button", "strong study-ask", words.ask, view.own ? {} : { "data-first": "" });
  const form = make("form", "study-prompt", [view.own && prompt, go]);
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (view.own && !prompt.value.trim()) return toast(words.say);
    ask("preview", view.own ? { prompt: prompt.value } : {});
    grid.expect();
    grid.node.focus({ preventScroll: true });
  });
  const task = make("div", "study-task", [
    make("p", "study-kind", view.own ? words.goal : words.task, { id: "study-kind" }),
    make("p", "study-words", view.task, { id: "study-task" }),
    make("p", "study-how", words.how),
  ]);
  const left = make("p", "study-left", "", { "aria-live": "off" });
  const hint = make("p", "study-hint");
  const giveUp = makeButton("plain study-give-up", words.give_up, () => ask("give_up"), { hidden: "" });
  const satisfied = makeButton("strong study-satisfied", words.satisfied, () => ask("satisfied", { stage: picked }));
  const bench = make("div", "bench", [grid.node, stage.node]);
  const bar = make("div", "study-bar", [hint, giveUp, satisfied]);

  /** Show the time, which goes on between what the server says of it. */
  function tick() {
    if (!clock) return;
    const passed = (performance.now() - clock.since) / 1000;
    const seconds = Math.max(0, Math.ceil(clock.left - passed));
    left.textContent = seconds <= SHORT_S ? fill("left", { seconds }) : "";
    giveUp.hidden = clock.give_up > passed;
  }

  return {
    nodes: [makeHead(view, view.done, left), task, form, bench, bar],
    grid,
    satisfied,
    tick,
    /** @param {Views["clock"]} told */
    setClock(told) {
      clock = told ? { ...told, since: performance.now() } : undefined;
      tick();
    },
    /** @param {Views} now */
    render(now) {
      grid.render(now.grid || null, now.stage || null);
      stage.render(now.stage || null);
      picked = now.stage?.id;
      const done = now.stage?.state === "done";
      satisfied.disabled = !done;
      hint.textContent = !now.grid ? "" : done ? words.keys : now.stage?.message || words.pick_first;
      hint.classList.toggle("is-keys", done);
      form.hidden = !view.own && !!now.grid;
    },
  };
}

/** @type {(position: number) => string} */
const nameOf = (position) => fill("picture", { place: position });

const gridWords = () => ({
  title: words.pictures,
  empty: words.none,
  asking: words.coming,
  coming: words.coming,
  /** @type {(note: string, count: number) => string} */
  there: (_, count) => (count === 1 ? words.there_one : fill("there", { count })),
  pick: words.choose,
  tap: words.tap,
  /** @type {(name: string) => string} */
  selected: (name) => name,
  reroll: words.others,
  others: words.others_beside,
  all: words.all_others,
  cancel: words.cancel,
  keep: words.keep,
  kept: words.kept,
  vary: "",
  refine: words.open,
  tile: nameOf,
  missing: words.missing,
  ignored: () => "",
  /** @type {(final: boolean, position: number, prompt: string) => string} */
  made: (_, position, prompt) => `${nameOf(position)}: ${prompt}`,
});

const stageWords = () => ({
  empty: words.large,
  title: () => "",
  hint: [words.large],
  cancel: words.cancel,
  progress: fill("finishing", { percent: "" }),
  /** @type {(percent: number) => string} */
  refining: (percent) => fill("finishing", { percent }),
  done: () => words.finished,
  /** @type {(done: boolean, prompt: string) => string} */
  made: (_, prompt) => prompt,
});
