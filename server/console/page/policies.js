// The dialog's list of policies, which come and go while the server runs.

import { administer } from "./api.js";
import { button, checkbox, classed, make } from "./elements.js";
import { asked, body, change, form, openDialog, said, tagOf } from "./publishing.js";

const WHAT = "Adding or removing a policy changes what the server serves";
const NONE = "This server takes no further policies; start it with --adapter-slots N and --policies-dir FOLDER.";

// Made once: a refusal leaves what was typed.
const [name, adapter, system] = ["name", "folder in --policies-dir", "none"].map((placeholder, at) =>
  make(at < 2 ? "input" : "textarea", { id: `policy-${at}`, placeholder, autocomplete: "off", required: !at }));
const [withoutKv, noKv] = checkbox("Without KV cache, for mixed parameters only");
const [inPlace, replace] = checkbox("Replace it in its own slot if no other is free");

/** Opens the dialog. */
export const openPolicies = (page) => openDialog("Policies", WHAT, () => show(page));

async function show(page, message, isError) {
  const found = await asked("policies", WHAT, () => show(page));
  if (!found) return;
  body.replaceChildren(...(found.refused ? [found.refused] : [addForm(page, found), said(message, isError), list(page, found)]));
}

function addForm(page, { slots, version, manifest }) {
  if (!slots.total) return make("p", {}, NONE);
  if (manifest) return make("p", {}, `The added policies are those of the server’s manifest ${manifest}: change that file.`);
  const add = async () => {
    const body = { adapter: adapter.value || null, system: system.value || null, kv_cache: withoutKv.checked ? false : null };
    const path = `policies/${encodeURIComponent(name.value)}?drain=${inPlace.checked}`;
    const done = await administer("PUT", path, { body, version });
    const said = `${name.value} is ${done.changed ? "there" : "there already"}, version ${done.version}`;
    name.value = adapter.value = system.value = "";
    withoutKv.checked = inPlace.checked = false;
    return said;
  };
  const line = (text, field) => classed("div", "line", make("label", { for: field.id }, text), field);
  return form(
    (event) => submit(page, event.submitter, add),
    line("Policy", name),
    line("Adapter", adapter),
    line("System prompt", system),
    ...(slots.total_without_kv ? [noKv] : []),
    replace,
    classed("div", "line between", classed("span", "quiet", `${slots.free} of ${slots.total} slots free, up to rank ${slots.max_rank}`), make("button", { className: "solid" }, "Add")),
  );
}

function list(page, { policies, version, manifest }) {
  const [drain, option] = checkbox("Remove also while requests use it, which end with it");
  const remove = async (name) => {
    const done = await administer("DELETE", `policies/${encodeURIComponent(name)}?drain=${drain.checked}`, { version });
    return `${name} is removed, version ${done.version}`;
  };
  const rows = policies.map(({ name, added, adapter, ready, has_prompt: hasPrompt }) => {
    const parts = [adapter ?? "the base", hasPrompt && "a system prompt", !ready && "not served now"];
    const what = added ? parts.filter(Boolean).join(", ") : "of the configuration";
    const gone = button("Remove", () => submit(page, gone, () => remove(name)), { "aria-label": `Remove ${name}` });
    return make("li", {}, make("span", {}, tagOf(page, name), classed("p", "quiet", what)), ...(added && !manifest ? [gone] : []));
  });
  return make("section", {}, make("ul", { className: "history list" }, ...rows), ...(!manifest && policies.some(({ added }) => added) ? [option] : []));
}

/** Makes a change; adapters take seconds. */
function submit(page, pressed, work) {
  pressed.disabled = true;
  pressed.textContent = "…";
  return change(page, show.bind(null, page), work);
}
