// The page of the reports: it lists them and shows one in a frame, where nothing of it can run.

import { get, getBlob, Refusal, setApiKey, takeKey } from "./api.js";
import { make, showError } from "./elements.js";

const at = (id) => document.getElementById(id);

async function start() {
  let found;
  try {
    found = await get("console/report/index.json");
  } catch (error) {
    if (error.status !== 401) throw error;
    showError(at("gate-error"), at("gate").hidden ? null : "The server does not take this key.");
    at("gate").hidden = false;
    at("key").focus();
    return;
  }
  at("gate").hidden = true;
  at("list").replaceChildren(...found.reports.map(item));
  const none = "No reports yet: “prefmix fit” and “prefmix eval” write them, into the server’s --reports-dir with --report.";
  const more = found.not_listed ? `${found.not_listed} older reports are not listed.` : "";
  at("said").textContent = found.reports.length ? more : none;
  show();
}

function item({ path, modified }) {
  const time = new Date(1000 * modified);
  const name = path.replace(/\/?report\.html$/, "") || "Report";
  return make(
    "li", {},
    make("a", { href: `#${encodeURIComponent(path)}` }, name),
    make("time", { className: "quiet", dateTime: time.toISOString() }, time.toLocaleString()),
  );
}

/** Shows the report that the address names after "#". */
async function show() {
  const path = decodeURIComponent(location.hash.slice(1));
  const frame = at("report");
  URL.revokeObjectURL(frame.src);
  frame.hidden = !path;
  for (const link of at("list").querySelectorAll("a")) {
    link.setAttribute("aria-current", decodeURIComponent(link.hash.slice(1)) === path);
  }
  if (path) frame.src = URL.createObjectURL(await getBlob(`console/report/${path.split("/").map(encodeURIComponent).join("/")}`));
}

function attempt(work) {
  showError(at("start-error"), null);
  work().catch((error) => {
    showError(at("start-error"), error instanceof Refusal ? error.message : String(error));
    if (!(error instanceof Refusal)) throw error;
  });
}

at("gate").addEventListener("submit", (event) => {
  event.preventDefault();
  setApiKey(at("key").value);
  attempt(start);
});
addEventListener("hashchange", () => attempt(show));
takeKey().then(() => attempt(start));
