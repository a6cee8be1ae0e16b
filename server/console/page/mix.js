// One column: the choice of weights, the answer, and its attribution to the policies.

import { answer, asCurl, Refusal } from "./api.js";
import { compare, inWords } from "./changes.js";
import { Choice } from "./choice.js";
import { Controls } from "./controls.js";
import { announce, copy, make, showError } from "./elements.js";
import { Measures } from "./measures.js";
import { Reply } from "./reply.js";
import { alike, brief } from "./weights.js";

export class Mix {
  /**
   * `page` is shared by all columns: members, mixture(), request() -> {system, prompt, options},
   * changed(mix, isFinal), answered(mix), removed(mix), published(mix). `turns` is the conversation
   * so far, a list of {user, assistant}.
   */
  constructor(page, letter, { profile = null, weights = {}, turns = [] }) {
    Object.assign(this, { page, letter, profile, weights, turns, attribution: null, run: null, hasRun: false, last: null });
    const label = `mix ${letter}`;
    this.choice = new Choice(label, (chosen) => this.choose(chosen));
    this.controls = new Controls({
      members: page.members,
      space: page.mixture().weight_space,
      label,
      changed: (next, isFinal) => this.setWeights(next, isFinal),
    });
    this.reply = new Reply(page.members, label);
    this.measures = new Measures(page.members, label);
    this.facts = make("span", { className: "quiet" });
    const button = (text, onclick) => make("button", { type: "button", className: "plain", onclick }, text);
    const remove = make("button", { type: "button", className: "plain icon", "aria-label": `Remove ${label}`, title: "Remove", onclick: () => page.removed(this) }, "×");
    const curl = button("Copy as curl", () => this.copyCurl(curl));
    const publish = button("Publish", () => page.published(this));
    this.node = make(
      "section", { className: "card mix", "aria-label": `Mix ${letter}` },
      make("div", { className: "head" }, make("b", { className: "letter", "aria-hidden": "true" }, letter), this.choice.node, remove),
      this.controls.node,
      this.reply.node,
      this.measures.node,
      make("div", { className: "foot" }, this.facts, make("span", { className: "actions" }, curl, publish)),
    );
    this.reply.showTurns(turns);
    this.refresh();
  }

  /** Shows the server's present profiles. */
  refresh() {
    const { profiles, default_profile: standard } = this.page.mixture();
    if (this.profile && profiles[this.profile]) this.weights = profiles[this.profile].weights;
    // Of a removed profile the weights stay; a name that never existed stays, for the server to refuse.
    else if (Object.keys(this.weights).length > 0) this.profile = null;
    this.choice.show({ profile: this.profile, weights: this.weights, profiles, standard, members: this.page.members });
    this.controls.show(this.weights);
  }

  /** The fields of a request that choose its weights. */
  preferences() {
    if (this.profile) return { preference_profile: this.profile };
    const { weight_space: space, reference } = this.page.mixture();
    const named = { ...this.weights };
    // In the affine space the server computes the reference's weight.
    if (space === "affine" && reference) delete named[reference.name];
    return { preference_weights: brief(named) };
  }

  choose({ profile, weights = this.weights }) {
    Object.assign(this, { profile, weights });
    this.refresh();
    this.page.changed(this, true);
  }

  setWeights(weights, isFinal) {
    const { profiles } = this.page.mixture();
    if (this.profile && !alike(weights, profiles[this.profile]?.weights ?? {})) this.profile = null;
    this.weights = weights;
    this.choice.mark(this.profile, weights);
    this.page.changed(this, isFinal);
  }

  /** The conversation up to this prompt. */
  messages() {
    const { system, prompt } = this.page.request();
    const before = this.turns.flatMap(({ user, assistant }) => [{ role: "user", content: user }, { role: "assistant", content: assistant }]);
    return [...(system ? [{ role: "system", content: system }] : []), ...before, { role: "user", content: prompt }];
  }

  /** Streams an answer, and aborts one that is running. */
  async start() {
    this.stop();
    const run = new AbortController();
    const began = performance.now();
    const messages = this.messages();
    this.run = run;
    this.hasRun = true;
    this.attribution = null;
    this.showMeasures(1);
    this.reply.clear();
    this.facts.textContent = "";
    this.setRunning(true);
    try {
      for await (const part of answer(messages, { ...this.page.request().options, ...this.preferences() }, run.signal)) {
        if (part.used) this.noteHeaders(part.used);
        else if (part.attribution) this.attribution = part.attribution;
        else this.reply.append(part.text, part.tokens);
      }
      this.finish((performance.now() - began) / 1000, messages);
    } catch (error) {
      if (error.name !== "AbortError") {
        if (!(error instanceof Refusal)) throw error;
        showError(this.reply.error, error.message);
      }
    } finally {
      if (this.run === run) {
        this.run = null;
        this.setRunning(false);
        this.page.answered(this);
      }
    }
  }

  stop() {
    this.run?.abort();
    this.run = null;
    this.setRunning(false);
  }

  /** Makes the present answer a part of the conversation. */
  nextTurn() {
    this.stop();
    if (this.last) this.turns = [...this.turns, { user: this.last.messages.at(-1).content, assistant: this.last.text }];
    this.forget();
  }

  /** Goes back to the first turn. */
  firstTurn() {
    this.stop();
    this.turns = [];
    this.forget();
  }

  forget() {
    this.hasRun = false;
    this.last = null;
    this.attribution = null;
    this.facts.textContent = "";
    this.reply.clear();
    this.reply.showTurns(this.turns);
  }

  noteHeaders({ version, weights, requestId }) {
    this.usedWeights = weights;
    this.facts.title = `Request ${requestId}`;
    this.page.sawVersion(version);
  }

  finish(seconds, messages) {
    // In a data-parallel group another engine may have the answer's figures.
    if (this.attribution) this.reply.shade(this.attribution.tokens, this.usedWeights);
    const what = this.attribution ? `${this.attribution.num_tokens} tokens` : "Not attributed";
    this.facts.textContent = `${what}, ${seconds.toFixed(1)} s`;
    const { tokens, text } = this.reply;
    const isComparable = this.last && JSON.stringify(this.last.messages) === JSON.stringify(messages);
    const changes = isComparable ? compare(this.last.tokens, tokens) : null;
    const said = changes ? inWords(changes) : "";
    this.reply.markChanges(changes?.added ?? [], said);
    this.last = { messages, tokens, text };
    announce(`Mix ${this.letter} has answered. ${this.facts.textContent}. ${said}`);
  }

  showMeasures(scale) {
    this.measures.show(this.attribution, scale);
  }

  setRunning(isRunning) {
    this.reply.area.setAttribute("aria-busy", isRunning);
    this.node.classList.toggle("running", isRunning);
  }

  copyCurl(button) {
    copy(asCurl(this.messages(), { ...this.page.request().options, ...this.preferences() }), button);
  }
}
