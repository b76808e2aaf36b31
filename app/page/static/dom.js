// Elements, texts and what the browser prefers. Text only ever goes in as text, never as HTML.

const calm = matchMedia("(prefers-reduced-motion: reduce)");

/** How to scroll. @returns {ScrollBehavior} */
export const scrolling = () => (calm.matches ? "auto" : "smooth");

/**
 * Make an element.
 * @template {keyof HTMLElementTagNameMap} Tag
 * @param {Tag} tag
 * @param {string} [className]
 * @param {string | (Node | string | false)[]} [content] a text, or children
 * @param {Record<string, string>} [attributes]
 */
export function make(tag, className = "", content = [], attributes = {}) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  node.append(...[content || []].flat().filter((each) => each !== false));
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  return node;
}

/**
 * Make a button.
 * @param {string} className
 * @param {string} text
 * @param {() => void} onClick
 * @param {Record<string, string>} [attributes]
 */
export function makeButton(className, text, onClick, attributes = {}) {
  const button = make("button", className, text, { type: "button", ...attributes });
  button.addEventListener("click", onClick);
  return button;
}

/**
 * Make a hidden input that asks for one file.
 * @param {string} accept
 * @param {(file: File) => void} take
 */
export function makeChooser(accept, take) {
  const hidden = { tabindex: "-1", "aria-hidden": "true" };
  const chooser = make("input", "unseen", [], { type: "file", accept, ...hidden });
  chooser.addEventListener("change", () => {
    if (chooser.files?.[0]) take(chooser.files[0]);
    chooser.value = "";
  });
  return chooser;
}

/**
 * Make a dialog with a button that closes it, as a click beside it does.
 * @param {string} className
 * @param {Node[]} content
 * @param {Record<string, string>} attributes
 */
export function makeDialog(className, content, attributes) {
  const close = makeButton("strong", "Close", () => dialog.close());
  const dialog = make("dialog", className, [...content, close], attributes);
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
  return dialog;
}

/** The text without characters that change the direction of what follows. @param {string} text */
export const plain = (text) => text.replace(/[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]/g, "");

/** The text in quotes, whose direction does not change that of the sentence around it. @param {string} text */
export const quoted = (text) => `\u2068“${plain(text)}”\u2069`;

/**
 * Give the pictures in a node the shape of those in a view, by default square.
 * @param {HTMLElement} node
 * @param {{ size?: [number, number] } | null} view
 */
export function setShape(node, view) {
  const [width, height] = view?.size || [1, 1];
  node.style.setProperty("--shape", `${width / height}`);
}

/** Whether keys write into a node. @param {EventTarget | null} node */
export const takesText = (node) =>
  node instanceof HTMLElement &&
  (node.isContentEditable ||
    node.matches("textarea, select, input:not([type=range], [type=checkbox], [type=radio])"));
