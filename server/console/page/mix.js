// One column: the choice of weights, the answer, and its attribution to the policies.

import { answer, asCurl, Refusal } from "./api.js";
import { compare, inWords } from "./changes.js";
import { Choice } from "./choice.js";
import { Controls } from "./controls.js";
import { announce, button, classed, copy, make, showError } from "./elements.js";
import { Measures } from "./measures.js";
import { Reply } from "./reply.js";
import { alike, brief } from "./weights.js";

const WAYS = "logits: all policies predict each token. parameters: one model of their mean does, at the cost of one policy";

const SEVERAL = "Answers drawn for each that is shown, which is picked to be as the product of whole sequences would be; not streamed";
const SHARE = "The effective number: all of them if all weigh the same, 1 if one outweighs the others";

export class Mix {
  /**
   * `page` is shared by all columns: members, mixture(), request() -> {system, prompt, options},
   * changed(mix, isFinal), answered(mix), removed(mix), published(mix), compared(mix). `mixing` is the
   * mix's own way to mix, null for the profile's or the server's. `candidates` are drawn for each answer;
   * null: one, streamed. `turns` is the conversation so far, a list of {user, assistant}.
   */
  constructor(page, letter, { profile = null, weights = {}, mixing = null, candidates = null, turns = [] }) {
    Object.assign(this, { page, letter, profile, weights, mixing, candidates, turns, attribution: null, run: null, hasRun: false, last: null });
    const label = `mix ${letter}`;
    this.choice = new Choice(label, (chosen) => this.choose(chosen));
    this.reply = new Reply(page.members, label);
    this.makeControls();
    this.facts = make("span", { className: "quiet" });
    const remove = button("×", () => page.removed(this), { className: "plain icon", "aria-label": `Remove ${label}`, title: "Remove" });
    const curl = button("Copy as curl", () => this.copyCurl(curl));
    const publish = button("Publish", () => page.published(this));
    const ways = page.mixture().ways_to_mix ?? [];
    this.wayChoice = make("select", { className: "way", "aria-label": `Way to mix of ${label}`, title: WAYS, hidden: ways.length < 2, onchange: () => this.setMixing(this.wayChoice.value) }, ...ways.map((way) => make("option", { value: way }, way)));
    const most = page.mixture().candidates?.most ?? 0;
    this.number = make("input", { type: "number", min: 1, max: most, step: 1, inputMode: "numeric", placeholder: "1", value: candidates ?? "", "aria-label": `Candidates of ${label}`, onchange: () => this.setCandidates() });
    this.several = make("label", { className: "several", title: SEVERAL }, "Candidates ", this.number);
    const compare = button("Other way", () => page.compared(this), { hidden: ways.length < 2, title: "Adds the same weights, mixed in the other way" });
    this.node = make(
      "section", { className: "card mix", "aria-label": `Mix ${letter}` },
      classed("div", "head", make("b", { className: "letter", "aria-hidden": "true" }, letter), this.choice.node, this.wayChoice, remove),
      this.controls.node,
      this.reply.node,
      this.measures.node,
      classed("div", "foot", this.facts, this.several, classed("span", "actions", compare, curl, publish)),
    );
    this.reply.showTurns(turns);
    this.refresh();
  }

  makeControls() {
    const label = `mix ${this.letter}`;
    this.controls = new Controls({
      members: this.page.members,
      space: this.page.mixture().weight_space,
      label,
      changed: (next, isFinal) => this.setWeights(next, isFinal),
    });
    this.measures = new Measures(this.page.members, label);
  }

  /** Shows the server's present policies; an answer that is running goes on. */
  showPolicies() {
    const { controls, measures } = this;
    this.makeControls();
    controls.node.replaceWith(this.controls.node);
    measures.node.replaceWith(this.measures.node);
    this.reply.members = this.page.members;
    this.page.answered(this);
  }

  /** Shows the server's present profiles. */
  refresh() {
    const { profiles, default_profile: standard } = this.page.mixture();
    if (this.profile && profiles[this.profile]) this.weights = profiles[this.profile].weights;
    // Of a removed profile the weights stay; a name that never existed stays, for the server to refuse.
    else if (Object.keys(this.weights).length > 0) this.profile = null;
    this.choice.show({ profile: this.profile, weights: this.weights, profiles, standard, members: this.page.members });
    this.controls.show(this.weights);
    this.wayChoice.value = this.way;
    this.showCandidates();
  }

  /** Shows the field for candidates where the server draws some. */
  showCandidates() {
    this.several.hidden = this.way !== "logits" || Number(this.number.max) < 2;
  }

  /** The way to mix of the mix or of its profile; null if the server decides. */
  get ownWay() {
    return this.mixing ?? this.page.mixture().profiles[this.profile]?.mixing ?? null;
  }

  /** The way in which the mix's next answer is mixed. */
  get way() {
    return this.ownWay ?? this.page.mixture().mixing ?? "logits";
  }

  /** The way in which it is not. */
  get otherWay() {
    return this.page.mixture().ways_to_mix.find((way) => way !== this.way);
  }

  /** The fields of a request that choose its weights, its way to mix and its candidates. */
  preferences() {
    const several = this.candidates && !this.several.hidden ? { preference_candidates: this.candidates } : {};
    return { ...this.weighting(), ...(this.mixing ? { preference_mixing: this.mixing } : {}), ...several };
  }

  weighting() {
    if (this.profile) return { preference_profile: this.profile };
    const { weight_space: space, reference } = this.page.mixture();
    const named = { ...this.weights };
    // In the affine space the server computes the reference's weight.
    if (space === "affine" && reference) delete named[reference.name];
    return { preference_weights: brief(named) };
  }

  choose({ profile, weights = this.weights }) {
    Object.assign(this, { mixing: profile ? null : this.ownWay, profile, weights });
    this.refresh();
    this.page.changed(this, true);
  }

  setWeights(weights, isFinal) {
    const { profiles } = this.page.mixture();
    if (this.profile && !alike(weights, profiles[this.profile]?.weights ?? {})) {
      Object.assign(this, { mixing: this.ownWay, profile: null });
    }
    this.weights = weights;
    this.choice.mark(this.profile, weights);
    this.page.changed(this, isFinal);
  }

  setMixing(mixing) {
    this.mixing = mixing;
    this.showCandidates();
    this.page.changed(this, true);
  }

  setCandidates() {
    if (!this.number.reportValidity()) return;
    this.candidates = Number(this.number.value) > 1 ? Number(this.number.value) : null;
    this.page.changed(this, true);
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
    this.picked = null;
    this.showMeasures(1);
    this.reply.clear();
    this.showFacts("");
    this.setRunning(true);
    const isAttributed = this.way === "logits";
    const options = { ...this.page.request().options, ...this.preferences() };
    try {
      for await (const part of answer(messages, options, { signal: run.signal, isAttributed })) {
        if (part.used) this.noteHeaders(part.used);
        else if (part.attribution) this.attribution = part.attribution;
        else if (part.candidates) this.picked = part.candidates;
        else this.reply.append(part.text, part.tokens);
      }
      this.finish((performance.now() - began) / 1000, messages, isAttributed);
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
    this.showFacts("");
    this.reply.clear();
    this.reply.showTurns(this.turns);
  }

  noteHeaders({ version, weights, requestId }) {
    this.usedWeights = weights;
    this.facts.title = `Request ${requestId}`;
    this.page.sawVersion(version);
  }

  finish(seconds, messages, isAttributed) {
    // In a data-parallel group another engine may have the answer's figures.
    if (this.attribution) this.reply.shade(this.attribution.tokens, this.usedWeights);
    const unknown = isAttributed ? "Not attributed" : "One model of mixed parameters";
    const what = this.attribution ? `${this.attribution.num_tokens} tokens` : unknown;
    this.showFacts(`${what}, ${seconds.toFixed(1)} s`);
    const { tokens, text } = this.reply;
    const isComparable = this.last && JSON.stringify(this.last.messages) === JSON.stringify(messages);
    const changes = isComparable ? compare(this.last.tokens, tokens) : null;
    const said = changes ? inWords(changes) : "";
    this.reply.markChanges(changes?.added ?? [], said);
    this.last = { messages, tokens, text };
    announce(`Mix ${this.letter} has answered. ${this.facts.textContent}. ${said}`);
  }

  /** Shows a line on the answer, and behind it how much its candidates count. */
  showFacts(text) {
    this.facts.replaceChildren(text);
    if (!text || !this.picked) return;
    const { num_candidates: number, ess, warning } = this.picked;
    const share = `${number} candidates count as ${ess.toFixed(1)} (${Math.round((100 * ess) / number)} %)`;
    this.facts.append(", ", make("span", { className: warning ? "low" : "", title: warning ?? SHARE }, warning ? `${share}: too few` : share));
  }

  showMeasures(scale) {
    this.measures.show(this.attribution, scale);
  }

  setRunning(isRunning) {
    this.reply.area.setAttribute("aria-busy", isRunning);
    this.node.classList.toggle("running", isRunning);
  }

  copyCurl(button) {
    copy(asCurl(this.messages(), { ...this.page.request().options, ...this.preferences() }, { isAttributed: this.way === "logits" }), button);
  }
}
