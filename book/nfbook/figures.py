"""The look of all figures, and how a notebook shows one: picture, print quality, numbers and what can be touched.

:func:`show_figure` reads the numbers off the drawn figure itself, so that a figure, its CSV file and its interactive
version cannot disagree.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

from nfbook import SPEC
from nfcore.runs import Runs


# Okabe and Ito's colours, safe for colour-blind readers; a marker each, so that greyscale works too.
STYLES: dict[str, dict[str, str]] = {
    "SM+LN+G": dict(color="#0072B2", marker="o"),
    "SM+LN+R": dict(color="#56B4E9", marker="s"),
    "SM+G": dict(color="#D55E00", marker="^"),
    "SM+R": dict(color="#009E73", marker="D"),
    "SM+L(0.1)": dict(color="#CC79A7", marker="v"),
    "SM+LN": dict(color="#666666", marker="P"),
    "SM": dict(color="#E69F00", marker="X"),
}
COLORMAP = "cividis"
# The ink of a figure is that of the page it is on: an SVG in an <img> has the colour scheme of its element.
INK = "svg{color:#1f2328}text{fill:currentColor}@media(prefers-color-scheme:dark){svg{color:#dfe3e8}}"


def use_style() -> None:
    """SVG figures with text as text and PDF figures with embedded fonts, the same bytes from the same data."""
    import matplotlib as mpl

    mpl.use("agg")  # nothing is shown but by show_figure
    mpl.rcParams |= {
        "svg.hashsalt": "nfcore",
        "svg.fonttype": "none",
        "pdf.fonttype": 42,
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.alpha": 0.3,
        "legend.frameon": False,
        "figure.constrained_layout.use": True,
    }


def show_figure(
    figure: Figure,
    runs: Runs | None = None,
    interactive: dict[str, Any] | bool = True,
    *,
    finding: str,
    preview: bool = False,
) -> None:
    """Display ``figure`` as one output: SVG, PDF, its numbers as CSV, and ``SPEC``.

    ``runs``: what it shows, named with their commits beside it. ``interactive``: what the book's script draws on demand
    (``book/_assets/interactive.js`` says of what kinds); True takes the figure's own lines, where it has some.
    ``finding``: what the drawn numbers say, a sentence of plain text made from them; the book closes caption and
    alternative text with it, after what their authors wrote about how it is drawn. ``preview``: also as PNG of
    1,200 by 630 pixels, the picture that other sites show with a link to the book.

    What is drawn is named by its label, or by its gid where it is not to appear in the legend; what has neither is
    decoration and not in the numbers.
    """
    import matplotlib.pyplot as plt
    from IPython.display import display

    svg, pdf = io.StringIO(), io.BytesIO()
    figure.savefig(svg, format="svg", metadata={"Date": None}, bbox_inches="tight", transparent=True)
    figure.savefig(pdf, format="pdf", metadata={"CreationDate": None}, bbox_inches="tight")
    numbers = figure_numbers(figure)
    frame = pd.DataFrame({"run": [], "provenance.commit": []}) if runs is None else runs.runs
    spec = {
        "finding": finding,
        "runs": [*frame["run"]],
        "commits": sorted(frame["provenance.commit"].dropna().unique()),
        "interactive": (lines_of(figure) if interactive is True else interactive) or None,
    }
    bundle = {
        "image/svg+xml": with_ink(svg.getvalue()),
        "application/pdf": base64.b64encode(pdf.getvalue()).decode(),
        "text/csv": numbers.to_csv(index=False, float_format="%.6g"),
        SPEC: json.loads(json.dumps(spec)),
        "text/plain": f"figure of {len(numbers)} numbers",
    }
    if preview:
        png = io.BytesIO()
        figure.set_size_inches(8, 4.2)
        figure.savefig(png, format="png", metadata={"Software": None}, dpi=150, facecolor="white")
        bundle["image/png"] = base64.b64encode(png.getvalue()).decode()
    plt.close(figure)
    display(bundle, raw=True)


def with_ink(svg: str) -> str:
    """A drawing of matplotlib with black in the colour of the theme, light or dark."""
    return svg.replace("#000000", "currentColor").replace('<style type="text/css">', f'<style type="text/css">{INK}', 1)


def _name(artist: Any) -> str | None:
    """Its label, or its gid where it is not to appear in the legend."""
    label = str(artist.get_label())
    gid = artist.get_gid() if hasattr(artist, "get_gid") else None  # containers of bars have none
    return gid or (None if label.startswith("_") or not label else label)


def figure_numbers(figure: Figure) -> pd.DataFrame:
    """All that is named in a figure as tidy rows: ``panel``, ``series``, ``x``, ``y``; of a map ``x`` is the column,
    ``y`` the row and ``value`` the cell; of an interval ``y`` is its middle, ``low`` and ``high`` its ends."""
    rows: list[dict[str, Any]] = []
    for axes in figure.axes:
        panel = axes.get_title() or axes.get_ylabel() or axes.get_xlabel()
        for line in axes.lines:
            if name := _name(line):
                x, y = (np.asarray(v, dtype=float) for v in line.get_data(orig=False))
                if _is_rule(line):
                    x, y = np.array([np.nan]), y[:1]
                rows += [dict(panel=panel, series=name, x=a, y=b) for a, b in zip(x, y, strict=True)]
        for container in axes.containers:
            if (name := _name(container)) and hasattr(container, "patches"):
                bars = ((p.get_x() + p.get_width() / 2, p.get_height()) for p in container.patches)
                rows += [dict(panel=panel, series=name, x=round(x, 6), y=y) for x, y in bars]
        for collection in axes.collections:
            if (name := _name(collection)) and hasattr(collection, "get_segments"):
                for (x, low), (_, high) in (segment[:2] for segment in collection.get_segments()):
                    rows.append(dict(panel=panel, series=name, x=x, y=(low + high) / 2, low=low, high=high))
        for image in axes.images:
            cells = np.ma.filled(np.asarray(image.get_array(), dtype=float), np.nan)
            rows += [
                dict(panel=panel, series="map", x=column, y=row, value=cells[row, column])
                for row, column in np.ndindex(*cells.shape)
            ]
    frame = pd.DataFrame(rows, columns=["panel", "series", "x", "y", "low", "high", "value"])
    return frame if frame.empty else frame.dropna(axis=1, how="all")


def _is_rule(line: Any) -> bool:
    """Whether it was drawn by ``axhline``: across the panel, at one height."""
    return line.get_transform() == line.axes.get_yaxis_transform(which="grid")


def lines_of(figure: Figure) -> dict[str, Any] | None:
    """The named lines of a figure as the interactive kind ``lines``, with their intervals (named ``LINE, ...``).

    None where there is no curve among them, or where something else is named: an interactive version draws all that the
    caption speaks of.
    """
    panels = [panel for axes in figure.axes if (panel := _panel(axes))["series"]]
    curves = any(len(series["x"]) > 1 for panel in panels for series in panel["series"])
    drawn = sum(len(panel["series"]) + len(panel["rules"]) + panel.pop("intervals") for panel in panels)
    named = len(figure_numbers(figure)[["panel", "series"]].drop_duplicates())
    if not curves or drawn != named:
        return None
    return {"kind": "lines", **panels[0]["axes"], "panels": [_without_axes(p) for p in panels]}


def _without_axes(panel: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in panel.items() if name != "axes"} | panel["axes"]


def _panel(axes: Axes) -> dict[str, Any]:
    from matplotlib.colors import to_hex

    series: list[dict[str, Any]] = []
    rules: list[dict[str, Any]] = []
    for line in axes.lines:
        name = _name(line)
        if name is None:
            continue
        x, y = (np.asarray(v, dtype=float) for v in line.get_data(orig=False))
        if _is_rule(line):
            rules.append({"y": _number(y[0]), "label": name})
        else:
            marker = line.get_marker()
            series.append(
                {
                    "name": name,
                    "color": to_hex(line.get_color()),
                    "marker": "" if marker in ("None", None) else str(marker),
                    "x": [_number(v) for v in x],
                    "y": [_number(v) for v in y],
                    "dash": line.get_linestyle() in ("--", ":"),
                    "hollow": str(line.get_markerfacecolor()) in ("white", "none"),
                }
            )
            if line.get_linestyle() == "None":
                series[-1]["line"] = False
    intervals = [c for c in axes.collections if _name(c) and hasattr(c, "get_segments") and _add_interval(c, series)]
    words = {
        "x": {"label": axes.get_xlabel(), "log": axes.get_xscale() == "log"},
        "y": {"label": axes.get_ylabel(), "log": axes.get_yscale() == "log"},
    }
    # Beside others, what shares their labels (as of twin axes) goes by the name of its one curve.
    title = axes.get_title() or (series[0]["name"] if len(series) == 1 and len(axes.figure.axes) > 1 else "")
    return {"title": title, "series": series, "rules": rules, "axes": words, "intervals": len(intervals)}


def _add_interval(collection: Any, series: list[dict[str, Any]]) -> bool:
    """Give the line that it is named after its ends; False where there is no such line at these x."""
    ends = {_number(x): (_number(low), _number(high)) for (x, low), (_, high) in collection.get_segments()}
    for line in series:
        if str(_name(collection)).startswith(f"{line['name']}, ") and line["x"] == [*ends]:
            line["low"], line["high"] = map(list, zip(*ends.values(), strict=True))
            return True
    return False


def _number(value: float) -> float | None:
    return float(f"{value:.5g}") if np.isfinite(value) else None


def maps_over_steps(heads: dict[str, pd.DataFrame], top: float) -> dict[str, Any]:
    """The interactive kind ``heat``: head entropies in nats over training, one panel a configuration.

    ``heads``: rows with ``step``, ``layer``, ``head``, ``entropy``, averaged over the rest. ``top``: the ceiling; the
    scale is that of :func:`entropy_map`.
    """
    panels: list[dict[str, Any]] = []
    steps: list[int] = sorted(set.intersection(*(set(frame["step"]) for frame in heads.values())))
    for title, frame in heads.items():
        mean = frame.groupby(["step", "layer", "head"])["entropy"].mean()
        values = [[[_number(v) for v in row] for row in mean[step].unstack().to_numpy()] for step in steps]
        panels.append({"title": title, "values": values})
    return {
        "kind": "heat",
        "unit": "nats",
        "bottom": _number(top / 2),
        "top": _number(top),
        "steps": [int(s) for s in steps],
        "panels": panels,
    }


def entropy_map(axes: Axes, heads: np.ndarray, title: str, top: float) -> Any:
    """Head entropies (L, H) as an image on the scale from half the ceiling ``top``, where most heads are, to all of it,
    with the mean of each layer at its right."""
    image = axes.imshow(heads, vmin=top / 2, vmax=top, cmap=COLORMAP, aspect="auto", origin="upper")
    axes.set(title=title, xlabel="head", ylabel="layer")
    axes.set_xticks(range(0, heads.shape[1], 1 + heads.shape[1] // 8))
    axes.set_yticks(range(0, heads.shape[0], 1 + heads.shape[0] // 8))
    axes.grid(False)
    for layer, mean in enumerate(np.nanmean(heads, axis=1)):
        axes.text(heads.shape[1] - 0.35, layer, f"{mean:.1f}", va="center", fontsize=7)
    return image


def forest(axes: Axes, rows: pd.DataFrame, colors: Iterable[str]) -> None:
    """Estimates with their 95 % intervals, a named row each, from the top; hollow where one seed gives no interval.

    ``rows``: as of :func:`nfbook.report.differences`.
    """
    names = []
    for place, ((name, row), color) in enumerate(zip(rows.iterrows(), colors, strict=True)):
        n, lost = int(row["n"]), int(row["lost"])
        names.append(f"{name}  n={n}" + (f" of {n + lost}" if lost else ""))
        if not n:
            words = "no pair of runs trained" if lost else "not trained yet"
            at: dict[str, Any] = dict(xy=(0.02, place), xycoords=("axes fraction", "data"))
            axes.annotate(words, **at, va="center", fontsize=7, color="grey")
            continue
        axes.plot([row["low"], row["high"]], [place, place], color=color, gid=f"{name}, interval")
        full = "full" if n > 1 else "none"
        axes.plot(row["estimate"], place, "D", color=color, gid=name, markersize=4, fillstyle=full)
    axes.axvline(0, color="black", linewidth=0.6)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_ylim(len(names) - 0.5, -0.5)


def direct_labels(axes: Axes, names: Iterable[str] | None = None) -> None:
    """Write the name of each labelled line at its end instead of a legend, moved apart where they would overlap."""
    lines = [line for line in axes.lines if not str(line.get_label()).startswith("_") and np.size(line.get_xdata()) > 1]
    chosen = [line for line in lines if names is None or line.get_label() in set(names)]
    axes.figure.canvas.draw()  # lays the panels out
    ends = [(axes.transData.transform(_last(line))[1], line) for line in chosen]
    height, lowest = 9.0 * axes.figure.dpi / 72, -np.inf
    for pixel, line in sorted(ends, key=lambda end: end[0]):
        lowest = max(pixel, lowest + height)
        axes.annotate(
            str(line.get_label()),
            _last(line),
            xytext=(5, (lowest - pixel) * 72 / axes.figure.dpi),
            textcoords="offset points",
            color=line.get_color(),
            fontsize=8,
            va="center",
            annotation_clip=False,
        )


def _last(line: Any) -> tuple[float, float]:
    x, y = (np.asarray(v, dtype=float) for v in line.get_data(orig=False))
    last = np.flatnonzero(np.isfinite(x) & np.isfinite(y))[-1]
    return x[last], y[last]
