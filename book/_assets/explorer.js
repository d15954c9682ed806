/* The explorer: two configurations of the first study side by side, seed by seed (notebooks/explorer.py writes the menus
 * and the data).
 *
 * The two names stand in the address (#a=...&b=...), so that a comparison can be linked to and Back undoes a choice. One
 * slider over training moves all pictures, which are those of interactive.js.
 */
(function () {
  "use strict";
  const root = document.querySelector(".nf-explorer");
  if (!root) return;
  const { el, number, slider, lines, heat, frames, PALETTE } = window.nfFigures;
  const { start, quarters, cells } = JSON.parse(root.querySelector("script").textContent);
  // A plus that is not escaped, as programs that shorten links leave it, is a space to an address.
  const key = (name) => name.replaceAll("+", " ");
  const byName = new Map(cells.map((cell) => [key(cell.label), cell]));
  const selects = [...root.querySelectorAll("select")], SIDES = ["a", "b"];
  const status = el("p", { class: "nf-status", "aria-live": "polite" }), body = el("div");
  root.append(status, body);
  selects.forEach((select) => select.addEventListener("change", () => {
    location.hash = new URLSearchParams(SIDES.map((side, i) => [side, selects[i].value])).toString();
  }));

  /** Show what the address names; where it names nothing, the page's own pair. */
  function follow() {
    const asked = new URLSearchParams(location.hash.slice(1));
    const names = SIDES.map((side) => asked.get(side));
    if (location.hash && body.hasChildNodes() && names.every((name) => name === null)) return; // a heading of the page
    const unknown = names.filter((name) => name !== null && !byName.has(key(name)));
    const shown = names.map((name, i) => byName.get(key(name ?? start[i])) ?? byName.get(key(start[i])));
    shown.forEach((cell, i) => (selects[i].value = cell.label));
    const missing = unknown.map((name) => `There is no \u201c${name}\u201d here. `).join("");
    status.textContent = missing + show(...new Set(shown));
  }

  /** The mean of numbers, or place by place of nested lists of them; null where one is missing. */
  const mean = (values) => Array.isArray(values[0]) ? values[0].map((_, i) => mean(values.map((v) => v[i])))
    : values.length && values.every(Number.isFinite) ? values.reduce((sum, v) => sum + v, 0) / values.length : null;
  const trained = (cell) => cell.runs.filter((run) => run.outcome === "trained");
  const percent = (share, digits = 3) => `${number(100 * share, digits)} %`;
  const section = (title, ...content) => body.append(el("h3", {}, title), ...content);

  /** Draw one or two cells, and return in a sentence how they compare. */
  function show(...pair) {
    // Seeds that both have: equal seeds saw the same data in the same order. Else each cell's own, and if none is trained all.
    const common = new Set(trained(pair[0]).map((r) => r.seed).filter((s) => pair.every((c) => trained(c).some((r) => r.seed === s))));
    const own = (cell) => (trained(cell).length ? trained(cell) : cell.runs);
    const used = pair.map((cell) => (common.size ? trained(cell).filter((run) => common.has(run.seed)) : own(cell)));
    const over = (name, i) => used[i].map((run) => run[name]);
    // The book's colour of a configuration; black (white in the dark) where it has none or both have the same.
    const look = pair.map((cell, i) => {
      const twice = i === 1 && (cell.color || "") === (pair[0].color || "");
      return { name: cell.label, color: (!twice && cell.color) || "#000000", marker: twice ? "X" : cell.marker || "o", dash: twice };
    });
    const heads = pair.map((_, i) => mean(over("heads", i))); // [step][layer][rank], in thousandths of the ceiling
    // By update: a run that diverged has a probe of its own at its end, so equal places are not equal updates.
    const known = pair.map((cell, i) => new Map(cell.steps.map((step, k) => [step, heads[i][k]])
      .filter(([, layers], k) => k === 0 || layers.flat().some(Number.isFinite))));
    const steps = [...new Set(known.flatMap((of) => [...of.keys()]))].sort((a, b) => a - b);
    const at = (i, k) => heads[i][0].map((layer, l) => layer.map((_, rank) => (known[i].get(steps[k])?.[l][rank] ?? NaN) / 1000));
    const places = { loss: el("div"), layers: el("div"), maps: el("div") };
    body.replaceChildren();

    const follows = el("div", { class: "nf-together" });
    body.append(follows);
    section("Evaluation loss", places.loss);
    const loss = lines(places.loss, {
      x: { label: "update" }, y: { label: "nats per token" },
      panels: [{
        title: "Mean, and smallest to largest over seeds",
        series: pair.map((cell, i) => {
          const all = cell.x.map((_, k) => over("loss", i).map((values) => values[k]));
          const ends = (f) => all.map((values) => (mean(values) === null ? null : f(...values)));
          return { ...look[i], x: cell.x, y: all.map(mean), low: ends(Math.min), high: ends(Math.max) };
        }),
      }],
    });
    section("Entropy of the layers", places.layers);
    const layers = frames(places.layers, {
      linked: true, start: steps.length - 1,
      frames: steps.map((_, step) => ({
        x: { label: "layer" }, y: { label: "entropy over ceiling" },
        panels: [{
          title: "Mean over the heads of a layer", rules: [{ y: 1, label: "ceiling" }, { y: 0, label: "one token" }],
          series: pair.map((_, i) => ({ ...look[i], x: heads[i][0].map((_, layer) => layer), y: heads[i][0].map((_, layer) => mean(at(i, step)[layer])) })),
        }],
      })),
    });
    section("Entropy of the heads", el("p", {}, "The heads of a layer in the order of their entropy at the end, rank 1 the highest, in each seed by itself."), places.maps);
    const lowest = Math.min(...heads.flat(3).filter(Number.isFinite)) / 1000;
    const maps = heat(places.maps, {
      linked: true, unit: "of the ceiling", bottom: Math.floor(10 * lowest) / 10, top: 1, steps, column: "rank",
      panels: pair.map((cell, i) => ({ ...look[i], title: cell.label, values: steps.map((_, step) => at(i, step)) })),
    });
    follows.append(slider("update", steps, steps.length - 1, (i) => { loss.at(steps[i]); layers(i); maps(i); }));

    for (const [i, cell] of pair.entries()) {
      const values = cell.learned && mean(over("learned", i)), place = el("div");
      if (!values) continue;
      section(`Learned ${cell.learned} of ${cell.label}`, place);
      lines(place, {
        x: { label: "update" },
        panels: [{
          title: "", y: { label: `mean ${cell.learned}` },
          series: values[0].map((_, layer) => {
            const [color, marker] = PALETTE[layer % PALETTE.length];
            return { name: `layer ${layer}`, color, marker, dash: layer >= PALETTE.length, x: cell.steps, y: values.map((v) => v[layer]) };
          }),
        }],
      });
    }

    const shares = pair.map((_, i) => mean(over("shares", i)));
    const perplexity = (i) => (trained(pair[i]).length ? number(Math.exp(mean(over("perplexity", i).map(Math.log)))) : "none: no seed is trained");
    section("At the end", table(pair, [
      ["seeds shown", used.map((runs) => runs.map((run) => run.seed).join(", "))],
      ["final perplexity, geometric mean", pair.map((_, i) => perplexity(i))],
      ...quarters.map((quarter, k) => [`heads in ${quarter}`, shares.map((s) => (s[k] === null ? "no value" : percent(s[k])))]),
      ["runs left out", pair.map((cell) => `${cell.runs.length - trained(cell).length} of ${cell.runs.length}`)],
      ...Object.keys(pair[0].settings).map((name) => [name, pair.map((cell) => cell.settings[name])]),
      ["runs", used.map((runs) => runs.flatMap((run) => [el("code", {}, run.run), " "]))],
    ]));
    return compared(pair, used, common);
  }

  function compared([a, b], used, common) {
    if (!b) return `${a.words}, next to itself.`;
    if (!common.size) return `No seed is trained in both, so ${b.words} and ${a.words} cannot be compared: each has its own runs below.`;
    const perplexity = (runs, seed) => runs.find((run) => run.seed === seed).perplexity;
    const ratios = [...common].map((seed) => perplexity(used[1], seed) / perplexity(used[0], seed));
    const ratio = Math.exp(mean(ratios.map(Math.log))), word = ratio < 1 ? "lower" : "higher";
    const agree = ratios.filter((r) => r < 1 === ratio < 1).length;
    return `${b.words} ends with a perplexity ${percent(Math.abs(ratio - 1))} ${word} than ${a.words}, ` +
      `and it is ${word} on ${agree} of the ${common.size} seeds that both have.`;
  }

  function table(pair, rows) {
    const same = (values) => values.every((v) => v instanceof Array || v === values[0]);
    return el("table", {}, el("caption", {}, "What differs is in bold."),
      el("thead", {}, el("tr", {}, el("td"), pair.map((cell) => el("th", { scope: "col" }, cell.label)))),
      el("tbody", {}, rows.map(([word, values]) => el("tr", { class: same(values) ? "" : "nf-differs" },
        el("th", { scope: "row" }, word), values.map((value) => el("td", {}, value))))));
  }

  addEventListener("hashchange", follow);
  follow();
})();
