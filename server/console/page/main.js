// The page: it asks the server what it mixes, and keeps columns, prompt and address in agreement.

import { get, Refusal, setApiKey, shareKey } from "./api.js";
import { copy, make, nameTag, showError } from "./elements.js";
import { klScale } from "./measures.js";
import { Mix } from "./mix.js";
import { openPublishing } from "./publishing.js";
import { fromHash, toHash } from "./weights.js";

const LETTERS = "ABCDEFGH";
const NUM_HUES = 6;
const SETTLE_MS = 350;
const START = { maxTokens: "120", temperature: "1", seed: "233" };

const at = (id) => document.getElementById(id);
const fields = { prompt: at("prompt"), maxTokens: at("max-tokens"), temperature: at("temperature"), seed: at("seed") };

let mixture;
let settings;
let settling;

const page = {
  members: [],
  mixes: [],
  canPublish: false,
  mixture: () => mixture,
  reload: async () => {
    mixture = await get("v1/mixture");
    showFacts();
    for (const mix of page.mixes) mix.refresh();
    remember();
  },
  request: () => {
    const options = { model: mixture.model };
    if (fields.maxTokens.value) options.max_tokens = Number(fields.maxTokens.value);
    if (fields.temperature.value) options.temperature = Number(fields.temperature.value);
    if (fields.seed.value) options.seed = Number(fields.seed.value);
    return { prompt: fields.prompt.value, options };
  },
  changed: (mix, isFinal) => {
    showOthers();
    if (!isFinal) return;
    remember();
    clearTimeout(settling);
    if (at("follow").checked && mix.hasRun) settling = setTimeout(() => run(mix), SETTLE_MS);
  },
  answered: () => {
    const scale = klScale(page.mixes.flatMap((mix) => mix.attribution ?? []));
    for (const mix of page.mixes) mix.showMeasures(scale);
    showRunning();
  },
  // A newer version means that someone else has changed the profiles.
  sawVersion: (version) => { if (version > mixture.version) page.reload(); },
  removed: (mix) => {
    mix.stop();
    page.mixes = page.mixes.filter((each) => each !== mix);
    mix.node.remove();
    page.answered();
    showOthers();
    remember();
    at("add").focus();
  },
  published: (mix) => openPublishing(page, mix),
};

async function start() {
  try {
    settings = await get("console/settings");
    mixture = await get("v1/mixture");
  } catch (error) {
    if (error.status !== 401) throw error;
    showGate();
    return;
  }
  at("gate").hidden = true;
  page.members = mixture.policies.map((policy, index) => ({ ...policy, hue: index % NUM_HUES, title: `${policy.name}: ${policy.model}` }));
  if (mixture.reference) page.members.push({ ...mixture.reference, hue: "reference", isReference: true, title: `${mixture.reference.name} (reference): ${mixture.reference.model}` });
  page.canPublish = settings.admin;
  at("profiles").hidden = !settings.admin;
  at("reports").hidden = !settings.reports;
  at("names").replaceChildren(...page.members.map((member) => make("li", {}, nameTag(member), member.isReference && member.name !== "reference" ? " (reference)" : "")));
  for (const id of ["guide", "composer", "legend", "share"]) at(id).hidden = false;
  showFacts();
  restore();
}

function showGate() {
  // The first time the page only learns that a key is needed.
  showError(at("gate-error"), at("gate").hidden ? null : "The server does not take this key.");
  at("gate").hidden = false;
  at("key").focus();
}

function showFacts() {
  const count = mixture.policies.length;
  const parts = [mixture.model, `${count} ${count === 1 ? "policy" : "policies"}${mixture.reference ? " and a reference" : ""}`];
  if (mixture.weight_space === "affine") parts.push("affine weights");
  parts.push(`weights version ${mixture.version}`);
  at("facts").textContent = parts.join(" · ");
  document.title = `${mixture.model} · mixing console`;
}

/** The first mixes: up to three profiles, or one profile and one policy alone. */
function firstMixes() {
  const names = [mixture.default_profile, ...Object.keys(mixture.profiles).filter((name) => name !== mixture.default_profile)];
  const mixes = names.slice(0, 3).map((profile) => ({ profile }));
  if (mixes.length === 1) mixes.push({ weights: { [mixture.policies[0].name]: 1 } });
  return mixes;
}

/** Restores the page's state from the address. */
function restore() {
  const shared = fromHash(location.hash);
  shared.prompt ??= settings.prompt;
  for (const [name, field] of Object.entries(fields)) field.value = shared[name] ?? START[name] ?? "";
  for (const mix of page.mixes) mix.stop();
  page.mixes = [];
  at("mixes").replaceChildren();
  for (const mix of shared.mixes.length ? shared.mixes : firstMixes()) add(mix);
}

/** Saves the page's state in the address, after "#": browsers do not send that part to a server. */
function remember() {
  const values = Object.fromEntries(Object.entries(fields).map(([name, field]) => [name, field.value]));
  history.replaceState(null, "", `#${toHash({ ...values, mixes: page.mixes })}`);
}

function add(what) {
  const used = page.mixes.map((mix) => mix.letter);
  const letter = [...LETTERS].find((each) => !used.includes(each));
  if (!letter) return;
  const mix = new Mix(page, letter, what);
  page.mixes.push(mix);
  at("mixes").append(mix.node);
  showOthers();
}

/** Marks the other mixes in each triangle. */
function showOthers() {
  const names = mixture.policies.map(({ name }) => name);
  const weights = new Map(page.mixes.map((mix) => [mix, names.map((name) => mix.weights[name] ?? 0)]));
  for (const mix of page.mixes) {
    mix.controls.triangle?.showOthers(page.mixes.filter((each) => each !== mix).map((each) => weights.get(each)));
  }
  at("add").disabled = page.mixes.length === LETTERS.length;
}

function run(...mixes) {
  if (!at("composer").reportValidity()) return;
  for (const mix of mixes) mix.start();
  showRunning();
}

function showRunning() {
  const isRunning = page.mixes.some((mix) => mix.run);
  at("run").textContent = isRunning ? "Stop" : "Run";
}

at("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  if (page.mixes.some((mix) => mix.run)) {
    for (const mix of page.mixes) mix.stop();
    showRunning();
  } else {
    run(...page.mixes);
  }
});
at("composer").addEventListener("change", remember);
fields.prompt.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  run(...page.mixes);
});
at("reseed").addEventListener("click", () => {
  fields.seed.value = Number(fields.seed.value || 0) + 1;
  remember();
  run(...page.mixes);
});
at("add").addEventListener("click", () => {
  const last = page.mixes.at(-1);
  add(last ? { weights: last.weights } : { profile: mixture.default_profile });
  remember();
  page.mixes.at(-1).select.focus();
});
at("share").addEventListener("click", () => { remember(); copy(location.href, at("share")); });
at("profiles").addEventListener("click", () => openPublishing(page));
at("gate").addEventListener("submit", (event) => {
  event.preventDefault();
  setApiKey(at("key").value);
  begin();
});
addEventListener("hashchange", () => { if (mixture) restore(); });

function begin() {
  start().catch((error) => {
    showError(at("start-error"), error instanceof Refusal ? error.message : String(error));
    if (!(error instanceof Refusal)) throw error;
  });
}

shareKey();
begin();
