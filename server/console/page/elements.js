// Functions that build the page's elements. Text becomes text nodes, never HTML.

const SVG = "http://www.w3.org/2000/svg";
const ATTRIBUTE = /^(aria-|data-|role$|for$|list$)/;

/** The page's element with an id. */
export const at = (id) => document.getElementById(id);

/** A new element: properties, attributes (aria-*, data-*, role), `on...` listeners, children. */
export function make(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name === "data-hue") paint(node, value);
    else if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (ATTRIBUTE.test(name)) node.setAttribute(name, value);
    else node[name] = value;
  }
  node.append(...children);
  return node;
}

/** A new element of a class. */
export const classed = (tag, className, ...children) => make(tag, { className }, ...children);

/** Gives an element a member's colour. */
export function paint(node, hue) {
  node.dataset.hue = hue;
  node.style.setProperty("--hue", `var(--hue-${hue})`);
}

/** A new button with a border. */
export function button(text, onclick, properties = {}) {
  return make("button", { type: "button", className: "plain", onclick, ...properties }, text);
}

/** A box to tick, and its label. */
export function checkbox(text) {
  const box = make("input", { type: "checkbox" });
  return [box, make("label", { className: "check" }, box, ` ${text}`)];
}

/** A new SVG element with attributes. */
export function draw(tag, attributes = {}, ...children) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) name === "data-hue" ? paint(node, value) : node.setAttribute(name, value);
  node.append(...children);
  return node;
}

/** A member's name with its colour in front, and a word after it. */
export function nameTag(member, after = "") {
  const swatch = make("i", { className: "swatch", "data-hue": member.hue, "aria-hidden": "true" });
  return make("span", { className: "name", title: member.title }, swatch, make("span", {}, member.name, after));
}

/** Announces a text to screen readers. */
export function announce(text) {
  at("status").textContent = text;
}

/** Shows a message in a place for errors, or hides the place. */
export function showError(place, message) {
  place.textContent = message ?? "";
  place.hidden = !message;
}

/** Copies a text and shows the result on the button that was pressed. */
export async function copy(text, button) {
  const before = button.textContent;
  const done = await toClipboard(text);
  button.textContent = done ? "Copied" : "Not copied";
  announce(button.textContent);
  setTimeout(() => { button.textContent = before; }, 1500);
}

async function toClipboard(text) {
  if (navigator.clipboard) {
    try {
      await navigator.clipboard.writeText(text);
      return true;
    } catch { /* the browser does not allow it: use the older way below */ }
  }
  // Pages loaded over plain HTTP from another machine have no clipboard object.
  const area = make("textarea", { value: text, className: "hidden" });
  document.body.append(area);
  area.select();
  const done = document.execCommand("copy");
  area.remove();
  return done;
}
