/* The interactive versions of the book's figures, drawn from JSON in the page.
 *
 * Why uPlot and not Vega-Lite (vega 6.4.0, vega-lite 6.4.3, vega-embed 7.3.0, minified, not compressed): 51 kB against
 * 832 kB on demand, next to a first page of 1.5 MB at most. Vega evaluates strings, which the pages' policy forbids, so it
 * would need vega-interpreter as well. It labels marks for screen readers but has no keys to walk through them: reading by
 * keys and touch, the grid of heads and the explorer would still be written here, an estimated two thirds of the lines. Both
 * work offline and rebuild byte for byte. Scripts of the book before this was decided: 780 lines; after: 754.
 *
 * Below a figure, a notebook may leave a SPEC in `.nf-figure script.nf-spec` (book/nfbook/figures.py writes them). A button
 * above the picture changes between it and the drawing, which comes first where it shows the same. Three kinds:
 *
 * lines   {x: {label, log}, y: {label, log}, panels: [{title, x?, y?, rules?: [{y, label}],
 *          series: [{name, color, marker, x, y, low?, high?, dash?, hollow?, line?}]}]}
 *         `low` and `high` make a band, or bars where `line: false` leaves the points alone; `hollow` empties the markers. A
 *         panel whose y has no label shares that of the panel before it.
 * heat    {unit, top, steps, panels: [{title, values: [step][layer][head], color?, marker?}], bottom?, column?, linked?}
 *         `column` is what stands in for "head" and is counted from one.
 * frames  {label, start?, frames: [{name, ...lines}], linked?}: a slider over pictures whose axes stay fixed; without it
 *         where it is `linked`, that is moved by the caller.
 *
 * Everything is in the page and works from file://. Other scripts find the parts in the global `nfFigures`.
 */
(function () {
  "use strict";

  // Okabe and Ito's colours with markers, in the order of nfbook.figures.STYLES, for what names none of its own.
  const PALETTE = [
    ["#0072B2", "o"], ["#56B4E9", "s"], ["#D55E00", "^"], ["#009E73", "D"], ["#CC79A7", "v"],
    ["#666666", "P"], ["#E69F00", "X"],
  ];
  // Outlines in a square from -1 to 1, named as matplotlib does.
  const MARKERS = {
    "o": "M-.9 0a.9 .9 0 1 0 1.8 0a.9 .9 0 1 0 -1.8 0Z",
    "s": "M-.8 -.8H.8V.8H-.8Z",
    "^": "M0 -1L1 .8H-1Z",
    "v": "M0 1L1 -.8H-1Z",
    "D": "M0 -1.1L1.1 0L0 1.1L-1.1 0Z",
    "P": "M-.35 -1H.35V-.35H1V.35H.35V1H-.35V.35H-1V-.35H-.35Z",
    "X": "M-1 -.6L-.6 -1L0 -.4L.6 -1L1 -.6L.4 0L1 .6L.6 1L0 .4L-.6 1L-1 .6L-.4 0Z",
  };

  // ---- Small tools -------------------------------------------------------------------------------------------------

  /** An element with attributes (functions become listeners, false and undefined are left out) and children. */
  function el(tag, attributes = {}, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (typeof value === "function") element.addEventListener(name, value);
      else if (value !== undefined && value !== false) element.setAttribute(name, value === true ? "" : value);
    }
    element.append(...children.flat());
    return element;
  }

  const button = (text, click, attributes = {}) =>
    el("button", { type: "button", class: "nf-button", click, ...attributes }, text);
  const finite = (value) => typeof value === "number" && Number.isFinite(value);

  /** To so many significant digits, whole numbers in full; on an axis (`short`) large ones as 10K or 2M. */
  function number(value, digits = 4, short = false) {
    if (!finite(value)) return "no value";
    const size = Math.abs(value), options = { maximumSignificantDigits: digits, useGrouping: false };
    if (short && size >= 10000) options.notation = "compact";
    else if (size >= 1000) return number.sign(Math.round(value).toString());
    else if (size && size < 1e-4) return number.sign(value.toExponential(digits - 1).replace(/\.?0*e/, "e"));
    return number.sign(new Intl.NumberFormat("en", options).format(value));
  }
  number.sign = (text) => text.replace("-", "\u2212");

  /** 1, 2 and 5 of each decade between two numbers above zero; of many decades the powers of ten alone. */
  function ticks(from, to) {
    const found = [], first = Math.floor(Math.log10(from)), decades = Math.log10(to / from);
    for (let power = first; power <= Math.log10(to); power += 1) {
      for (const digit of decades > 2.5 ? [1] : [1, 2, 5]) found.push(Number(`${digit}e${power}`));
    }
    const inside = found.filter((value) => value >= from && value <= to);
    if (inside.length > 1) return inside;
    const size = (to - from) / 5, power = 10 ** Math.floor(Math.log10(size)); // within a decade: even steps
    const step = power * [1, 2, 5, 10].find((n) => n * power >= size), count = Math.floor(to / step);
    return Array.from({ length: count + 1 }, (_, i) => i * step).filter((value) => value >= from);
  }

  const WHOLE = [1, 2, 3, 5].flatMap((n) => [0, 1, 2, 3, 4, 5, 6, 7, 8].map((p) => n * 10 ** p)).sort((a, b) => a - b);
  const FAINT = "rgba(128, 128, 128, 0.25)"; // of the lines behind a picture, in both themes
  const clamp = (value, low, high) => Math.min(Math.max(value, low), high);

  /** A colour as it is shown on an element: black is the colour of the text, which is white in the dark theme. */
  const shown = (element, color) => (/^#([0-3].){3}$/.test(color) ? getComputedStyle(element).color : color);

  /** Call `redraw` when the theme changes, as long as `element` is in the page. */
  function onTheme(element, redraw) {
    const observer = new MutationObserver(() => (element.isConnected ? redraw() : observer.disconnect()));
    observer.observe(document.documentElement, { attributeFilter: ["data-theme"] });
  }

  function swatch(series, color) {
    const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    const dash = series.dash ? 'stroke-dasharray="3 2"' : "";
    const line = series.line === false ? "" : `<path d="M0 6H24" stroke="${color}" stroke-width="2" ${dash}/>`;
    const fill = series.hollow ? "none" : color;
    const mark = MARKERS[series.marker] ? `<path d="${MARKERS[series.marker]}" transform="translate(12 6) scale(4)" ` +
      `fill="${fill}" stroke="${color}" stroke-width="0.3"/>` : "";
    svg.setAttribute("viewBox", "0 0 24 12");
    svg.setAttribute("aria-hidden", "true");
    svg.setAttribute("class", "nf-swatch");
    svg.innerHTML = line + mark;
    return svg;
  }

  // ---- Lines -------------------------------------------------------------------------------------------------------

  /** Draw a spec of lines into `root`. `frames`: specs that `show` will switch between; the axes span them all. */
  function lines(root, spec, frames = [spec]) {
    const hidden = new Set();
    const charts = spec.panels.map((_, i) => chart(i));
    const ink = (s) => shown(whole, s.color);

    const named = new Map();
    for (const series of frames.flatMap((f) => f.panels.flatMap((p) => p.series))) {
      if (!named.has(series.name)) named.set(series.name, series);
    }
    const legend = el("div", { class: "nf-legend", role: "group", "aria-label": "Series shown" });
    const each = (change) => () => { charts.forEach(change); refresh(); };
    const scales = ["x", "y"].map((name) => button(`${name}: log`, () => {
      const on = !charts.every((c) => c.log[name]);
      each((c) => { c.log[name] = on; c.view = { x: null, y: null }; })();
    }, { class: "nf-button nf-log", "data-axis": name }));
    const reset = button("Reset zoom", each((c) => (c.view = { x: null, y: null })), { class: "nf-button nf-reset" });
    const tools = el("div", { class: "nf-tools", role: "group", "aria-label": "Axes" },
      scales,
      button("+", each((c) => c.zoom(0.5)), { "aria-label": "Zoom in" }),
      button("\u2212", each((c) => c.zoom(2)), { "aria-label": "Zoom out" }),
      reset);
    const panels = el("div", { class: "nf-panels" }, charts.map((c) => c.box));
    const whole = el("div", { class: "nf-lines" }, legend, tools, panels);
    root.replaceChildren(whole);

    function refresh() {
      legend.replaceChildren(...[...named.values()].map((series) => button(series.name, () => {
        if (!hidden.delete(series.name)) hidden.add(series.name);
        refresh();
        [...legend.children].find((b) => b.dataset.name === series.name).focus();
      }, { "aria-pressed": String(!hidden.has(series.name)), "data-name": series.name })));
      for (const b of legend.children) {
        const series = named.get(b.dataset.name);
        b.prepend(swatch(series, ink(series)));
      }
      for (const b of scales) b.setAttribute("aria-pressed", String(charts.every((c) => c.log[b.dataset.axis])));
      reset.disabled = !charts.some((c) => c.view.x || c.view.y);
      charts.forEach((c) => c.draw());
    }

    /** One panel: its state (scales, part in view) and its drawing, made anew on every change. */
    function chart(index) {
      const axis = (name, i = index) => ({ ...(spec[name] || {}), ...(spec.panels[i][name] || {}) });
      /** The panel whose y this one has: its own, or where that has no label the one before's. */
      const owner = (i) => (i === 0 || spec.panels[i].y?.label ? i : owner(i - 1));
      const words = { x: axis("x").label || spec.x?.label, y: axis("y", owner(index)).label };
      const title = spec.panels[index].title || "";
      const described = `${title ? title + ": " : ""}${words.y} over ${words.x}. `;
      const wrap = el("div", {
        class: "nf-plot", tabindex: 0, role: "group", keydown: keys, pointermove: drag,
        "aria-label": described + "Left and right arrow read values, plus and minus zoom, 0 resets.",
      });
      const readout = el("p", { class: "nf-readout", "aria-live": "polite" });
      const note = el("p", {}), heading = title ? el("p", { class: "nf-title" }, title) : [];
      const box = el("div", { class: "nf-panel" }, heading, wrap, readout, note);
      const self = { box, draw, zoom, at: (x) => point((at = x)), log: { x: !!axis("x").log, y: !!axis("y").log }, view: { x: null, y: null } };
      let plot = null, width = 0, data = [[]], at = null; // `at`: the x that is read

      const series = () => spec.panels[index].series;
      const rules = () => spec.panels[index].rules || [];
      const allows = (name, value) => finite(value) && (!self.log[name] || value > 0);
      const scaled = (name, value) => (self.log[name] ? Math.log(value) : value);
      const unscaled = (name, value) => (self.log[name] ? Math.exp(value) : value);

      /** Smallest and largest of the values, with a margin; on a logarithmic axis of those above zero. */
      function span(name, values, margin) {
        const inside = values.filter((v) => allows(name, v)).map((v) => scaled(name, v));
        if (!inside.length) return self.log[name] ? [1, 10] : [0, 1];
        const low = Math.min(...inside), high = Math.max(...inside);
        const room = high > low ? margin * (high - low) : self.log[name] ? 0.7 : Math.abs(high) / 10 || 1;
        return [unscaled(name, low - room), unscaled(name, high + room)];
      }

      function range(name) {
        if (self.view[name]) return self.view[name];
        const alike = frames.flatMap((f) => f.panels.filter((_, i) => name === "x" ? i === index : owner(i) === owner(index)));
        const all = alike.flatMap((p) => p.series);
        if (name === "x") return span("x", all.flatMap((s) => s.x), 0.02);
        const [from, to] = range("x");
        const values = all.filter((s) => !hidden.has(s.name)).flatMap((s) =>
          [s.y, s.low || [], s.high || []].flatMap((ys) => ys.filter((_, i) => s.x[i] >= from && s.x[i] <= to)));
        return span("y", self.view.x ? values : [...values, ...alike.flatMap((p) => p.rules || []).map((r) => r.y)], 0.05);
      }

      /** uPlot's table, a row for each x of any series, repeated where a series has it repeatedly; and what is lost. */
      function table() {
        const rows = new Map(); // names of the rows, with their x
        let lost = 0;
        const columns = series().map((s) => {
          const column = new Map(), seen = new Map();
          s.x.forEach((x, i) => {
            if (finite(x) && finite(s.y[i]) && !(allows("x", x) && allows("y", s.y[i]))) lost += 1;
            if (!allows("x", x)) return;
            const count = seen.get(x) || 0, row = `${x} ${count}`;
            seen.set(x, count + 1);
            rows.set(row, x);
            column.set(row, i);
          });
          return column;
        });
        const order = [...rows.keys()].sort((a, b) => rows.get(a) - rows.get(b));
        // null breaks a line, undefined does not: there this series has no such x.
        const valid = (value) => (allows("y", value) ? value : null);
        const fill = (column, values) =>
          order.map((row) => (column.has(row) ? valid(values[column.get(row)]) : undefined));
        const bands = series().flatMap((s, i) => (s.low ? [fill(columns[i], s.low), fill(columns[i], s.high)] : []));
        return [[order.map((row) => rows.get(row)), ...series().map((s, i) => fill(columns[i], s.y)), ...bands], lost];
      }

      function draw() {
        width = wrap.clientWidth;
        if (!width) return;
        if (plot) plot.destroy();
        let lost;
        [data, lost] = table();
        const main = series(), text = getComputedStyle(whole).color;
        const line = (s) => ({ show: !hidden.has(s.name), points: { show: false } });
        const drawn = (s) => ({
          ...line(s), stroke: ink(s), width: 1.6, dash: s.dash ? [6, 4] : undefined,
          ...(s.line === false ? { paths: () => null } : {}),
        });
        const banded = main.filter((s) => s.low);
        const bands = banded.filter((s) => s.line !== false).map((s) => (
          { series: edges(s).reverse(), fill: ink(s).startsWith("#") ? `${ink(s)}33` : FAINT }));
        const axis = (name) => ({
          stroke: text, grid: { stroke: FAINT, width: 1 }, ticks: { stroke: FAINT, width: 1 },
          font: "12px sans-serif", labelFont: "12px sans-serif", label: words[name], labelSize: 18, labelGap: 0,
          size: (_, texts) => (name === "x" ? 30 : 20 + 8 * Math.max(3, ...(texts || []).map((t) => t.length))),
          space: name === "x" ? 50 : 28,
          ...(name === "x" && data[0].every(Number.isInteger) ? { incrs: WHOLE } : {}), // of layers and steps
          ...(self.log[name] ? { splits: (_, __, from, to) => ticks(from, to), filter: (_, splits) => splits } : {}),
          values: (_, splits) => splits.map((v) => (v === null ? "" : number(v, 4, true))),
        });
        const scale = (name) => {
          const fixed = range(name);
          return { time: false, distr: self.log[name] ? 3 : 1, log: 10, range: () => fixed };
        };
        plot = new uPlot({
          width, height: clamp(Math.round(width * 0.62), 260, 340), legend: { show: false }, padding: [10, 12, 0, 0],
          scales: { x: scale("x"), y: scale("y") },
          axes: [axis("x"), axis("y")],
          series: [{}, ...main.map(drawn), ...banded.flatMap((s) => [s, s]).map((s) => ({ ...line(s), width: 0 }))],
          bands,
          cursor: {
            y: false, drag: { x: true, y: true, uni: 30, setScale: false },
            dataIdx: (_, i, __, x) => nearest(data[i], x),
            points: {
              size: 9, fill: (_, i) => (main[i - 1] ? ink(main[i - 1]) : FAINT), // the edges of bands are series too
              show: (_, i) => (i > 0 && i <= main.length ? el("div") : false),
            },
          },
          hooks: {
            drawSeries: [marks], draw: [drawRules], setCursor: [read], setSelect: [select], ready: [() => point(at)],
          },
        }, data, wrap);
        note.textContent = lost ? `At or below zero, and so not on this scale: ${lost} of the points.` : "";
        readout.textContent = "Point at the picture to read values, drag to zoom.";
      }

      /** The columns with the low and the high ends of a series. */
      function edges(s) {
        const first = 1 + series().length + 2 * series().filter((other) => other.low).indexOf(s);
        return [first, first + 1];
      }

      /** The row with the x nearest to `x` in which a column has a value. */
      function nearest(column, x) {
        let best = null, least = Infinity;
        data[0].forEach((at, i) => {
          const away = Math.abs(scaled("x", at) - scaled("x", x));
          if (finite(column[i]) && away < least) [best, least] = [i, away];
        });
        return best;
      }

      function marks(u, i) {
        const s = series()[i - 1], outline = s && MARKERS[s.marker], ratio = uPlot.pxRatio;
        if (!outline) return;
        const path = new Path2D(outline), { left, top, width, height } = u.bbox, size = 3.4 * ratio;
        const rows = data[0].map((_, row) => row).filter((row) => finite(data[i][row]));
        const every = s.line === false ? 1 : Math.ceil((14 * ratio * rows.length) / width); // a dense line keeps some
        u.ctx.save();
        u.ctx.beginPath();
        u.ctx.rect(left - size, top - size, width + 2 * size, height + 2 * size);
        u.ctx.clip();
        u.ctx.strokeStyle = u.ctx.fillStyle = ink(s);
        for (const row of s.low && s.line === false ? rows : []) {
          const [x, ...ends] = [u.valToPos(data[0][row], "x", true), ...edges(s).map((e) => u.valToPos(data[e][row], "y", true))];
          u.ctx.fillRect(x - ratio / 2, Math.min(...ends), ratio, Math.abs(ends[0] - ends[1]));
        }
        for (const row of rows.filter((_, n) => n % every === 0)) {
          u.ctx.save();
          u.ctx.translate(u.valToPos(data[0][row], "x", true), u.valToPos(data[i][row], "y", true));
          u.ctx.scale(size, size);
          u.ctx.lineWidth = 0.3;
          if (!s.hollow) u.ctx.fill(path);
          u.ctx.stroke(path);
          u.ctx.restore();
        }
        u.ctx.restore();
      }

      function drawRules(u) {
        const { left, top, width, height } = u.bbox, ratio = uPlot.pxRatio;
        u.ctx.save();
        u.ctx.strokeStyle = u.ctx.fillStyle = getComputedStyle(whole).color;
        u.ctx.setLineDash([4 * ratio, 4 * ratio]);
        u.ctx.font = `${11 * ratio}px sans-serif`;
        u.ctx.textAlign = "right";
        const placed = []; // labels: of two lines close together, one stands before the other
        for (const rule of rules()) {
          const y = allows("y", rule.y) ? u.valToPos(rule.y, "y", true) : NaN;
          if (!(y >= top && y <= top + height)) continue;
          u.ctx.beginPath();
          u.ctx.moveTo(left, y);
          u.ctx.lineTo(left + width, y);
          u.ctx.stroke();
          const above = y - top > 18 * ratio;
          u.ctx.textBaseline = above ? "bottom" : "top";
          const taken = placed.filter((label) => Math.abs(label.y - y) < 14 * ratio).map((label) => label.start);
          const end = Math.min(left + width - 2 * ratio, ...taken.map((start) => start - 8 * ratio));
          u.ctx.fillText(rule.label, end, y + (above ? -2 : 2) * ratio);
          placed.push({ y, start: end - u.ctx.measureText(rule.label).width });
        }
        u.ctx.restore();
      }

      /** Put the cursor at an x; one that is not in view is read without it. */
      function point(x) {
        if (!plot || x === null) return;
        const [from, to] = range("x"), inside = x >= from && x <= to;
        plot.setCursor({ left: inside ? plot.valToPos(x, "x") : -10, top: 0 });
        if (!inside) tell(x);
      }

      function read(u) {
        if (u.cursor.left >= 0) tell((at = u.posToVal(u.cursor.left, "x")));
      }

      function tell(x) {
        const away = (row) => Math.abs(scaled("x", data[0][row]) - scaled("x", x));
        const found = series()
          .map((s, i) => ({ s, i, row: nearest(data[i + 1], x) }))
          .filter(({ s, row }) => !hidden.has(s.name) && row !== null);
        if (!found.length) return;
        const near = data[0][found.map(({ row }) => row).reduce((a, b) => (away(a) <= away(b) ? a : b))];
        readout.replaceChildren(`${words.x} ${number(near)}: `, ...found.map(({ s, i, row }) => {
          const elsewhere = data[0][row] === near ? "" : ` (at ${number(data[0][row])})`;
          const [low, high] = s.low ? edges(s).map((edge) => data[edge][row]) : [];
          const within = finite(low) && finite(high) && high > low ? ` [${number(low)}, ${number(high)}]` : "";
          const text = `${s.name} ${number(data[i + 1][row])}${within}${elsewhere}`;
          return el("span", { class: "nf-value" }, swatch(s, ink(s)), text);
        }));
      }

      /** A finger that goes sideways reads; uPlot knows the mouse only. */
      function drag(event) {
        if (event.pointerType !== "touch" || !plot) return;
        plot.setCursor({ left: event.clientX - plot.over.getBoundingClientRect().left, top: 0 });
      }

      function select(u) {
        const { left, top, width, height } = u.select;
        if (width < 5 && height < 5) return;
        const part = (size, whole) => size >= 5 && size < whole;
        const between = (name, from, to) => [u.posToVal(from, name), u.posToVal(to, name)];
        if (part(width, u.over.clientWidth)) self.view.x = between("x", left, left + width);
        if (part(height, u.over.clientHeight)) self.view.y = between("y", top + height, top);
        setTimeout(refresh); // not within uPlot's own handler, which still uses the plot
      }

      /** Narrow or widen the x in view by `factor` about what is read; y follows. */
      function zoom(factor) {
        const [from, to] = range("x").map((v) => scaled("x", v));
        const about = allows("x", at) ? clamp(scaled("x", at), from, to) : (from + to) / 2;
        const next = [about + (from - about) * factor, about + (to - about) * factor];
        self.view = { x: null, y: null };
        const [first, last] = range("x").map((v) => scaled("x", v));
        if (next[0] <= first && next[1] >= last) return;
        self.view.x = [Math.max(next[0], first), Math.min(next[1], last)].map((v) => unscaled("x", v));
      }

      function keys(event) {
        if (event.target !== wrap || event.ctrlKey || event.metaKey || event.altKey || !plot) return;
        const move = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity }[event.key];
        if (move) {
          const [from, to] = range("x");
          const xs = [...new Set(data[0])].filter((x) => x >= from && x <= to);
          const closest = () => xs.reduce((a, v, i) => (Math.abs(v - at) < Math.abs(xs[a] - at) ? i : a), 0);
          const here = at !== null ? closest() : move > 0 ? -1 : xs.length;
          if (xs.length) point(xs[clamp(here + move, 0, xs.length - 1)]);
        } else if (event.key === "+" || event.key === "-") {
          zoom(event.key === "+" ? 0.5 : 2);
          refresh();
        } else if (event.key === "0") {
          self.view = { x: null, y: null };
          refresh();
        } else return;
        event.preventDefault();
      }

      new ResizeObserver(() => { if (Math.abs(wrap.clientWidth - width) > 1) draw(); }).observe(wrap);
      return self;
    }

    refresh();
    onTheme(whole, refresh);
    return { show(next) { spec = next; refresh(); }, at(x) { charts.forEach((c) => c.at(x)); } };
  }

  // ---- Sliders -----------------------------------------------------------------------------------------------------

  /** A slider over `names` with a play button. `change(index)` is called on every change. */
  function slider(word, names, start, change) {
    const says = el("span", { class: "nf-step" });
    const input = el("input", {
      type: "range", min: 0, max: names.length - 1, step: 1, value: start, "aria-label": word,
      input: () => { stop(); set(Number(input.value)); },
    });
    const still = matchMedia("(prefers-reduced-motion: reduce)");
    const play = button("Play", () => {
      const at = Number(input.value);
      if (timer) return stop();
      set(at === names.length - 1 ? 0 : still.matches ? at + 1 : at);
      if (still.matches) return; // nothing moves by itself: a step a press
      play.textContent = "Pause";
      timer = setInterval(() => {
        const next = Number(input.value) + 1;
        if (next >= names.length || !input.offsetParent) stop();
        else set(next);
      }, 500);
    });
    let timer = 0;
    const named = () => { if (!timer) play.textContent = still.matches ? "Next" : "Play"; };
    named();
    still.addEventListener("change", named);

    function stop() {
      clearInterval(timer);
      timer = 0;
      named();
    }
    function set(index) {
      input.value = index;
      says.textContent = `${word} ${names[index]}`;
      input.setAttribute("aria-valuetext", says.textContent);
      change(index);
    }
    set(start);
    return el("div", { class: "nf-slider" }, play, input, says);
  }

  function frames(root, spec) {
    const place = el("div"), start = spec.start ?? 0;
    root.replaceChildren(place); // in the page before it is drawn: colours come from there
    const chart = lines(place, spec.frames[start], spec.frames), set = (i) => chart.show(spec.frames[i]);
    if (!spec.linked) root.prepend(slider(spec.label, spec.frames.map((f) => f.name), start, set));
    return set;
  }

  // ---- Heat maps ---------------------------------------------------------------------------------------------------

  function heat(root, spec) {
    let step = spec.steps.length - 1, chosen = null, tell = () => {};
    const readout = el("p", { class: "nf-readout", "aria-live": "polite" },
      "Point at a cell to read it, select it to follow that head over training.");
    const below = el("div", { class: "nf-chosen" });
    const column = spec.column || "head", from = spec.bottom ?? 0, called = (head) => head + (spec.column ? 1 : 0);
    const bar = el("div", { class: "nf-colorbar", "aria-hidden": "true" }, number(from), el("span"), `${number(spec.top, 3)} ${spec.unit}`);
    const grids = spec.panels.map(grid);
    const cells = grids.flatMap((g) => g.cells);
    const said = ({ panel, layer, head }) => {
      const value = spec.panels[panel].values[step]?.[layer]?.[head];
      const share = `${Math.round((100 * value) / spec.top)} % of ${number(spec.top, 3)}`;
      return `layer ${layer}, ${column} ${called(head)}: ${number(value)}${finite(value) ? ` ${spec.unit} (${share})` : ""}`;
    };
    const set = (i) => { step = i; paint(); tell(); };
    const own = spec.linked ? [] : slider("update", spec.steps, step, set);
    root.replaceChildren(el("div", { class: "nf-heat" }, own,
      el("div", { class: "nf-panels" }, grids.map((g) => g.box)), bar, readout, below));
    paint();
    return set;

    function grid(panel, index) {
      const cells = [], shape = panel.values[0];
      const box = el("div", { class: "nf-map", role: "grid", "aria-label": `${panel.title}: layers by ${column}s` });
      box.style.setProperty("--heads", shape[0].length);
      box.append(el("div", { role: "row" }, el("span", { role: "columnheader", title: "layer" }, "L"),
        shape[0].map((_, h) => el("span", { role: "columnheader", "aria-label": `${column} ${called(h)}` }, String(called(h))))));
      shape.forEach((heads, layer) => box.append(el("div", { role: "row" },
        el("span", { role: "rowheader", "aria-label": `layer ${layer}` }, String(layer)),
        heads.map((_, head) => {
          const cell = { panel: index, layer, head };
          cell.box = el("div", {
            class: "nf-cell", role: "gridcell", tabindex: cells.length ? -1 : 0,
            pointerenter: () => show(cell), focus: () => show(cell), click: () => choose(cell),
            keydown: (event) => move(event, cell, shape.length, heads.length),
          });
          cells.push(cell);
          return cell.box;
        }))));
      const across = el("p", { class: "nf-across" }, column);
      return { cells, box: el("div", { class: "nf-panel" }, el("p", { class: "nf-title" }, panel.title), across, box) };
    }

    function paint() {
      for (const cell of cells) {
        const value = spec.panels[cell.panel].values[step]?.[cell.layer]?.[cell.head];
        cell.box.style.setProperty("--share", clamp((value - from) / (spec.top - from), 0, 1)); // its place in the colours, see the styles
        cell.box.classList.toggle("nf-none", !finite(value));
        cell.box.setAttribute("aria-label", said(cell));
      }
    }

    function show(cell) {
      tell = () => (readout.textContent = `${spec.panels[cell.panel].title}, ${said(cell)}`);
      tell();
    }

    function move(event, cell, layers, heads) {
      const by = {
        ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1], Home: [0, -heads], End: [0, heads],
      }[event.key];
      if (event.key === "Enter" || event.key === " ") choose(cell);
      else if (by) {
        const layer = clamp(cell.layer + by[0], 0, layers - 1), head = clamp(cell.head + by[1], 0, heads - 1);
        const next = cells.find((c) => c.panel === cell.panel && c.layer === layer && c.head === head);
        cell.box.tabIndex = -1; // one stop a map for the Tab key
        next.box.tabIndex = 0;
        next.box.focus();
      } else return;
      event.preventDefault();
    }

    /** One head of all panels over training, below the maps; the same cell again puts it away. */
    function choose({ layer, head }) {
      const same = chosen && chosen.layer === layer && chosen.head === head;
      chosen = same ? null : { layer, head };
      for (const c of cells) {
        const on = !same && c.layer === layer && c.head === head;
        c.box.classList.toggle("nf-on", on);
        c.box.setAttribute("aria-selected", String(on));
      }
      if (same) return below.replaceChildren();
      lines(below, {
        x: { label: "update" }, y: { label: `entropy (${spec.unit})` },
        panels: [{
          title: `Layer ${layer}, ${column} ${called(head)}`,
          rules: [{ y: spec.top, label: "ceiling" }],
          series: spec.panels.map((panel, i) => {
            const [color, marker] = PALETTE[i % PALETTE.length];
            const y = panel.values.map((values) => values?.[layer]?.[head] ?? null);
            return { color, marker, ...panel, values: null, name: panel.title, x: spec.steps, y };
          }),
        }],
      });
    }
  }

  // ---- The page ----------------------------------------------------------------------------------------------------

  const KINDS = { lines, heat, frames };

  function draw(root, spec) {
    KINDS[spec.kind](root, spec);
  }

  /** A button above the picture of a figure that changes between it and its interactive version. */
  function attach(script) {
    const beside = script.closest(".nf-figure"), figure = beside.previousElementSibling, picture = figure.querySelector("img");
    const place = el("div", { class: "nf-interactive", id: `${figure.id}-interactive`, hidden: true });
    const toggle = button("Interactive", change, { "aria-expanded": "false", "aria-controls": place.id });
    figure.prepend(el("div", { class: "nf-toggle" }, toggle), place);

    function change() {
      const opens = (picture.hidden = !picture.hidden);
      place.hidden = !opens;
      toggle.textContent = opens ? "Static" : "Interactive";
      toggle.setAttribute("aria-expanded", String(opens));
      if (opens && !place.hasChildNodes()) draw(place, JSON.parse(script.textContent));
    }
    if (script.dataset.same !== undefined) change();
  }

  /** The sliders of the first page's picture. A stop has, by the ids of elements, the attributes and the text they get. */
  function hero(script) {
    for (const { into, word, names, start, stops } of JSON.parse(script.textContent)) {
      document.getElementById(into).append(slider(word, names, start, (i) => {
        for (const [id, { text, ...attributes }] of Object.entries(stops[i])) {
          const element = document.getElementById(id);
          if (text !== undefined) element.textContent = text;
          for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
        }
      }));
    }
  }

  // On the page of the search: the glossary explains a word, so it comes first.
  if (window.Scorer) Scorer.score = ([page, , , what, score]) => score + (what && page === "glossary" ? 1000 : 0);

  window.nfFigures = { lines, heat, frames, slider, el, number, PALETTE };
  document.querySelectorAll(".nf-figure script.nf-spec").forEach(attach);
  document.querySelectorAll(".nf-hero script").forEach(hero);
})();
