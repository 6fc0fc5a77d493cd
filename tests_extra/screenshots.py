"""Take the pictures of docs/demo.md again: python tests_extra/screenshots.py [MODEL] [--out docs/images]

They show what the model gives for seed 0. MODEL is shown in them by its name.
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path
from typing import Any

from demo_pages import ROOT, browsing, generated, serving
from PIL import Image

COLOURS = 48  # of a picture: a page has few, and its file is then small


def take(page: Any, path: Path) -> None:
    """Save the page as it is."""
    page.mouse.move(0, 0)
    page.wait_for_timeout(500)
    picture = Image.open(io.BytesIO(page.screenshot(full_page=True)))
    picture.convert("RGB").quantize(COLOURS).save(path, optimize=True)
    print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


def pictures(page: Any, out: Path) -> None:
    """Take both pictures: texts with their checks, and a step of the filling of a gap."""
    page.get_by_label("food", exact=True).click()
    page.get_by_role("option", name="Japanese", exact=True).click()
    for name, value in (("longest", "16"), ("avoid", "cheap")):
        page.locator(f"#{name}").get_by_role("textbox").fill(value)
    generated(page)
    take(page, out / "demo-texts.png")
    page.locator("#chosen label").nth(1).click()
    for number in (1, 2):
        page.locator("#words label").nth(number).click()
    page.locator("#avoid").get_by_role("textbox").fill("")
    page.locator("#longest").get_by_role("textbox").fill("")
    page.get_by_label("food", exact=True).click()
    page.get_by_role("option", name="any", exact=True).click()
    generated(page, "#fill")
    step = page.locator("#step").get_by_role("slider")
    step.focus()
    step.press("Home")
    for _ in range(2):
        step.press("ArrowRight")
    take(page, out / "demo-gaps.png")


def main() -> None:
    """Start the server, and look at it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", default="restaurants")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images")
    options = parser.parse_args()
    with serving(options.model, folder=Path.cwd()) as address, browsing() as browser:
        page = browser.new_page(viewport={"width": 1180, "height": 700}, color_scheme="light")
        page.goto(address)
        page.locator("#generate").wait_for(timeout=60_000)
        pictures(page, options.out.resolve())


if __name__ == "__main__":
    main()
