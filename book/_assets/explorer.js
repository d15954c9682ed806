/* The explorer: two cells of the study side by side, from the JSON in the page (notebooks/explorer.py writes it).
 *
 * The two names stand in the address (#a=...&b=...), so that a comparison can be linked to and Back undoes a choice.
 * Curves and maps are those of interactive.js.
 */
(function () {
  "use strict";
  const root = document.querySelector(".nf-explorer");
  if (!root) return;
  const { el, number, lines, heat, frames, PALETTE } = window.nfFigures;
  const { start, quarters, cells } = JSON.parse(root.querySelector("script").textContent);
  const byName = new Map(cells.map((cell) => [cell.label, cell]));
  const SIDES = ["a", "b"];

  const option = (cell) => el("option", { value: cell.label }, cell.label);
  const options = () => [...new Set(cells.map((cell) => cell.stage))].map((stage) =>
    el("optgroup", { label: stage }, cells.filter((cell) => cell.stage === stage).map(option)));
  const selects = SIDES.map((side) => el("select", { id: `nf-${side}`, change: () => choose() }, options()));
  const status = el("p", { class: "nf-status", "aria-live": "polite" });
  const body = el("div");
  const labels = selects.map((select, i) => el("label", { for: select.id }, ["First", "Second"][i], select));
  root.append(el("div", { class: "nf-choices" }, labels), status, body);

  function choose() {
    location.hash = new URLSearchParams(SIDES.map((side, i) => [side, selects[i].value])).toString();
  }

  /** Show what the address names; where it names nothing, the page's own pair. */
  function follow() {
    const asked = new URLSearchParams(location.hash.slice(1));
    const unknown = SIDES.map((side) => asked.get(side)).filter((name) => name !== null && !byName.has(name));
    const names = SIDES.map((side, i) => (byName.has(asked.get(side)) ? asked.get(side) : start[i]));
    names.forEach((name, i) => (selects[i].value = name));
    show(...names.map((name) => byName.get(name)));
    const missing = unknown.map((name) => `There is no \u201c${name}\u201d here. `).join("");
    status.textContent = `${missing}${names[0]} beside ${names[1]}.`;
  }

  const section = (title, draw) => {
    const place = el("div");
    body.append(el("h3", {}, title), place);
    draw(place);
  };
  const note = (place, text) => place.replaceChildren(el("p", {}, text));

  function show(a, b) {
    const pair = a === b ? [a] : [a, b];
    // The book's colour of a configuration; black (white in the dark) where it has none or both have the same.
    const look = pair.map((cell, i) => {
      const twice = i === 1 && (cell.color || "") === (a.color || "");
      const marker = twice ? "X" : cell.marker || "o";
      return { name: cell.label, color: (!twice && cell.color) || "#000000", marker, dash: twice };
    });
    body.replaceChildren();

    section("At the end", (place) => place.append(summary(pair)));

    section("Evaluation loss", (place) => lines(place, {
      x: { label: "optimiser step" }, y: { label: "nats per token" },
      panels: [{
        title: "Mean, and smallest to largest over seeds",
        series: pair.map((cell, i) => ({ ...look[i], ...cell.loss })),
      }],
    }));

    const steps = [...new Set(pair.flatMap((cell) => cell.steps))].sort((m, n) => m - n);
    const at = (cell, step) => cell.heads[cell.steps.indexOf(step)];
    const last = Math.max(...pair.map((cell) => steps.indexOf(cell.steps.at(-1))));

    section("Entropy of the layers", (place) => frames(place, {
      label: "step", start: last,
      frames: steps.map((step) => ({
        name: String(step), x: { label: "layer" }, y: { label: "entropy over ceiling" },
        panels: [{
          title: "Mean over the heads of a layer", rules: [{ y: 1, label: "ceiling" }, { y: 0, label: "one token" }],
          series: pair.map((cell, i) => {
            const means = cell.heads[0].map((_, layer) => mean(at(cell, step)?.[layer]) / cell.ceiling);
            return { ...look[i], x: means.map((_, layer) => layer), y: means };
          }),
        }],
      })),
    }));

    section("Maps of the heads", (place) => {
      // Of different contexts only the shares of the ceilings can be compared.
      const same = pair.every((cell) => cell.ceiling === a.ceiling);
      const scale = (cell, value) => (same || value === null ? value : value / cell.ceiling);
      const map = (cell, step) => cell.heads[0].map((heads, layer) =>
        heads.map((_, head) => scale(cell, at(cell, step)?.[layer][head] ?? null)));
      heat(place, {
        unit: same ? "nats" : "of the ceiling", top: same ? a.ceiling : 1, steps,
        panels: pair.map((cell, i) => ({
          title: cell.label, color: look[i].color, marker: look[i].marker, dash: look[i].dash,
          values: steps.map((step) => map(cell, step)),
        })),
      });
    });

    section("Shares of heads in quarters of the entropy range", (place) => place.append(shares(pair)));

    section("Learnable slopes and scales", (place) => {
      const learning = pair.filter((cell) => cell.learned);
      if (!learning.length) return note(place, "Neither has learnable slopes or scales.");
      lines(place, {
        x: { label: "optimiser step" },
        panels: learning.map((cell) => ({
          title: cell.label, y: { label: `mean ${cell.learned.name}` },
          series: cell.learned.values[0].map((_, layer) => {
            const [color, marker] = PALETTE[layer % PALETTE.length];
            const y = cell.learned.values.map((values) => values[layer]);
            return { name: `layer ${layer}`, color, marker, dash: layer >= PALETTE.length, x: cell.steps, y };
          }),
        })),
      });
    });

    section("Runs", (place) => place.append(...pair.map((cell) =>
      el("p", { class: "nf-runs" }, `${cell.label}: `, cell.runs.flatMap((run) => [el("code", {}, run), " "])))));
  }

  const whole = (values) => values && values.every((v) => v !== null);
  const mean = (values) => (whole(values) ? values.reduce((sum, v) => sum + v, 0) / values.length : NaN);

  function table(pair, caption, rows) {
    return el("table", {},
      el("caption", {}, caption),
      el("thead", {}, el("tr", {}, el("td"), pair.map((cell) => el("th", { scope: "col" }, cell.label)))),
      el("tbody", {}, rows.map(([word, values]) =>
        el("tr", { class: values.every((v) => v instanceof Node || v === values[0]) ? "" : "nf-differs" },
          el("th", { scope: "row" }, word), values.map((value) => el("td", {}, value))))));
  }

  function summary(pair) {
    const interval = ({ perplexity: p }) => (p ? `${number(p.mean)} [${number(p.low)}, ${number(p.high)}]` : "none");
    const rows = [
      ["final perplexity, mean [lowest, highest]", pair.map(interval)],
      ["seeds", pair.map((cell) => cell.seeds.join(", "))],
      ["not trained, left out", pair.map((cell) => `${cell["left out"]} of ${cell.runs.length} runs`)],
      ...Object.keys(pair[0].settings).map((name) => [name, pair.map((cell) => cell.settings[name])]),
    ];
    const [p, q] = pair.map((cell) => cell.perplexity);
    const by = () => `${number(Math.abs(100 * (q.mean / p.mean - 1)), 3)} % ${q.mean < p.mean ? "lower" : "higher"}`;
    const change = p && q ? `The perplexity of ${pair[1].label} is ${by()} than that of ${pair[0].label}.` : "";
    return table(pair, `What differs is in bold. ${change}`, rows);
  }

  function shares(pair) {
    const bar = (cell, share) => {
      const bar = el("div", { class: "nf-bar" });
      bar.style.cssText = `width: ${100 * (share ?? 0)}%; background: ${cell.color || "currentColor"}`;
      return el("div", {}, share === null ? "no value" : `${number(100 * share, 3)} %`, bar);
    };
    const rows = quarters.map((quarter, i) => [quarter, pair.map((cell) => bar(cell, cell.shares[i]))]);
    return table(pair, "Max is the causal ceiling; last probe, mean over seeds.", rows);
  }

  addEventListener("hashchange", follow);
  follow();
})();
