// What an answer has that the one before it had not, token by token.

const MAX_CELLS = 4_000_000;

/**
 * Compares two lists of texts. Returns {added, numRemoved}: the places in `now` that are in no
 * longest common subsequence, and the number of texts of `before` that are gone.
 */
export function compare(before, now) {
  let start = 0;
  while (start < before.length && start < now.length && before[start] === now[start]) start += 1;
  let end = 0;
  while (end < before.length - start && end < now.length - start && before.at(-1 - end) === now.at(-1 - end)) end += 1;
  const [old, fresh] = [before, now].map((list) => list.slice(start, list.length - end));
  // Of answers too long for the table, the whole middle counts as changed.
  const kept = old.length * fresh.length > MAX_CELLS ? new Set() : commonPlaces(old, fresh);
  const added = fresh.map((_, place) => place).filter((place) => !kept.has(place)).map((place) => place + start);
  return { added, numRemoved: old.length - kept.size };
}

/** The places in `now` of one longest common subsequence. */
function commonPlaces(before, now) {
  const width = now.length + 1;
  const lengths = new Uint16Array((before.length + 1) * width);
  for (let i = before.length - 1; i >= 0; i -= 1) {
    for (let j = now.length - 1; j >= 0; j -= 1) {
      lengths[i * width + j] = before[i] === now[j]
        ? lengths[(i + 1) * width + j + 1] + 1
        : Math.max(lengths[(i + 1) * width + j], lengths[i * width + j + 1]);
    }
  }
  const places = new Set();
  for (let i = 0, j = 0; i < before.length && j < now.length;) {
    if (before[i] === now[j]) {
      places.add(j);
      i += 1;
      j += 1;
    } else if (lengths[(i + 1) * width + j] >= lengths[i * width + j + 1]) i += 1;
    else j += 1;
  }
  return places;
}

/** A comparison in words. */
export function inWords({ added, numRemoved }) {
  if (added.length === 0 && numRemoved === 0) return "Nothing changed: the same answer as in the last run";
  const count = (number) => (number === 1 ? "1 token" : `${number} tokens`);
  if (added.length === 0) return `${count(numRemoved)} of the last run left out`;
  return `${count(added.length)} changed since the last run`;
}
