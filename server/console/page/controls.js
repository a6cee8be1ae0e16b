// The controls of one mix: a slider or a number per member, and a triangle for three policies.

import { classed, make, nameTag } from "./elements.js";
import { Triangle } from "./triangle.js";
import { total, withWeight } from "./weights.js";

export class Controls {
  /**
   * `changed(weights, isFinal)` is called on every move; isFinal is true once the control is released.
   * `label` names the mix for screen readers.
   */
  constructor({ members, space, label, changed }) {
    this.members = members;
    this.changed = changed;
    this.policies = members.filter((member) => !member.isReference);
    this.weights = {};
    this.rest = space === "affine" && members.find((member) => member.isReference)?.name;
    this.rows = new Map();
    const rows = make("div", { className: "rows", role: "group", "aria-label": `Weights of ${label}` });
    this.node = classed("div", "controls", rows);
    for (const member of members) rows.append(space === "affine" ? this.affineRow(member) : this.simplexRow(member));
    if (space === "affine" && this.policies.length === members.length) {
      this.sum = make("p", { className: "quiet sum" });
      rows.append(this.sum);
    }
    if (space === "simplex" && this.policies.length === 3) {
      this.triangle = new Triangle(this.policies, label, (shares, isFinal) => this.setShares(shares, isFinal));
      this.node.prepend(this.triangle.node);
    }
  }

  /** Shows weights without calling `changed`. */
  show(weights) {
    this.weights = Object.fromEntries(this.members.map(({ name }) => [name, weights[name] ?? 0]));
    if (this.rest) this.weights[this.rest] = 1 - total(this.weights, this.policies.map(({ name }) => name));
    if (total(this.weights, Object.keys(this.weights)) > 0) this.ratios ??= this.weights;
    for (const [name, row] of this.rows) row(this.weights[name]);
    this.triangle?.show(this.policies.map(({ name }) => this.weights[name]));
    if (this.sum) {
      const sum = total(this.weights, Object.keys(this.weights));
      this.sum.textContent = `Sum ${sum.toFixed(2)}${Math.abs(sum - 1) < 1e-6 ? "" : ", should be 1"}`;
    }
  }

  simplexRow(member) {
    const range = make("input", { type: "range", min: 0, max: 1, step: 0.01, "aria-label": member.name, "data-hue": member.hue });
    const number = make("input", { type: "number", min: 0, max: 1, step: 0.01, inputMode: "decimal", "aria-label": `${member.name}, as a number` });
    const move = (value, isFinal) => this.move(member.name, value, isFinal);
    range.addEventListener("input", () => move(range.valueAsNumber, false));
    range.addEventListener("change", () => move(range.valueAsNumber, true));
    number.addEventListener("change", () => move(Number.isFinite(number.valueAsNumber) ? number.valueAsNumber : 0, true));
    this.rows.set(member.name, (value) => {
      range.value = value;
      range.style.setProperty("--fill", `${100 * value}%`);
      range.setAttribute("aria-valuetext", value.toFixed(2));
      number.value = value.toFixed(2);
    });
    return row(member, range, number);
  }

  affineRow(member) {
    const bar = make("i", { "data-hue": member.hue });
    const track = make("span", { className: "signed", "aria-hidden": "true" }, bar);
    const field = member.isReference
      ? make("output", { "aria-label": `${member.name}, takes the rest` })
      : make("input", { type: "number", step: 0.1, inputMode: "decimal", "aria-label": member.name });
    field.addEventListener("change", () => {
      const next = { ...this.weights, [member.name]: Number.isFinite(field.valueAsNumber) ? field.valueAsNumber : 0 };
      this.set(next, true);
    });
    this.rows.set(member.name, (value) => {
      field.value = member.isReference ? value.toFixed(2) : Number(value.toFixed(3));
      // The track runs from -1 to 2.
      const [from, to] = [Math.min(0, value), Math.max(0, value)].map((x) => Math.min(2, Math.max(-1, x)));
      bar.style.setProperty("left", `${(100 * (from + 1)) / 3}%`);
      bar.style.setProperty("width", `${(100 * (to - from)) / 3}%`);
    });
    return row(member, track, field);
  }

  move(name, value, isFinal) {
    const others = this.members.map((member) => member.name).filter((other) => other !== name);
    // Kept, so that moving a slider to its end and back restores the other weights.
    if (total(this.weights, others) > 1e-9) this.ratios = this.weights;
    const even = Object.fromEntries(this.policies.map((member) => [member.name, 1]));
    const ratios = total(this.ratios ?? {}, others) > 1e-9 ? this.ratios : even;
    this.set(withWeight(this.weights, name, value, ratios), isFinal);
  }

  /** Sets the policies' weights from the triangle; the reference keeps its own. */
  setShares(shares, isFinal) {
    const names = this.policies.map(({ name }) => name);
    const room = total(this.weights, names) || 1;
    const next = Object.fromEntries(this.members.map(({ name }) => [name, room === 1 ? 0 : this.weights[name]]));
    names.forEach((name, index) => { next[name] = room * shares[index]; });
    this.set(next, isFinal);
  }

  set(weights, isFinal) {
    this.show(weights);
    this.changed(this.weights, isFinal);
  }
}

function row(member, middle, field) {
  return classed("div", "row", nameTag(member), middle, field);
}
