// The picked picture, see `stage_view` in app/page/views.py. `makeStage(act, useAsStart)` gives {node, render}.
// report("painted", more) is told of the final. words: what screen readers are told.

const STAGE_WORDS = {
  refining: (percent) => `Refining, ${percent} %.`,
  done: (likeness) => `Done. ${likeness.words}. ${likeness.detail}.`,
  made: (done, prompt, label) => `${done ? "Final picture" : "Picture in the making"} of ${quoted(prompt)}, seed ${label}`,
};

function makeStage(act, useAsStart, report = () => {}, words = STAGE_WORDS) {
  const root = make("section", "stage", "", { "aria-labelledby": "stage-title" });
  root.innerHTML = `
  <div class="stage-head">
    <h2 class="stage-title" id="stage-title"></h2>
    <p class="stage-message"></p>
  </div>
  <div class="stage-frame">
    <div class="compare">
      <img class="compare-final" alt="" draggable="false">
      <img class="compare-preview" alt="" draggable="false">
      <span class="compare-line" aria-hidden="true"></span>
      <span class="tag tag-preview"></span>
      <span class="tag tag-final"></span>
      <input class="compare-handle" type="range" min="0" max="100" step="1" value="50"
             aria-label="Compare: how much of the preview covers the final picture">
      <div class="progress" role="progressbar" aria-valuemin="0" aria-valuemax="100" aria-label="Refining"><span></span></div>
    </div>
  </div>
  <div class="stage-side">
    <div class="stage-actions">
      <button type="button" class="plain cancel">Cancel</button>
      <a class="strong download">Download PNG</a>
      <button type="button" class="plain begin"></button>
      <button type="button" class="plain use">Use prompt and seed</button>
      <button type="button" class="plain link">Copy link</button>
    </div>
    <p class="likeness"><strong></strong><span></span></p>
    <dl class="facts"></dl>
  </div>
  <div class="stage-empty">
    <p class="stage-hint"><strong>Pick a preview</strong> and it becomes the finished picture, right here.</p>
    <p class="stage-keys"><kbd>1</kbd>–<kbd>4</kbd> pick · <kbd>Enter</kbd> refines · <kbd>?</kbd> all keys</p>
  </div>`;
  const find = (selector) => root.querySelector(selector);
  const compare = find(".compare");
  const handle = find(".compare-handle");
  let stage; // undefined until the first `render`
  let shown = null;

  function put(selector, source, alt) {
    const image = find(selector);
    if (source && image.dataset.source !== source) image.src = base + (image.dataset.source = source);
    image.alt = alt;
  }

  function split(percent) {
    compare.style.setProperty("--split", `${percent}%`);
    handle.setAttribute("aria-valuetext", `${Math.round(percent)} % preview`);
  }

  // What screen readers are told of a view.
  function newsOf(view) {
    if (view?.state === "running") return words.refining(Math.floor(view.percent / 25) * 25);
    return view?.state === "done" ? words.done(view.likeness) : view?.message;
  }

  function render(view) {
    const before = stage;
    stage = view;
    root.dataset.state = stage ? stage.state : "empty";
    if (!stage) {
      shown = null;
      find(".stage-title").textContent = "";
      return;
    }
    if (shown !== stage.id) {
      const first = !before && stage.state !== "running";
      shown = stage.id;
      handle.value = 50;
      split(50);
      if (!first && innerWidth <= 900) {
        requestAnimationFrame(() => root.scrollIntoView({ behavior: calm.matches ? "auto" : "smooth", block: "nearest" }));
      }
    }
    setShape(root, stage);
    const done = stage.state === "done";
    put(".compare-final", stage.picture || stage.preview, words.made(done, stage.prompt, stage.label));
    put(".compare-preview", stage.preview, done ? `Preview of ${quoted(stage.prompt)}, seed ${stage.label}` : "");
    find(".tag-preview").textContent = stage.tags[0];
    find(".tag-final").textContent = stage.tags[1];
    find(".stage-title").textContent = `Seed ${stage.label}`;
    find(".stage-message").textContent = stage.state === "running" ? `Refining, ${stage.message}` : stage.message;
    find(".progress").setAttribute("aria-valuenow", stage.percent);
    find(".progress span").style.width = `${stage.percent}%`;
    find(".likeness strong").textContent = stage.likeness.words;
    find(".likeness span").textContent = stage.likeness.detail;
    find(".facts").replaceChildren(
      ...stage.facts.flatMap(([name, value]) => [make("dt", "", name), make("dd", "", value, { dir: "auto" })]),
    );
    const download = find(".download");
    if (stage.state === "done") {
      download.href = base + stage.picture;
      download.download = stage.file;
    } else {
      download.removeAttribute("href");
    }
    const found = before === undefined && stage.state !== "running"; // when the page was loaded
    const news = newsOf(stage);
    if (!found && (before?.id !== stage.id || newsOf(before) !== news)) say(news);
  }

  handle.addEventListener("input", () => split(handle.value));
  find(".compare-final").addEventListener("load", () => {
    if (stage?.state !== "done") return;
    const { grid, seed } = stage;
    requestAnimationFrame(() => report("painted", { grid, seed, final: true, at: performance.now() }));
  });
  find(".cancel").addEventListener("click", () => act("cancel"));
  find(".begin").addEventListener("click", () => act("begin", { stage: stage.id }));
  find(".use").addEventListener("click", () => useAsStart({ grid: stage.grid, seed: stage.seed }));
  find(".link").addEventListener("click", async () => {
    const link = new URL(base);
    for (const [key, value] of Object.entries(stage.link)) link.searchParams.set(key, value);
    try {
      await navigator.clipboard.writeText(link.href);
      toast("The link is copied. Whoever opens it finds this prompt, seed and settings.", "info");
    } catch {
      prompt("Copy this link:", link.href);
    }
  });
  return { node: root, render };
}
