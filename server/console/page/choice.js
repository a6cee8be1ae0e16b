// The choice of a mix's weights: a profile, one policy alone, or weights of one's own.

import { classed, make } from "./elements.js";
import { aloneIn } from "./weights.js";

const CUSTOM = "";
const ALONE = "="; // no profile's name begins so

export class Choice {
  /** `chosen({profile})` or `chosen({weights})` is called when the user has chosen. */
  constructor(label, chosen) {
    // The list lies unseen over its own text, because text can take several lines and a list cannot.
    this.text = make("span", { "aria-hidden": "true" });
    this.select = make("select", { "aria-label": `Profile of ${label}`, onchange: () => this.choose(chosen) });
    this.node = classed("span", "choice", this.text, this.select);
  }

  /** Shows the profiles and members there are, and what is chosen now. */
  show({ profile, weights, profiles, standard, members }) {
    const names = Object.keys(profiles);
    // A profile that does not exist, which a link may name: the server refuses it.
    if (profile && !names.includes(profile)) names.push(profile);
    const option = (value, text) => make("option", { value }, text);
    const named = names.map((name) => option(name, name === standard && name !== "default" ? `${name} (default)` : name));
    const alone = members.map(({ name }) => option(ALONE + name, `${name} alone`));
    this.select.replaceChildren(
      make("optgroup", { label: "Profiles" }, ...named),
      make("optgroup", { label: "One policy" }, ...alone),
      option(CUSTOM, "Own weights"),
    );
    this.mark(profile, weights);
  }

  /** Shows what is chosen now. */
  mark(profile, weights) {
    const single = aloneIn(weights);
    this.select.value = profile ?? (single ? ALONE + single : CUSTOM);
    this.text.textContent = this.title;
  }

  get title() {
    return this.select.selectedOptions[0]?.textContent ?? "Own weights";
  }

  choose(chosen) {
    const { value } = this.select;
    if (value === CUSTOM) chosen({ profile: null });
    else if (value.startsWith(ALONE)) chosen({ profile: null, weights: { [value.slice(1)]: 1 } });
    else chosen({ profile: value });
    this.text.textContent = this.title;
  }
}
