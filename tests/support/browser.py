"""A headless Chromium for tests of pages; they skip, or fail on demand, where there is none."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

# no sandbox: root in a container cannot have one, and the pages are our own; the rest keeps the
# browser off the network
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--force-color-profile=srgb",
]
PHONE = {"viewport": {"width": 360, "height": 740}, "is_mobile": True, "has_touch": True}


def _missing(reason: str) -> Any:
    if os.environ.get("TIMONEL_BROWSER") == "required":
        pytest.fail(f"{reason}, and TIMONEL_BROWSER=required", pytrace=False)
    pytest.skip(f"{reason}; TIMONEL_BROWSER=required makes this a failure")


@contextmanager
def chromium() -> Iterator[Browser]:
    """A running Chromium, Debian's (`apt-get install chromium`) or the one on the path, driven by
    playwright.
    """
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        _missing("no playwright: pip install playwright")
    binary = (
        shutil.which("chromium")
        or shutil.which("google-chrome")
        or shutil.which("chromium-browser")
    )
    if binary is None:
        _missing("no Chromium on the path: apt-get install chromium")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=binary, headless=True, args=FLAGS)
        try:
            yield browser
        finally:
            browser.close()


class Watched:
    """A page with everything it said and asked for: `errors` on the console, `requests` that are
    not its own file.
    """

    def __init__(self, page: Page) -> None:
        self.page = page
        self.errors: list[str] = []
        self.requests: list[str] = []
        page.on(
            "console",
            lambda said: (
                self.errors.append(said.text) if said.type in ("error", "warning") else None
            ),
        )
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("request", self._asked)

    def quiet(self) -> None:
        """The page neither complained nor asked for anything."""
        assert not self.errors, self.errors
        assert not self.requests, self.requests

    def _asked(self, request: Any) -> None:
        if not request.url.startswith(("file:", "data:")):
            self.requests.append(request.url)


@contextmanager
def opened(browser: Browser, address: str, **context: Any) -> Iterator[Watched]:
    """The page at `address` in a fresh profile, 1280 by 900 unless said otherwise. `context`: for
    `new_context`.
    """
    given = {
        "viewport": {"width": 1280, "height": 900},
        "locale": "en-GB",
        "reduced_motion": "reduce",
        **context,
    }
    made = browser.new_context(**given)
    try:
        watched = Watched(made.new_page())
        watched.page.goto(address)
        yield watched
    finally:
        made.close()


def style(page: Page, selector: str, name: str) -> str:
    """What the browser made of a CSS property of the first element."""
    return str(page.locator(selector).first.evaluate(f"node => getComputedStyle(node)['{name}']"))


def until(page: Page, script: str) -> None:
    """Wait until `script` is true; asked from outside, for the page's policy lets no script in that
    waits there.
    """
    for _ in range(200):
        if page.evaluate(script):
            return
        page.wait_for_timeout(50)
    raise AssertionError(f"this did not become true: {script}")
