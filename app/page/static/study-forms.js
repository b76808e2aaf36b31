// The pages of a study around its trials: consent, a moment's wait, questions, thanks.
/** @import { Act, Question, StudyView } from "./types.d.ts" */
import { base } from "./backend.js";
import { make, makeButton } from "./dom.js";
import { toast } from "./messages.js";
import { words } from "./study-words.js";

/** @param {string} text */
const makeTitle = (text) => make("h2", "", text, { tabindex: "-1" });
/** @param {string[]} texts */
const paragraphs = (texts) => texts.map((text) => make("p", "", text));

/**
 * Make a form with a button at its end.
 * @param {string} button
 * @param {(given: FormData) => void} answer called once all that is required is there
 * @param {(Node | false)[]} content
 */
function makeForm(button, answer, content) {
  const go = make("button", "strong study-go", button);
  const form = make("form", "study-form", [...content, go]);
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    go.disabled = true;
    answer(new FormData(form));
  });
  return form;
}

/**
 * @param {string} text
 * @param {Record<string, string>} attributes of the box or the point to tick
 * @param {string} [className]
 */
const makeChoice = (text, attributes, className = "study-check") =>
  make("label", className, [make("input", "", "", attributes), make("span", "", text)]);

/**
 * Make the head of a trial and of the questions about it.
 * @param {StudyView} view
 * @param {number} done trials that are over
 * @param {Node} [left] shows the time that is left
 */
export function makeHead(view, done, left = make("p", "study-left")) {
  const bar = make("div", "study-done", "", { "aria-hidden": "true" });
  bar.style.setProperty("--done", `${done / view.count}`);
  return make("header", "study-head", [makeTitle(view.heading), bar, left]);
}

/** @type {(view: StudyView, ask: Act) => Node[]} */
export function makeConsent(view, ask) {
  /** @param {FormData} given */
  const answer = (given) => ask("agree", { agree: given.has("agree"), free_text: given.has("words") });
  const form = makeForm(words.start, answer, [
    makeChoice(words.agree, { type: "checkbox", name: "agree", required: "" }),
    view.own_words && makeChoice(words.keep_words, { type: "checkbox", name: "words" }),
  ]);
  return [make("div", "study-card", [...paragraphs(view.text), form])];
}

export const makeWait = () => [make("div", "study-card", [makeTitle(words.soon_title), make("p", "", words.soon)])];

/** @type {(view: StudyView, ask: Act) => Node[]} */
export function makeRating(view, ask) {
  const endings = { satisfied: words.rate, gave_up: words.gave_up, timed_out: words.time_out };
  /** @param {FormData} given */
  const answer = (given) =>
    ask("rate", { answers: Object.fromEntries([...given].map(([name, value]) => [name, Number(value)])) });
  const picture = { src: base + view.picture, alt: view.task };
  const card = make("div", "study-card study-rate", [
    make("h3", "", endings[view.outcome]),
    view.picture ? make("img", "study-picture", "", picture) : make("p", "", words.go_on),
    makeForm(words.next, answer, view.questions.map(makeScale)),
  ]);
  return [makeHead(view, view.done + 1), card];
}

/** @param {Question} question */
function makeScale({ id, question, points, low, high }) {
  const row = Array.from({ length: points }, (_, place) => {
    const end = place === 0 ? low : place === points - 1 ? high : "";
    const point = `${place + 1}`;
    const named = { "aria-label": end ? `${point}, ${end}` : point };
    return makeChoice(point, { type: "radio", name: id, value: point, required: "", ...named }, "study-point");
  });
  const ends = [make("span", "", low), make("span", "", high)];
  return make("fieldset", "study-scale", [
    make("legend", "", question),
    make("div", "study-points", row),
    make("div", "study-ends", ends, { "aria-hidden": "true" }),
  ]);
}

/** @type {(view: StudyView, ask: Act) => Node[]} */
export function makeClosing(view, ask) {
  const questions = view.questions.map(({ id, question, choices }) => {
    const text = { name: id, rows: "3", maxlength: "2000", "aria-label": question };
    const answers = choices.map((choice) => makeChoice(choice, { type: "radio", name: id, value: choice }));
    return make("fieldset", "study-question", [
      make("legend", "", question),
      ...(choices.length ? answers : [make("textarea", "", "", text)]),
    ]);
  });
  /** @param {FormData} given */
  const answer = (given) => ask("close", { answers: Object.fromEntries(given) });
  const note = make("p", "study-how", words.closing_note);
  return [make("div", "study-card", [makeTitle(words.closing), note, makeForm(words.next, answer, questions)])];
}

/** @type {(view: StudyView) => Node[]} */
export function makeThanks(view) {
  const code = make("output", "study-code", view.code, { "aria-label": words.code_title });
  const copy = makeButton("plain", words.copy, async () => {
    try {
      await navigator.clipboard.writeText(view.code);
      toast(words.copied, "info");
    } catch {
      getSelection()?.selectAllChildren(code);
    }
  });
  const card = make("div", "study-card", [
    makeTitle(words.thanks),
    ...paragraphs(view.text),
    make("h3", "", words.code_title),
    make("div", "study-keep", [code, copy]),
    make("p", "study-how", words.code),
  ]);
  return [card];
}
