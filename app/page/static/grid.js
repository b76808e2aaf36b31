// The previews, as `grid_view` in app/page/views.py describes them.
/** @import { Act, GridView, OnPainted, StageView, TileView } from "./types.d.ts" */
import { base } from "./backend.js";
import { make, makeButton, plain, quoted, setShape } from "./dom.js";
import { say } from "./messages.js";

const POINTED_MS = 250; // a pointer that rests on a preview for so long shows interest in it
const PHONE = matchMedia("(max-width: 540px)"); // as in page.css: buttons of the selected preview alone, below the grid

const WORDS = {
  title: "Previews",
  empty: "Your previews appear here.",
  asking: "Asking for previews …",
  coming: "Previews are on their way.",
  /** @type {(note: string, count: number) => string} */
  there: (note, count) => `${note}. Keys 1 to ${count} pick one.`,
  pick: "Pick a preview first, with keys 1 to 4.",
  tap: "Tap a preview to keep, vary or refine it.",
  /** @type {(name: string) => string} */
  selected: (name) => `Selected: ${name}. Its buttons are below the previews.`,
  reroll: "Reroll",
  others: "Reroll the others",
  all: "Reroll all",
  cancel: "Cancel",
  keep: "Keep",
  kept: "Kept",
  vary: "Vary",
  refine: "Refine",
  /** @type {(position: number, label: string) => string} */
  tile: (position, label) => `preview ${position}, seed ${label}`,
  missing: "not ready",
  /** @type {(words: string[]) => string} */
  ignored: (words) => `The model does not know and ignored: ${words.map(quoted).join(", ")}.`,
  /** @type {(final: boolean, position: number, prompt: string, label: string) => string} */
  made: (final, position, prompt, label) =>
    `${final ? "Final" : "Preview"} ${position} of ${quoted(prompt)}, seed ${label}`,
};

/** @typedef {ReturnType<typeof makeGrid>} Grid */

/**
 * Make the grid of previews.
 * @param {Act} act
 * @param {OnPainted} [onPainted]
 * @param {typeof WORDS} [words]
 */
export function makeGrid(act, onPainted = () => {}, words = WORDS) {
  /** @type {Map<number, ReturnType<typeof makeTile>>} by seed, so that a kept tile is not even repainted */
  const tiles = new Map();
  /** @type {GridView | null | undefined} undefined until the first `render` */
  let grid;
  /** @type {string | undefined} id of the last grid that was complete */
  let ended;
  /** @type {number | null} the seed that keys act on */
  let selected = null;
  /** @type {number | undefined} */
  let pointing;

  const note = make("p", "grid-note");
  const cancel = () => act("cancel");
  const stop = makeButton("plain", words.cancel, cancel);
  const others = makeButton("plain reroll", words.reroll, () => reroll(false));
  const all = makeButton("plain", words.all, () => reroll(true));
  const actions = make("div", "grid-actions", [stop, others, all]);
  const title = make("h2", "unseen", words.title, { id: "grid-title" });
  const list = make("ol", "tiles", "", { "aria-label": words.title });
  const ignored = make("p", "grid-ignored", "", { role: "status" });
  const named = { id: "grid", tabindex: "-1", "aria-labelledby": "grid-title" };
  const tap = make("p", "grid-tap", words.tap);
  const bar = make("div", "grid-bar", [title, note, actions]);
  const root = make("section", "grid", [bar, list, tap, ignored], named);

  /** @param {boolean} everything also what is kept */
  const reroll = (everything) => grid && act("reroll", { grid: grid.id, all: everything });

  /** @param {number} seed */
  function makeTile(seed) {
    /** @param {string} what */
    const ask = (what) => act(what, { grid: grid?.id, seed });
    const open = () => {
      select(seed);
      ask("refine");
    };
    let first = false; // whether a tap selects the preview; noted early, since the focus that follows selects it too
    const tapped = () => {
      if (!first) return open();
      first = false;
      select(seed);
      say(words.selected(words.tile(Number(number.textContent), label.textContent.slice(1))));
    };
    const hidden = { "aria-hidden": "true" };
    const image = make("img", "", "", { draggable: "false", alt: "" });
    const number = make("span", "tile-number", "", hidden);
    const meter = make("span", "tile-meter");
    const state = make("span", "tile-state", "", hidden);
    const problem = make("span", "tile-problem");
    const label = make("span", "seed");
    const keep = makeButton("plain keep", words.keep, () => ask("keep"));
    const vary = makeButton("plain vary", words.vary, () => ask("vary"));
    const refine = makeButton("strong refine", words.refine, open);
    const picture = makeButton("tile-picture", "", tapped);
    picture.addEventListener("pointerdown", () => (first = PHONE.matches && selected !== seed));
    picture.append(image, number, label, meter, state, problem);
    const item = make("li", "tile", [picture, make("div", "tile-foot", [keep, vary, refine])]);

    const pointAt = () => {
      clearTimeout(pointing);
      const shown = grid?.id;
      pointing = setTimeout(() => act("point_at", { grid: shown, seed }), POINTED_MS);
    };
    const pointAway = () => clearTimeout(pointing);
    item.addEventListener("pointerenter", pointAt);
    item.addEventListener("pointerleave", pointAway);
    item.addEventListener("focusin", () => {
      select(seed);
      pointAt();
    });
    item.addEventListener("focusout", pointAway);
    image.addEventListener("load", () => {
      if (item.classList.contains("is-waiting") || item.classList.contains("is-picked")) return; // a sketch, a final
      requestAnimationFrame(() => onPainted("preview", seed, performance.now()));
    });
    return { source: "", item, picture, image, number, meter, state, problem, label, keep, vary, refine };
  }

  /** @param {number | null} seed */
  function select(seed) {
    selected = seed;
    for (const [each, tile] of tiles) tile.item.classList.toggle("is-selected", each === seed);
  }

  /**
   * Show a preview in its tile or, once it is picked, the stage's picture.
   * @param {GridView} view
   * @param {TileView} data
   * @param {number} position from 1 on
   * @param {StageView | null} stage
   */
  function fill(view, data, position, stage) {
    const tile = tiles.get(data.seed);
    if (!tile) return;
    const staged = stage?.grid === view.id && stage.seed === data.seed ? stage : null;
    const pick = staged || data.pick;
    const running = pick?.state === "running";
    const final = pick?.state === "done";
    const source = pick?.picture || data.picture;
    const { classList } = tile.item;
    classList.toggle("is-waiting", !data.ready && !data.problem);
    classList.toggle("is-kept", data.kept);
    classList.toggle("is-picked", !!staged && (running || final));
    classList.toggle("is-refining", running);
    if (source && tile.source !== source) tile.image.src = base + (tile.source = source);
    tile.image.hidden = !source;
    tile.image.alt = data.ready ? words.made(final, position, view.prompt, data.label) : "";
    tile.number.textContent = `${position}`;
    tile.label.textContent = data.label && `#${data.label}`;
    tile.label.title = data.label && `Seed ${data.label} · ${data.how}`;
    const done = running ? pick.percent / 100 : data.steps ? data.step / data.steps : 0;
    tile.meter.style.setProperty("--done", `${done}`);
    tile.state.textContent = running ? pick.message : final ? pick.tags[1] : "";
    tile.problem.textContent = data.problem;
    tile.keep.setAttribute("aria-pressed", `${data.kept}`);
    tile.keep.textContent = data.kept ? words.kept : words.keep;
    for (const button of [tile.picture, tile.refine, tile.keep, tile.vary]) button.disabled = !data.ready;
    const name = words.tile(position, data.label);
    tile.picture.ariaLabel = data.ready ? `${words.refine} ${name}: ${plain(view.prompt)}` : `${name}, ${words.missing}`;
    for (const what of /** @type {const} */ (["refine", "vary", "keep"])) tile[what].ariaLabel = `${words[what]} ${name}`;
  }

  /**
   * Show a grid.
   * @param {GridView | null} view
   * @param {StageView | null} stage
   */
  function render(view, stage) {
    const before = grid;
    grid = view;
    actions.hidden = !view;
    root.ariaBusy = `${!!view?.busy}`;
    setShape(root, view);
    if (!view) {
      note.textContent = words.empty;
      ignored.textContent = "";
      tiles.clear();
      list.replaceChildren(...[1, 2, 3, 4].map(() => make("li", "tile ghost", "", { "aria-hidden": "true" })));
      return;
    }
    for (const item of list.children) item.classList.remove("is-expecting");
    if (view.id !== before?.id || view.tiles.length !== list.children.length) {
      const seeds = view.tiles.map((data) => data.seed);
      for (const seed of tiles.keys()) if (!seeds.includes(seed)) tiles.delete(seed);
      list.replaceChildren(
        ...seeds.map((seed) => {
          const tile = tiles.get(seed) || makeTile(seed);
          tiles.set(seed, tile);
          return tile.item;
        }),
      );
      if (selected !== null && !tiles.has(selected)) select(null);
    }
    view.tiles.forEach((data, place) => fill(view, data, place + 1, stage));
    const kept = view.tiles.filter((data) => data.kept).length;
    note.textContent = view.note;
    ignored.textContent = view.ignored.length ? words.ignored(view.ignored) : "";
    others.textContent = kept ? words.others : words.reroll;
    others.disabled = view.busy || kept === view.tiles.length;
    all.hidden = !kept;
    all.disabled = view.busy;
    stop.hidden = !view.busy;
    if (view.busy && before?.id !== view.id) say(words.coming);
    if (!view.busy && ended !== view.id) {
      ended = view.id;
      const some = view.tiles.some((data) => data.ready);
      // What the page finds when it is loaded is no news.
      if (before !== undefined) say(some ? words.there(view.note, view.tiles.length) : view.note);
    }
  }

  return {
    node: root,
    render,
    reroll,
    cancel,
    /** Show at once that previews are on their way, before the server has said so. */
    expect() {
      note.textContent = words.asking;
      root.ariaBusy = "true";
      for (const item of list.children) item.classList.add("is-expecting");
    },
    /** Select the tile in a place, from 1 on, and give it the focus. @param {number} place */
    select(place) {
      const data = grid?.tiles[place - 1];
      if (data?.ready) tiles.get(data.seed)?.picture.focus();
    },
    /** Press a button of the selected tile. @param {"keep" | "vary" | "refine"} button */
    press(button) {
      const tile = selected === null ? undefined : tiles.get(selected);
      if (tile) tile[button].click();
      else say(words.pick);
    },
  };
}
