// The page: it asks the server what it mixes, and keeps columns, prompt and address in agreement.

import { get, setChat, shareKey } from "./api.js";
import * as composer from "./composer.js";
import { at, copy, make, nameTag } from "./elements.js";
import { enter } from "./gate.js";
import { klScale } from "./measures.js";
import { Mix } from "./mix.js";
import { openPolicies } from "./policies.js";
import { openPublishing } from "./publishing.js";
import { showMixes, showTabs } from "./tabs.js";
import { fromHash, toHash } from "./weights.js";

const LETTERS = "ABCDEFGH";
const NUM_HUES = 16;
const LONG_NAME = 14; // characters that fit beside a slider in any usual font
const SETTLE_MS = 350;

let mixture;
let settings;
let settling;
const hues = new Map(); // a policy that comes or goes leaves the others their colours

const page = {
  members: [],
  mixes: [],
  canPublish: false,
  mixture: () => mixture,
  reload: async () => {
    mixture = await get("v1/mixture");
    if (showPolicies()) for (const mix of page.mixes) mix.showPolicies();
    for (const mix of page.mixes) mix.refresh();
    showWeights();
    remember();
  },
  request: () => composer.request(mixture.model),
  changed: (mix, isFinal) => {
    showWeights();
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
    showWeights();
    remember();
    at("add").focus();
  },
  published: (mix) => openPublishing(page, mix),
  // Shows the same weights in the other way to mix, beside the mix.
  compared: (mix) => {
    const twin = add({ profile: mix.profile, weights: mix.weights, mixing: mix.otherWay, turns: mix.turns });
    if (!twin) return;
    mix.node.after(twin.node);
    page.mixes = [...at("mixes").children].map((node) => page.mixes.find((each) => each.node === node));
    showWeights();
    remember();
    run(...(mix.hasRun ? [twin] : [mix, twin]));
  },
};

async function start() {
  [settings, mixture] = [await get("console/settings"), await get("v1/mixture")];
  setChat(settings.chat);
  page.canPublish = settings.admin;
  showPolicies();
  at("reports").hidden = !settings.reports;
  for (const id of ["guide", "composer", "legend", "share", "profiles"]) at(id).hidden = false;
  at("policies").hidden = !settings.admin;
  restore();
}

/** Shows the server's present policies; false if they are those that were shown. */
function showPolicies() {
  const hueOf = (name) => hues.get(name) ?? hues.set(name, hues.size % NUM_HUES).get(name);
  const members = mixture.policies.map((policy) => ({ ...policy, hue: hueOf(policy.name), title: `${policy.name}: ${policy.model}` }));
  if (mixture.reference) members.push({ ...mixture.reference, hue: "reference", isReference: true, title: `${mixture.reference.name} (reference): ${mixture.reference.model}` });
  if (JSON.stringify(members) === JSON.stringify(page.members)) return false;
  page.members = members;
  composer.prepare(mixture.model, settings, mixture.request_prompts ? members : []);
  document.body.classList.toggle("long-names", members.some(({ name }) => name.length > LONG_NAME));
  at("names").replaceChildren(...members.map((member) => make("li", {}, nameTag(member, member.isReference && member.name !== "reference" ? " (reference)" : ""))));
  showTitle();
  return true;
}

function showTitle() {
  const count = mixture.policies.length;
  const parts = ["prefmix", `${count} ${count === 1 ? "policy" : "policies"}${mixture.reference ? " and a reference" : ""}`];
  if (mixture.weight_space === "affine") parts.push("affine weights");
  at("title").textContent = mixture.model;
  at("facts").textContent = parts.join(" · ");
  document.title = `${mixture.model} · mixing console`;
}

/** The first mixes: two members alone, as far apart as weights can be. */
function firstMixes() {
  return page.members.slice(0, 2).map(({ name }) => ({ weights: { [name]: 1 } }));
}

/** Restores the page's state from the address. */
function restore() {
  const shared = fromHash(location.hash);
  composer.restore(shared, settings.prompt);
  for (const mix of page.mixes) mix.stop();
  page.mixes = [];
  at("mixes").replaceChildren();
  for (const mix of shared.mixes.length ? shared.mixes : firstMixes()) add(mix);
  showRunning();
}

/** Saves the page's state in the address, after "#": browsers do not send that part to a server. */
function remember() {
  history.replaceState(null, "", `#${toHash({ ...composer.values(), mixes: page.mixes })}`);
}

function add(what) {
  const used = page.mixes.map((mix) => mix.letter);
  const letter = [...LETTERS].find((each) => !used.includes(each));
  if (!letter) return null;
  const mix = new Mix(page, letter, what);
  page.mixes.push(mix);
  at("mixes").append(mix.node);
  showWeights();
  return mix;
}

/** Shows the weights of all mixes where they stand side by side: in the triangles and the tabs. */
function showWeights() {
  const names = mixture.policies.map(({ name }) => name);
  const weights = new Map(page.mixes.map((mix) => [mix, names.map((name) => mix.weights[name] ?? 0)]));
  for (const mix of page.mixes) {
    mix.controls.triangle?.showOthers(page.mixes.filter((each) => each !== mix).map((each) => weights.get(each)));
  }
  showTabs(page.mixes, page.members);
  at("add").disabled = page.mixes.length === LETTERS.length;
}

function run(...mixes) {
  if (!at("composer").reportValidity()) return;
  for (const mix of mixes) mix.start();
  showRunning();
}

function runAll() {
  clearTimeout(settling); // what it would run is run now
  run(...page.mixes);
  showMixes();
}

function stopAll() {
  for (const mix of page.mixes) mix.stop();
  showRunning();
}

function showRunning() {
  const isRunning = page.mixes.some((mix) => mix.run);
  at("run").textContent = isRunning ? "Stop" : "Run";
  at("follow-up").hidden = isRunning || !settings.chat || !page.mixes.some((mix) => mix.last);
}

at("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  if (page.mixes.some((mix) => mix.run)) stopAll();
  else runAll();
});
at("composer").addEventListener("change", remember);
at("prompt").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  runAll();
});
at("reseed").addEventListener("click", () => {
  composer.nextSeed();
  remember();
  runAll();
});
at("follow-up").addEventListener("click", () => {
  composer.nextTurn(page.mixes.find((mix) => mix.last).last.messages.at(-1).content);
  for (const mix of page.mixes) mix.nextTurn();
  page.answered();
});
at("restart").addEventListener("click", () => {
  composer.firstTurn();
  for (const mix of page.mixes) mix.firstTurn();
  page.answered();
});
at("add").addEventListener("click", () => {
  const last = page.mixes.at(-1);
  add(last ? { weights: last.weights, mixing: last.ownWay, candidates: last.candidates, turns: last.turns } : { profile: mixture.default_profile });
  remember();
  page.mixes.at(-1).choice.select.focus();
});
at("share").onclick = () => { remember(); copy(location.href, at("share")); };
at("profiles").onclick = () => openPublishing(page);
at("policies").onclick = () => openPolicies(page);
addEventListener("hashchange", () => { if (mixture) restore(); });

shareKey();
enter(start);
