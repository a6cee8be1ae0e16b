// The page of the reports: it lists them and shows one in a frame, where nothing of it can run.

import { get, getBlob, takeKey } from "./api.js";
import { at, make } from "./elements.js";
import { attempt, enter } from "./gate.js";

async function start() {
  const found = await get("console/report/index.json");
  at("list").replaceChildren(...found.reports.map(item));
  const none = "No reports yet: “prefmix fit” and “prefmix eval” write them, into the server’s --reports-dir with --report.";
  const more = found.not_listed ? `${found.not_listed} older reports are not listed.` : "";
  at("said").textContent = found.reports.length ? more : none;
  attempt(show);
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

addEventListener("hashchange", () => attempt(show));
takeKey().then(() => enter(start));
