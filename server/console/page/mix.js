// One column: a profile or weights, the answer, and its attribution to the policies.

import { answer, asCurl, Refusal } from "./api.js";
import { Controls } from "./controls.js";
import { announce, copy, make, showError } from "./elements.js";
import { Measures } from "./measures.js";
import { Reply } from "./reply.js";
import { alike, brief } from "./weights.js";

const CUSTOM = "";

export class Mix {
  /**
   * `page` is shared by all columns: members, mixture(), request() -> {prompt, options}, changed(mix,
   * isFinal), answered(mix), removed(mix), published(mix).
   */
  constructor(page, letter, { profile = null, weights = {} }) {
    Object.assign(this, { page, letter, profile, weights, attribution: null, run: null, hasRun: false });
    const label = `mix ${letter}`;
    this.controls = new Controls({
      members: page.members,
      space: page.mixture().weight_space,
      label,
      changed: (next, isFinal) => this.setWeights(next, isFinal),
    });
    this.reply = new Reply(page.members, label);
    this.measures = new Measures(page.members, label);
    this.facts = make("span", { className: "quiet" });
    this.select = make("select", { "aria-label": `Profile of ${label}`, onchange: () => this.choose(this.select.value) });
    this.again = make("button", { type: "button", className: "plain", onclick: () => (this.run ? this.stop() : this.start()) }, "Run");
    this.again.setAttribute("aria-label", `Run ${label}`);
    const remove = make("button", { type: "button", className: "plain icon", "aria-label": `Remove ${label}`, title: "Remove", onclick: () => page.removed(this) }, "×");
    const curl = make("button", { type: "button", className: "plain", onclick: () => this.copyCurl(curl) }, "Copy as curl");
    this.publish = make("button", { type: "button", className: "plain", onclick: () => page.published(this) }, "Publish");
    this.node = make(
      "section", { className: "card mix", "aria-label": `Mix ${letter}` },
      make("div", { className: "head" }, make("b", { className: "letter", "aria-hidden": "true" }, letter), this.select, this.again, remove),
      this.controls.node,
      make("div", { className: "reply" }, this.reply.error, this.reply.text, this.reply.token),
      this.measures.node,
      make("div", { className: "foot" }, this.facts, make("span", { className: "actions" }, curl, this.publish)),
    );
    this.refresh();
  }

  /** Shows the server's present profiles. */
  refresh() {
    const { profiles, default_profile: standard } = this.page.mixture();
    const names = Object.keys(profiles);
    if (this.profile && profiles[this.profile]) this.weights = profiles[this.profile].weights;
    // Of a removed profile the weights stay; a name that never existed stays, for the server to refuse.
    else if (Object.keys(this.weights).length > 0) this.profile = null;
    else if (this.profile) names.push(this.profile);
    const options = names.map((name) => make("option", { value: name }, name === standard && name !== "default" ? `${name} (default)` : name));
    this.select.replaceChildren(...options, make("option", { value: CUSTOM }, "Custom weights"));
    this.select.value = this.profile ?? CUSTOM;
    this.controls.show(this.weights);
    this.publish.hidden = !this.page.canPublish;
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

  choose(name) {
    this.profile = name === CUSTOM ? null : name;
    this.refresh();
    this.page.changed(this, true);
  }

  setWeights(weights, isFinal) {
    const { profiles } = this.page.mixture();
    if (this.profile && !alike(weights, profiles[this.profile]?.weights ?? {})) {
      this.profile = null;
      this.select.value = CUSTOM;
    }
    this.weights = weights;
    this.page.changed(this, isFinal);
  }

  /** Streams an answer, and aborts one that is running. */
  async start() {
    this.stop();
    const run = new AbortController();
    const began = performance.now();
    const { prompt, options } = this.page.request();
    this.run = run;
    this.hasRun = true;
    this.attribution = null;
    this.showMeasures(1);
    this.reply.clear();
    showError(this.reply.error, null);
    this.facts.textContent = "";
    this.setRunning(true);
    try {
      for await (const part of answer(prompt, { ...options, ...this.preferences() }, run.signal)) {
        if (part.used) this.noteHeaders(part.used);
        else if (part.attribution) this.attribution = part.attribution;
        else this.reply.append(part.text, part.tokens);
      }
      this.finish((performance.now() - began) / 1000);
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

  noteHeaders({ version, weights, requestId }) {
    this.usedWeights = weights;
    this.facts.title = `Request ${requestId}`;
    this.page.sawVersion(version);
  }

  finish(seconds) {
    // In a data-parallel group another engine may have the answer's figures.
    if (this.attribution) this.reply.shade(this.attribution.tokens, this.usedWeights);
    const what = this.attribution ? `${this.attribution.num_tokens} tokens` : "Not attributed";
    this.facts.textContent = `${what}, ${seconds.toFixed(1)} s`;
    announce(`Mix ${this.letter} has answered. ${this.facts.textContent}`);
  }

  showMeasures(scale) {
    this.measures.show(this.attribution, scale);
  }

  setRunning(isRunning) {
    this.again.textContent = isRunning ? "Stop" : "Run";
    this.again.setAttribute("aria-label", `${isRunning ? "Stop" : "Run"} mix ${this.letter}`);
    this.reply.text.setAttribute("aria-busy", isRunning);
    this.node.classList.toggle("running", isRunning);
  }

  copyCurl(button) {
    const { prompt, options } = this.page.request();
    copy(asCurl(prompt, { ...options, ...this.preferences() }), button);
  }
}
