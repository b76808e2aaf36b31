// The page: puts the parts together, and knows the keys.

const start = makeStart(act);
const stage = makeStage(act, useAsStart);
const grid = makeGrid(act);
const history = makeHistory(act, useAsStart);
const lost = make("p", "lost", "The connection is lost. Trying again …", { role: "status", hidden: "" });
const logIn = make("a", "", "Log in again", { href: base, hidden: "" });
logIn.addEventListener("click", () => {
  if (promptBox()?.value) logIn.search = new URLSearchParams({ prompt: promptBox().value });
});
lost.append(logIn);
const status = make("p", "status", "Connecting …", { role: "status" });
const warnings = make("ul", "model-warnings", "", { "aria-label": "About this model" });
const bench = make("div", "bench");
bench.append(grid.node, stage.node);
element.replaceChildren(lost, status, warnings, bench, history.node, spoken, toasts);

const now = { status: null, start: null, grid: null, stage: null };
const told = new Set();
let linked = false;
let reloaded = true; // until the first views, which tell what this tab has been told before, too

follow(
  (views) => {
    Object.assign(now, views);
    if ("status" in views) showStatus(views.status);
    if ("status" in views || "start" in views) start.render(now.start, now.status);
    if ("grid" in views || "stage" in views) {
      grid.render(now.grid, now.stage);
      stage.render(now.stage);
    }
    if ("history" in views) history.render(views.history);
    for (const notice of views.notices || []) {
      if (told.has(notice.id)) continue;
      grid.render(now.grid, now.stage); // what was expected is not going to come
      told.add(notice.id);
      if (reloaded && !notice.undo) continue;
      const undo = { label: "Undo", run: () => act("delete", { entry: notice.undo, undo: true }) };
      // What was told long ago, to this tab before a refresh, is not told again.
      if (Date.now() / 1000 - notice.time < 20) toast(notice.text, notice.kind, notice.undo ? undo : null);
    }
    reloaded = false;
  },
  (connected, refused) => {
    lost.hidden = connected;
    lost.firstChild.data = refused ? "You are logged out. " : "The connection is lost. Trying again …";
    logIn.hidden = !refused;
    if (!connected && !reloaded) grid.render(now.grid, now.stage); // what was expected is not going to come
  },
);

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
  stage.node.querySelector(".begin").textContent = START_WORDS.begin[Number(view.edits)];
  if (view.ready && !linked) {
    linked = true;
    const query = Object.fromEntries(new URLSearchParams(location.search));
    const again = now.grid && !promptBox()?.value;
    const shown = () => ({ picture: { prompt: now.grid.prompt, settings: { Size: now.grid.size.join("x") } } });
    trigger("fill", { ...me, new: true, ...(query.prompt ? { link: query } : again ? shown() : {}) });
  }
}

// ---- from an earlier picture back to the form

function useAsStart(which) {
  trigger("fill", { ...me, ...which });
  focusPrompt();
}

async function readPicture(file) {
  const answer = await post("restore", file);
  trigger("fill", { ...me, picture: await answer.json() });
  focusPrompt();
}

// A dropped picture that says how it was made brings that back; it can be started from all the same.
async function takePicture(file) {
  const again = { label: "Start from it instead", run: () => start.send(file) };
  try {
    await readPicture(file);
    toast("Prompt, seed and settings of this picture are back.", "info", again);
  } catch {
    await start.send(file);
  }
}

const promptBox = () => document.querySelector("#prompt :is(input, textarea)");
function focusPrompt() {
  promptBox()?.focus();
  scrollTo({ top: 0, behavior: calm.matches ? "auto" : "smooth" });
}

const dropping = (event) => [...(event.dataTransfer?.types || [])].includes("Files");
addEventListener("dragover", (event) => {
  if (!dropping(event)) return;
  event.preventDefault();
  document.body.classList.add("is-dropping");
});
addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) document.body.classList.remove("is-dropping");
});
addEventListener("drop", (event) => {
  document.body.classList.remove("is-dropping");
  if (!dropping(event)) return;
  event.preventDefault();
  if (event.dataTransfer.files[0]) takePicture(event.dataTransfer.files[0]);
});
addEventListener("paste", (event) => {
  const file = [...(event.clipboardData?.files || [])].find((each) => each.type.startsWith("image/"));
  if (!file) return;
  event.preventDefault();
  start.send(file);
});
const chooser = make("input", "unseen", "", { type: "file", accept: "image/png", tabindex: "-1", "aria-hidden": "true" });
chooser.addEventListener("change", () => {
  if (chooser.files[0]) readPicture(chooser.files[0]).catch((error) => toast(error.message));
  chooser.value = "";
});
element.append(chooser);

// ---- what Gradio's own buttons ask for

// Gradio takes a moment to pass on an Enter or a click: whoever presses Esc meanwhile means that.
let latest = ""; // the key that was pressed last, or "" for a click
addEventListener("keydown", (event) => (latest = event.key), true);
addEventListener("click", () => (latest = ""), true);

addEventListener("studio", (event) => {
  if (event.detail === "preview") {
    if (latest === "Escape") return toast("Cancelled.", "info");
    act("preview", start.asked());
    grid.expect();
    grid.node.focus({ preventScroll: true }); // out of the prompt, so that the keys work
  }
  if (event.detail === "begin") start.choose();
  if (event.detail === "read") chooser.click();
  if (event.detail === "help") help.showModal();
  if (event.detail === "about") openAbout();
});

// ---- keys

const KEYS = [
  ["1–8", "pick a preview"],
  ["Enter", "preview the prompt; refine the picked one"],
  ["R", "reroll what is not kept"],
  ["Shift R", "reroll all"],
  ["K", "keep the picked one"],
  ["V", "vary the picked one"],
  ["Esc", "cancel"],
  ["/", "back to the prompt"],
  ["← →", "move the comparison, once it has the focus"],
  ["?", "these keys"],
];
const help = make("dialog", "keys", "", { "aria-labelledby": "keys-title" });
const table = make("dl");
for (const [key, meaning] of KEYS) {
  const term = make("dt");
  term.append(...key.split(" ").map((part) => make("kbd", "", part)));
  table.append(term, make("dd", "", meaning));
}
const closeHelp = make("button", "strong", "Close");
closeHelp.addEventListener("click", () => help.close());
help.append(make("h2", "", "Keys", { id: "keys-title" }), table, closeHelp);
help.addEventListener("click", (event) => event.target === help && help.close());
element.append(help);

// ---- About

const about = make("dialog", "about", "", { "aria-label": "About" });
const aboutText = make("div", "about-text", "Loading …", { tabindex: "0", role: "region", "aria-label": "About" });
const closeAbout = make("button", "strong", "Close");
closeAbout.addEventListener("click", () => about.close());
about.addEventListener("click", (event) => event.target === about && about.close());
about.append(aboutText, closeAbout);
element.append(about);

async function openAbout() {
  about.showModal();
  try {
    const answer = await fetch(`${base}about`);
    if (!answer.ok) throw new Error(answer.statusText);
    // Made by the server from the model's own cards, with any HTML in them shown as text.
    aboutText.innerHTML = (await answer.text()).replaceAll('src="about/', `loading="lazy" src="${base}about/`);
  } catch {
    aboutText.textContent = "This could not be loaded. Please try again.";
  }
}

const typing = (node) =>
  node?.isContentEditable || node?.matches?.("textarea, select, input:not([type=range], [type=checkbox], [type=radio])");

const ACTIONS = {
  r: () => grid.reroll(false),
  R: () => grid.reroll(true),
  k: () => grid.press("keep"),
  v: () => grid.press("vary"),
  "/": focusPrompt,
  "?": () => help.showModal(),
  Escape: () => act("cancel"),
};
const onKey = (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented) return;
  if (typing(event.target) || document.querySelector("dialog[open]")) return;
  const key = event.shiftKey ? event.key : event.key.toLowerCase();
  const action = /^[1-8]$/.test(key) ? () => grid.pick(Number(key)) : ACTIONS[event.key] || ACTIONS[key];
  const idle = event.key === "Enter" && [document.body, grid.node].includes(document.activeElement);
  if (!action && !idle) return;
  event.preventDefault();
  (action || (() => grid.press("refine")))();
};
addEventListener("keydown", onKey);
