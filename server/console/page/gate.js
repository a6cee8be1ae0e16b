// The way into a page: it asks for the API key where the server has one, and shows what goes wrong.

import { Refusal, setApiKey } from "./api.js";
import { at, showError } from "./elements.js";

const [gate, key, refused, place] = ["gate", "key", "gate-error", "start-error"].map(at);

/** Runs `start`, and again with each key that is typed. */
export function enter(start) {
  const open = async () => {
    await start();
    gate.hidden = true;
  };
  gate.addEventListener("submit", (event) => {
    event.preventDefault();
    setApiKey(key.value);
    attempt(open);
  });
  attempt(open);
}

/** Runs what may be refused. */
export function attempt(work) {
  showError(place, null);
  work().catch((error) => {
    if (error.status === 401) return askForKey();
    showError(place, error instanceof Refusal ? error.message : String(error));
    if (!(error instanceof Refusal)) throw error;
  });
}

function askForKey() {
  // The first time the page only learns that a key is needed.
  showError(refused, gate.hidden ? null : "The server does not take this key.");
  gate.hidden = false;
  key.focus();
}
