// What the page asks the server for, and the stream of what the server tells it to show.
/** @import { Act, Trigger, Views } from "./types.d.ts" */

/** The app's address, also below a proxy's path: this module is at scripts/VERSION/backend.js. */
export const base = new URL("../../", import.meta.url).href;

const SILENCE_MS = 10_000; // the server shows that it is alive every two seconds
const RETRY_MS = [500, 1000, 2000, 4000];

// Actions that take a while go through Gradio's queue, and the others around it. A "cancel" may therefore overtake
// the call that it is meant for, so it names the latest calls.
const QUEUED = new Set(["preview", "reroll", "vary", "refine"]);
const MAX_CALLS = 8;
/** @type {string[]} */
const calls = [];

/** @type {Trigger} */
let trigger = () => {};
let isConnected = true;
/** @type {(() => void) | undefined} */
let refuse;

/**
 * Have events sent by a function of Gradio's.
 * @param {Trigger} gradios
 * @param {() => void} [whenLost] called instead while the connection is lost: what is sent then is lost, too
 */
export function connect(gradios, whenLost) {
  trigger = gradios;
  refuse = whenLost;
}

/** @param {string} event @param {object} values */
function send(event, values) {
  if (isConnected || !refuse) trigger(event, { ...me, ...values });
  else refuse();
}

/**
 * Return the secret of a browser or tab, kept in its storage; where storage is forbidden, of this page only.
 * @param {() => Storage} storage
 * @param {string} key
 */
function secretOf(storage, key) {
  const bytes = crypto.getRandomValues(new Uint8Array(32));
  const fresh = [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  try {
    const kept = storage().getItem(key) || fresh;
    storage().setItem(key, kept);
    return kept;
  } catch {
    return fresh;
  }
}

/** The browser, which the history belongs to, and the tab, which survives a refresh. */
export const me = {
  browser: secretOf(() => localStorage, "diffusion-preview.browser"),
  tab: secretOf(() => sessionStorage, "diffusion-preview.tab"),
};

/** @type {Act} */
export async function act(action, values = {}) {
  const queued = QUEUED.has(action);
  const call = crypto.getRandomValues(new Uint32Array(2)).join("-");
  if (queued) calls.splice(0, calls.push(call) - MAX_CALLS);
  const named = action === "cancel" ? { calls: [...calls] } : queued ? { call } : {};
  const sent = await values;
  if (action !== "point_at" || isConnected) send(queued ? "act" : "note", { ...sent, ...named, do: action });
}

/** Have the form filled in from a source, see app/page/filling.py. @param {object} source */
export const fillForm = (source) => send("fill", source);

/** What the server answers to a request that it refuses. */
export class Refusal extends Error {
  /** @param {string} message @param {number} [status] */
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

/**
 * Post to the server. Throws a Refusal with its message if it refuses.
 * @param {string} path
 * @param {BodyInit} body
 */
async function post(path, body) {
  const answer = await fetch(base + path, { method: "POST", body }).catch(() => null);
  if (answer?.ok) return answer;
  const told = await answer?.json().catch(() => null);
  throw new Refusal(told?.error || "The server did not answer. Please try again.", answer?.status);
}

/** Send the picture that the next previews start from. @param {File} file */
export const sendStart = (file) => post("start", new Blob([`${JSON.stringify(me)}\n`, file]));

/** Read from a picture how it was made; throws if it does not say. @param {File} file @returns {Promise<object>} */
export const readPicture = async (file) => (await post("restore", file)).json();

/** Get a zip of all that was made in this browser. */
export const exportHistory = async () => (await post("export", JSON.stringify(me))).blob();

/** Get the text of About, which is HTML. */
export async function readAbout() {
  const answer = await fetch(`${base}about`);
  if (!answer.ok) throw new Error(answer.statusText);
  return (await answer.text()).replaceAll('src="about/', `loading="lazy" src="${base}about/`);
}

/** @param {number} ms */
const pause = (ms) => new Promise((done) => setTimeout(done, ms));

/** Report an event of a study, again if the connection is lost. @param {object} event */
export async function report(event) {
  const body = JSON.stringify({ ...me, ...event });
  for (const ms of [0, ...RETRY_MS]) {
    await pause(ms);
    const answer = await fetch(`${base}report`, { method: "POST", body, keepalive: true }).catch(() => null);
    if (answer) return;
  }
}

/**
 * Read the stream, again and again, for as long as the page is open.
 * @param {(views: Views) => void} show called with the views that have changed
 * @param {(connected: boolean, refused: boolean) => void} tell called when the connection comes or goes
 */
export async function follow(show, tell) {
  for (let failures = 0; ; failures++) {
    const stop = new AbortController();
    const lose = () => stop.abort();
    let silence = setTimeout(lose, SILENCE_MS);
    let refused = false;
    addEventListener("offline", lose);
    try {
      const answer = await fetch(`${base}live`, { method: "POST", body: JSON.stringify(me), signal: stop.signal });
      refused = answer.status === 401;
      if (!answer.ok || !answer.body) throw new Error(answer.statusText);
      const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
      let rest = "";
      for (;;) {
        const { value, done } = await reader.read();
        if (done) break;
        clearTimeout(silence);
        silence = setTimeout(lose, SILENCE_MS);
        const messages = (rest + value).split("\n\n");
        rest = messages.pop() || "";
        failures = 0;
        isConnected = true;
        tell(true, false);
        for (const message of messages) show(JSON.parse(message.slice("data: ".length)));
      }
    } catch {
      // told below
    }
    clearTimeout(silence);
    removeEventListener("offline", lose);
    isConnected = false;
    tell(false, refused);
    await pause(RETRY_MS[Math.min(failures, RETRY_MS.length - 1)]);
  }
}
