"""The built book in a real browser: every page, every interactive picture, by mouse, finger and keyboard.

Skipped where there is no Chromium (Debian: the package chromium; elsewhere any Chromium or Chrome on the PATH).
"""

import json
import math
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nfbook import sphinx_ext
from nfbook.claims import read_ledger
from tests.test_book import figures, toc


sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium here: install the package chromium")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=BROWSER, args=FLAGS)
        yield running
        running.close()
        TABS.clear()


VISITORS = {
    "mouse": {"color_scheme": "light", "viewport": {"width": 1280, "height": 800}},
    "finger": {"color_scheme": "dark", "viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True},
}
TABS: dict[str, Any] = {}  # by the options of their visits, which share them: a new tab takes longer than most visits


class Visit:
    """A page of the book, with all that went wrong while it was open."""

    def __init__(self, browser: Any, book: Path, name: str, **options: Any) -> None:
        key = json.dumps(options, sort_keys=True)
        if key not in TABS:
            TABS[key] = browser.new_context(**options).new_page()
        self.page = TABS[key]
        # As the one before may have left them
        self.page.set_viewport_size(options.get("viewport", {"width": 1280, "height": 720}))
        self.page.emulate_media(color_scheme=options.get("color_scheme", "light"))
        self.page.mouse.move(0, 0)
        self.faults: list[str] = []
        self.listeners = {
            "console": lambda m: self.faults.append(m.text) if m.type == "error" else None,
            "pageerror": lambda error: self.faults.append(str(error)),
            "request": lambda request: self.seen(request.url, book),
        }
        for event, listener in self.listeners.items():
            self.page.on(event, listener)
        self.page.goto((book / f"{name}.html").as_uri(), wait_until="load")

    def seen(self, url: str, book: Path) -> None:
        if not url.startswith((book.as_uri(), "data:", "blob:")):
            self.faults.append(f"asks for {url}")

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None:
        for event, listener in self.listeners.items():
            self.page.remove_listener(event, listener)
        self.page.goto("about:blank")


def serious(page: Any, where: str = "html", but: tuple[str, ...] = (), **options: Any) -> list[str]:
    """What axe-core finds on a page that is serious or worse, with the first place of each."""
    # Rows of a table are alike: some are looked at.
    context = {"include": [where], "exclude": ["tbody tr:nth-child(n+5)", *but]}
    found = axe.Axe().run(page, context, {"resultTypes": ["violations"], **options}).response["violations"]
    grave = [fault for fault in found if fault["impact"] in ("serious", "critical")]
    return [f"{fault['id']}: {fault['nodes'][0]['target']} {fault['nodes'][0]['html'][:200]}" for fault in grave]


@pytest.mark.parametrize("name", [*toc(), "search", "genindex"])
def test_page_has_no_fault_fits_every_width_and_is_open_to_all(name: str, browser: Any, book: Path) -> None:
    with Visit(browser, book, name, reduced_motion="reduce", color_scheme="light") as visit:
        for width in (360, 768, 1440):
            visit.page.set_viewport_size({"width": width, "height": 900})
            wide = visit.page.evaluate("document.documentElement.scrollWidth")
            assert wide <= width, f"scrolls sideways: {wide} of {width} pixels"
        assert not visit.faults
        visit.page.add_style_tag(content="* { transition: none !important }")  # no colour half way to another
        list_of_pages = () if name == toc()[0] else (".bd-sidebar-primary",)  # is the same on all
        assert serious(visit.page, but=list_of_pages) == []
        # Another theme changes colours, a phone what scrolls; the rest is as before.
        visit.page.emulate_media(color_scheme="dark")
        visit.page.set_viewport_size({"width": 360, "height": 900})
        visit.page.wait_for_selector("html[data-theme=dark]", state="attached")
        # The theme looks for what scrolls 0.3 s after a change of size.
        visit.page.wait_for_timeout(350)
        assert serious(visit.page, "main", runOnly=["color-contrast", "scrollable-region-focusable"]) == []


def test_first_page_is_light(browser: Any, book: Path, record_property: Any) -> None:
    """Without MathJax, which it does not load at all. The time is reported: machines differ."""
    sizes = {}
    context = browser.new_context()
    page = context.new_page()
    page.on("requestfinished", lambda request: sizes.update({request.url: len(request.response().body())}))
    page.goto((book / "index.html").as_uri(), wait_until="networkidle")
    milliseconds = page.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd")
    context.close()
    assert any("index.html" in url for url in sizes)
    assert not [url for url in sizes if "mathjax" in url]
    record_property("first page, bytes", sum(sizes.values()))
    record_property("first page, milliseconds", round(milliseconds))
    print(f"first page: {sum(sizes.values()) / 1e6:.2f} MB, loaded in {milliseconds:.0f} ms")
    assert sum(sizes.values()) < 1.5e6, sorted(sizes.items(), key=lambda item: -item[1])[:5]


def test_formulas_are_drawn_where_there_are_some(browser: Any, book: Path) -> None:
    with Visit(browser, book, "background", viewport={"width": 360, "height": 800}) as visit:
        visit.page.wait_for_selector("mjx-container svg", state="attached")
        assert visit.page.locator("div.math mjx-container").count() > 10
        assert visit.page.locator("div.math mjx-container[tabindex='0']").count() > 0, "none is too wide for a phone?"
        numbers = [text.strip() for text in visit.page.locator("span.eqno").all_text_contents()]
        assert numbers
        assert not visit.faults
    with Visit(browser, book, "notation") as visit:
        assert visit.page.locator("a.reference", has_text=re.compile(r"^\(\d+\)$")).count() > 10


def test_policy_refuses_what_is_not_the_book_s(browser: Any, book: Path, tmp_path: Path) -> None:
    """A script, a picture and a page's data from elsewhere, and a base that would turn links there."""
    page = (book / "index.html").read_text()
    assert page.index("Content-Security-Policy") < page.index("<script")
    elsewhere = "https://elsewhere.example"
    bad = f'<base href="{elsewhere}/"><script src="{elsewhere}/x.js"></script><img src="{elsewhere}/x.png">'
    bad += f"<script>fetch('{elsewhere}/x.json').catch(() => 0)</script><object data='{elsewhere}/x'></object>"
    copy = book / "with-bad-words.html"
    copy.write_text(page.replace("</head>", f"{bad}</head>"))
    try:
        with Visit(browser, book, copy.stem) as visit:
            refused = [fault for fault in visit.faults if "Content Security Policy" in fault]
            for kind in ("script", "image", "connect", "plugin", "base"):
                words = {"connect": "connect to|Fetch API", "plugin": "object|plugin", "base": "base-uri"}.get(
                    kind, kind
                )
                assert any(re.search(words, fault, re.I) for fault in refused), (kind, refused)
    finally:
        copy.unlink()


HOSTILE = "<!--<script>hacked = 1</script><img src=x onerror='hacked = 1'>"


def test_text_of_runs_is_shown_and_not_run(browser: Any, book: Path, tmp_path: Path) -> None:
    series = {"name": HOSTILE, "color": "#0072B2", "marker": "o", "x": [1, 2], "y": [3, 4]}
    panel = {"title": HOSTILE, "series": [series], "rules": [{"y": 3, "label": HOSTILE}]}
    spec = {"kind": "lines", "x": {"label": HOSTILE}, "y": {"label": HOSTILE}, "panels": [panel]}
    data = {
        sphinx_ext.SPEC: {"runs": [HOSTILE], "commits": [HOSTILE], "interactive": spec},
        "text/csv": "panel,series\n",
    }
    page = (book / "notebooks" / "perplexity.html").read_text()
    start = page.index("<figure")
    beside = sphinx_ext.beside("fig-x", data, "../", "notebooks/perplexity")
    copy = book / "notebooks" / "with-hostile-words.html"
    copy.write_text(f"{page[:start]}<figure><img alt='static'></figure>{beside}<p id='after'>after</p>{page[start:]}")
    try:
        with Visit(browser, book, "notebooks/with-hostile-words") as visit:
            assert visit.page.locator("#after").is_visible(), "the end of the script was hidden"
            visit.page.get_by_role("button", name="Interactive", exact=True).first.click()
            assert visit.page.locator(".nf-legend button").first.get_attribute("data-name") == HOSTILE
            assert HOSTILE in visit.page.locator(".nf-interactive").first.inner_text()
            assert visit.page.locator(".nf-links code").first.text_content() == HOSTILE
            assert visit.page.evaluate("typeof hacked") == "undefined"
            assert not visit.faults
    finally:
        copy.unlink()


def test_without_scripts_the_static_figures_stay(browser: Any, book: Path) -> None:
    with Visit(browser, book, "notebooks/perplexity", java_script_enabled=False) as visit:
        assert visit.page.locator("figure#fig-curves img, figure#fig-curves svg").first.is_visible()
        assert visit.page.locator(".nf-links a", has_text="CSV").first.is_visible()


def opened(visit: Visit, figure: str) -> Any:
    """The interactive version of a figure, brought up by its button where it does not come first."""
    whole = visit.page.locator(f"figure#{figure}")
    toggle = whole.locator(".nf-toggle button")
    if toggle.get_attribute("aria-expanded") == "false":
        toggle.click()
    assert not whole.locator("img").is_visible()
    assert whole.locator("figcaption").is_visible()
    return whole.locator(".nf-interactive")


@pytest.mark.parametrize("visitor", VISITORS)
def test_button_of_a_figure_stays_in_its_place_and_says_what_is_shown(visitor: str, browser: Any, book: Path) -> None:
    with Visit(browser, book, "notebooks/perplexity", **VISITORS[visitor]) as visit:
        whole = visit.page.locator("figure#fig-curves")
        toggle, picture = whole.locator(".nf-toggle button"), whole.locator("img")
        assert toggle.get_attribute("aria-expanded") == "true", "it shows all that the caption speaks of"
        assert visit.page.locator(f"#{toggle.get_attribute('aria-controls')}").is_visible()
        toggle.scroll_into_view_if_needed()
        for shown in (True, False, True):
            before = toggle.bounding_box()
            toggle.tap() if visitor == "finger" else toggle.click()
            assert toggle.bounding_box()["y"] == pytest.approx(before["y"], abs=1), "the page jumps"
            assert picture.is_visible() == shown
            assert toggle.get_attribute("aria-expanded") == str(not shown).lower()
            assert toggle.text_content() == ("Interactive" if shown else "Static")
        assert not visit.faults


def test_curves_answer_to_mouse_and_keyboard(browser: Any, book: Path) -> None:
    with Visit(browser, book, "notebooks/perplexity") as visit:
        picture = opened(visit, "fig-curves")
        spec = json.loads(visit.page.locator('.nf-figure[data-figure="fig-curves"] script.nf-spec').text_content())
        plot, readout = picture.locator(".nf-plot").first, picture.locator(".nf-readout").first
        plot.focus()
        visit.page.keyboard.press("Home")
        said = readout.text_content()
        first = spec["panels"][0]["series"][0]
        assert first["name"] in said
        assert f"{first['y'][0]:.4g}" in said, said
        visit.page.keyboard.press("ArrowRight")
        assert readout.text_content() != said
        box = plot.bounding_box()
        visit.page.mouse.move(box["x"] + box["width"] * 0.7, box["y"] + box["height"] / 2)
        assert "SM+R" in readout.text_content()

        toggle = picture.locator('.nf-legend button[data-name="SM+G"]')
        assert toggle.get_attribute("aria-pressed") == "true"
        toggle.click()
        assert toggle.get_attribute("aria-pressed") == "false"
        visit.page.mouse.move(box["x"] + box["width"] * 0.6, box["y"] + box["height"] / 2)
        assert "SM+G" not in readout.text_content()

        log = picture.locator('.nf-log[data-axis="y"]')
        before = log.get_attribute("aria-pressed")
        log.click()
        assert log.get_attribute("aria-pressed") != before
        reset = picture.locator(".nf-reset")
        assert reset.is_disabled()
        box = plot.bounding_box()
        visit.page.mouse.move(box["x"] + box["width"] * 0.4, box["y"] + box["height"] * 0.3)
        visit.page.mouse.down()
        visit.page.mouse.move(box["x"] + box["width"] * 0.7, box["y"] + box["height"] * 0.6, steps=5)
        visit.page.mouse.up()
        visit.page.wait_for_function("button => !button.disabled", arg=reset.element_handle())
        reset.click()
        assert reset.is_disabled()

        visit.page.locator("figure#fig-curves").get_by_role("button", name="Static").click()
        assert visit.page.locator("figure#fig-curves img").is_visible()
        assert not visit.faults


def test_maps_follow_the_slider_and_show_a_head(browser: Any, book: Path) -> None:
    with Visit(browser, book, "notebooks/entropy") as visit:
        picture = opened(visit, "fig-maps")
        spec = json.loads(visit.page.locator('.nf-figure[data-figure="fig-maps"] script.nf-spec').text_content())
        cell, slider = picture.get_by_role("gridcell").first, picture.get_by_role("slider")
        for key, step in (("End", -1), ("Home", 0)):
            slider.focus()
            visit.page.keyboard.press(key)
            assert str(spec["steps"][step]) in slider.get_attribute("aria-valuetext")
            value = spec["panels"][0]["values"][step][0][0]
            said = cell.get_attribute("aria-label")
            assert f"{value:.3f}".rstrip("0") in said or f"{value:.4g}" in said, said
        cell.hover()
        assert "layer 0, head 0" in picture.locator(".nf-readout").first.text_content()
        cell.focus()
        visit.page.keyboard.press("ArrowRight")
        visit.page.keyboard.press("Enter")
        assert "Layer 0, head 1" in picture.locator(".nf-chosen").text_content()
        assert picture.locator(".nf-chosen canvas").is_visible()
        assert not visit.faults


@pytest.mark.parametrize("scripts", [True, False], ids=["", "without scripts"])
def test_first_page_shows_what_was_found_before_anything_is_touched(scripts: bool, browser: Any, book: Path) -> None:
    phone = {"width": 390, "height": 844}
    with Visit(browser, book, "index", viewport=phone, java_script_enabled=scripts, color_scheme="dark") as visit:
        for picture in visit.page.locator(".nf-hero svg").all():
            assert len(picture.get_attribute("aria-label")) > 50
            box = picture.bounding_box()
            assert box["width"] / 360 * 13 > 11, "letters are too small to read"
        assert visit.page.locator(".nf-hero input").count() == (2 if scripts else 0)
        assert visit.page.locator(".nf-card").count() == 3
        for badge in visit.page.locator(".nf-card .nf-badge").all():
            assert re.fullmatch(r"[✓✗○?◌] [a-z ]+", badge.text_content())
        links = visit.page.locator(".nf-buttons a").evaluate_all("all => all.map(a => a.getAttribute('href'))")
        assert links == ["notebooks/explorer.html", "notebooks/claims.html", "reproduce.html"]
        assert visit.page.evaluate("document.documentElement.scrollWidth") <= 390
        assert not visit.faults


@pytest.mark.parametrize("visitor", VISITORS)
def test_sliders_of_the_first_page_bend_the_curve_and_go_through_training(
    visitor: str, browser: Any, book: Path
) -> None:
    with Visit(browser, book, "index", **VISITORS[visitor]) as visit:
        sharpness, update = visit.page.get_by_role("slider").all()
        curve, value = (visit.page.locator(f"#nf-hero-{name}") for name in ("curve", "value-2"))
        heads = visit.page.locator("#nf-hero-heads-2")

        def heights() -> list[float]:
            return [float(y) for y in re.findall(r"[ML]\S+ ([\d.]+)", curve.get_attribute("d"))]

        gelu, last = heights(), value.text_content()
        assert gelu[0] > gelu[40] + 20, "GELU goes on below zero"
        sharpness.focus()
        visit.page.keyboard.press("End")
        assert heights()[0] == pytest.approx(heights()[40], abs=2), "ReLU does not"
        assert "128" in sharpness.get_attribute("aria-valuetext")
        final = heads.get_attribute("d")
        if visitor == "finger":
            size = update.bounding_box()
            update.tap(position={"x": 4, "y": size["height"] / 2})
        else:
            update.focus()
            visit.page.keyboard.press("Home")
        tops = re.findall(r"M\S+ ([\d.]+)h0", heads.get_attribute("d"))
        assert len(tops) == len(re.findall("h0", final))
        assert all(float(top) == pytest.approx(22, abs=1) for top in tops), "heads start at the ceiling"
        assert float(value.text_content()) > 2 * float(last)
        assert not visit.faults


@pytest.mark.parametrize("width", [390, 1280])
def test_claims_opens_with_a_strip_of_verdicts(width: int, browser: Any, book: Path) -> None:
    with Visit(browser, book, "notebooks/claims", viewport={"width": width, "height": 844}) as visit:
        badges = visit.page.locator(".nf-strip .nf-badge")
        assert badges.count() == len(read_ledger()["tests"])
        for badge in badges.all()[:5]:
            box = badge.bounding_box()
            assert box["x"] >= 0
            assert box["x"] + box["width"] <= width, "the verdict is cut off"
        statistics = visit.page.locator("details", has_text="Statistics of every test")
        assert not statistics.locator("table").is_visible()
        statistics.locator("summary").click()
        assert statistics.locator("table").is_visible()


INTERACTIVE = sorted({page for page, data in figures().values() if data[sphinx_ext.SPEC]["interactive"]})


@pytest.mark.parametrize("visitor", VISITORS)
@pytest.mark.parametrize("page", INTERACTIVE)
def test_every_interactive_figure_answers(page: str, visitor: str, browser: Any, book: Path) -> None:
    with Visit(browser, book, f"notebooks/{page}", reduced_motion="reduce", **VISITORS[visitor]) as visit:
        specs = visit.page.locator(".nf-figure:has(script.nf-spec)").evaluate_all(
            "all => all.map(b => [b.dataset.figure, b.querySelector('script.nf-spec').textContent])"
        )
        assert specs
        for figure, text in specs:
            ask_figure(visit, opened(visit, figure), json.loads(text), visitor)
        width = VISITORS[visitor]["viewport"]["width"]
        assert visit.page.evaluate("document.documentElement.scrollWidth") <= width
        assert not visit.faults
        # The rest of the page was looked at with the figures closed.
        assert serious(visit.page, ".nf-interactive") == []


def ask_figure(visit: Visit, picture: Any, spec: dict[str, Any], visitor: str) -> None:
    """Every answer that a figure of its kind owes."""
    if spec["kind"] in ("heat", "frames"):
        slider = picture.get_by_role("slider").first
        slider.focus()
        said = []
        for key in ("End", "Home", "ArrowRight"):
            visit.page.keyboard.press(key)
            said.append(slider.get_attribute("aria-valuetext"))
        names = [str(step) for step in spec.get("steps", [])] or [frame["name"] for frame in spec["frames"]]
        assert [words.split()[-1] for words in said] == [names[-1], names[0], names[1]]
    if spec["kind"] == "heat":
        ask_maps(visit, picture, spec, visitor)
    else:
        shown = spec["frames"][1] if spec["kind"] == "frames" else spec
        for index, panel in enumerate(shown["panels"]):
            ask_lines(visit, picture, shown, panel, index, visitor)


def ask_maps(visit: Visit, picture: Any, spec: dict[str, Any], visitor: str) -> None:
    readout = picture.locator(".nf-readout").first
    for index, panel in enumerate(spec["panels"]):
        grid = picture.get_by_role("grid").nth(index)
        cell = grid.get_by_role("gridcell").nth(1)
        cell.tap() if visitor == "finger" else cell.hover()
        where, said = readout.text_content().split(": ")
        assert where == f"{panel['title']}, layer 0, head 1"
        assert read(said) == pytest.approx(panel["values"][1][0][1], rel=1e-3)
        cell.focus()
        visit.page.keyboard.press("ArrowDown")
        assert "layer 1, head 1: " in readout.text_content()
        if visitor == "mouse":
            visit.page.keyboard.press("Enter")
        assert picture.locator(".nf-chosen canvas").is_visible() or index % 2, "a second choice puts it away"


def ask_lines(
    visit: Visit, picture: Any, spec: dict[str, Any], panel: dict[str, Any], index: int, visitor: str
) -> None:
    box = picture.locator(".nf-panel").nth(index)
    plot, readout = box.locator(".nf-plot"), box.locator(".nf-readout")
    resting = readout.text_content()
    plot.focus()
    visit.page.keyboard.press("Home")
    points = first_points(spec, panel)
    assert box.locator(".nf-value").count() == len({name for name, _ in points["series"]})
    values = box.locator(".nf-value").all_text_contents()
    for name, value in points["first"]:
        found = [
            read(text.removeprefix(f"{name} ")) for text in values if re.match(rf"{re.escape(name)} [-\u2212\d]", text)
        ]
        assert found == [pytest.approx(value, rel=1e-3)], name
    first = readout.text_content()
    assert read(first.split(": ")[0].split()[-1]) == pytest.approx(points["x"], rel=1e-3)
    if points["count"] > 1:
        visit.page.keyboard.press("ArrowRight")
        assert readout.text_content() != first
    over = plot.locator(".u-over")
    size = over.bounding_box()
    place = {"x": size["width"] * 0.98, "y": size["height"] / 2}
    over.tap(position=place) if visitor == "finger" else over.hover(position=place)
    assert readout.text_content() not in (resting, first) or points["count"] == 1
    log = picture.locator('.nf-log[data-axis="y"]')
    before = log.get_attribute("aria-pressed")
    if index == 0:
        for pressed in ("false" if before == "true" else "true", before):
            log.click()
            assert log.get_attribute("aria-pressed") == pressed
        toggle = picture.locator(".nf-legend button").first
        for pressed in ("false", "true"):
            toggle.click()
            assert picture.locator(".nf-legend button").first.get_attribute("aria-pressed") == pressed


def first_points(spec: dict[str, Any], panel: dict[str, Any]) -> dict[str, Any]:
    """What is to be read at the left end of a panel: the x, and the values of the series that begin there."""
    log = {axis: {**spec.get(axis, {}), **panel.get(axis, {})}.get("log", False) for axis in "xy"}

    def drawn(axis: str, value: float | None) -> bool:
        return value is not None and (value > 0 or not log[axis])

    pairs = [
        (series["name"], x, y)
        for series in panel["series"]
        for x, y in zip(series["x"], series["y"], strict=True)
        if drawn("x", x) and drawn("y", y)
    ]
    xs = {x for series in panel["series"] for x in series["x"] if drawn("x", x)}
    left = min(xs)
    first: dict[str, float] = {}
    for name, x, y in pairs:
        if x == left:
            first.setdefault(name, y)
    return {"x": left, "count": len(xs), "first": first.items(), "series": {(name, 0) for name, _, _ in pairs}}


def read(text: str) -> float:
    """The number that a text begins with."""
    return float(text.split()[0].replace("\u2212", "-"))


def test_explorer_compares_and_can_be_linked_to(browser: Any, book: Path) -> None:
    with Visit(browser, book, "notebooks/explorer") as visit:
        page = visit.page
        boxes = page.locator(".nf-explorer select")
        assert boxes.count() == 2
        assert page.locator(".nf-explorer canvas").count() > 0
        options = boxes.nth(1).locator("option").evaluate_all("all => all.map(o => o.value)")
        other = next(o for o in options if o not in (boxes.nth(0).input_value(), boxes.nth(1).input_value()))
        boxes.nth(1).select_option(other)
        link = page.url
        assert "#" in link
        before = boxes.nth(0).input_value()
        page.goto("about:blank")
        visit.faults.clear()
        page.goto(link, wait_until="load")
        assert [boxes.nth(i).input_value() for i in (0, 1)] == [before, other]
        page.goto(link.replace("a=", "a=no-such-"), wait_until="load")
        assert "There is no \u201cno-such-" in page.locator(".nf-status").text_content()
        page.goto(link.replace("%2B", "+"), wait_until="load")  # as a program leaves it that tidies links
        assert "There is no" not in page.locator(".nf-status").text_content()
        assert [boxes.nth(i).input_value() for i in (0, 1)] == [before, other]
        assert not visit.faults


@pytest.mark.parametrize("visitor", VISITORS)
def test_explorer_answers_and_compares_seed_by_seed(visitor: str, browser: Any, book: Path) -> None:
    with Visit(browser, book, "notebooks/explorer", **VISITORS[visitor]) as visit:
        page = visit.page
        cells = {
            cell["label"]: cell for cell in json.loads(page.locator(".nf-explorer script").text_content())["cells"]
        }
        for select in page.locator(".nf-explorer select").all():
            box = select.bounding_box()
            assert box["y"] + box["height"] < VISITORS[visitor]["viewport"]["height"], "below the fold"
        page.locator("#nf-b").select_option("SM+L(0.1)")
        pair = [
            {run["seed"]: run for run in cells[name]["runs"] if run["outcome"] == "trained"}
            for name in ("SM+G", "SM+L(0.1)")
        ]
        common = pair[0].keys() & pair[1].keys()
        assert len(common) < len(pair[0]), "one has more seeds"
        seeds = page.locator(".nf-explorer tr", has_text="seeds shown").locator("td").all_text_contents()
        assert seeds == [", ".join(map(str, sorted(common)))] * 2
        ratio = math.exp(
            sum(math.log(pair[1][s]["perplexity"] / pair[0][s]["perplexity"]) for s in common) / len(common)
        )
        said = page.locator(".nf-status").text_content()
        assert float(re.findall(r"([\d.]+) %", said)[0]) == pytest.approx(100 * abs(ratio - 1), rel=5e-3), said
        assert f"of the {len(common)} seeds that both have" in said

        # Keys, and mouse or finger, read the loss; one slider moves all.
        plot, readout = page.locator(".nf-explorer .nf-plot").first, page.locator(".nf-explorer .nf-readout").first
        first = sum(pair[0][s]["loss"][0] for s in common) / len(common)
        plot.focus()
        page.keyboard.press("Home")
        home = readout.text_content()
        assert read(home.partition("SM+G ")[2]) == pytest.approx(first, rel=1e-3)
        page.keyboard.press("ArrowRight")
        assert readout.text_content() != home
        over = plot.locator(".u-over")
        place = {"x": over.bounding_box()["width"] * 0.98, "y": 60}
        over.tap(position=place) if visitor == "finger" else over.hover(position=place)
        assert f"update {cells['SM+G']['x'][-1]}: " in readout.text_content()

        assert page.locator(".nf-explorer").get_by_role("slider").count() == 1
        slider, cell = page.locator(".nf-explorer").get_by_role("slider"), page.get_by_role("gridcell").first
        for key, step in (("Home", 0), ("End", -1)):
            slider.focus()
            page.keyboard.press(key)
            assert f"update {cells['SM+G']['x'][step]}: " in readout.text_content()
            share = sum(pair[0][s]["heads"][step][0][0] for s in common) / len(common) / 1000
            assert read(cell.get_attribute("aria-label").partition("rank 1: ")[2]) == pytest.approx(share, rel=1e-3)
        ranks = page.get_by_role("grid").first.get_by_role("row").nth(1).get_by_role("gridcell").all()
        shares = [read(rank.get_attribute("aria-label").partition(": ")[2]) for rank in ranks]
        assert shares == sorted(shares, reverse=True), "heads are in the order of their final entropy"
        cell.tap() if visitor == "finger" else cell.click()
        assert "Layer 0, rank 1" in page.locator(".nf-chosen").text_content()
        assert page.evaluate("document.documentElement.scrollWidth") <= VISITORS[visitor]["viewport"]["width"]
        assert not visit.faults
        last = page.get_by_role("gridcell").nth(3)
        last.focus()
        slider.press("Home")  # what was read is read again at the new update
        label, told = last.get_attribute("aria-label"), page.locator(".nf-heat .nf-readout").first.text_content()
        assert told.endswith(label)
        assert serious(page, ".nf-explorer") == []


def test_explorer_shows_both_at_the_update_that_it_names(browser: Any, book: Path) -> None:
    """A run that diverged has a probe at its end, which puts the others of its configuration at other places."""
    with Visit(browser, book, "notebooks/explorer") as visit:
        page = visit.page
        cells = {c["label"]: c for c in json.loads(page.locator(".nf-explorer script").text_content())["cells"]}
        pair = cells["SM+G"], next(c for c in cells.values() if len(c["steps"]) > len(cells["SM+G"]["steps"]))
        page.locator("#nf-b").select_option(pair[1]["label"])
        trained = [{run["seed"]: run for run in cell["runs"] if run["outcome"] == "trained"} for cell in pair]
        seeds = trained[0].keys() & trained[1].keys()
        slider, steps = page.locator(".nf-explorer").get_by_role("slider"), cells["SM+G"]["steps"]
        slider.press("Home")
        for step in steps:
            assert slider.get_attribute("aria-valuetext") == f"update {step}"
            for cell, runs, grid in zip(pair, trained, page.get_by_role("grid").all(), strict=True):
                said = grid.get_by_role("gridcell").first.get_attribute("aria-label").partition("rank 1: ")[2]
                place = cell["steps"].index(step)
                mean = sum(runs[seed]["heads"][place][0][0] for seed in seeds) / len(seeds) / 1000
                assert read(said) == pytest.approx(mean, rel=1e-3), (cell["label"], step)
            slider.press("ArrowRight")
        assert not visit.faults


def test_explorer_keeps_its_pair_at_a_heading_and_reads_beyond_the_zoom(browser: Any, book: Path) -> None:
    with Visit(browser, book, "notebooks/explorer") as visit:
        page = visit.page
        second, readout = page.locator("#nf-b"), page.locator(".nf-explorer .nf-readout").first
        second.select_option("SM+LN+G")
        for address in ("#how-to-read-it", "#a=SM%2BR&b=SM%2BG", ""):
            page.evaluate("address => (location.hash = address)", address)
            page.wait_for_timeout(50)
            assert second.input_value() == {"#how-to-read-it": "SM+LN+G", "": "SM+R"}.get(address, "SM+G")
        plot, slider = page.locator(".nf-explorer .nf-plot").first, page.locator(".nf-explorer").get_by_role("slider")
        for key in ("Home", "+", "+"):
            plot.press(key)
        for key, update in (("Home", 0), ("End", 600)):
            slider.press(key)
            assert readout.text_content().startswith(f"update {update}: ")
        assert not visit.faults


def test_finger_that_goes_sideways_reads(browser: Any, book: Path) -> None:
    with Visit(browser, book, "notebooks/explorer", **VISITORS["finger"]) as visit:
        over = visit.page.locator(".nf-explorer .nf-plot .u-over").first
        over.scroll_into_view_if_needed()
        box, said = over.bounding_box(), []
        for part in (0.2, 0.8):
            place = {"pointerType": "touch", "bubbles": True, "clientX": box["x"] + part * box["width"]}
            over.dispatch_event("pointermove", place)
            said.append(visit.page.locator(".nf-explorer .nf-readout").first.text_content())
        assert read(said[0].removeprefix("update ").replace(":", " ")) < read(
            said[1].removeprefix("update ").replace(":", " ")
        )


def test_axis_of_layers_has_whole_numbers(browser: Any, book: Path) -> None:
    record = """const found = window.asked = [], old = CanvasRenderingContext2D.prototype.fillText;
    CanvasRenderingContext2D.prototype.fillText = function (...all) { found.push(all[0]); old.apply(this, all); };"""
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    page = context.new_page()
    page.add_init_script(record)
    page.goto((book / "notebooks" / "explorer.html").as_uri(), wait_until="load")
    drawn = page.evaluate("window.asked")
    context.close()
    label = drawn.index("layer")  # the numbers follow it
    assert drawn[label + 1 : label + 7] == [str(layer) for layer in range(6)], drawn


def test_terms_explain_themselves_and_search_finds_pages(browser: Any, book: Path) -> None:
    with Visit(browser, book, toc()[0]) as visit:
        titles = visit.page.locator('a.reference[href*="glossary.html#term-"]').evaluate_all(
            "all => all.map(a => a.title)"
        )
        assert titles
        assert all(len(title) > 20 for title in titles)
    with Visit(browser, book, "search") as visit:
        visit.page.goto((book / "search.html").as_uri() + "?q=overload")
        visit.page.wait_for_selector("#search-results li a", timeout=10_000)
        visit.page.wait_for_load_state("networkidle")
        first = visit.page.locator("#search-results li a").first
        assert "glossary.html#term-" in first.get_attribute("href"), "the glossary comes first"
    with Visit(browser, book, "index") as visit:
        visit.page.keyboard.press("Control+k")
        field, icon = visit.page.locator("#pst-search-dialog input"), visit.page.locator("#pst-search-dialog form i")
        text = field.evaluate("box => box.getBoundingClientRect().x + parseFloat(getComputedStyle(box).paddingLeft)")
        size = icon.bounding_box()
        assert size["x"] + size["width"] < text, "the icon is on the text"
        assert not visit.faults
