"""A real browser without a screen: Debian's chromium, driven by playwright."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CHROMIUM = Path("/usr/bin/chromium")
REQUIRED = "TRANSACT_TESTS_NEED_CHROMIUM"  # set where a skip would hide that nothing was tested
SECONDS = 30.0


def missing_browser() -> str | None:
    """Why there is none; None where there is one.

    Raises:
        RuntimeError: there is none, and the environment says that there must be.
    """
    if CHROMIUM.exists():
        return None
    if os.environ.get(REQUIRED):
        raise RuntimeError(f"{REQUIRED} is set, and there is no {CHROMIUM}")
    return f"no {CHROMIUM} (apt-get install chromium)"


@contextmanager
def chromium() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        yield browser
        browser.close()


@dataclass
class Watched:
    """A page that is open, and what it has said and asked for.

    Attributes:
        complaints: errors and warnings of its console, and exceptions.
        requests: addresses, its own file's included.
    """

    page: Any
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


@contextmanager
def opened(browser: Any, file: Path, *, width: int = 1280, theme: str = "light") -> Iterator[Watched]:
    """The report, once its charts are drawn."""
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=theme)
    watched = Watched(context.new_page())
    watched.page.set_default_timeout(1000 * SECONDS)
    watched.page.on("console", lambda message: watched.complaints.append(f"{message.type}: {message.text}"))
    watched.page.on("pageerror", lambda error: watched.complaints.append(str(error)))
    watched.page.on("dialog", lambda dialog: (watched.complaints.append(dialog.message), dialog.dismiss()))
    watched.page.on("request", lambda request: watched.requests.append(request.url))
    watched.page.goto(file.absolute().as_uri())
    watched.page.wait_for_selector("html[data-drawn]", state="attached")
    yield watched
    context.close()
