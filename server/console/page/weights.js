// Calculations on weights, plain objects {member: number}, without the page.

const DIGITS = 4;
const KEYS = { prompt: "p", system: "sys", own: "own", maxTokens: "n", temperature: "t", topP: "tp", seed: "s" };

/** Sets one weight on the simplex. The others keep their ratios, or get those of `ratios` if all are 0. */
export function withWeight(weights, name, value, ratios) {
  const others = Object.keys(weights).filter((other) => other !== name);
  const share = Math.min(1, Math.max(0, value));
  if (others.length === 0) return { [name]: 1 };
  let source = [weights, ratios].find((each) => each && total(each, others) > 1e-9);
  source ??= Object.fromEntries(others.map((other) => [other, 1]));
  const sum = total(source, others);
  const result = {};
  for (const key of Object.keys(weights)) {
    result[key] = key === name ? share : ((1 - share) * source[key]) / sum;
  }
  return result;
}

/** The sum of some weights. */
export function total(weights, names) {
  return names.reduce((sum, name) => sum + (weights[name] ?? 0), 0);
}

/** Weights for a request: rounded to four digits, without zeros. */
export function brief(weights) {
  const rounded = Object.entries(weights).map(([name, value]) => [name, Number(value.toFixed(DIGITS))]);
  return Object.fromEntries(rounded.filter(([, value]) => value !== 0));
}

/** True if two weight vectors are equal up to rounding. */
export function alike(one, other) {
  const names = new Set([...Object.keys(one), ...Object.keys(other)]);
  return [...names].every((name) => Math.abs((one[name] ?? 0) - (other[name] ?? 0)) < 1e-6);
}

/** The one member that has all the weight, or null. */
export function aloneIn(weights) {
  const names = Object.keys(weights).filter((name) => Math.abs(weights[name]) > 1e-9);
  return names.length === 1 && Math.abs(weights[names[0]] - 1) < 1e-9 ? names[0] : null;
}

/** Writes the page's state as the part of an address after "#". */
export function toHash({ mixes, ...values }) {
  const words = new URLSearchParams(Object.entries(KEYS).filter(([name]) => values[name] !== undefined).map(([name, key]) => [key, values[name]]));
  for (const mix of mixes) {
    const pairs = Object.entries(brief(mix.weights)).map(([name, value]) => `${name}:${value}`);
    words.append("mix", (mix.profile ? `@${mix.profile}` : pairs.join(",")) + (mix.candidates ? `*${mix.candidates}` : "") + (mix.mixing ? `~${mix.mixing}` : ""));
  }
  return words.toString().replace(/%(2C|3A|40|7E)/g, decodeURIComponent);
}

/** Reads what toHash wrote. Missing values are undefined; numbers stay strings. */
export function fromHash(text) {
  const words = new URLSearchParams(text.replace(/^#/, ""));
  const mixes = words.getAll("mix").map((whole) => {
    const [drawn, mixing = null] = whole.split("~"); // no name has one, nor a *
    const [word, count] = drawn.split("*");
    const candidates = Number(count) > 1 ? Number(count) : null;
    if (word.startsWith("@")) return { profile: word.slice(1), mixing, candidates };
    const pairs = word.split(",").map((pair) => {
      const at = pair.lastIndexOf(":");
      return [pair.slice(0, at), Number(pair.slice(at + 1))];
    });
    return { weights: Object.fromEntries(pairs.filter(([name, value]) => name && Number.isFinite(value))), mixing, candidates };
  });
  const values = Object.entries(KEYS).filter(([, key]) => words.has(key)).map(([name, key]) => [name, words.get(key)]);
  return { ...Object.fromEntries(values), mixes };
}
