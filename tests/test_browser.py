"""The built book in a real browser: every page, every interactive picture, by mouse and by keyboard.

Skipped where there is no Chromium (Debian: the package chromium; elsewhere any Chromium or Chrome on the PATH).
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.test_book import toc


sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium here: install the package chromium")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=BROWSER, args=FLAGS)
        yield running
        running.close()


class Visit:
    """A page of the book, with all that went wrong while it was open."""

    def __init__(self, browser: Any, book: Path, name: str, **options: Any) -> None:
        self.context = browser.new_context(**options)
        self.page = self.context.new_page()
        self.faults: list[str] = []
        self.page.on("console", lambda m: self.faults.append(m.text) if m.type == "error" else None)
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.page.on("request", lambda request: self.seen(request.url, book))
        self.page.goto((book / f"{name}.html").as_uri(), wait_until="load")

    def seen(self, url: str, book: Path) -> None:
        if not url.startswith((book.as_uri(), "data:", "blob:")):
            self.faults.append(f"asks for {url}")

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None:
        self.context.close()


@pytest.mark.parametrize("name", toc())
def test_page_opens_at_every_width_without_a_fault(name: str, browser: Any, book: Path) -> None:
    with Visit(browser, book, name, viewport={"width": 1440, "height": 900}) as visit:
        for width in (1440, 768):
            visit.page.set_viewport_size({"width": width, "height": 900})
            wide = visit.page.evaluate("document.documentElement.scrollWidth")
            assert wide <= width, f"scrolls sideways: {wide} of {width} pixels"
        assert not visit.faults


def test_without_scripts_the_static_figures_stay(browser: Any, book: Path) -> None:
    with Visit(browser, book, "notebooks/curves", java_script_enabled=False) as visit:
        assert visit.page.locator("figure#fig-curves img, figure#fig-curves svg").first.is_visible()
        assert visit.page.locator(".nf-links a", has_text="CSV").first.is_visible()


def opened(visit: Visit, figure: str) -> Any:
    """The interactive version of a figure, brought up by its button."""
    beside = visit.page.locator(f'.nf-figure[data-figure="{figure}"]')
    beside.get_by_role("button", name="Interactive").click()
    assert not visit.page.locator(f"figure#{figure}").is_visible()
    return beside.locator("xpath=preceding-sibling::*[1]")


def test_curves_answer_to_mouse_and_keyboard(browser: Any, book: Path) -> None:
    with Visit(browser, book, "notebooks/curves") as visit:
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

        visit.page.get_by_role("button", name="Static").first.click()
        assert visit.page.locator("figure#fig-curves").is_visible()
        assert not visit.faults


def test_maps_follow_the_slider_and_show_a_head(browser: Any, book: Path) -> None:
    with Visit(browser, book, "notebooks/maps") as visit:
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


def test_sweep_has_a_slider_over_s(browser: Any, book: Path) -> None:
    with Visit(browser, book, "notebooks/mechanism") as visit:
        picture = opened(visit, "fig-sweep")
        slider = picture.get_by_role("slider")
        slider.focus()
        visit.page.keyboard.press("Home")
        first = slider.get_attribute("aria-valuetext")
        visit.page.keyboard.press("ArrowRight")
        assert slider.get_attribute("aria-valuetext") != first
        assert picture.locator("canvas").count() == 2
        assert not visit.faults


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_interactive_figure_draws(theme: str, browser: Any, book: Path) -> None:
    for name in (page for page in toc() if page.startswith("notebooks/")):
        with Visit(browser, book, name, color_scheme=theme, viewport={"width": 768, "height": 800}) as visit:
            buttons = visit.page.get_by_role("button", name="Interactive", exact=True)
            while count := buttons.count():
                buttons.first.click()
                assert buttons.count() == count - 1
            assert visit.page.evaluate("document.documentElement.scrollWidth") <= 768, name
            assert not visit.faults, name


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
        assert not visit.faults


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
