// The picked picture, as `stage_view` in app/page/views.py describes it.
/** @import { Act, OnPainted, StageView } from "./types.d.ts" */
import { base } from "./backend.js";
import { make, makeButton, quoted, scrolling, setShape } from "./dom.js";
import { useAsStart } from "./form.js";
import { toast, say } from "./messages.js";

const ONE_COLUMN_PX = 900; // as in page.css

const WORDS = {
  empty: "",
  /** @type {(label: string) => string} */
  title: (label) => `Seed ${label}`,
  hint: [make("strong", "", "Pick a preview"), " and it becomes the finished picture, right here."],
  cancel: "Cancel",
  progress: "Refining",
  /** @type {(percent: number) => string} */
  refining: (percent) => `Refining, ${percent} %.`,
  /** @type {(likeness: { words: string, detail: string }) => string} */
  done: (likeness) => `Done. ${likeness.words}. ${likeness.detail}.`,
  /** @type {(done: boolean, prompt: string, label: string) => string} */
  made: (done, prompt, label) =>
    `${done ? "Final picture" : "Picture in the making"} of ${quoted(prompt)}, seed ${label}`,
};

/**
 * Make the stage.
 * @param {Act} act
 * @param {OnPainted} [onPainted]
 * @param {typeof WORDS} [words]
 */
export function makeStage(act, onPainted = () => {}, words = WORDS) {
  /** @type {StageView | null | undefined} undefined until the first `render` */
  let stage;
  const hidden = { "aria-hidden": "true" };
  const title = make("h2", "stage-title", "", { id: "stage-title" });
  const message = make("p", "stage-message");
  const final = make("img", "compare-final", "", { alt: "", draggable: "false" });
  const preview = make("img", "compare-preview", "", { alt: "", draggable: "false" });
  const tags = [make("span", "tag tag-preview"), make("span", "tag tag-final")];
  const handle = make("input", "compare-handle", "", {
    type: "range",
    "aria-label": "Compare: how much of the preview covers the final picture",
  });
  const bar = make("span");
  const progress = make("div", "progress", [bar], { role: "progressbar", "aria-label": words.progress });
  const line = make("span", "compare-line", "", hidden);
  const compare = make("div", "compare", [final, preview, line, ...tags, handle, progress]);
  const cancel = makeButton("plain cancel", words.cancel, () => act("cancel"));
  const download = make("a", "strong download", "Download PNG");
  const begin = makeButton("plain begin", "", () => act("begin", { stage: stage?.id }));
  const use = makeButton("plain use", "Use prompt and seed", () => useAsStart({ stage: stage?.id }));
  const link = makeButton("plain link", "Copy link", copyLink);
  const [summary, detail] = [make("strong"), make("span")];
  const facts = make("dl", "facts");
  const keys = [make("kbd", "", "1"), "–", make("kbd", "", "4"), " pick · ", make("kbd", "", "Enter")];
  const side = [
    make("div", "stage-actions", [cancel, download, begin, use, link]),
    make("p", "likeness", [summary, detail]),
    facts,
  ];
  const empty = [
    make("p", "stage-hint", words.hint),
    make("p", "stage-keys", [...keys, " refines · ", make("kbd", "", "?"), " all keys"]),
  ];
  const content = [
    make("div", "stage-head", [title, message]),
    make("div", "stage-frame", [compare]),
    make("div", "stage-side", side),
    make("div", "stage-empty", empty),
  ];
  const root = make("section", "stage", content, { "aria-labelledby": "stage-title" });

  /**
   * Show a picture in an image, unless it is shown already.
   * @param {HTMLImageElement} image
   * @param {string} source
   * @param {string} alt
   */
  function put(image, source, alt) {
    if (source && image.dataset.source !== source) image.src = base + (image.dataset.source = source);
    image.alt = alt;
  }

  function split() {
    compare.style.setProperty("--split", `${handle.value}%`);
    handle.setAttribute("aria-valuetext", `${handle.value} % preview`);
  }

  /** Return what screen readers are told of a view. @param {StageView | null | undefined} view */
  function newsOf(view) {
    if (view?.state === "running") return words.refining(Math.floor(view.percent / 25) * 25);
    return view?.state === "done" ? words.done(view.likeness) : view?.message || "";
  }

  async function copyLink() {
    const link = `${base}?${new URLSearchParams(stage?.link)}`;
    try {
      await navigator.clipboard.writeText(link);
      toast("The link is copied. It opens the page with this prompt, seed and settings.", "info");
    } catch {
      prompt("Copy this link:", link);
    }
  }

  /** @param {StageView | null} view */
  function render(view) {
    const before = stage;
    stage = view;
    root.dataset.state = view ? view.state : "empty";
    title.textContent = view ? words.title(view.label) : words.empty;
    if (!view) return;
    const [done, running] = [view.state === "done", view.state === "running"];
    if (before?.id !== view.id) {
      handle.value = "50";
      split();
      if ((before || running) && innerWidth <= ONE_COLUMN_PX) {
        requestAnimationFrame(() => root.scrollIntoView({ behavior: scrolling(), block: "nearest" }));
      }
    }
    setShape(root, view);
    put(final, view.picture || view.preview, words.made(done, view.prompt, view.label));
    put(preview, view.preview, done ? `Preview of ${quoted(view.prompt)}, seed ${view.label}` : "");
    tags.forEach((tag, place) => (tag.textContent = view.tags[place]));
    message.textContent = running ? `Refining, ${view.message}` : view.message;
    progress.ariaValueNow = `${view.percent}`;
    bar.style.width = `${view.percent}%`;
    summary.textContent = view.likeness.words;
    detail.textContent = view.likeness.detail;
    facts.replaceChildren(
      ...view.facts.flatMap(([name, value]) => [make("dt", "", name), make("dd", "", value, { dir: "auto" })]),
    );
    if (done) download.href = base + view.picture;
    else download.removeAttribute("href");
    download.download = view.file;
    const found = before === undefined && !running; // when the page was loaded
    const news = newsOf(view);
    if (!found && (before?.id !== view.id || newsOf(before) !== news)) say(news);
  }

  handle.addEventListener("input", split);
  final.addEventListener("load", () => {
    if (stage?.state !== "done") return;
    const { seed } = stage;
    requestAnimationFrame(() => onPainted("final", seed, performance.now()));
  });
  return { node: root, begin, render };
}
