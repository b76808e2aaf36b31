// The previews. `props.value` is null or
//   {id, prompt, note, ignored, busy, tiles: [{seed, picture, ready, step, steps, problem}]}
// where picture is a data URL, that of a sketch until ready, or empty. Kept tiles are the browser's own business
// until a reroll tells which they are. Text only ever goes in as text, never as HTML.

const kept = new Set();
const tiles = new Map(); // seed → the tile's parts, so that a kept tile is not even repainted
let shown = null;
let picked = null;
let pointing = 0; // the timer of the tile that the pointer rests on
const POINTED_MS = 250; // whoever rests here looks at it

element.innerHTML = `<section class="grid">
  <div class="grid-bar">
    <p class="grid-note" role="status" aria-live="polite"></p>
    <div class="grid-actions">
      <button type="button" class="plain reroll-others" disabled>Reroll the others</button>
      <button type="button" class="plain reroll-all">Reroll all</button>
    </div>
  </div>
  <ul class="tiles" aria-label="Previews"></ul>
  <p class="grid-ignored" role="status"></p>
</section>`;
const root = element.firstElementChild;
const note = element.querySelector(".grid-note");
const ignored = element.querySelector(".grid-ignored");
const list = element.querySelector(".tiles");
const actions = element.querySelector(".grid-actions");
const rerollOthers = element.querySelector(".reroll-others");

function make(tag, className, text = "") {
  const node = document.createElement(tag);
  node.className = className;
  node.textContent = text;
  if (tag === "button") node.type = "button";
  return node;
}

function makeTile(seed) {
  const item = make("li", "tile");
  const picture = make("button", "tile-picture");
  const image = make("img", "");
  const meter = make("span", "tile-meter");
  const problem = make("span", "tile-problem");
  const foot = make("div", "tile-foot");
  const keep = make("button", "plain keep", "Keep");
  const refine = make("button", "strong refine", "Refine");
  image.draggable = false;
  picture.append(image, meter, problem);
  foot.append(make("span", "seed", `#${seed}`), keep, refine);
  item.append(picture, foot);
  picture.setAttribute("aria-label", `Refine seed ${seed}`);
  refine.setAttribute("aria-label", `Refine seed ${seed}`);
  keep.setAttribute("aria-label", `Keep seed ${seed}`);
  const pick = () => {
    picked = seed;
    mark();
    trigger("refine", { grid: props.value.id, seed });
  };
  const pointAt = () => {
    clearTimeout(pointing);
    pointing = setTimeout(() => trigger("point_at", { grid: props.value.id, seed }), POINTED_MS);
  };
  item.addEventListener("pointerenter", pointAt);
  item.addEventListener("focusin", pointAt);
  item.addEventListener("pointerleave", () => clearTimeout(pointing));
  picture.addEventListener("click", pick);
  refine.addEventListener("click", pick);
  keep.addEventListener("click", () => {
    if (!kept.delete(seed)) kept.add(seed);
    mark();
  });
  return { item, picture, image, meter, problem, keep, refine };
}

// What depends on what the user marked, rather than on what arrived.
function mark() {
  for (const [seed, tile] of tiles) {
    const isKept = kept.has(seed);
    tile.item.classList.toggle("is-kept", isKept);
    tile.item.classList.toggle("is-picked", seed === picked);
    tile.keep.setAttribute("aria-pressed", isKept);
    tile.keep.textContent = isKept ? "Kept" : "Keep";
  }
  rerollOthers.disabled = kept.size === 0 || kept.size === tiles.size;
}

function fill(tile, data, prompt) {
  const { ready, picture } = data;
  tile.item.classList.toggle("is-waiting", !ready && !data.problem);
  if (picture && tile.image.src !== picture) tile.image.src = picture;
  tile.image.hidden = !picture;
  tile.image.alt = ready ? `Preview of “${prompt}”, seed ${data.seed}` : "";
  tile.meter.style.setProperty("--done", data.steps ? data.step / data.steps : 0);
  tile.problem.textContent = data.problem;
  tile.picture.disabled = tile.refine.disabled = tile.keep.disabled = !ready;
}

function render() {
  const grid = props.value;
  root.classList.toggle("is-empty", !grid);
  actions.hidden = !grid;
  if (!grid) {
    note.textContent = "Your previews appear here.";
    list.replaceChildren(...[1, 2, 3, 4].map(() => make("li", "tile ghost")));
    return;
  }
  if (shown !== grid.id) {
    shown = grid.id;
    const seeds = new Set(grid.tiles.map((data) => data.seed));
    for (const seed of tiles.keys()) if (!seeds.has(seed)) tiles.delete(seed);
    for (const seed of kept) if (!seeds.has(seed)) kept.delete(seed);
    for (const seed of seeds) if (!tiles.has(seed)) tiles.set(seed, makeTile(seed));
    list.replaceChildren(...grid.tiles.map((data) => tiles.get(data.seed).item));
    list.style.setProperty("--count", grid.tiles.length);
  }
  for (const data of grid.tiles) fill(tiles.get(data.seed), data, grid.prompt);
  note.textContent = grid.note;
  ignored.textContent = grid.ignored;
  root.setAttribute("aria-busy", grid.busy);
  mark();
}

element.querySelector(".reroll-all").addEventListener("click", () => {
  trigger("reroll", { grid: props.value.id, keep: [] });
});
rerollOthers.addEventListener("click", () => {
  trigger("reroll", { grid: props.value.id, keep: [...kept] });
});
watch("value", render);
render();
