"""A study's figures as pictures, drawn by a browser, for readers whose tools show no SVG."""

from __future__ import annotations

import shutil
from pathlib import Path

from opd.errors import DataError

WIDTH = 1040
"""Pixels of a figure before it is magnified."""
MAGNIFIED = 2


def draw_pictures(folder: Path) -> list[Path]:
    """Put a PNG in the place of every SVG of `folder`, which the page in HTML holds too; their
    paths. Raises DataError without a browser."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        chromium = None
    if chromium is None:
        raise DataError(
            f"{folder}: the page is written, but its pictures need Chromium and playwright, which "
            "are not here; run `bash scripts/setup.sh full` and the command again"
        )
    drawn: list[Path] = []
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(
            viewport={"width": WIDTH, "height": WIDTH}, device_scale_factor=MAGNIFIED
        )
        for figure in sorted(folder.glob("*.svg")):
            page.set_content(f"<body style='margin:0'>{figure.read_text(encoding='utf-8')}</body>")
            picture = figure.with_suffix(".png")
            page.locator("body > svg").screenshot(path=picture)
            figure.unlink()
            drawn.append(picture)
        browser.close()
    return drawn
