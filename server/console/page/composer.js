// What is asked: the prompt, the system prompt and the settings, and the turns before this one.

import { at, make } from "./elements.js";

const FIELDS = {
  prompt: at("prompt"),
  system: at("system"),
  maxTokens: at("max-tokens"),
  temperature: at("temperature"),
  topP: at("top-p"),
  seed: at("seed"),
};
const START = { maxTokens: "200", seed: "1" };
const OPTIONS = { maxTokens: "max_tokens", temperature: "temperature", topP: "top_p", seed: "seed" };

/** The text boxes of policies whose system text a request may give: name -> textarea. */
let ownPrompts = new Map();

/** The prompts of earlier turns; each mix has its own answers to them. */
let earlier = [];

/** Fits the form to the model; `settings` are the server's, `prompted` the members that requests may give system texts. */
export function prepare(model, settings, prompted) {
  FIELDS.prompt.placeholder = settings.chat ? `Ask ${model}` : `Begin a text; ${model} goes on with it`;
  at("system-label").hidden = !settings.chat;
  if (!settings.chat) at("options-title").textContent = "Length, temperature";
  const box = ({ name, has_prompt: hasPrompt }) => [name, make("textarea", { rows: 1, placeholder: hasPrompt ? "the server’s own" : "none", value: ownPrompts.get(name)?.value ?? "" })];
  ownPrompts = new Map(settings.chat ? prompted.map(box) : []);
  at("own-prompts").replaceChildren(...[...ownPrompts].map(([name, field]) => make("label", { className: "wide" }, `System prompt of ${name} alone `, field)));
  at("own-prompts").hidden = ownPrompts.size === 0;
}

/** Shows the values of an address, or the first ones. */
export function restore(shared, prompt) {
  for (const [name, field] of Object.entries(FIELDS)) field.value = shared[name] ?? START[name] ?? "";
  FIELDS.prompt.value = shared.prompt ?? prompt ?? "";
  const own = ownTexts(shared.own);
  for (const [name, field] of ownPrompts) field.value = own[name] ?? "";
  // A setting that is not the model's own must not be out of sight.
  at("options").open = ["system", "temperature", "topP"].some((name) => FIELDS[name].value) || Object.keys(written()).length > 0;
  earlier = [];
  showTurn();
}

/** The values that an address keeps. Answers are not among them, so it begins at the first turn. */
export function values() {
  const given = Object.entries(FIELDS).filter(([name, field]) => field.value || name in START);
  const own = Object.keys(written()).length ? { own: JSON.stringify(written()) } : {};
  return { ...Object.fromEntries(given.map(([name, field]) => [name, field.value])), ...own, prompt: earlier[0] ?? FIELDS.prompt.value };
}

/** The texts that are given, by policy. */
function written() {
  return Object.fromEntries([...ownPrompts].map(([name, field]) => [name, field.value.trim()]).filter(([, text]) => text));
}

/** The texts of an address, which may hold anything. */
function ownTexts(text) {
  try {
    const own = JSON.parse(text ?? "{}");
    return Object.fromEntries(Object.entries(own ?? {}).filter(([, value]) => typeof value === "string"));
  } catch {
    return {};
  }
}

/** The request without weights: {system, prompt, options}. */
export function request(model) {
  const options = { model };
  for (const [name, option] of Object.entries(OPTIONS)) if (FIELDS[name].value) options[option] = Number(FIELDS[name].value);
  const own = written();
  if (Object.keys(own).length) options.preference_prompts = own;
  return { system: FIELDS.system.value.trim(), prompt: FIELDS.prompt.value, options };
}

/** Makes room for the next prompt; `asked` is the one before it. */
export function nextTurn(asked) {
  earlier.push(asked);
  if (FIELDS.prompt.value === asked) FIELDS.prompt.value = "";
  showTurn();
  FIELDS.prompt.focus();
}

/** Goes back to the first prompt. */
export function firstTurn() {
  FIELDS.prompt.value = earlier[0] ?? FIELDS.prompt.value;
  earlier = [];
  showTurn();
}

/** Takes the next seed, for answers that are drawn anew. */
export function nextSeed() {
  FIELDS.seed.value = Number(FIELDS.seed.value || 0) + 1;
}

function showTurn() {
  at("turn").hidden = earlier.length === 0;
  at("turn-text").textContent = `Turn ${earlier.length + 1}. Each mix goes on from its own answer.`;
}
