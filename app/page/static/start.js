// The picture to start from, or to edit, see `start_view` in app/page/views.py. `makeStart(act)` gives {node, render,
// choose, send, asked}. asked() resolves to what a wish for previews says of it, once it has arrived.

const START_WORDS = {
  start: ["Starts from this picture", "The prompt says what becomes of it."],
  edit: ["Picture to edit", "The prompt says what is to be changed."],
  begin: ["Start from this picture", "Edit this picture"],
  there: "The picture is there.",
  gone: "The picture is removed.",
  sending: "Sending the picture …",
};

function makeStart(act) {
  const root = make("section", "start", "", { "aria-labelledby": "start-title", hidden: "" });
  root.innerHTML = `
  <img class="start-picture" alt="">
  <p class="start-words"><strong id="start-title"></strong><span></span></p>
  <label class="start-strength"><span>Strength <b></b></span>
    <input type="range" min="5" max="100" step="5">
    <span class="start-ends" aria-hidden="true"><span>near to it</span><span>far from it</span></span>
  </label>
  <button type="button" class="plain start-replace">Replace</button>
  <button type="button" class="plain start-remove">Remove</button>`;
  const find = (selector) => root.querySelector(selector);
  const strength = find("input");
  const chooser = make("input", "unseen", "", {
    type: "file", accept: "image/png, image/jpeg, image/webp", tabindex: "-1", "aria-hidden": "true",
  });
  let start = null;
  let edits = false;
  let sending = Promise.resolve();

  function show() {
    const place = document.querySelector("#start");
    if (!root.isConnected) place?.append(root, chooser);
    const busy = root.getAttribute("aria-busy") === "true";
    root.hidden = !start && !busy;
    document.querySelector("#begin")?.toggleAttribute("hidden", !root.hidden);
    const [title, hint] = edits ? START_WORDS.edit : START_WORDS.start;
    find("strong").textContent = title;
    find(".start-words span").textContent = busy ? START_WORDS.sending : hint;
    find(".start-picture").hidden = !start;
    find(".start-picture").alt = title;
    find(".start-strength").hidden = edits || !start;
    find("b").textContent = `${strength.value} %`;
    strength.setAttribute("aria-valuetext", `${strength.value} %: more is farther from the picture`);
    for (const button of root.querySelectorAll("button")) button.disabled = busy;
  }

  function render(view, status) {
    edits = !!status?.edits;
    if (view && (view.picture !== start?.picture || view.strength !== start?.strength)) {
      find(".start-picture").src = base + view.picture;
      strength.value = view.strength;
    }
    start = view;
    show();
  }

  // Sends a file; one that is no picture is told in words. Gives whether it was taken.
  async function upload(file) {
    root.setAttribute("aria-busy", true);
    show();
    let problem = "";
    try {
      await post("start", new Blob([`${JSON.stringify(me)}\n`, file]));
      say(START_WORDS.there);
    } catch (error) {
      problem = error.message;
      toast(problem);
    }
    root.setAttribute("aria-busy", false);
    show();
    return !problem;
  }
  const send = (file) => (sending = upload(file));

  const choose = () => chooser.click();
  chooser.addEventListener("change", () => {
    if (chooser.files[0]) send(chooser.files[0]);
    chooser.value = "";
  });
  strength.addEventListener("input", show);
  find(".start-replace").addEventListener("click", choose);
  find(".start-remove").addEventListener("click", () => {
    act("begin_anew");
    say(START_WORDS.gone);
    document.querySelector("#prompt :is(input, textarea)")?.focus();
  });
  return {
    node: root,
    render,
    choose,
    send,
    async asked() {
      await sending;
      return start ? { strength: strength.value / 100 } : {};
    },
  };
}
