"""Figures: the look, and that picture, numbers and interactive version are of one figure."""

import base64
import io
import itertools
import re
from collections.abc import Iterator
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from nfbook import figures
from nfbook.figures import SPEC, figure_numbers, lines_of, maps_over_steps, show_figure
from nfbook.presets import CONFIGURATIONS
from nfcore.runs import load_runs


@pytest.fixture(autouse=True)
def style() -> Iterator[None]:
    with plt.rc_context():
        figures.use_style()
        yield
        plt.close("all")


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    outputs: list[dict[str, Any]] = []
    monkeypatch.setattr("IPython.display.display", lambda bundle, raw: outputs.append(bundle))
    return outputs


def drawn() -> Any:
    figure, (left, _) = plt.subplots(1, 2)
    left.plot([1, 10, 100], [3.0, np.nan, 1.0], "o--", color="#D55E00", label="SM+G")
    left.plot([1, 10], [2.0, 1.5], gid="not in the legend")
    left.vlines([1, 10], [1.0, 1.25], [3.0, 1.75], gid="not in the legend, range")
    left.plot([5], [2.5], "s", gid="point")
    left.plot([1, 10], [9.0, 9.0])  # decoration
    left.axhline(3.8, label="ceiling")
    left.set(title="a", xlabel="step", ylabel="nats", xscale="log")
    return figure


def with_bars() -> Any:
    figure = drawn()
    right = figure.axes[1]
    right.bar([0, 1], [4.0, 5.0], label="bars")
    right.vlines([0, 1], [3.0, 4.0], [5.0, 7.0], gid="interval")
    right.set(title="b")
    return figure


def test_every_configuration_has_its_own_colour_and_marker() -> None:
    assert set(figures.STYLES) == set(CONFIGURATIONS)
    for key in ("color", "marker"):
        assert len({style[key] for style in figures.STYLES.values()}) == len(figures.STYLES)


def test_numbers_are_those_that_are_drawn_and_named() -> None:
    frame = figure_numbers(with_bars())
    lines = {"SM+G", "not in the legend", "not in the legend, range", "point", "ceiling"}
    assert set(frame["series"]) == {*lines, "bars", "interval"}
    line = frame[frame["series"] == "SM+G"]
    np.testing.assert_array_equal(line[["x", "y"]], [[1, 3], [10, np.nan], [100, 1]])
    rest = frame.set_index("series")
    assert rest.loc[["ceiling"], ["panel", "y"]].values.tolist() == [["a", 3.8]]
    assert rest.loc["bars", ["x", "y"]].values.tolist() == [[0, 4], [1, 5]]
    assert rest.loc["interval", ["x", "y", "low", "high"]].values.tolist() == [[0, 4, 3, 5], [1, 5.5, 4, 7]]


def test_numbers_of_a_map() -> None:
    figure, axes = plt.subplots()
    heads = np.array([[1.0, np.nan], [3.0, 4.0]])
    image = figures.entropy_map(axes, heads, "SM+G", 5.0)
    assert image.get_clim() == (2.5, 5.0)
    frame = figure_numbers(figure).set_index(["y", "x"])["value"]
    for layer, head in np.ndindex(2, 2):
        np.testing.assert_equal(frame[(layer, head)], heads[layer, head])


def test_lines_for_the_interactive_version() -> None:
    spec = lines_of(drawn())
    assert spec is not None
    (panel,) = spec["panels"]
    assert (spec["kind"], panel["title"]) == ("lines", "a")
    assert spec["x"] == {"label": "step", "log": True}
    assert spec["y"] == {"label": "nats", "log": False}
    assert [s["name"] for s in panel["series"]] == ["SM+G", "not in the legend", "point"]
    assert (panel["series"][1]["low"], panel["series"][1]["high"]) == ([1.0, 1.25], [3.0, 1.75])
    assert (panel["series"][2]["x"], panel["series"][2]["line"]) == ([5.0], False)
    line = dict(name="SM+G", color="#d55e00", marker="o", x=[1.0, 10.0, 100.0], y=[3.0, None, 1.0])
    assert panel["series"][0] == {**line, "dash": True, "hollow": False}
    assert panel["rules"] == [{"y": 3.8, "label": "ceiling"}]
    figure, axes = plt.subplots()
    axes.plot([0], [1], "o", label="point")
    assert lines_of(figure) is None, "there is no curve"
    assert lines_of(with_bars()) is None, "there is more than curves"


def test_one_output_has_all_and_the_same_bytes_each_time(shown: list[dict[str, Any]], smoke_grid: Any) -> None:
    runs = load_runs()
    for _ in range(2):
        show_figure(drawn(), runs, finding="SM+G falls to 1.0.")
    assert not plt.get_fignums(), "left open"
    first, second = shown
    assert first == second
    assert set(first) == {"image/svg+xml", "application/pdf", "text/csv", "text/plain", SPEC}
    assert "<dc:date>" not in first["image/svg+xml"]
    assert ">step<" in first["image/svg+xml"], "text is text"
    assert "prefers-color-scheme:dark" in first["image/svg+xml"]
    assert not re.search("#000000|#ffffff", first["image/svg+xml"]), "black and white are of one theme only"
    pdf = base64.b64decode(first["application/pdf"])
    assert pdf.startswith(b"%PDF")
    assert b"CreationDate" not in pdf
    assert b"/FontFile2" in pdf, "the font is not embedded"
    numbers = pd.read_csv(io.StringIO(first["text/csv"]))
    pd.testing.assert_frame_equal(numbers, figure_numbers(drawn()), check_dtype=False, rtol=1e-5)
    assert first[SPEC]["runs"] == [*runs.runs["run"]]
    assert first[SPEC]["commits"] == sorted(runs.runs["provenance.commit"].dropna().unique())
    assert first[SPEC]["interactive"]["kind"] == "lines"
    assert first[SPEC]["finding"] == "SM+G falls to 1.0."


@pytest.mark.parametrize(("given", "expected"), [(False, None), ({"kind": "frames"}, {"kind": "frames"})])
def test_interactive_version_can_be_given_or_left_out(given: Any, expected: Any, shown: list[dict[str, Any]]) -> None:
    show_figure(drawn(), interactive=given, finding="It falls.")
    assert shown[0][SPEC] == {"finding": "It falls.", "runs": [], "commits": [], "interactive": expected}


def test_maps_over_steps() -> None:
    rows = [(s, la, h, 10 * s + la + h / 10) for s in (0, 1, 1) for la in (0, 1) for h in (0, 1)]
    frame = pd.DataFrame(rows, columns=["step", "layer", "head", "entropy"])
    spec = maps_over_steps({"SM+G": frame, "SM+R": frame[frame["step"] == 1]}, 3.878)
    assert (spec["kind"], spec["steps"]) == ("heat", [1]), "steps that all panels have"
    assert (spec["bottom"], spec["top"]) == (1.939, 3.878), "the scale of the static map"
    assert spec["panels"][0] == {"title": "SM+G", "values": [[[10.0, 10.1], [11.0, 11.1]]]}


def test_direct_labels_do_not_overlap() -> None:
    figure, axes = plt.subplots(figsize=(4, 3))
    for number in range(4):
        axes.plot([0, 1], [0, 1 + number / 1000], label=f"line {number}")
    figures.direct_labels(axes)
    figure.canvas.draw()
    boxes = sorted((text.get_window_extent() for text in axes.texts), key=lambda box: box.y0)
    assert [text.get_text() for text in axes.texts] == [f"line {number}" for number in range(4)]
    for below, above in itertools.pairwise(boxes):
        assert above.y0 - below.y0 > 6
