"""The built book in a real browser: every page, every interactive picture, by mouse, finger and keyboard.

Skipped where there is no Chromium (Debian: the package chromium; elsewhere any Chromium or Chrome on the PATH).
"""

import json
import math
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import mean
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


@contextmanager
def visiting(browser: Any, book: Path, name: str, refused: list[str] | None = None, **options: Any) -> Iterator[Any]:
    """A page of the book; in the end nothing has gone wrong while it was open, but for what ``refused`` collects."""
    key = json.dumps(options, sort_keys=True)
    if key not in TABS:
        TABS[key] = browser.new_context(**options).new_page()
    page, faults = TABS[key], [] if refused is None else refused
    # As the one before may have left them
    page.set_viewport_size(options.get("viewport", {"width": 1280, "height": 720}))
    page.emulate_media(color_scheme=options.get("color_scheme", "light"))
    page.mouse.move(0, 0)

    def asked(request: Any) -> None:
        if not request.url.startswith((book.as_uri(), "data:", "blob:", "about:")):
            faults.append(f"asks for {request.url}")

    listeners = {
        "console": lambda message: faults.append(message.text) if message.type == "error" else None,
        "pageerror": lambda error: faults.append(str(error)),
        "request": asked,
    }
    for event, listener in listeners.items():
        page.on(event, listener)
    try:
        page.goto((book / f"{name}.html").as_uri(), wait_until="load")
        yield page
    finally:
        for event, listener in listeners.items():
            page.remove_listener(event, listener)
        page.goto("about:blank")
    assert refused is not None or not faults


def serious(page: Any, where: str = "html", but: tuple[str, ...] = (), **options: Any) -> list[str]:
    """What axe-core finds on a page that is serious or worse, with the first place of each."""
    # Rows of a table are alike: some are looked at.
    context = {"include": [where], "exclude": ["tbody tr:nth-child(n+5)", *but]}
    options |= {"resultTypes": ["violations"], "preload": False}  # else it asks for style sheets, in vain
    found = axe.Axe().run(page, context, options).response["violations"]
    grave = [fault for fault in found if fault["impact"] in ("serious", "critical")]
    return [f"{fault['id']}: {fault['nodes'][0]['target']} {fault['nodes'][0]['html'][:200]}" for fault in grave]


MODULES = [name for name in toc() if name.startswith("api/")]  # made by one template


@pytest.mark.parametrize("name", [*(name for name in toc() if name not in MODULES[1:]), "search", "genindex"])
def test_page_has_no_fault_fits_every_width_and_is_open_to_all(name: str, browser: Any, book: Path) -> None:
    with visiting(browser, book, name, reduced_motion="reduce", color_scheme="light") as page:
        for width in (360, 768, 1440):
            page.set_viewport_size({"width": width, "height": 900})
            fits(page, width)
        page.add_style_tag(content="* { transition: none !important }")  # no colour half way to another
        list_of_pages = () if name == toc()[0] else (".bd-sidebar-primary",)  # is the same on all
        assert serious(page, but=list_of_pages) == []
        # Another theme changes colours, a phone what scrolls; the rest is as before.
        page.emulate_media(color_scheme="dark")
        page.set_viewport_size({"width": 360, "height": 900})
        page.wait_for_selector("html[data-theme=dark]", state="attached")
        # The theme looks for what scrolls 0.3 s after a change of size.
        page.wait_for_timeout(350)
        assert serious(page, "main", runOnly=["color-contrast", "scrollable-region-focusable"]) == []


def fits(page: Any, width: int) -> None:
    wide = page.evaluate("document.documentElement.scrollWidth")
    assert wide <= width, f"scrolls sideways: {wide} of {width} pixels"


def test_pages_of_modules_fit_a_phone(browser: Any, book: Path) -> None:
    for name in MODULES:
        with visiting(browser, book, name, **VISITORS["finger"]) as page:
            fits(page, 360)


def test_first_page_is_light(browser: Any, book: Path) -> None:
    """Without MathJax, which it does not load at all."""
    sizes: dict[str, int] = {}
    context = browser.new_context()
    page = context.new_page()
    page.on("requestfinished", lambda request: sizes.update({request.url: len(request.response().body())}))
    page.goto((book / "index.html").as_uri(), wait_until="networkidle")
    context.close()
    assert any("index.html" in url for url in sizes)
    assert not [url for url in sizes if "mathjax" in url]
    assert sum(sizes.values()) < 1.5e6, sorted(sizes.items(), key=lambda item: -item[1])[:5]


def test_formulas_are_drawn_where_there_are_some(browser: Any, book: Path) -> None:
    with visiting(browser, book, "background", viewport={"width": 360, "height": 800}) as page:
        page.wait_for_selector("mjx-container svg", state="attached")
        assert page.locator("div.math mjx-container").count() > 10
        assert page.locator("div.math mjx-container[tabindex='0']").count() > 0, "none is too wide for a phone?"
        numbers = [text.strip() for text in page.locator("span.eqno").all_text_contents()]
        assert numbers
    with visiting(browser, book, "notation") as page:
        assert page.locator("a.reference", has_text=re.compile(r"^\(\d+\)$")).count() > 10


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
        faults: list[str] = []
        with visiting(browser, book, copy.stem, faults):
            refused = [fault for fault in faults if "Content Security Policy" in fault]
            for words in ("script", "image", "connect to|Fetch API", "object|plugin", "base-uri"):
                assert any(re.search(words, fault, re.I) for fault in refused), (words, refused)
    finally:
        copy.unlink()


HOSTILE = "<!--<script>hacked = 1</script><img src=x onerror='hacked = 1'>"


def test_text_of_runs_is_shown_and_not_run(browser: Any, book: Path, tmp_path: Path) -> None:
    series = {"name": HOSTILE, "color": "#0072B2", "marker": "o", "x": [1, 2], "y": [3, 4]}
    panel = {"title": HOSTILE, "series": [series], "rules": [{"y": 3, "label": HOSTILE}]}
    spec = {"kind": "lines", "x": {"label": HOSTILE}, "y": {"label": HOSTILE}, "panels": [panel]}
    own = {"runs": [HOSTILE], "commits": [HOSTILE], "interactive": spec}
    data = {sphinx_ext.SPEC: own, "text/csv": "panel,series\n"}
    page = (book / "notebooks" / "perplexity.html").read_text()
    start = page.index("<figure")
    beside = sphinx_ext.beside("fig-x", data, "../", "notebooks/perplexity")
    copy = book / "notebooks" / "with-hostile-words.html"
    copy.write_text(f"{page[:start]}<figure><img alt='static'></figure>{beside}<p id='after'>after</p>{page[start:]}")
    try:
        with visiting(browser, book, "notebooks/with-hostile-words") as page:
            assert page.locator("#after").is_visible(), "the end of the script was hidden"
            page.get_by_role("button", name="Interactive", exact=True).first.click()
            assert page.locator(".nf-legend button").first.get_attribute("data-name") == HOSTILE
            assert HOSTILE in page.locator(".nf-interactive").first.inner_text()
            assert page.locator(".nf-links code").first.text_content() == HOSTILE
            assert page.evaluate("typeof hacked") == "undefined"
    finally:
        copy.unlink()


def test_without_scripts_the_static_figures_stay(browser: Any, book: Path) -> None:
    with visiting(browser, book, "notebooks/perplexity", java_script_enabled=False) as page:
        assert page.locator("figure#fig-curves img, figure#fig-curves svg").first.is_visible()
        assert page.locator(".nf-links a", has_text="CSV").first.is_visible()


def opened(page: Any, figure: str) -> Any:
    """The interactive version of a figure, brought up by its button where it does not come first."""
    whole = page.locator(f"figure#{figure}")
    toggle = whole.locator(".nf-toggle button")
    if toggle.get_attribute("aria-expanded") == "false":
        toggle.click()
    assert not whole.locator("img").is_visible()
    assert whole.locator("figcaption").is_visible()
    return whole.locator(".nf-interactive")


@pytest.mark.parametrize("visitor", VISITORS)
def test_button_of_a_figure_stays_in_its_place_and_says_what_is_shown(visitor: str, browser: Any, book: Path) -> None:
    with visiting(browser, book, "notebooks/perplexity", **VISITORS[visitor]) as page:
        whole = page.locator("figure#fig-curves")
        toggle, picture = whole.locator(".nf-toggle button"), whole.locator("img")
        assert toggle.get_attribute("aria-expanded") == "true", "it shows all that the caption speaks of"
        assert page.locator(f"#{toggle.get_attribute('aria-controls')}").is_visible()
        toggle.scroll_into_view_if_needed()
        for shown in (True, False, True):
            before = toggle.bounding_box()
            toggle.tap() if visitor == "finger" else toggle.click()
            assert toggle.bounding_box()["y"] == pytest.approx(before["y"], abs=1), "the page jumps"
            assert picture.is_visible() == shown
            assert toggle.get_attribute("aria-expanded") == str(not shown).lower()
            assert toggle.text_content() == ("Interactive" if shown else "Static")


@pytest.mark.parametrize("scripts", [True, False], ids=["", "without scripts"])
def test_first_page_shows_what_was_found_before_anything_is_touched(scripts: bool, browser: Any, book: Path) -> None:
    phone = {"viewport": {"width": 390, "height": 844}, "color_scheme": "dark"}
    with visiting(browser, book, "index", java_script_enabled=scripts, **phone) as page:
        for picture in page.locator(".nf-hero svg").all():
            assert len(picture.get_attribute("aria-label")) > 50
            box = picture.bounding_box()
            assert box["width"] / 360 * 13 > 11, "letters are too small to read"
        assert page.locator(".nf-hero input").count() == (2 if scripts else 0)
        assert page.locator(".nf-card").count() == 3
        for badge in page.locator(".nf-card .nf-badge").all():
            assert re.fullmatch(r"[✓✗○?◌] [a-z ]+", badge.text_content())
        links = page.locator(".nf-buttons a").evaluate_all("all => all.map(a => a.getAttribute('href'))")
        assert links == ["notebooks/explorer.html", "notebooks/claims.html", "reproduce.html"]
        fits(page, 390)


@pytest.mark.parametrize("visitor", VISITORS)
def test_sliders_of_the_first_page_bend_the_curve_and_go_through_training(
    visitor: str, browser: Any, book: Path
) -> None:
    with visiting(browser, book, "index", **VISITORS[visitor]) as page:
        sharpness, update = page.get_by_role("slider").all()
        curve, value = (page.locator(f"#nf-hero-{name}") for name in ("curve", "value-2"))
        heads = page.locator("#nf-hero-heads-2")

        def heights() -> list[float]:
            return [float(y) for y in re.findall(r"[ML]\S+ ([\d.]+)", curve.get_attribute("d"))]

        gelu, last = heights(), value.text_content()
        assert gelu[0] > gelu[40] + 20, "GELU goes on below zero"
        sharpness.press("End")
        assert heights()[0] == pytest.approx(heights()[40], abs=2), "ReLU does not"
        assert "128" in sharpness.get_attribute("aria-valuetext")
        final = heads.get_attribute("d")
        if visitor == "finger":
            size = update.bounding_box()
            update.tap(position={"x": 4, "y": size["height"] / 2})
        else:
            update.press("Home")
        tops = re.findall(r"M\S+ ([\d.]+)h0", heads.get_attribute("d"))
        assert len(tops) == len(re.findall("h0", final))
        assert all(float(top) == pytest.approx(22, abs=1) for top in tops), "heads start at the ceiling"
        assert float(value.text_content()) > 2 * float(last)


@pytest.mark.parametrize("width", [390, 1280])
def test_claims_opens_with_a_strip_of_verdicts(width: int, browser: Any, book: Path) -> None:
    with visiting(browser, book, "notebooks/claims", viewport={"width": width, "height": 844}) as page:
        badges = page.locator(".nf-strip .nf-badge")
        assert badges.count() == len(read_ledger()["tests"])
        for badge in badges.all()[:5]:
            box = badge.bounding_box()
            assert box["x"] >= 0
            assert box["x"] + box["width"] <= width, "the verdict is cut off"
        statistics = page.locator("details", has_text="Statistics of every test")
        assert not statistics.locator("table").is_visible()
        statistics.locator("summary").click()
        assert statistics.locator("table").is_visible()


INTERACTIVE = sorted({page for page, data in figures().values() if data[sphinx_ext.SPEC]["interactive"]})


@pytest.mark.parametrize("visitor", VISITORS)
@pytest.mark.parametrize("name", INTERACTIVE)
def test_every_interactive_figure_answers(name: str, visitor: str, browser: Any, book: Path) -> None:
    with visiting(browser, book, f"notebooks/{name}", reduced_motion="reduce", **VISITORS[visitor]) as page:
        specs = page.locator(".nf-figure:has(script.nf-spec)").evaluate_all(
            "all => all.map(b => [b.dataset.figure, b.querySelector('script.nf-spec').textContent])"
        )
        assert specs
        for figure, text in specs:
            ask_figure(page, opened(page, figure), json.loads(text), visitor)
        fits(page, VISITORS[visitor]["viewport"]["width"])
        # The rest of the page was looked at with the figures closed.
        assert serious(page, ".nf-interactive") == []


def ask_figure(page: Any, picture: Any, spec: dict[str, Any], visitor: str) -> None:
    """Every answer that a figure of its kind owes."""
    if spec["kind"] in ("heat", "frames"):
        slider, said = picture.get_by_role("slider").first, []
        for key in ("End", "Home", "ArrowRight"):
            slider.press(key)
            said.append(slider.get_attribute("aria-valuetext"))
        names = [str(step) for step in spec.get("steps", [])] or [frame["name"] for frame in spec["frames"]]
        assert [words.split()[-1] for words in said] == [names[-1], names[0], names[1]]
    if spec["kind"] == "heat":
        ask_maps(page, picture, spec, visitor)
    else:
        shown = spec["frames"][1] if spec["kind"] == "frames" else spec
        for index, panel in enumerate(shown["panels"]):
            ask_lines(page, picture, shown, panel, index, visitor)


def ask_maps(page: Any, picture: Any, spec: dict[str, Any], visitor: str) -> None:
    readout = picture.locator(".nf-readout").first
    for index, panel in enumerate(spec["panels"]):
        grid = picture.get_by_role("grid").nth(index)
        cell = grid.get_by_role("gridcell").nth(1)
        cell.tap() if visitor == "finger" else cell.hover()
        where, said = readout.text_content().split(": ")
        assert where == f"{panel['title']}, layer 0, head 1"
        assert read(said) == pytest.approx(panel["values"][1][0][1], rel=1e-3)
        cell.press("ArrowDown")
        assert "layer 1, head 1: " in readout.text_content()
        if visitor == "mouse":
            page.keyboard.press("Enter")
        assert picture.locator(".nf-chosen canvas").is_visible() or index % 2, "a second choice puts it away"


def ask_lines(page: Any, picture: Any, spec: dict[str, Any], panel: dict[str, Any], index: int, visitor: str) -> None:
    box = picture.locator(".nf-panel").nth(index)
    plot, readout = box.locator(".nf-plot"), box.locator(".nf-readout")

    def values_of(name: str) -> list[float]:
        said = box.locator(".nf-value").all_text_contents()
        return [
            read(text.removeprefix(f"{name} ")) for text in said if re.match(rf"{re.escape(name)} [-\u2212\d]", text)
        ]

    resting = readout.text_content()
    plot.press("Home")
    points = first_points(spec, panel)
    assert box.locator(".nf-value").count() == points["series"]
    for name, value in points["first"].items():
        assert values_of(name) == [pytest.approx(value, rel=1e-3)], name
    first = readout.text_content()
    assert read(first.split(": ")[0].split()[-1]) == pytest.approx(points["x"], rel=1e-3)
    if points["count"] > 1:
        plot.press("ArrowRight")
        assert readout.text_content() != first
    over = plot.locator(".u-over")
    size = over.bounding_box()
    place = {"x": size["width"] * 0.98, "y": size["height"] / 2}
    over.tap(position=place) if visitor == "finger" else over.hover(position=place)
    assert readout.text_content() not in (resting, first) or points["count"] == 1
    if index == 0:
        log = picture.locator('.nf-log[data-axis="y"]')
        before = log.get_attribute("aria-pressed")
        for pressed in ("false" if before == "true" else "true", before):
            log.click()
            assert log.get_attribute("aria-pressed") == pressed
        for pressed in ("false", "true"):
            picture.locator(".nf-legend button").first.click()
            toggle = picture.locator(".nf-legend button").first
            assert toggle.get_attribute("aria-pressed") == pressed
            name = toggle.get_attribute("data-name")
            plot.press("Home")
            assert bool(values_of(name)) == (pressed == "true") or name not in points["first"]


def test_curves_zoom_by_mouse_and_reset(browser: Any, book: Path) -> None:
    with visiting(browser, book, "notebooks/perplexity") as page:
        picture = opened(page, "fig-curves")
        reset, plot = picture.locator(".nf-reset"), picture.locator(".nf-plot").first
        assert reset.is_disabled()
        plot.scroll_into_view_if_needed()
        box = plot.bounding_box()
        page.mouse.move(box["x"] + box["width"] * 0.4, box["y"] + box["height"] * 0.3)
        page.mouse.down()
        page.mouse.move(box["x"] + box["width"] * 0.7, box["y"] + box["height"] * 0.6, steps=5)
        page.mouse.up()
        page.wait_for_function("button => !button.disabled", arg=reset.element_handle())
        reset.click()
        assert reset.is_disabled()


def first_points(spec: dict[str, Any], panel: dict[str, Any]) -> dict[str, Any]:
    """What is to be read at the left end of a panel: the x, the values of the series that begin there, and how many
    places and series there are."""
    log = {axis: {**spec.get(axis, {}), **panel.get(axis, {})}.get("log", False) for axis in "xy"}

    def drawn(axis: str, value: float | None) -> bool:
        return value is not None and (value > 0 or not log[axis])

    xs = {x for series in panel["series"] for x in series["x"] if drawn("x", x)}
    first: dict[str, float] = {}
    names = set()
    for series in panel["series"]:
        for x, y in zip(series["x"], series["y"], strict=True):
            if drawn("x", x) and drawn("y", y):
                names.add(series["name"])
                if x == min(xs):
                    first.setdefault(series["name"], y)
    return {"x": min(xs), "count": len(xs), "first": first, "series": len(names)}


def read(text: str) -> float:
    """The number that a text begins with."""
    return float(text.split()[0].replace("\u2212", "-"))


def test_explorer_can_be_linked_to_keeps_its_pair_and_reads_beyond_the_zoom(browser: Any, book: Path) -> None:
    with visiting(browser, book, "notebooks/explorer") as page:
        first, second = (page.locator(f"#nf-{name}") for name in "ab")
        status, readout = page.locator(".nf-status"), page.locator(".nf-explorer .nf-readout").first
        second.select_option("SM+LN+G")
        link = page.url
        assert "#" in link
        for address in ("#how-to-read-it", "#a=SM%2BR&b=SM%2BG", ""):
            page.evaluate("address => (location.hash = address)", address)
            page.wait_for_timeout(50)
            assert second.input_value() == {"#how-to-read-it": "SM+LN+G", "": "SM+R"}.get(address, "SM+G")
        before = first.input_value()
        for address in (link, link.replace("%2B", "+")):  # the other as a program leaves it that tidies links
            page.goto("about:blank")
            page.goto(address, wait_until="load")
            assert "There is no" not in status.text_content()
            assert (first.input_value(), second.input_value()) == (before, "SM+LN+G")
        page.goto(link.replace("a=", "a=no-such-"), wait_until="load")
        assert "There is no \u201cno-such-" in status.text_content()
        plot, slider = page.locator(".nf-explorer .nf-plot").first, page.locator(".nf-explorer").get_by_role("slider")
        for key in ("Home", "+", "+"):
            plot.press(key)
        for key, update in (("Home", 0), ("End", 600)):
            slider.press(key)
            assert readout.text_content().startswith(f"update {update}: ")


@pytest.mark.parametrize("visitor", VISITORS)
def test_explorer_answers_and_compares_seed_by_seed(visitor: str, browser: Any, book: Path) -> None:
    with visiting(browser, book, "notebooks/explorer", **VISITORS[visitor]) as page:
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
        ratio = math.exp(mean([math.log(pair[1][s]["perplexity"] / pair[0][s]["perplexity"]) for s in common]))
        said = page.locator(".nf-status").text_content()
        assert float(re.findall(r"([\d.]+) %", said)[0]) == pytest.approx(100 * abs(ratio - 1), rel=5e-3), said
        assert f"of the {len(common)} seeds that both have" in said

        # Keys, and mouse or finger, read the loss; one slider moves all.
        plot, readout = page.locator(".nf-explorer .nf-plot").first, page.locator(".nf-explorer .nf-readout").first
        first = mean([pair[0][s]["loss"][0] for s in common])
        plot.press("Home")
        home = readout.text_content()
        assert read(home.partition("SM+G ")[2]) == pytest.approx(first, rel=1e-3)
        page.keyboard.press("ArrowRight")
        assert readout.text_content() != home
        over = plot.locator(".u-over")
        place = {"x": over.bounding_box()["width"] * 0.98, "y": 60}
        over.tap(position=place) if visitor == "finger" else over.hover(position=place)
        assert f"update {cells['SM+G']['x'][-1]}: " in readout.text_content()
        box, said = over.bounding_box(), []
        for part in (0.2, 0.8):  # a finger that goes sideways reads, too
            at = {"pointerType": "touch", "bubbles": True, "clientX": box["x"] + part * box["width"]}
            over.dispatch_event("pointermove", at)
            said.append(read(readout.text_content().removeprefix("update ").replace(":", " ")))
        assert said[0] < said[1] or visitor == "mouse"

        assert page.locator(".nf-explorer").get_by_role("slider").count() == 1
        slider, cell = page.locator(".nf-explorer").get_by_role("slider"), page.get_by_role("gridcell").first
        for key, step in (("Home", 0), ("End", -1)):
            slider.press(key)
            assert f"update {cells['SM+G']['x'][step]}: " in readout.text_content()
        ranks = page.get_by_role("grid").first.get_by_role("row").nth(1).get_by_role("gridcell").all()
        shares = [read(rank.get_attribute("aria-label").partition(": ")[2]) for rank in ranks]
        assert shares == sorted(shares, reverse=True), "heads are in the order of their final entropy"
        cell.tap() if visitor == "finger" else cell.click()
        assert "Layer 0, rank 1" in page.locator(".nf-chosen").text_content()
        fits(page, VISITORS[visitor]["viewport"]["width"])
        last = page.get_by_role("gridcell").nth(3)
        last.focus()
        slider.press("Home")  # what was read is read again at the new update
        label, told = last.get_attribute("aria-label"), page.locator(".nf-heat .nf-readout").first.text_content()
        assert told.endswith(label)
        assert serious(page, ".nf-explorer") == []


def test_explorer_shows_both_at_the_update_that_it_names(browser: Any, book: Path) -> None:
    """A run that diverged has a probe at its end, which puts the others of its configuration at other places."""
    with visiting(browser, book, "notebooks/explorer") as page:
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
                share = mean([runs[seed]["heads"][place][0][0] for seed in seeds]) / 1000
                assert read(said) == pytest.approx(share, rel=1e-3), (cell["label"], step)
            slider.press("ArrowRight")


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
    with visiting(browser, book, toc()[0]) as page:
        titles = page.locator('a.reference[href*="glossary.html#term-"]').evaluate_all("all => all.map(a => a.title)")
        assert titles
        assert all(len(title) > 20 for title in titles)
    with visiting(browser, book, "search") as page:
        page.goto((book / "search.html").as_uri() + "?q=overload")
        page.wait_for_selector("#search-results li a", timeout=10_000)
        page.wait_for_load_state("networkidle")
        first = page.locator("#search-results li a").first
        assert "glossary.html#term-" in first.get_attribute("href"), "the glossary comes first"
    with visiting(browser, book, "index") as page:
        page.keyboard.press("Control+k")
        field, icon = page.locator("#pst-search-dialog input"), page.locator("#pst-search-dialog form i")
        text = field.evaluate("box => box.getBoundingClientRect().x + parseFloat(getComputedStyle(box).paddingLeft)")
        size = icon.bounding_box()
        assert size["x"] + size["width"] < text, "the icon is on the text"
