"""The demo's server as a process, and a browser that looks at it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
NAMES = ("chromium", "chromium-browser", "google-chrome")
MISSING = "the tests of the demo need a browser: apt-get install -y chromium, or give its path in the variable CHROMIUM"


@contextmanager
def serving(*arguments: str, folder: Path = ROOT) -> Iterator[str]:
    """Run ``diffusionlm demo`` at a free port, in ``folder``; give its address, and end it with Ctrl-C."""
    command = [sys.executable, "-m", "diffusionlm", "demo", *arguments, "--port", "0"]
    with subprocess.Popen(
        command,
        cwd=folder,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored where the tests run in the background
    ) as server:
        assert server.stdout is not None
        try:
            address = server.stdout.readline().strip()
            assert address.startswith("http://127.0.0.1:"), address
            yield address
            server.send_signal(signal.SIGINT)
            assert server.wait(30) == 0
        finally:
            server.kill()


def chromium() -> str:
    """Return the path of the browser. Raises FileNotFoundError where there is none."""
    found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        raise FileNotFoundError(MISSING)
    return found


@contextmanager
def browsing() -> Iterator[Any]:
    """Give a browser without a window. Root has no sandbox."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        yield browser
        browser.close()


def generated(page: Any, button: str = "#generate") -> list[str]:
    """Press a button, wait until texts are finished or refused, and return the texts of the first model."""
    ends = "#status [role=status], [role=alert]"
    page.evaluate("ends => document.querySelectorAll(ends).forEach(e => e.setAttribute('data-before', ''))", ends)
    page.locator(button).click()
    page.locator(", ".join(f"{end}:not([data-before])" for end in ends.split(", "))).first.wait_for(timeout=120_000)
    texts: list[str] = page.locator("#samples-1 p.sample").all_inner_texts()
    return texts
