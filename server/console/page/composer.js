// What is asked: the prompt, the system prompt and the settings, and the turns before this one.

const at = (id) => document.getElementById(id);

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

/** The prompts of earlier turns; each mix has its own answers to them. */
let earlier = [];

/** Fits the form to the model; `settings` are the server's. */
export function prepare(model, settings) {
  FIELDS.prompt.placeholder = settings.chat ? `Ask ${model}` : `Begin a text; ${model} goes on with it`;
  at("system-label").hidden = !settings.chat;
  if (!settings.chat) at("options-title").textContent = "Length, temperature";
}

/** Shows the values of an address, or the first ones. */
export function restore(shared, prompt) {
  for (const [name, field] of Object.entries(FIELDS)) field.value = shared[name] ?? START[name] ?? "";
  FIELDS.prompt.value = shared.prompt ?? prompt ?? "";
  // A setting that is not the model's own must not be out of sight.
  at("options").open = ["system", "temperature", "topP"].some((name) => FIELDS[name].value);
  earlier = [];
  showTurn();
}

/** The values that an address keeps. Answers are not among them, so it begins at the first turn. */
export function values() {
  const given = Object.entries(FIELDS).filter(([name, field]) => field.value || name in START);
  return { ...Object.fromEntries(given.map(([name, field]) => [name, field.value])), prompt: earlier[0] ?? FIELDS.prompt.value };
}

/** The request without weights: {system, prompt, options}. */
export function request(model) {
  const options = { model };
  for (const [name, option] of Object.entries(OPTIONS)) if (FIELDS[name].value) options[option] = Number(FIELDS[name].value);
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
