"""Pages in a headless Chromium, driven by Playwright: it draws, waits and reads where Chromium's own options cannot.

The browser is the system's; Playwright's own is never downloaded.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from benchmarks.pictures import OUTLINES

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
MISSING = "there is no Chromium: apt-get install chromium"
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason=MISSING)


@contextmanager
def start_browser() -> Iterator[Browser]:
    """Start the browser. Raises: FileNotFoundError where there is none."""
    if CHROMIUM is None:
        raise FileNotFoundError(MISSING)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM)
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def open_page(
    address: str, width: int = 1280, height: int = 800, until: str | None = None, **settings: Any
) -> Iterator[Page]:
    """Open a page in a window of that size, in a browser of its own, and wait until it has loaded everything.

    A page that keeps on loading, as those of MLflow, is ready once it shows the text `until`.
    `settings` are those of Playwright's `new_page`, such as `color_scheme="dark"`.
    """
    with start_browser() as browser:
        page = browser.new_page(viewport={"width": width, "height": height}, **settings)
        page.set_default_timeout(120_000)
        page.goto(address, wait_until="load" if until else "networkidle")
        if until:
            page.get_by_text(until).first.wait_for()
        yield page


def lines(page: Page, digit: int) -> Iterator[list[list[float]]]:
    """The strokes of a digit as points on the paper of the page to draw on, in pixels of the window."""
    from scipy.interpolate import make_interp_spline

    box = page.locator("#paper").bounding_box()
    corner, size = np.array([box["x"], box["y"]]), np.array([box["width"], box["height"]])
    for outline in OUTLINES[digit][0]:
        curve = make_interp_spline(range(len(outline)), np.array(outline), k=min(2, len(outline) - 1))
        yield (corner + size * (curve(np.linspace(0, len(outline) - 1, 20)) * [0.5, 0.7] + [0.25, 0.15])).tolist()


def draw(page: Page, digit: int) -> None:
    """Draw the digit with the mouse."""
    for line in lines(page, digit):
        page.mouse.move(*line[0])
        page.mouse.down()
        for point in line[1:]:
            page.mouse.move(*point)
        page.mouse.up()
