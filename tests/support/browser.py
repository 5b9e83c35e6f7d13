"""A real browser: Chromium on the PATH (`apt-get install chromium`), or where FAR_TEST_CHROMIUM
says."""

import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from playwright.async_api import Browser, async_playwright

CHROMIUM = os.environ.get("FAR_TEST_CHROMIUM") or next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)

needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="There is no Chromium on the PATH.")


@asynccontextmanager
async def open_browser() -> AsyncIterator[Browser]:
    """Chromium, without a window."""
    async with async_playwright() as playwright:
        # Chromium's own sandbox does not start as root, as tests in containers run.
        opened = await playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"]
        )
        yield opened
        await opened.close()
