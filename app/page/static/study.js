// A study's pages, see app/study/page/views.py: consent, a moment until the model is there, a trial,
// questions on it, questions at the end, thanks. The server decides which is on; this shows it, and tells what was
// clicked and painted, and when.

me.browser = me.tab; // a tab is a participant of its own, and nothing made here outlives it

const now = { study: null, clock: null, grid: null, stage: null };
const told = new Set();
const lost = make("p", "lost", "", { role: "status", hidden: "" });
const status = make("p", "status", "", { role: "status", hidden: "" });
const screen = make("main", "study-screen");
element.replaceChildren(lost, status, screen, spoken, toasts);

let words = {};
let shown = ""; // which page is on
let parts = null; // of the trial's page
let clock = null; // what the server said of the time, and when

const fill = (name, values = {}) => (words[name] || "").replace(/\{(\w+)\}/g, (_, each) => values[each]);

function ask(what, more = {}) {
  act(what, { ...more, trial: now.study.trial, at: performance.now() });
}

async function tell(kind, body, at = performance.now()) {
  const told = JSON.stringify({ ...me, trial: now.study.trial, kind, at, body });
  for (const pause of [0, ...RETRY_MS]) {
    await new Promise((go) => setTimeout(go, pause));
    try {
      await fetch(`${base}report`, { method: "POST", body: told, keepalive: true });
      return;
    } catch {
      // the connection is lost: again, after a while
    }
  }
}

function report(what, more) {
  if (what === "painted") tell("painted", { what: more.final ? "final" : "preview", seed: more.seed }, more.at);
}

document.addEventListener("visibilitychange", () => {
  if (now.study?.phase === "trial") tell("visibility_change", { visible: !document.hidden });
});

follow(
  (views) => {
    Object.assign(now, views);
    if ("status" in views) {
      status.textContent = views.status.message;
      status.hidden = !views.status.message;
    }
    if ("clock" in views) clock = views.clock && { ...views.clock, at: performance.now() };
    if ("study" in views) showPage(views.study);
    if (parts && ("grid" in views || "stage" in views || "study" in views)) showPictures();
    tick();
    for (const notice of views.notices || []) {
      if (told.has(notice.id)) continue;
      told.add(notice.id);
      if (parts) showPictures(); // what was expected is not going to come
      for (const button of screen.querySelectorAll(".study-go")) button.disabled = false;
      if (Date.now() / 1000 - notice.time < 20) toast(notice.text, notice.kind);
    }
  },
  (connected) => {
    lost.textContent = words.lost || "…";
    lost.hidden = connected;
  },
);

// ---- the pages

const PAGES = {
  consent: showConsent, before: showBefore, trial: showTrial, rating: showRating, closing: showClosing,
  thanks: showThanks,
};

function showPage(view) {
  const page = `${view.phase} ${view.trial || ""}`;
  if (page === shown) return;
  const first = !shown;
  shown = page;
  parts = null;
  words = view.words;
  toastWords.close = words.close;
  document.documentElement.lang = view.language;
  screen.className = `study-screen study-${view.phase}`;
  screen.replaceChildren(...PAGES[view.phase](view));
  if (!first) {
    scrollTo({ top: 0 });
    (screen.querySelector("[data-first]") || screen.querySelector("h2"))?.focus({ preventScroll: true });
  }
}

const title = (text) => make("h2", "study-heading", text, { tabindex: "-1" });
const paragraphs = (texts) => texts.map((text) => make("p", "", text));

// A form with a button at its end; `answer` is called once all that is required is there.
function formOf(button, answer, ...nodes) {
  const form = make("form", "study-form");
  const go = make("button", "strong study-go", button);
  go.type = "submit";
  form.append(...nodes.filter(Boolean), go);
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    go.disabled = true;
    answer(new FormData(form));
  });
  return form;
}

function box(name, text, required) {
  const label = make("label", "study-check");
  label.append(make("input", "", "", { type: "checkbox", name, ...(required && { required: "" }) }), make("span", "", text));
  return label;
}

function showConsent(view) {
  const form = formOf(
    words.start,
    (given) => ask("agree", { agree: given.has("agree"), free_text: given.has("words") }),
    box("agree", words.agree, true),
    view.own_words && box("words", words.keep_words, false),
  );
  const card = make("div", "study-card");
  card.append(...paragraphs(view.text), form);
  return [card];
}

function showBefore() {
  const card = make("div", "study-card");
  card.append(title(words.soon_title), make("p", "", words.soon));
  return [card];
}

function headOf(view) {
  const head = make("header", "study-head");
  const bar = make("div", "study-done", "", { "aria-hidden": "true" });
  bar.style.setProperty("--done", view.done / view.count);
  const left = make("p", "study-left", "", { "aria-live": "off" });
  head.append(title(view.heading), bar, left);
  return [head, left];
}

function showTrial(view) {
  const [head, left] = headOf(view);
  const task = make("div", "study-task");
  const what = make("p", "study-kind", view.own ? words.goal : words.task, { id: "study-kind" });
  task.append(what, make("p", "study-words", view.task, { id: "study-task" }), make("p", "study-how", words.how));
  const go = make("button", "strong study-ask", words.ask, { "data-first": "" });
  go.type = "submit";
  const form = make("form", "study-prompt");
  const prompt = make("input", "", "", {
    type: "text", maxlength: "2000", autocomplete: "off", placeholder: words.words, "aria-label": words.words,
    "aria-describedby": "study-kind study-task", "data-first": "",
  });
  if (view.own) {
    go.removeAttribute("data-first");
    form.append(prompt);
  }
  form.append(go);
  const grid = makeGrid(ask, report, gridWords());
  const stage = makeStage(ask, () => {}, report, {
    refining: (percent) => fill("finishing", { percent }),
    done: () => words.finished,
    made: (_, prompt) => prompt,
  });
  for (const node of stage.node.querySelectorAll(NOT_SHOWN)) node.hidden = true;
  stage.node.querySelector(".stage-hint").textContent = words.large;
  stage.node.querySelector(".cancel").textContent = words.cancel;
  stage.node.querySelector(".progress").setAttribute("aria-label", fill("finishing", { percent: "" }));
  stage.node.removeAttribute("aria-labelledby"); // its heading is not shown
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (view.own && !prompt.value.trim()) return toast(words.say);
    ask("preview", view.own ? { prompt: prompt.value } : {});
    grid.expect();
    grid.node.focus({ preventScroll: true });
  });
  const bar = make("div", "study-bar");
  const hint = make("p", "study-hint", "");
  const satisfied = make("button", "strong study-satisfied", words.satisfied);
  const giveUp = make("button", "plain study-give-up", words.give_up, { hidden: "" });
  satisfied.addEventListener("click", () => ask("satisfied", { stage: now.stage?.id }));
  giveUp.addEventListener("click", () => ask("give_up"));
  bar.append(hint, giveUp, satisfied);
  const bench = make("div", "bench");
  bench.append(grid.node, stage.node);
  parts = { grid, stage, satisfied, giveUp, hint, left, form, prompt, own: view.own };
  return [head, task, form, bench, bar];
}

// Parts of the ordinary stage that would tell how a picture was made, or lead out of the study.
const NOT_SHOWN =
  ".stage-head, .download, .begin, .use, .link, .likeness, .facts, .tag, .stage-keys, " +
  ".compare-preview, .compare-line, .compare-handle";

function gridWords() {
  const name = (position) => fill("picture", { place: position });
  return {
    title: words.pictures, empty: words.none, asking: words.coming, coming: words.coming, pick: words.choose,
    there: (_, count) => (count === 1 ? words.there_one : fill("there", { count })), reroll: words.others, others: words.others_beside,
    all: words.all_others, cancel: words.cancel, keep: words.keep, kept: words.kept, vary: "", refine: words.open,
    tile: name, missing: words.missing, made: (_, position, prompt) => `${name(position)}: ${prompt}`,
  };
}

function showPictures() {
  parts.grid.render(now.grid, now.stage);
  parts.stage.render(now.stage);
  for (const node of screen.querySelectorAll(".vary")) node.hidden = true;
  if (now.stage) parts.stage.node.removeAttribute("aria-label");
  else parts.stage.node.setAttribute("aria-label", words.large);
  const done = now.stage?.state === "done";
  parts.satisfied.disabled = !done;
  parts.hint.textContent = !now.grid ? "" : done ? words.keys : now.stage?.message || words.pick_first;
  parts.hint.classList.toggle("is-keys", done);
  parts.form.hidden = !parts.own && !!now.grid;
}

// The time goes on between what the server says of it.
const SHORT_S = 30; // only then is it shown, so that nobody is hurried before
function tick() {
  if (!parts || !clock) return;
  const passed = (performance.now() - clock.at) / 1000;
  const seconds = Math.max(0, Math.ceil(clock.left - passed));
  parts.left.textContent = seconds <= SHORT_S ? fill("left", { seconds }) : "";
  parts.giveUp.hidden = clock.give_up - passed > 0;
}
setInterval(tick, 500);

const OUTCOMES = { satisfied: "rate", gave_up: "gave_up", timed_out: "time_out" };

function showRating(view) {
  const [head] = headOf({ ...view, done: view.done + 1 });
  const card = make("div", "study-card study-rate");
  card.append(make("h3", "", words[OUTCOMES[view.outcome]]));
  if (view.picture) card.append(make("img", "study-picture", "", { src: base + view.picture, alt: view.task }));
  else card.append(make("p", "", words.go_on));
  const answer = (given) =>
    ask("rate", { answers: Object.fromEntries([...given].map(([name, value]) => [name, Number(value)])) });
  card.append(formOf(words.next, answer, ...view.questions.map(scale)));
  return [head, card];
}

function scale(question) {
  const set = make("fieldset", "study-scale");
  const row = make("div", "study-points");
  for (let point = 1; point <= question.points; point++) {
    const label = make("label", "study-point");
    const end = point === 1 ? question.low : point === question.points ? question.high : "";
    const input = make("input", "", "", { type: "radio", name: question.id, value: point, required: "" });
    input.setAttribute("aria-label", end ? `${point}, ${end}` : point);
    label.append(input, make("span", "", point));
    row.append(label);
  }
  const ends = make("div", "study-ends", "", { "aria-hidden": "true" });
  ends.append(make("span", "", question.low), make("span", "", question.high));
  set.append(make("legend", "", question.question), row, ends);
  return set;
}

function showClosing(view) {
  const card = make("div", "study-card");
  const questions = view.questions.map((question) => {
    const set = make("fieldset", "study-question");
    set.append(make("legend", "", question.question));
    for (const choice of question.choices) {
      const label = make("label", "study-check");
      label.append(make("input", "", "", { type: "radio", name: question.id, value: choice }), make("span", "", choice));
      set.append(label);
    }
    const text = { name: question.id, rows: "3", maxlength: "2000", "aria-label": question.question };
    if (!question.choices.length) set.append(make("textarea", "", "", text));
    return set;
  });
  const answer = (given) => ask("close", { answers: Object.fromEntries(given) });
  card.append(title(words.closing), make("p", "study-how", words.closing_note), formOf(words.next, answer, ...questions));
  return [card];
}

function showThanks(view) {
  const card = make("div", "study-card study-last");
  const code = make("output", "study-code", view.code, { "aria-label": words.code_title });
  const copy = make("button", "plain", words.copy);
  copy.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(view.code);
      toast(words.copied, "info");
    } catch {
      getSelection().selectAllChildren(code);
    }
  });
  const kept = make("div", "study-keep");
  kept.append(code, copy);
  card.append(title(words.thanks), ...paragraphs(view.text), make("h3", "", words.code_title), kept, make("p", "study-how", words.code));
  return [card];
}

// ---- keys

const typing = (node) => node?.matches?.("textarea, select, input");
const KEYS = {
  r: () => parts.grid.reroll(false),
  R: () => parts.grid.reroll(true),
  k: () => parts.grid.press("keep"),
  s: () => parts.satisfied.click(),
  Escape: () => ask("cancel"),
};
addEventListener("keydown", (event) => {
  if (!parts || event.ctrlKey || event.metaKey || event.altKey || typing(event.target)) return;
  const key = event.shiftKey ? event.key : event.key.toLowerCase();
  const idle = event.key === "Enter" && [document.body, parts.grid.node].includes(document.activeElement);
  const action = /^[1-8]$/.test(key) ? () => parts.grid.pick(Number(key)) : KEYS[event.key] || KEYS[key];
  if (!action && !idle) return;
  event.preventDefault();
  (action || (() => parts.grid.press("refine")))();
});
