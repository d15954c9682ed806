"""What the book shows as HTML of its own: verdicts as a strip and as cards, and the picture of the first page.

The picture (:func:`hero`) is SVG in the colours of the page and complete without a script. It has two sliders; a stop
of one is a list of attributes to set, so that the script in ``book/_assets/interactive.js`` holds no mathematics.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from nfbook import typeset
from nfbook.figures import STYLES
from nfbook.presets import MAIN
from nfbook.report import MARKED, estimate, published_estimate, remark, said, seeds_used
from nfcore.runs import Runs
from nfcore.shares import entropy_ceiling


if TYPE_CHECKING:
    from IPython.display import HTML

SHARPNESS = [2 ** (k / 2) for k in range(15)]  # the stops of s, 1 to 128
NAMES = {"SM+LN+G": "LN, GELU", "SM+LN+R": "LN, ReLU", "SM+G": "GELU", "SM+R": "ReLU"}
WIDTH, HEIGHT = 360, 300
LEFT, RIGHT = 38, 356  # of all panels; below, top and bottom of each
CURVE, HEADS, PERPLEXITY = (14, 262), (22, 120), (178, 262)


def _html(text: str) -> HTML:
    from IPython.display import HTML

    return HTML(text)


# --- verdicts -------------------------------------------------------------------------------------------------------


def badge(row: pd.Series) -> str:
    """The verdict of a row of :func:`nfbook.claims.verdicts` with its icon, in the colour of its kind."""
    judged = row["verdict"] in MARKED
    words, more = (MARKED[row["verdict"]], remark(row)) if judged else (f"◌ {said(row)}", "")
    kind = row["verdict"].replace(" ", "-")
    return f'<span class="nf-badge nf-{kind}">{words}</span>' + (f" <small>{more}</small>" if more else "")


def strip(groups: Mapping[str, pd.DataFrame]) -> HTML:
    """Rows of :func:`nfbook.claims.verdicts` under the heading of their group (none if empty): claim with a picture of
    the effect, published value, ours with interval and n, verdict. On a narrow page each row is a box."""
    names = ("claim", "paper", "ours, 95 % interval", "n", "verdict")
    scales = _scales(pd.concat(groups.values()))
    head = "".join(f'<th scope="col">{name}</th>' for name in names)
    bodies = []
    for heading, rows in groups.items():
        title = f'<tr><th colspan="{len(names)}" scope="rowgroup">{escape(heading)}</th></tr>'
        lines = [title] if heading and len(rows) else []
        for _, row in rows.iterrows():
            claim = escape(row["statement"]) + _effect(row, scales[row["unit"]])
            values = typeset(published_estimate(row)), typeset(estimate(row))
            cells = (claim, *values, seeds_used(row), badge(row))
            line = "".join(f'<td data-name="{n}">{cell}</td>' for n, cell in zip(names, cells, strict=True))
            lines.append(f"<tr>{line}</tr>")
        bodies.append(f"<tbody>{''.join(lines)}</tbody>")
    return _html(f'<table class="nf-strip"><thead><tr>{head}</tr></thead>{"".join(bodies)}</table>')


EFFECT = (240, 18)  # width and height of the picture in a row of the strip


def _scales(rows: pd.DataFrame) -> dict[str, Any]:
    """For each unit the scale that has zero and all that is drawn of its rows."""
    drawn = rows[["unit", "published", "estimate", "low", "high", "least"]].assign(zero=0.0, down=-rows["least"])
    ends = drawn.set_index("unit").astype(float).groupby(level=0).agg(["min", "max"]).agg(["min", "max"], axis=1)
    return {unit: _scale(low, high, 6, EFFECT[0] - 6) for unit, low, high in ends.itertuples()}


def _effect(row: pd.Series, across: Any) -> str:
    """The effect of a row next to the published one: a band for what is of no interest, a hollow circle for the paper's
    value, a diamond for ours, which is hollow where one seed gives no interval."""
    least, published, ours, low, high = (float(row[n]) for n in ("least", "published", "estimate", "low", "high"))
    if math.isnan(published) and math.isnan(ours):
        return ""
    (width, height), middle = EFFECT, EFFECT[1] / 2
    left, right, zero = (float(across(v)) for v in (-least, least, 0))
    parts = [
        _tag("rect", class_="nf-none-of-interest", x=f"{left:.1f}", y=0, width=f"{right - left:.1f}", height=height),
        _tag("path", class_="nf-axis", d=f"M0 {middle}H{width}M{zero:.1f} 0V{height}"),
    ]
    if not math.isnan(published):
        parts.append(_tag("circle", class_="nf-paper", cx=f"{across(published):.1f}", cy=middle, r=4.5))
    if not math.isnan(ours):
        at, kind = float(across(ours)), "nf-ours" if math.isnan(low) else "nf-ours nf-full"
        if not math.isnan(low):
            parts.append(_tag("path", class_="nf-ours", d=f"M{across(low):.1f} {middle}H{across(high):.1f}"))
        parts.append(_tag("path", class_=kind, d=f"M{at - 5:.1f} {middle}l5 -5l5 5l-5 5Z"))
    return f'<svg viewBox="0 0 {width} {height}" aria-hidden="true">{"".join(parts)}</svg>'


def cards(rows: pd.DataFrame, words: Mapping[str, tuple[str, str]]) -> HTML:
    """A card for each id in ``words``, which has the claim and what is compared, both in plain words."""
    by_id = rows.set_index("id", drop=False)
    parts = []
    for key, (claim, compared) in words.items():
        row = by_id.loc[key]
        seeds = f" ({seeds_used(row)} seed{'s' if row['planned'] > 1 else ''})" if row["n"] else ""
        parts.append(
            f'<div class="nf-card"><p class="nf-claim">{escape(claim)}</p><p>{escape(compared)}</p>'
            f"<dl><dt>paper</dt><dd>{typeset(published_estimate(row))}</dd>"
            f"<dt>here</dt><dd>{typeset(estimate(row))}{seeds}</dd></dl>"
            f"<p>{badge(row)}</p></div>"
        )
    return _html(f'<div class="nf-cards">{"".join(parts)}</div>')


# --- the picture of the first page ----------------------------------------------------------------------------------


def hero(runs: Runs) -> HTML:
    """GELU(s x)/s over the inputs that the first layer of SM+G gets, and next to it every head's entropy and the
    perplexity over training, of the four main configurations with the first seed in ``runs``.

    What is recorded of the inputs is their standard deviation: drawn is the normal curve with mean zero that has it.
    """
    first = runs.runs["seed"].iloc[0]
    ids = {c: runs.where(configuration=c, seed=first).runs["run"].iloc[0] for c in MAIN}
    heads = {c: _by_step(runs.heads, run, "entropy") for c, run in ids.items()}
    losses = runs.metrics[runs.metrics["name"] == "eval_loss"]
    perplexity = {c: {s: math.exp(v[0]) for s, v in _by_step(losses, run, "value").items()} for c, run in ids.items()}
    known: list[dict[int, Any]] = [*heads.values(), *perplexity.values()]
    steps = sorted(set.intersection(*map(set, known)))
    layers = runs.layers[runs.layers["layer"] == 0]
    std = {step: float(v[0]) for step, v in _by_step(layers, ids["SM+G"], "preactivation_std").items()}
    ceiling = entropy_ceiling(int(runs.runs["data.context"].iloc[0]))
    shares = {c: {step: entropies / ceiling for step, entropies in of.items()} for c, of in heads.items()}
    inputs, by_s = _inputs([std[step] for step in steps])
    training, by_step = _training(steps, shares, perplexity)
    sliders = [
        dict(into="nf-hero-s", word="s =", names=[f"{s:.3g}" for s in SHARPNESS], start=0, stops=by_s),
        dict(into="nf-hero-step", word="update", names=steps, start=len(steps) - 1, stops=by_step),
    ]
    content = json.dumps(sliders, separators=(",", ":"), ensure_ascii=False).replace("<", "\\u003c")
    return _html(
        f'<div class="nf-hero"><div>{inputs}<div id="nf-hero-s"></div></div>'
        f'<div>{training}<div id="nf-hero-step"></div></div>'
        f'<script type="application/json">{content}</script></div>'
    )


def _by_step(table: pd.DataFrame, run: str, column: str) -> dict[int, np.ndarray]:
    rows = table[table["run"] == run]
    return {int(step): values.to_numpy(dtype=float) for step, values in rows.groupby("step")[column]}


def _inputs(std: Sequence[float]) -> tuple[str, list[dict[str, Any]]]:
    """The panel of the activation with its inputs at the first and the last step, and its stops over s."""
    from scipy.stats import norm

    from nfbook.gaussian import gaussian_gelu_shares

    widest = 4 * max(std)
    x, mark = np.linspace(-widest, widest, 81), float(f"{0.7 * widest:.1g}")
    across = _scale(-widest, widest, LEFT, RIGHT)
    up = _scale(-0.55 * widest, 1.05 * widest, CURVE[1], CURVE[0])

    def density(tau: float) -> str:
        return _path(across(x), CURVE[1] - 90 * np.exp(-(x**2) / (2 * tau**2)))

    stops = []
    for s in SHARPNESS:
        share = 100 * gaussian_gelu_shares(s * std[0])[0]
        stops.append(
            {
                "nf-hero-curve": {"d": _path(across(x), up(x * norm.cdf(s * x)))},
                "nf-hero-name": {"text": "GELU(x)" if s == 1 else f"GELU(s x)/s, s = {s:.3g}"},
                "nf-hero-share": {"text": f"non-linear share {share:.2g} % (ReLU: 50 %)"},
            }
        )
    zero = float(across(0)), float(up(0))
    axes = f"M{LEFT} {CURVE[1]}H{RIGHT}M{LEFT} {zero[1]:.1f}H{RIGHT}M{zero[0]:.1f} {CURVE[0]}V{CURVE[1]}"
    ticks = ((float(across(v)), typeset(f"{v:g}")) for v in (-mark, 0.0, mark))
    parts = [
        _tag("path", class_="nf-before", d=f"{density(std[0])}Z"),
        _tag("path", class_="nf-after", d=density(std[-1])),
        _tag("path", class_="nf-axis", d=axes),
        _tag("path", class_="nf-rule", d=_path(across(x), up(np.maximum(x, 0)))),
        _moved("path", "nf-hero-curve", stops[0], class_="nf-line", stroke=STYLES["SM+G"]["color"]),
        _moved("text", "nf-hero-name", stops[0], x=LEFT, y=28, font_weight="bold"),
        _moved("text", "nf-hero-share", stops[0], x=LEFT, y=46),
        _text(RIGHT - 4, float(up(0.72 * widest)), "ReLU", "end"),
        _text(RIGHT, CURVE[1] - 6, "inputs", "end"),
        *(_text(at, CURVE[1] + 15, words, "middle") for at, words in ticks),
        _text((LEFT + RIGHT) / 2, HEIGHT - 6, "x, input of the activation in the first layer", "middle"),
    ]
    words = "The activation over its inputs. Where the inputs are, GELU is nearly a straight line; ReLU bends at zero."
    return _svg(words, parts), stops


def _training(
    steps: Sequence[int], shares: Mapping[str, Mapping[int, np.ndarray]], perplexity: Mapping[str, Mapping[int, float]]
) -> tuple[str, list[dict[str, Any]]]:
    """The panels of heads and perplexities at the last step, and their stops over training."""
    columns = dict(zip(MAIN, np.linspace(LEFT + 38, RIGHT - 38, len(MAIN)), strict=True))
    # An untrained model is so much worse that it would leave the rest no room: it has a number and no point.
    courses = {c: {s: v for s, v in of.items() if s > steps[0] and math.isfinite(v)} for c, of in perplexity.items()}
    values = [v for of in courses.values() for v in of.values()]
    high, across = _scale(0, 1, HEADS[1], HEADS[0]), _scale(steps[0], steps[-1], LEFT, RIGHT)
    low = _scale(math.log(min(values)), math.log(max(values)), PERPLEXITY[1], PERPLEXITY[0])

    def dots(c: str, step: int) -> str:
        """A dot a head, in the order of the heads."""
        at = columns[c] + np.linspace(-30, 30, len(shares[c][step]))
        return "".join(f"M{x:.0f} {high(v):.1f}h0" for x, v in zip(at, shares[c][step], strict=True) if v == v)

    stops: list[dict[str, Any]] = []
    for step in steps:
        stop: dict[str, Any] = {"nf-hero-past": {"width": f"{across(step) - LEFT + 0.1:.1f}"}}
        for number, c in enumerate(MAIN):
            value = perplexity[c][step]
            now = f"M{across(step):.1f} {low(math.log(value)):.1f}h0" if step in courses[c] else ""
            stop[f"nf-hero-heads-{number}"] = {"d": dots(c, step)}
            stop[f"nf-hero-now-{number}"] = {"d": now}
            stop[f"nf-hero-value-{number}"] = {"text": f"{value:.3g}" if math.isfinite(value) else "diverged"}
        stops.append(stop)
    last = stops[-1]
    parts = _frame(last, steps, float(high(1)), {v: float(low(math.log(v))) for v in (min(values), max(values))})
    for number, c in enumerate(MAIN):
        color = STYLES[c]["color"]
        line = _path(across([*courses[c]]), low(np.log([*courses[c].values()])))
        stroke = {"stroke": color, "stroke_dasharray": "7 3" if "+LN" in c else "", "d": line}
        value_at = dict(x=f"{columns[c]:.1f}", y=HEADS[1] + 31, text_anchor="middle", font_weight="bold")
        parts += [
            _moved("path", f"nf-hero-heads-{number}", last, class_="nf-dots", stroke=color),
            _tag("path", class_="nf-line nf-faint", **stroke),
            _tag("path", class_="nf-line", clip_path="url(#nf-hero-clip)", **stroke),
            _moved("path", f"nf-hero-now-{number}", last, class_="nf-dots nf-now", stroke=color),
            _text(columns[c], HEADS[1] + 15, NAMES[c], "middle"),
            _moved("text", f"nf-hero-value-{number}", last, **value_at),
        ]
    ends = ", ".join(f"{name} {last[f'nf-hero-value-{number}']['text']}" for number, name in enumerate(NAMES.values()))
    words = "Above, a dot for each attention head: its entropy over the ceiling. Below, the perplexity over training."
    return _svg(f"{words} It ends at: {ends}. LN is LayerNorm.", parts), stops


def _frame(last: dict[str, Any], steps: Sequence[int], rule: float, ticks: Mapping[float, float]) -> list[str]:
    """The axes of both panels and their texts; ``rule``: height of the ceiling, ``ticks``: of perplexities."""
    past = _moved("rect", "nf-hero-past", last, x=LEFT, y=0, height=HEIGHT)
    axes = "".join(f"M{LEFT} {top}V{bottom}H{RIGHT}" for top, bottom in (HEADS, PERPLEXITY))
    return [
        f'<clipPath id="nf-hero-clip">{past}</clipPath>',
        _tag("path", class_="nf-rule", d=f"M{LEFT} {rule:.1f}H{RIGHT}"),
        _tag("path", class_="nf-axis", d=axes),
        _text(LEFT, 13, "entropy of each head over the ceiling"),
        _text(LEFT - 5, rule + 4, "1", "end"),
        _text(LEFT - 5, HEADS[1] + 4, "0", "end"),
        _text(LEFT, PERPLEXITY[0] - 6, "perplexity"),
        _text(LEFT, PERPLEXITY[1] + 15, f"{steps[0]}"),
        _text(RIGHT, PERPLEXITY[1] + 15, f"{steps[-1]}", "end"),
        _text((LEFT + RIGHT) / 2, HEIGHT - 6, "update", "middle"),
        *(_text(LEFT - 5, height + 4, f"{value:.0f}", "end") for value, height in ticks.items()),
    ]


def _scale(low: float, high: float, start: float, end: float) -> Any:
    """The linear map of [low, high] to [start, end]."""
    return lambda value: start + (np.asarray(value, dtype=float) - low) / (high - low) * (end - start)


def _path(x: Iterable[float], y: Iterable[float]) -> str:
    return "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in zip(x, y, strict=True))


def _tag(name: str, words: str = "", **attributes: Any) -> str:
    """An element; a name of an attribute with "_" for "-", and with one at its end where Python has the word."""
    given = (f' {k.rstrip("_").replace("_", "-")}="{escape(str(v))}"' for k, v in attributes.items() if v != "")
    return f"<{name}{''.join(given)}>{escape(words)}</{name}>"


def _text(x: float, y: float, words: str, anchor: str = "start") -> str:
    return _tag("text", words, x=f"{x:.1f}", y=f"{y:.1f}", text_anchor=anchor)


def _moved(name: str, id: str, stop: Mapping[str, Mapping[str, str]], **attributes: Any) -> str:
    """An element that a slider changes, as it is at this stop."""
    changed = dict(stop[id])
    return _tag(name, changed.pop("text", ""), id=id, **attributes, **changed)


def _svg(words: str, parts: Iterable[str]) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(words)}">{"".join(parts)}</svg>'
