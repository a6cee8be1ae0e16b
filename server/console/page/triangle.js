// A triangle to drag a point in: its corners are three policies alone, its centre their even mixture.

import { classed, draw, make } from "./elements.js";

const CORNERS = [[60, 10], [8, 100], [112, 100]];
const STEP = 0.02;
let count = 0;

export class Triangle {
  /** `changed(shares, isFinal)` gets three shares that sum to 1. */
  constructor(members, label, changed) {
    this.members = members;
    this.changed = changed;
    this.shares = [1 / 3, 1 / 3, 1 / 3];
    this.others = draw("g");
    this.handle = draw("circle", { r: 7, class: "handle" });
    this.area = draw(
      "svg",
      { viewBox: "0 0 120 110", class: "triangle", tabindex: 0, role: "slider", "aria-label": `Balance of ${label}, arrow keys move it` },
      ...this.background(),
      this.others,
      this.handle,
    );
    const labels = members.map((member) => make("span", { className: "corner-name", "aria-hidden": "true", title: member.title }, member.name));
    this.node = classed("div", "balance", labels[0], this.area, labels[1], labels[2]);
    this.area.addEventListener("pointerdown", (event) => {
      this.area.setPointerCapture(event.pointerId);
      this.follow(event, false);
    });
    this.area.addEventListener("pointermove", (event) => {
      if (this.area.hasPointerCapture(event.pointerId)) this.follow(event, false);
    });
    this.area.addEventListener("pointerup", (event) => this.follow(event, true));
    this.area.addEventListener("keydown", (event) => this.press(event));
  }

  background() {
    const id = `blend-${count++}`;
    const gradients = CORNERS.map(([x, y], index) =>
      draw(
        "radialGradient",
        { id: `${id}-${index}`, gradientUnits: "userSpaceOnUse", cx: x, cy: y, r: 84, "data-hue": this.members[index].hue },
        draw("stop", { offset: 0, "stop-opacity": 0.55 }),
        draw("stop", { offset: 1, "stop-opacity": 0 }),
      ),
    );
    const points = CORNERS.map((corner) => corner.join(",")).join(" ");
    return [
      draw("defs", {}, ...gradients),
      ...gradients.map((_, index) => draw("polygon", { points, fill: `url(#${id}-${index})` })),
      draw("polygon", { points, class: "outline" }),
      ...CORNERS.map(([cx, cy], index) => draw("circle", { cx, cy, r: 4, class: "corner", "data-hue": this.members[index].hue })),
    ];
  }

  /** Shows weights; their sum may be less than 1. */
  show(weights) {
    this.shares = sharesOf(weights);
    const [x, y] = place(this.shares);
    this.handle.setAttribute("cx", x);
    this.handle.setAttribute("cy", y);
    const words = this.members.map(({ name }, index) => `${name} ${this.shares[index].toFixed(2)}`);
    this.area.setAttribute("aria-valuetext", words.join(", "));
    this.area.setAttribute("aria-valuenow", Math.round(100 * this.shares[0]));
  }

  /** Marks the other mixes' weights. */
  showOthers(list) {
    const marks = list.map((weights) => {
      const [cx, cy] = place(sharesOf(weights));
      return draw("circle", { cx, cy, r: 3, class: "other" });
    });
    this.others.replaceChildren(...marks);
  }

  follow(event, isFinal) {
    const point = new DOMPoint(event.clientX, event.clientY).matrixTransform(this.area.getScreenCTM().inverse());
    this.changed(snap(sharesAt(point.x, point.y)), isFinal);
  }

  press(event) {
    const moves = { ArrowUp: [0, -1], ArrowDown: [0, 1], ArrowLeft: [-1, 0], ArrowRight: [1, 0] };
    const move = moves[event.key];
    if (!move) return;
    event.preventDefault();
    const [x, y] = place(this.shares);
    this.changed(sharesAt(x + move[0] * 104 * STEP, y + move[1] * 104 * STEP), true);
  }
}

/** Weights divided by their sum; equal shares if the reference has all the weight. */
function sharesOf(weights) {
  const sum = weights.reduce((a, b) => a + b, 0);
  return weights.map((weight) => (sum > 0 ? weight / sum : 1 / 3));
}

function place(shares) {
  return [0, 1].map((axis) => shares.reduce((sum, share, index) => sum + share * CORNERS[index][axis], 0));
}

/** Barycentric coordinates of a point, which is moved inside the triangle. */
function sharesAt(x, y) {
  const [[ax, ay], [bx, by], [cx, cy]] = CORNERS;
  const area = (by - cy) * (ax - cx) + (cx - bx) * (ay - cy);
  const a = ((by - cy) * (x - cx) + (cx - bx) * (y - cy)) / area;
  const b = ((cy - ay) * (x - cx) + (ax - cx) * (y - cy)) / area;
  return inside([a, b, 1 - a - b]);
}

function inside(shares) {
  const kept = shares.map((share) => Math.max(0, share));
  const sum = kept.reduce((a, b) => a + b, 0);
  return kept.map((share) => share / sum);
}

/** Rounds to hundredths; the last share takes the rest. */
function snap(shares) {
  const [a, b] = shares.map((share) => Math.round(100 * share) / 100);
  return inside([a, b, Math.round(100 * (1 - a - b)) / 100]);
}
