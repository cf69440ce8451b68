"""A real Chromium for tests of JavaScript, cut off from the network: ``browser``, ``page``. Knows no Jupyter.

Every page of a test records what it asked other hosts for and which errors its scripts raised, and the test
fails if there was any. ``tools/prepare.sh`` finds Chromium: in $CHROMIUM, on the PATH, or where Playwright installs it.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest
from waiting import LONG

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page, Playwright

#: What knows where a Chromium may lie.
PREPARE = str(Path(__file__).resolve().parent.parent / "tools" / "prepare.sh")
#: What a test says that is skipped; ``closing.py`` counts them.
NO_BROWSER = "no Chromium"
#: Nothing but this machine can be reached, and pictures do not depend on its fonts' hinting or its display.
CHROMIUM_ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--force-color-profile=srgb",
    "--font-render-hinting=none",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
]
#: Where an error may come from: Notebook 7.6 raises one on every page, without any extension.
NOT_OURS = "/static/notebook/notebook_core."
#: How many times slower than this machine the pages are: ``ATLAS_SLOW_BROWSER=6`` finds tests that are in a hurry.
SLOWER = float(os.environ.get("ATLAS_SLOW_BROWSER", "1"))
#: Milliseconds after which a page has failed.
PATIENCE = 1000 * LONG * max(1, SLOWER)
LOCAL_SCHEMES = {"about", "blob", "data", "chrome-error"}


def find_chromium(playwright: Playwright) -> str | None:
    """Return the path of a Chromium, or None if there is none on this machine (or CHROMIUM is ``none``)."""
    found = subprocess.run([PREPARE, "--chromium"], stdout=subprocess.PIPE, text=True, check=False).stdout
    bundled = playwright.chromium.executable_path  # where Playwright keeps it outside Linux
    wanted = not os.environ.get("CHROMIUM")
    return found.strip() or (bundled if wanted and Path(bundled).exists() else None)


def is_local(url: str) -> bool:
    """Tell whether a request stays on this machine."""
    parts = urlsplit(url)
    return parts.scheme in LOCAL_SCHEMES or parts.hostname == "127.0.0.1"


class Watch:
    """What the pages of one context must not do: ask other hosts, or raise errors."""

    def __init__(self, context: BrowserContext) -> None:
        self.outside: list[str] = []
        self.errors: list[str] = []
        context.on("request", lambda request: self._note(request.url))
        context.on("page", self._watch)

    def _note(self, url: str) -> None:
        if not is_local(url):
            self.outside.append(url)

    def _watch(self, page: Page) -> None:
        page.on("pageerror", lambda error: self._note_error(error.stack or str(error)))
        page.on("websocket", lambda socket: self._note(socket.url))

    def _note_error(self, stack: str) -> None:
        frames = [line for line in stack.splitlines() if line.lstrip().startswith("at ")]
        if not frames or NOT_OURS not in frames[0]:
            self.errors.append(stack)

    def check(self) -> None:
        """Fail if a page did what it must not do since the last check."""
        outside, errors = self.outside[:], self.errors[:]
        self.outside.clear()
        self.errors.clear()
        assert not outside, f"asked other hosts for {outside}"
        assert not errors, f"errors in the page: {errors}"


# Playwright's event loop lives in this thread while it runs, and tests that use asyncio cannot share it:
# so the browser lasts for a module, not for the session.
@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Return a running Chromium."""
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=PATIENCE)  # a busy machine is slow, and what is right does not wait
    with sync_playwright() as playwright:
        path = find_chromium(playwright)
        if path is None:
            unwanted = os.environ.get("CHROMIUM") == "none"
            give_up = pytest.fail if os.environ.get("CI") and not unwanted else pytest.skip
            give_up(NO_BROWSER)
        running = playwright.chromium.launch(executable_path=path, args=CHROMIUM_ARGUMENTS)
        yield running
        running.close()


def _slow_down(page: Page) -> None:
    page.context.new_cdp_session(page).send("Emulation.setCPUThrottlingRate", {"rate": SLOWER})


@pytest.fixture(scope="module")
def _context(browser: Browser) -> Iterator[tuple[BrowserContext, Watch]]:
    """Share one cache among the pages of a module: JupyterLab is megabytes of JavaScript."""
    context = browser.new_context(
        viewport={"width": 1280, "height": 900}, reduced_motion="reduce", accept_downloads=True
    )
    context.set_default_timeout(PATIENCE)
    if SLOWER > 1:
        context.on("page", _slow_down)
    yield context, Watch(context)
    context.close()


@pytest.fixture
def page(_context: tuple[BrowserContext, Watch]) -> Iterator[Page]:
    """Return an empty page; afterwards no other host was asked and no script raised an error."""
    context, watch = _context
    opened = context.new_page()
    yield opened
    opened.close()
    watch.check()
