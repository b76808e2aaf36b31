// The picked picture. `props.value` is null or
//   {id, state, seed, prompt, preview, picture, steps, percent, remaining, message, likeness, facts, file}
// where state is "running", "done" or "stopped", preview and picture are data URLs, likeness is
// {words, detail} once done and facts are [name, value] pairs. Text only ever goes in as text.

element.innerHTML = `<section class="stage" hidden>
  <div class="stage-frame">
    <div class="compare">
      <img class="compare-final" alt="" draggable="false">
      <img class="compare-preview" alt="" draggable="false">
      <span class="compare-line" aria-hidden="true"></span>
      <span class="tag tag-preview"></span>
      <span class="tag tag-final"></span>
      <input class="compare-handle" type="range" min="0" max="100" step="0.5" value="50"
             aria-label="Compare: how much of the preview covers the final picture">
    </div>
    <div class="progress" role="progressbar" aria-valuemin="0" aria-valuemax="100"><span></span></div>
  </div>
  <div class="stage-side">
    <h2 class="stage-title"></h2>
    <p class="stage-message" role="status" aria-live="polite"></p>
    <p class="likeness"><strong></strong><span></span></p>
    <dl class="facts"></dl>
    <div class="stage-actions">
      <button type="button" class="plain cancel">Cancel</button>
      <a class="strong download" role="button">Download PNG</a>
    </div>
    <figure class="stage-preview"><img alt="" draggable="false"><figcaption></figcaption></figure>
  </div>
</section>`;
const root = element.firstElementChild;
const find = (selector) => root.querySelector(selector);
const compare = find(".compare");
const handle = find(".compare-handle");
let shown = null;

function put(selector, source, alt) {
  const image = find(selector);
  if (source && image.src !== source) image.src = source;
  image.alt = alt;
}

function split(percent) {
  compare.style.setProperty("--split", `${percent}%`);
}

function render() {
  const stage = props.value;
  root.hidden = !stage;
  if (!stage) return;
  root.dataset.state = stage.state;
  if (shown !== stage.id) {
    shown = stage.id;
    handle.value = 50;
    split(50);
    const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
    requestAnimationFrame(() => root.scrollIntoView({ behavior: calm ? "auto" : "smooth", block: "nearest" }));
  }
  const what = `“${stage.prompt}”, seed ${stage.seed}`;
  put(".compare-final", stage.picture || stage.preview, `Refined picture of ${what}`);
  put(".compare-preview", stage.preview, `Preview of ${what}`);
  put(".stage-preview img", stage.preview, `Preview of ${what}`);
  find(".stage-preview figcaption").textContent = `Preview, ${stage.steps[0]} steps`;
  find(".tag-preview").textContent = `Preview · ${stage.steps[0]} steps`;
  find(".tag-final").textContent = `Final · ${stage.steps[1]} steps`;
  find(".stage-title").textContent = `Seed ${stage.seed}`;
  find(".stage-message").textContent = stage.message;
  find(".progress").setAttribute("aria-valuenow", stage.percent);
  find(".progress span").style.width = `${stage.percent}%`;
  find(".likeness strong").textContent = stage.likeness.words;
  find(".likeness span").textContent = stage.likeness.detail;
  find(".facts").replaceChildren(
    ...stage.facts.flatMap(([name, value]) => {
      const term = document.createElement("dt");
      const detail = document.createElement("dd");
      term.textContent = name;
      detail.textContent = value;
      return [term, detail];
    }),
  );
  const download = find(".download");
  if (stage.state === "done") {
    download.href = stage.picture;
    download.download = stage.file;
  } else {
    download.removeAttribute("href");
  }
}

handle.addEventListener("input", () => split(handle.value));
find(".cancel").addEventListener("click", () => trigger("stop_refining"));
watch("value", render);
render();
