// The dialog for users with an admin token: publish a mix, see the history, roll back.

import { administer, hasAdminToken, setAdminToken } from "./api.js";
import { announce, at, button, checkbox, classed, make, nameTag } from "./elements.js";
import { brief } from "./weights.js";

const dialog = at("publishing");
const title = at("publishing-title");
const PUBLISHING = "Publishing a mix as a profile changes what the server serves";

export const body = at("publishing-body");

/** Opens the dialog. `page` is main.js's object, `mix` the column to publish. */
export async function openPublishing(page, mix = page.mixes[0]) {
  return openDialog("Profiles", ...(page.canPublish ? [PUBLISHING, () => showPanel(page, mix)] : [null, () => showProfiles(page)]));
}

/** Opens the dialog; asks for the admin token first if `what` needs it and it is not known yet. */
export function openDialog(name, what, show) {
  title.textContent = name;
  if (!dialog.open) dialog.showModal();
  return what && !hasAdminToken() ? askForToken(what, show) : show();
}

function showProfiles(page) {
  const { profiles, default_profile: standard } = page.mixture();
  const rows = Object.entries(profiles).map(([name, { weights }]) => make(
    "li", {}, make("b", {}, name === standard ? `${name} (default)` : name), classed("p", "facts", ...weightFacts(page, weights)),
  ));
  body.replaceChildren(
    make("p", {}, `${PUBLISHING}, so it needs an admin token. This page’s server has none, or has its admin routes on another port: start it with PREFMIX_ADMIN_TOKEN_FILE and without --admin-port.`),
    make("ul", { className: "profiles" }, ...rows),
    ...dormant(page),
  );
}

const dormant = (page) => Object.entries(page.mixture().dormant_profiles)
  .map(([name, { absent }]) => make("p", {}, `${name} is dormant: it waits for ${absent.join(", ")}`));

function weightFacts(page, weights) {
  return Object.entries(brief(weights)).map(([member, value]) =>
    classed("span", "fact", tagOf(page, member), ` ${value.toFixed(2)}`));
}

export const tagOf = (page, name) => nameTag(page.members.find((each) => each.name === name) ?? { name });

export const form = (submit, ...fields) =>
  make("form", { className: "stack", onsubmit: (event) => { event.preventDefault(); submit(event); } }, ...fields);

function askForToken(what, show, message) {
  const field = make("input", { id: "token", type: "password", autocomplete: "off", spellcheck: false, required: true });
  body.replaceChildren(form(
    () => { setAdminToken(field.value); show(); },
    make("p", {}, `${what} to everyone, so it asks for the admin token: the one in the server’s PREFMIX_ADMIN_TOKEN_FILE or PREFMIX_ADMIN_TOKEN.`),
    make("label", { for: "token" }, "Admin token"),
    classed("div", "line", field, make("button", { className: "solid" }, "Open")),
    said(message, true),
    classed("p", "quiet", "Kept in this page’s memory only, until it is closed or reloaded."),
  ));
  field.focus();
}

async function showPanel(page, mix, message, isError = false) {
  const found = await asked("weights/history", PUBLISHING, () => showPanel(page, mix));
  if (!found) return;
  const told = found.refused ? [found.refused] : [said(message, isError), ...dormant(page), history(page, mix, found.versions)];
  body.replaceChildren(...(mix ? [publishForm(page, mix)] : []), ...told);
}

/** An admin route's answer, or {refused: element}; null if the token must be asked for again. */
export async function asked(path, what, show) {
  try {
    return await administer("GET", path);
  } catch (error) {
    if (error.status !== 401) return { refused: said(error.message, true) };
    setAdminToken("");
    askForToken(what, show, "The server does not take this token.");
    return null;
  }
}

export function said(message, isError) {
  return make("p", { className: isError ? "error" : "said", role: isError ? "alert" : "status", hidden: !message }, message ?? "");
}

/** Makes a change, then shows its result by `show(message, isError)`. */
export async function change(page, show, work) {
  let message;
  let isError;
  const failed = (error) => [message, isError] = [error.message, true];
  await work().then((text) => announce(message = text)).catch(failed);
  await page.reload().catch(failed);
  await show(message, isError);
}

function publishForm(page, mix) {
  const source = make(
    "select", { id: "source", onchange: () => showPanel(page, page.mixes.find(({ letter }) => letter === source.value)) },
    ...page.mixes.map(({ letter }) => make("option", { value: letter, selected: letter === mix.letter }, `Mix ${letter}`)),
  );
  const name = make("input", { id: "profile-name", autocomplete: "off", spellcheck: false, required: true, placeholder: "name", list: "profile-names" });
  const [standard, option] = checkbox("Make it the default");
  const names = make("datalist", { id: "profile-names" }, ...Object.keys(page.mixture().profiles).map((value) => make("option", { value })));
  return form(
    () => change(page, showPanel.bind(null, page, mix), () => publish(page, mix, name.value, standard.checked)),
    classed("div", "line", make("label", { for: "source" }, "Publish"), source, make("label", { for: "profile-name" }, "as"), name, names),
    classed("p", "facts", ...weightFacts(page, mix.weights)),
    classed("div", "line between", option, make("button", { className: "solid" }, "Publish")),
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
  const rows = versions.map((entry, index) => {
    const isCurrent = entry.version === page.mixture().version;
    const back = button("Roll back", () => change(page, showPanel.bind(null, page, mix), () => rollBack(page, entry.version)), { "aria-label": `Roll back to version ${entry.version}` });
    return make(
      "li", { className: isCurrent ? "current" : "" },
      make("b", {}, String(entry.version)),
      make("span", {}, difference(entry, versions[index - 1])),
      isCurrent ? classed("span", "quiet", "in force") : back,
    );
  });
  return make("section", {}, make("h3", {}, "History"), make("ol", { className: "history" }, ...rows.reverse()));
}

async function rollBack(page, version) {
  const done = await administer("POST", "weights/rollback", { body: { version }, version: page.mixture().version });
  return `Version ${done.version} has the content of version ${version}`;
}

function difference(now, before) {
  if (!before) return `${Object.keys(now.profiles).length} profiles, the oldest version kept`;
  const words = Object.keys({ ...now.profiles, ...before.profiles })
    .filter((name) => content(now, name) !== content(before, name))
    .map((name) => `${name} ${!before.profiles[name] ? "added" : now.profiles[name] ? "changed" : "removed"}`);
  if (now.default_profile !== before.default_profile) words.push(`default is ${now.default_profile}`);
  if (json(now.added_policies) !== json(before.added_policies)) words.push("other policies");
  return words.join(", ") || "same weights";
}

const json = JSON.stringify;

/** A profile as it counts: without zeros, as a policy that comes has no weight. */
const content = ({ profiles }, name, one = profiles[name]) =>
  json(one && [Object.entries(one.weights).filter(([, weight]) => weight), one.mixing]);
