// One answer as it arrives: its tokens, their shades, what changed, and a line about one token.

import { classed, make, paint, showError } from "./elements.js";

export class Reply {
  constructor(members, label) {
    this.members = members;
    this.turns = make("div", { className: "turns", hidden: true });
    this.area = make("div", { className: "text", tabIndex: 0, role: "group", "aria-label": `Answer of ${label}; arrow keys go through its tokens` });
    this.change = make("p", { className: "change quiet", hidden: true });
    this.token = make("p", { className: "token quiet", "aria-live": "polite" });
    this.error = make("p", { className: "error", role: "alert", hidden: true });
    for (const event of ["pointerover", "click"]) this.area.addEventListener(event, ({ target }) => this.inspect(target));
    for (const event of ["pointerleave", "blur"]) this.area.addEventListener(event, () => this.inspect(null));
    this.area.addEventListener("keydown", (event) => this.walk(event));
    this.node = classed("div", "reply", this.turns, this.error, this.area, this.change, this.token);
    this.clear();
  }

  /** The answer's text so far. */
  get text() {
    return this.area.textContent;
  }

  /** The texts of its tokens, each with the blanks before it. */
  get tokens() {
    return this.spans.map(([span]) => (span.previousSibling?.nodeType === Node.TEXT_NODE ? span.previousSibling.data : "") + span.textContent);
  }

  /** Shows the conversation before this answer. */
  showTurns(turns) {
    this.turns.hidden = turns.length === 0;
    this.turns.replaceChildren(...turns.flatMap(({ user, assistant }) => [classed("p", "asked", user), make("p", {}, assistant)]));
  }

  /** Marks the tokens at some places as new, and says in words what changed. */
  markChanges(places, words) {
    for (const place of places) this.spans[place][0].classList.add("new");
    this.change.textContent = words;
    this.change.hidden = !words;
  }

  clear() {
    this.spans = [];
    this.pending = 0;
    this.details = new Map();
    this.area.replaceChildren();
    this.area.classList.remove("shaded");
    this.markChanges([], "");
    showError(this.error, null);
    this.inspect(null);
  }

  /** Adds a piece of text and its tokens. */
  append(text, tokens) {
    const { scrollTop, scrollHeight, clientHeight } = this.area;
    const isAtEnd = scrollHeight - scrollTop - clientHeight < 2;
    for (const [piece, count] of split(text, tokens)) {
      this.pending += count;
      if (piece === "") continue;
      // Blanks stay outside the span, so that no shade begins or ends a line with one.
      const blanks = piece.match(/^\s*/)[0];
      const span = make("span", {}, piece.slice(blanks.length));
      this.area.append(blanks, span);
      this.spans.push([span, this.pending]);
      this.pending = 0;
    }
    if (isAtEnd) this.area.scrollTop = this.area.scrollHeight;
  }

  /**
   * Shades the tokens by the policies' log-probabilities. `weights` are the answer's: a policy
   * without weight claims no token.
   */
  shade(tokens, weights) {
    let place = 0;
    for (const [span, count] of this.spans) {
      place += count;
      const logprobs = tokens[place - 1]?.logprobs ?? {};
      const voices = this.members.filter(({ name }) => weights[name] > 0 && typeof logprobs[name] === "number");
      if (voices.length === 0 || span.textContent === "") continue;
      const { first, lead } = claim(voices, logprobs);
      this.details.set(span, { voices, logprobs });
      paint(span, first.hue);
      span.style.setProperty("--lead", lead.toFixed(3));
    }
    this.area.classList.add("shaded");
    this.inspect(null);
  }

  inspect(target) {
    this.chosen?.classList.remove("chosen");
    const detail = this.details.get(target);
    this.chosen = detail ? target : null;
    if (!detail) {
      this.token.textContent = this.details.size ? "Point at a token to see its probability under each policy" : "";
      return;
    }
    target.classList.add("chosen");
    const words = detail.voices.map(({ name, hue }) => {
      const probability = percent(Math.exp(detail.logprobs[name]));
      return classed("span", "fact", make("i", { className: "swatch", "data-hue": hue }), `${name} ${probability}`);
    });
    this.token.replaceChildren(make("b", {}, target.textContent), ...words);
  }

  walk(event) {
    const step = { ArrowRight: 1, ArrowLeft: -1, Home: -Infinity, End: Infinity }[event.key];
    if (step === undefined || this.details.size === 0) return;
    event.preventDefault();
    const all = [...this.details.keys()];
    const at = all.indexOf(this.chosen);
    this.inspect(all[Math.min(all.length - 1, Math.max(0, at < 0 ? 0 : at + step))]);
    this.chosen.scrollIntoView({ block: "nearest" });
  }
}

/**
 * Splits a text by its tokens into pairs [part, number of tokens]. A character may take several
 * tokens, and the token that ends an answer has no text; such tokens stay in one part.
 */
function split(text, tokens) {
  const parts = [];
  let rest = text;
  let place = 0;
  while (place < tokens.length && tokens[place] !== "" && rest.startsWith(tokens[place])) {
    parts.push([tokens[place], 1]);
    rest = rest.slice(tokens[place].length);
    place += 1;
  }
  if (rest !== "" || place < tokens.length) parts.push([rest, tokens.length - place]);
  return parts;
}

/**
 * The policy that gave a token the highest probability, and its lead: 0 if all gave it the same,
 * 1 if only one gave it any. A single policy has nothing to compare with and gets 0.2.
 */
function claim(voices, logprobs) {
  const values = voices.map(({ name }) => logprobs[name]);
  const top = Math.max(...values);
  const first = voices[values.indexOf(top)];
  if (voices.length === 1) return { first, lead: 0.2 };
  const share = 1 / values.reduce((sum, value) => sum + Math.exp(value - top), 0);
  const even = 1 / voices.length;
  return { first, lead: (share - even) / (1 - even) };
}

function percent(share) {
  const value = 100 * share;
  if (value < 0.1) return "< 0.1 %";
  return `${value < 10 ? value.toFixed(1) : Math.round(value)} %`;
}

