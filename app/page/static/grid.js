// The previews, see `grid_view` in app/page/views.py. `makeGrid(act, report)` gives {node, render, reroll,
// expect, pick, press}. act(do, more) asks for something. report(what, more) tells what was painted, looked at and
// picked; a page that does not care leaves it out. words: what its buttons say, and screen readers are told.

const GRID_WORDS = {
  title: "Previews",
  empty: "Your previews appear here.",
  asking: "Asking for previews …",
  coming: "Previews are on their way.",
  there: (note, count) => `${note}. Keys 1 to ${count} pick one.`,
  pick: "Pick a preview first, with keys 1 to 4.",
  reroll: "Reroll",
  others: "Reroll the others",
  all: "Reroll all",
  cancel: "Cancel",
  keep: "Keep",
  kept: "Kept",
  vary: "Vary",
  refine: "Refine",
  tile: (position, label) => `preview ${position}, seed ${label}`,
  missing: "not ready",
  ignored: (unknown) => `The model does not know and ignored: ${unknown.map(quoted).join(", ")}.`,
  made: (final, position, prompt, label) => `${final ? "Final" : "Preview"} ${position} of ${quoted(prompt)}, seed ${label}`,
};

const POINTED_MS = 250; // whoever rests on a preview for so long looks at it

function makeGrid(act, report = () => {}, words = GRID_WORDS) {
  const tiles = new Map(); // seed → the tile's parts, so that a kept tile is not even repainted
  let grid; // undefined until the first `render`
  let ended = ""; // id of the last grid that all is there of
  let selected = null; // the seed that keys act on
  let pointing = 0;

  const root = make("section", "grid", "", { id: "grid", tabindex: "-1", "aria-labelledby": "grid-title" });
  const bar = make("div", "grid-bar");
  const note = make("p", "grid-note");
  const actions = make("div", "grid-actions");
  const others = make("button", "plain reroll", words.reroll);
  const all = make("button", "plain reroll-all", words.all);
  const stop = make("button", "plain stop-previews", words.cancel);
  const list = make("ol", "tiles", "", { "aria-label": words.title });
  const ignored = make("p", "grid-ignored", "", { role: "status" });
  actions.append(stop, others, all);
  bar.append(make("h2", "unseen", words.title, { id: "grid-title" }), note, actions);
  root.append(bar, list, ignored);

  function makeTile(seed) {
    const item = make("li", "tile");
    const picture = make("button", "tile-picture");
    const image = make("img", "", "", { draggable: "false", alt: "" });
    const number = make("span", "tile-number", "", { "aria-hidden": "true" });
    const meter = make("span", "tile-meter");
    const state = make("span", "tile-state", "", { "aria-hidden": "true" });
    const problem = make("span", "tile-problem");
    const foot = make("div", "tile-foot");
    const keep = make("button", "plain keep", words.keep);
    const vary = make("button", "plain vary", words.vary);
    const refine = make("button", "strong refine", words.refine);
    const label = make("span", "seed");
    picture.append(image, number, meter, state, problem);
    foot.append(label, keep, vary, refine);
    item.append(picture, foot);
    const ask = (what) => act(what, { grid: grid.id, seed });
    const go = () => {
      select(seed);
      ask("refine");
      report("pick", { grid: grid.id, seed });
    };
    const pointAt = () => {
      clearTimeout(pointing);
      const [id, began] = [grid.id, performance.now()];
      pointing = setTimeout(() => act("point_at", { grid: id, seed }), POINTED_MS);
      item.looked = () => report("look", { grid: id, seed, ms: Math.round(performance.now() - began) });
    };
    const pointAway = () => {
      clearTimeout(pointing);
      item.looked?.();
      item.looked = null;
    };
    item.addEventListener("pointerenter", pointAt);
    item.addEventListener("pointerleave", pointAway);
    item.addEventListener("focusin", () => {
      select(seed);
      pointAt();
    });
    item.addEventListener("focusout", pointAway);
    picture.addEventListener("click", go);
    refine.addEventListener("click", go);
    vary.addEventListener("click", () => ask("vary"));
    keep.addEventListener("click", () => ask("keep"));
    image.addEventListener("load", () => {
      const own = !["is-waiting", "is-picked"].some((each) => item.classList.contains(each)); // no sketch, no final
      if (own) requestAnimationFrame(() => report("painted", { grid: grid.id, seed, at: performance.now() }));
    });
    return { item, picture, image, number, meter, state, problem, label, keep, vary, refine };
  }

  function select(seed) {
    selected = seed;
    for (const [each, tile] of tiles) tile.item.classList.toggle("is-selected", each === seed);
  }

  // The pick sharpens where it stands: while it is refined, and from then on, the tile shows the stage's picture.
  function fill(tile, data, position, stage) {
    const staged = stage && stage.grid === grid.id && stage.seed === data.seed ? stage : null;
    const running = staged?.state === "running";
    const source = staged?.picture || data.picture;
    tile.item.classList.toggle("is-waiting", !data.ready && !data.problem);
    tile.item.classList.toggle("is-kept", data.kept);
    tile.item.classList.toggle("is-picked", !!staged && staged.state !== "stopped");
    tile.item.classList.toggle("is-refining", running);
    if (source && tile.source !== source) tile.image.src = base + (tile.source = source);
    tile.image.hidden = !source;
    const final = staged?.state === "done";
    tile.image.alt = data.ready ? words.made(final, position, grid.prompt, data.label) : "";
    tile.number.textContent = position;
    tile.label.textContent = data.label && `#${data.label}`;
    tile.label.title = data.label && `Seed ${data.label} · ${data.how}`;
    const done = running ? staged.percent / 100 : data.steps ? data.step / data.steps : 0;
    tile.meter.style.setProperty("--done", done);
    tile.state.textContent = running ? staged.message : final ? staged.tags[1] : "";
    tile.problem.textContent = data.problem;
    tile.keep.setAttribute("aria-pressed", data.kept);
    tile.keep.textContent = data.kept ? words.kept : words.keep;
    for (const button of [tile.picture, tile.refine, tile.keep, tile.vary]) button.disabled = !data.ready;
    const name = words.tile(position, data.label);
    const label = data.ready ? `${words.refine} ${name}: ${plain(grid.prompt)}` : `${name}, ${words.missing}`;
    tile.picture.setAttribute("aria-label", label);
    for (const what of ["refine", "vary", "keep"]) tile[what].setAttribute("aria-label", `${words[what]} ${name}`);
  }

  function render(view, stage) {
    const fresh = view?.id !== grid?.id || view?.tiles.length !== list.children.length;
    const before = grid;
    grid = view;
    actions.hidden = !grid;
    root.classList.toggle("is-empty", !grid);
    root.setAttribute("aria-busy", !!grid?.busy);
    setShape(list, grid);
    if (!grid) {
      note.textContent = words.empty;
      ignored.textContent = "";
      tiles.clear();
      list.replaceChildren(...[1, 2, 3, 4].map(() => make("li", "tile ghost", "", { "aria-hidden": "true" })));
      return;
    }
    for (const item of list.children) item.classList.remove("is-expecting");
    if (fresh) {
      const seeds = new Set(grid.tiles.map((data) => data.seed));
      for (const seed of tiles.keys()) if (!seeds.has(seed)) tiles.delete(seed);
      for (const seed of seeds) if (!tiles.has(seed)) tiles.set(seed, makeTile(seed));
      list.replaceChildren(...grid.tiles.map((data) => tiles.get(data.seed).item));
      if (!seeds.has(selected)) select(null);
    }
    grid.tiles.forEach((data, place) => fill(tiles.get(data.seed), data, place + 1, stage));
    const kept = grid.tiles.filter((data) => data.kept).length;
    note.textContent = grid.note;
    ignored.textContent = grid.ignored.length ? words.ignored(grid.ignored) : "";
    others.textContent = kept ? words.others : words.reroll;
    others.disabled = grid.busy || kept === grid.tiles.length;
    all.hidden = !kept;
    all.disabled = grid.busy;
    stop.hidden = !grid.busy;
    if (grid.busy && before?.id !== grid.id) say(words.coming);
    if (!grid.busy && ended !== grid.id) {
      ended = grid.id;
      const some = grid.tiles.some((data) => data.ready);
      // What the page finds when it is loaded is no news.
      if (before !== undefined) say(some ? words.there(grid.note, grid.tiles.length) : grid.note);
    }
  }

  // Shows at once that previews are on their way, before the server has said so.
  function expect() {
    note.textContent = words.asking;
    root.setAttribute("aria-busy", true);
    for (const item of list.children) item.classList.add("is-expecting");
  }

  const reroll = (everything) => grid && act("reroll", { grid: grid.id, all: everything });
  others.addEventListener("click", () => reroll(false));
  all.addEventListener("click", () => reroll(true));
  stop.addEventListener("click", () => act("cancel"));

  return {
    node: root,
    render,
    reroll,
    expect,
    // Selects the tile in a place, from 1 on, and gives it the focus.
    pick(place) {
      const data = grid?.tiles[place - 1];
      if (!data?.ready) return;
      tiles.get(data.seed).picture.focus();
      report("select", { grid: grid.id, seed: data.seed });
    },
    // What a key does to the selected tile: "keep", "vary" or "refine".
    press(what) {
      const tile = tiles.get(selected);
      if (!tile) return say(words.pick);
      tile[what].click();
    },
  };
}
