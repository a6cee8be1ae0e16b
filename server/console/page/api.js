// Calls of the server's API. The key and the admin token are kept in this module's memory only.

const BASE = new URL("..", import.meta.url);
const CHAT = "v1/chat/completions";
const COMPLETIONS = "v1/completions";

let apiKey = "";
let adminToken = "";
let hasChatTemplate = true;

/** Says if the model takes conversations; otherwise it goes on with a text. */
export const setChat = (chat) => { hasChatTemplate = chat; };
export const setApiKey = (key) => { apiKey = key; };
export const setAdminToken = (token) => { adminToken = token; };
export const hasAdminToken = () => adminToken !== "";

const BROKEN_OFF = "The answer broke off: the server or its engine has gone.";
const ASK = "prefmix: the API key, please";

/** Gives the API key to pages of this server that this page has opened. */
export function shareKey() {
  addEventListener("message", ({ origin, source, data }) => {
    if (origin === location.origin && data === ASK) source.postMessage({ apiKey }, location.origin);
  });
}

/** Takes over the API key of the page that has opened this one; waits for it half a second. */
export function takeKey() {
  if (!window.opener) return Promise.resolve();
  return new Promise((resolve) => {
    addEventListener("message", ({ origin, data }) => {
      if (origin !== location.origin || typeof data?.apiKey !== "string") return;
      apiKey = data.apiKey;
      resolve();
    });
    window.opener.postMessage(ASK, location.origin);
    setTimeout(resolve, 500);
  });
}

/** A refusal with the server's message; status 0 if the server did not answer. */
export class Refusal extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

/** Sends a GET request with the API key. Returns the answer's JSON. */
export const get = async (path) => (await send(path, { secret: apiKey })).json();

/** Sends a GET request with the API key. Returns the answer's bytes. */
export const getBlob = async (path) => (await send(path, { secret: apiKey })).blob();

/** Sends a request to an admin route with the admin token. Returns the answer's JSON. */
export async function administer(method, path, { body, version } = {}) {
  const headers = version === undefined ? {} : { "if-match": String(version) };
  return (await send(`admin/${path}`, { method, body, headers, secret: adminToken })).json();
}

/**
 * Streams one answer: first {used}, then pieces {text, tokens}, then {attribution}. One that is picked
 * from candidates comes in one piece, once they are complete, and then {candidates}.
 * `messages` is a conversation; of one that the model does not take only the last text is sent.
 * The server refuses `isAttributed` where parameters are mixed.
 */
export async function* answer(messages, options, { signal, isAttributed }) {
  const stream = !options.preference_candidates;
  const [path, body] = request(messages, { ...options, stream }, { withTokens: true, isAttributed });
  const response = await send(path, { method: "POST", body, secret: apiKey, signal });
  const header = (name) => response.headers.get(name) ?? "";
  yield {
    used: {
      version: Number(header("x-prefmix-weights-version")),
      weights: weightsOf(header("x-prefmix-weights")),
      requestId: header("x-request-id"),
    },
  };
  for await (const data of stream ? events(response) : whole(response)) {
    if (data.error) throw new Refusal(data.error.message, data.error.code);
    const choice = data.choices?.[0];
    if (!choice) continue;
    const tokens = choice.logprobs?.content?.map((each) => each.token) ?? choice.logprobs?.tokens ?? [];
    yield { text: choice.delta?.content ?? choice.message?.content ?? choice.text ?? "", tokens };
    if (choice.preference_attribution) yield { attribution: choice.preference_attribution };
    if (choice.preference_candidates) yield { candidates: choice.preference_candidates };
  }
}

/** The same request as a shell command. The key appears as $API_KEY, never with its value. */
export function asCurl(messages, options, { isAttributed }) {
  const [path, body] = request(messages, options, { withTokens: false, isAttributed });
  const quoted = JSON.stringify(body).replaceAll("'", "'\\''");
  const key = apiKey ? ' \\\n  -H "authorization: Bearer $API_KEY"' : "";
  return `curl -s ${new URL(path, BASE)} \\\n  -H "content-type: application/json"${key} \\\n  -d '${quoted}'`;
}

function request(messages, options, { withTokens, isAttributed }) {
  const attribution = isAttributed ? { preference_attribution: withTokens ? "tokens" : true } : {};
  if (hasChatTemplate) {
    const logprobs = withTokens ? { logprobs: true } : {};
    return [CHAT, { ...options, messages, ...logprobs, ...attribution }];
  }
  const logprobs = withTokens ? { logprobs: 0 } : {};
  return [COMPLETIONS, { ...options, prompt: messages.at(-1).content, ...logprobs, ...attribution }];
}

async function send(path, { method = "GET", body, headers = {}, secret, signal }) {
  const sent = { ...headers };
  if (secret) sent.authorization = `Bearer ${secret}`;
  if (body !== undefined) sent["content-type"] = "application/json";
  let response;
  try {
    response = await fetch(new URL(path, BASE), {
      method, signal, headers: sent, body: body && JSON.stringify(body), cache: "no-store", credentials: "omit",
      redirect: "error", // the key or token must not follow to another place
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refusal("The server does not answer. It may have stopped, or the connection is gone.", 0);
  }
  if (!response.ok) throw new Refusal(await message(response), response.status);
  return response;
}

/** "helpful=0.75,harmless=0.25" as an object. */
function weightsOf(text) {
  return Object.fromEntries(text.split(",").map((pair) => [pair.split("=")[0], Number(pair.split("=")[1])]));
}

async function message(response) {
  const text = await response.text();
  const wait = response.headers.get("retry-after");
  try {
    return JSON.parse(text).error.message + (wait ? ` (Retry-After: ${wait} s)` : "");
  } catch {
    return `The server answered ${response.status} ${response.statusText}`.trim();
  }
}

/** The JSON of an answer that is no stream. */
async function* whole(response) {
  try {
    yield await response.json();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refusal(BROKEN_OFF, 0);
  }
}

/** The JSON of each server-sent event. */
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let isWhole = false;
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) break;
      const parts = (rest + value).split("\n\n");
      rest = parts.pop();
      for (const part of parts) {
        const data = part.replace(/^data: /, "");
        if (data === "[DONE]") isWhole = true;
        else if (data.startsWith("{")) yield JSON.parse(data);
      }
    }
  } catch (error) {
    if (error.name === "AbortError" || error instanceof Refusal) throw error;
    throw new Refusal(BROKEN_OFF, 0);
  }
  if (!isWhole) throw new Refusal(BROKEN_OFF, 0);
}
