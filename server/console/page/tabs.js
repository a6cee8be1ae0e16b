// On a narrow screen one mix is in sight: a swipe or a tab leads to the others.

import { at, make } from "./elements.js";

const row = at("tabs");
const mixes = at("mixes");

/** Shows a tab for each mix, with its weights as a strip of colours. */
export function showTabs(all, members) {
  row.hidden = all.length < 2;
  row.replaceChildren(...all.map((mix) => {
    const parts = members.filter(({ name }) => mix.weights[name] > 0).map(({ name, hue }) => {
      const part = make("i", { "data-hue": hue });
      part.style.setProperty("flex-grow", mix.weights[name]);
      return part;
    });
    const open = () => mixes.scrollTo({ left: mix.node.offsetLeft - mixes.offsetLeft, behavior: "smooth" });
    return make("button", { type: "button", "aria-label": `Show mix ${mix.letter}`, onclick: open }, mix.letter, make("span", { "aria-hidden": "true" }, ...parts));
  }));
  mark();
}

/** Brings the mixes into sight if the screen shows one at a time. */
export function showMixes() {
  if (getComputedStyle(mixes).overflowX === "auto") (row.hidden ? mixes : row).scrollIntoView({ behavior: "smooth" });
}

function mark() {
  const place = Math.round(mixes.scrollLeft / Math.max(1, mixes.clientWidth));
  for (const [index, tab] of [...row.children].entries()) tab.setAttribute("aria-current", index === place);
}

mixes.addEventListener("scroll", mark, { passive: true });
