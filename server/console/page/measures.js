// A table of an answer's attribution: distance and first choices by policy.

import { make, nameTag } from "./elements.js";

const KL = "KL of the mixture from the policy, nats per token";
const FIRST = "Share of the tokens that were the policy's own first choice";

export class Measures {
  constructor(members, label) {
    this.rows = new Map();
    const head = make(
      "tr", {},
      make("td"),
      make("th", { scope: "col", colSpan: 2, title: KL }, "Distance (KL, nats)"),
      make("th", { scope: "col", title: FIRST }, "First choice"),
    );
    const body = members.map((member) => {
      const bar = make("i", { "data-hue": member.hue });
      const cells = { bar, kl: make("td", { className: "figure" }), agreement: make("td", { className: "figure" }) };
      this.rows.set(member.name, cells);
      return make(
        "tr", {},
        make("th", { scope: "row" }, nameTag(member)),
        make("td", { className: "bar", "aria-hidden": "true" }, bar),
        cells.kl,
        cells.agreement,
      );
    });
    this.node = make("table", { className: "measures", "aria-label": `Policies in the answer of ${label}` }, make("thead", {}, head), make("tbody", {}, ...body));
    this.show(null, 1);
  }

  /** Shows an attribution or null; `scale` is the KL of a full bar, the same for all mixes. */
  show(attribution, scale) {
    for (const [name, { bar, kl, agreement }] of this.rows) {
      const measured = attribution?.policies[name];
      const value = measured?.mean_kl;
      bar.style.setProperty("width", typeof value === "number" ? `${Math.max(1, (100 * value) / scale)}%` : "0");
      kl.textContent = typeof value === "number" ? value.toFixed(2) : attribution ? "unused" : "–";
      kl.classList.toggle("quiet", typeof value !== "number");
      kl.title = attribution && typeof value !== "number" ? "Weight 0: this policy takes no part" : "";
      agreement.textContent = typeof measured?.agreement === "number" ? `${Math.round(100 * measured.agreement)} %` : attribution ? "" : "–";
    }
  }
}

/** The largest KL of several attributions, at least 0.1, so that noise does not fill a bar. */
export function klScale(attributions) {
  const values = attributions.flatMap((each) => Object.values(each.policies).map((policy) => policy.mean_kl ?? 0));
  return Math.max(0.1, ...values);
}
