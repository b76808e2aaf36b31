// Who this page is, what it is told to show, and what it asks for. Everything else hangs on these:
//   base            where the app is, also below a sub-path
//   act(do, more)   asks the server for something, see app.page.handlers; more may be a promise
//   follow(show)    has show(views) called with whatever changed, see app.page.views, for as long as the page is open
//   toast(text, …)  a message that goes away by itself
//   say(text)       a message to screen readers alone
//   quoted(text)    what somebody typed, to stand within a sentence
// Text only ever goes in as text, never as HTML.

const base = `${(window.gradio_config?.root || location.origin).replace(/\/$/, "")}/`;
const calm = matchMedia("(prefers-reduced-motion: reduce)");

// The browser keeps its name, and with it its history; a tab keeps its own through a refresh.
function secretOf(storage, key) {
  const fresh = () =>
    [...crypto.getRandomValues(new Uint8Array(32))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  try {
    if (!storage().getItem(key)) storage().setItem(key, fresh());
    return storage().getItem(key);
  } catch {
    return fresh(); // storage is forbidden here: everything works until the page is closed
  }
}
const me = {
  browser: secretOf(() => localStorage, "diffusion-preview.browser"),
  tab: secretOf(() => sessionStorage, "diffusion-preview.tab"),
};

function make(tag, className = "", text = "", attributes = {}) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text) node.textContent = text;
  if (tag === "button") node.type = "button";
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  return node;
}

// Text that runs the other way, or has characters that turn what follows them, leaves the words around it alone.
const plain = (text) => text.replace(/[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]/g, "");
const quoted = (text) => `\u2068“${plain(text)}”\u2069`;

// Whatever takes a while at the server goes through Gradio's queue, and the rest around it. So a "cancel" may
// overtake what it is meant for; therefore it names the latest calls, also those that are still to be sent.
const QUEUED = new Set(["preview", "reroll", "vary", "refine"]);
const calls = [];
async function act(what, more = {}) {
  const queued = QUEUED.has(what);
  const call = queued ? crypto.getRandomValues(new Uint32Array(2)).join("-") : "";
  if (queued) calls.splice(0, Math.max(0, calls.push(call) - 8));
  const named = what === "cancel" ? { calls: [...calls] } : queued ? { call } : {};
  trigger(queued ? "act" : "note", { ...me, ...(await more), ...named, do: what });
}

// Posts JSON or a file; gives the answer, or throws what the server says of it in words.
async function post(path, body) {
  const answer = await fetch(base + path, { method: "POST", body, credentials: "same-origin" }).catch(() => ({}));
  if (answer.ok) return answer;
  const told = (await answer.json?.().catch(() => ({}))) || {};
  throw new Error(told.error || "The server did not answer. Please try again.");
}

// Has pictures in a node take the shape of those in a view, which are square where it does not say.
function setShape(node, view) {
  const [width, height] = view?.size || [1, 1];
  node.style.setProperty("--shape", width / height);
}

// ---- the stream

const SILENCE_MS = 10_000; // the server shows that it is alive every two seconds
const RETRY_MS = [500, 1000, 2000, 4000];

async function follow(show, connected) {
  for (let failures = 0; ; failures++) {
    const stop = new AbortController();
    let silence = 0;
    let refused = false;
    const heard = () => {
      clearTimeout(silence);
      silence = setTimeout(() => stop.abort(), SILENCE_MS);
    };
    const lost = () => stop.abort();
    addEventListener("offline", lost);
    try {
      heard();
      const answer = await fetch(`${base}live`, { method: "POST", body: JSON.stringify(me), signal: stop.signal });
      refused = answer.status === 401;
      if (!answer.ok) throw new Error(answer.statusText);
      const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
      let rest = "";
      for (;;) {
        const { value, done } = await reader.read();
        if (done) break;
        heard();
        const messages = (rest + value).split("\n\n");
        rest = messages.pop();
        failures = 0;
        connected(true);
        for (const message of messages) show(JSON.parse(message.slice("data: ".length)));
      }
    } catch {
      // told below
    }
    clearTimeout(silence);
    removeEventListener("offline", lost);
    connected(false, refused);
    await new Promise((again) => setTimeout(again, RETRY_MS[Math.min(failures, RETRY_MS.length - 1)]));
  }
}

// ---- messages

const toasts = make("div", "toasts");
const spoken = make("div", "unseen", "", { role: "log", "aria-live": "polite" });
const SPOKEN_MS = 10_000; // after that, nobody is to come upon it as if it were new

const toastWords = { close: "Close this message" };

function toast(text, kind = "warning", action = null) {
  const node = make("div", `toast toast-${kind}`, "", { role: kind === "warning" ? "alert" : "status" });
  const close = make("button", "toast-close", "×", { "aria-label": toastWords.close });
  node.append(make("p", "", plain(text)));
  if (action) {
    const button = make("button", "plain", action.label);
    button.addEventListener("click", () => {
      action.run();
      node.remove();
    });
    node.append(button);
  }
  close.addEventListener("click", () => node.remove());
  node.append(close);
  toasts.append(node);
  while (toasts.children.length > 3) toasts.firstChild.remove();
  setTimeout(() => node.remove(), action ? 20_000 : 9000);
}

// Each message is a node of its own, so that two at once are both heard.
function say(text) {
  if (!text) return;
  const node = make("p", "", text);
  spoken.append(node);
  setTimeout(() => node.remove(), SPOKEN_MS);
}
