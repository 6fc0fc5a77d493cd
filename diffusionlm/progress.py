"""What commands show on standard error while they work: progress bars, and samples as they are made."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

from diffusionlm.processes import is_first


def intervals() -> dict[str, Any]:
    """Return arguments of every progress bar: a line every 10 s in a file or pipe, unless tqdm's own variable is set."""
    return {} if sys.stderr.isatty() or "TQDM_MININTERVAL" in os.environ else {"mininterval": 10.0}


def watcher() -> Callable[[Any, list[str]], None]:
    """Return a callback that redraws the first texts of a batch in place after every step."""
    drawn = 0

    def draw(state: Any, texts: list[str]) -> None:
        nonlocal drawn
        terminal = sys.stderr.isatty()
        width = os.get_terminal_size(sys.stderr.fileno()).columns if terminal else 120
        lines = [f"t = {state.t:.2f}", *(text[: width - 3] for text in texts[:8])]
        up = f"\x1b[{drawn}A" if drawn and terminal else ""
        sys.stderr.write(up + "".join(f"\x1b[2K  {line}\n" if terminal else f"  {line}\n" for line in lines))
        sys.stderr.flush()
        drawn = len(lines)

    return draw


def say(sentence: str) -> None:
    """Print a sentence on stderr, from the first of several processes alone."""
    if is_first():
        print(sentence, file=sys.stderr)
