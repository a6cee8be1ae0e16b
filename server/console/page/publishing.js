// The dialog for users with an admin token: publish a mix as a profile, see the history, roll back.

import { administer, hasAdminToken, setAdminToken } from "./api.js";
import { announce, make, nameTag, showError } from "./elements.js";
import { brief } from "./weights.js";

const dialog = document.getElementById("publishing");
const body = document.getElementById("publishing-body");

/** Opens the dialog. `page` is main.js's object, `mix` the column to publish. */
export async function openPublishing(page, mix = page.mixes[0]) {
  if (!dialog.open) dialog.showModal();
  if (!page.canPublish) return showProfiles(page);
  if (!hasAdminToken()) return askForToken(page, mix);
  return showPanel(page, mix);
}

/** What a server without admin routes can show: its profiles, and how they would change. */
function showProfiles(page) {
  const { profiles, default_profile: standard } = page.mixture();
  const rows = Object.entries(profiles).map(([name, { weights }]) => make(
    "li", {}, make("b", {}, name === standard ? `${name} (default)` : name), make("p", { className: "facts" }, ...weightFacts(page, weights)),
  ));
  body.replaceChildren(
    make("p", {}, "Publishing a mix as a profile changes what the server serves, so it needs an admin token. This page’s server has none, or has its admin routes on another port: start it with PREFMIX_ADMIN_TOKEN_FILE and without --admin-port."),
    make("ul", { className: "profiles" }, ...rows),
  );
}

function weightFacts(page, weights) {
  return Object.entries(brief(weights)).map(([member, value]) =>
    make("span", { className: "fact" }, nameTag(page.members.find((each) => each.name === member) ?? { name: member }), ` ${value.toFixed(2)}`));
}

function askForToken(page, mix, message) {
  const field = make("input", { id: "token", type: "password", autocomplete: "off", spellcheck: false, required: true });
  const error = make("p", { className: "error", role: "alert", hidden: true });
  showError(error, message);
  const form = make(
    "form", { className: "stack", onsubmit: (event) => { event.preventDefault(); setAdminToken(field.value); showPanel(page, mix); } },
    make("p", {}, "Publishing a mix as a profile changes what the server serves to everyone, so it asks for the admin token: the one in the server’s PREFMIX_ADMIN_TOKEN_FILE or PREFMIX_ADMIN_TOKEN."),
    make("label", { for: "token" }, "Admin token"),
    make("div", { className: "line" }, field, make("button", { className: "solid" }, "Open")),
    error,
    make("p", { className: "quiet" }, "Kept in this page’s memory only, until it is closed or reloaded."),
  );
  body.replaceChildren(form);
  field.focus();
}

async function showPanel(page, mix, message, isError = false) {
  let versions;
  try {
    ({ versions } = await administer("GET", "weights/history"));
  } catch (error) {
    if (error.status === 401) {
      setAdminToken("");
      return askForToken(page, mix, "The server does not take this token.");
    }
    const place = make("p", { className: "error", role: "alert" }, error.message);
    return body.replaceChildren(...(mix ? [publishForm(page, mix)] : []), place);
  }
  const said = make("p", { className: isError ? "error" : "said", role: isError ? "alert" : "status", hidden: !message }, message ?? "");
  body.replaceChildren(publishForm(page, mix), said, history(page, mix, versions));
}

/** Makes a change, then shows the panel with its result. */
async function change(page, mix, work) {
  let message;
  let isError = false;
  try {
    message = await work();
    announce(message);
  } catch (error) {
    message = error.message;
    isError = true;
  }
  try {
    await page.reload();
  } catch (error) {
    message = error.message;
    isError = true;
  }
  await showPanel(page, mix, message, isError);
}

function publishForm(page, mix) {
  const source = make(
    "select", { id: "source", onchange: () => showPanel(page, page.mixes.find(({ letter }) => letter === source.value)) },
    ...page.mixes.map(({ letter }) => make("option", { value: letter, selected: letter === mix.letter }, `Mix ${letter}`)),
  );
  const name = make("input", { id: "profile-name", autocomplete: "off", spellcheck: false, required: true, placeholder: "name", list: "profile-names" });
  const standard = make("input", { type: "checkbox", id: "make-default" });
  const names = make("datalist", { id: "profile-names" }, ...Object.keys(page.mixture().profiles).map((each) => make("option", { value: each })));
  const submit = (event) => {
    event.preventDefault();
    change(page, mix, () => publish(page, mix, name.value, standard.checked));
  };
  return make(
    "form", { className: "stack publish", onsubmit: submit },
    make("div", { className: "line" }, make("label", { for: "source" }, "Publish"), source, make("label", { for: "profile-name" }, "as"), name, names),
    make("p", { className: "facts" }, ...weightFacts(page, mix.weights)),
    make("div", { className: "line between" }, make("label", { className: "check" }, standard, " Make it the default"), make("button", { className: "solid" }, "Publish")),
  );
}

async function publish(page, mix, name, isDefault) {
  const weights = brief(mix.weights);
  const put = { weights, ...(mix.ownWay ? { mixing: mix.ownWay } : {}), provenance: { by: "mixing console" } };
  // The version makes the server refuse if someone else has changed the profiles since.
  let done = await administer("PUT", `profiles/${encodeURIComponent(name)}`, { body: put, version: page.mixture().version });
  if (isDefault) done = await administer("PUT", "default", { body: { profile: name }, version: done.version });
  Object.assign(mix, { profile: name, mixing: null });
  return `${name} is published, version ${done.version}`;
}

function history(page, mix, versions) {
  const current = page.mixture().version;
  const rows = versions.map((entry, index) => {
    const isCurrent = entry.version === current;
    const back = make("button", { type: "button", className: "plain", onclick: () => change(page, mix, () => rollBack(page, entry.version)) }, "Roll back");
    back.setAttribute("aria-label", `Roll back to version ${entry.version}`);
    return make(
      "li", { className: isCurrent ? "current" : "" },
      make("b", {}, String(entry.version)),
      make("span", {}, difference(entry, versions[index - 1])),
      isCurrent ? make("span", { className: "quiet" }, "in force") : back,
    );
  });
  return make("section", {}, make("h3", {}, "History"), make("ol", { className: "history" }, ...rows.reverse()));
}

async function rollBack(page, version) {
  const done = await administer("POST", "weights/rollback", { body: { version }, version: page.mixture().version });
  return `Version ${done.version} has the content of version ${version}`;
}

/** A version's changes, in a few words. */
function difference(now, before) {
  if (!before) return `${Object.keys(now.profiles).length} profiles, the oldest version kept`;
  const words = [];
  for (const name of Object.keys(now.profiles)) {
    if (!before.profiles[name]) words.push(`${name} added`);
    else if (content(now, name) !== content(before, name)) words.push(`${name} changed`);
  }
  for (const name of Object.keys(before.profiles)) if (!now.profiles[name]) words.push(`${name} removed`);
  if (now.default_profile !== before.default_profile) words.push(`default is ${now.default_profile}`);
  return words.join(", ") || "same weights";
}

/** A profile as it counts: its weights and its way to mix. */
function content({ profiles }, name) {
  const { weights, mixing } = profiles[name];
  return JSON.stringify([weights, mixing]);
}
