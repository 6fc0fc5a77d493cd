"""Run by a test in two processes: uses an entry of the cache, and says whether it made it, when told to go on."""

import sys
from pathlib import Path

from diffusionlm.data.store import stored


def make(folder: Path) -> dict[str, str]:
    print("begun", flush=True)
    maker = sys.stdin.readline().strip()
    (folder / "content").write_text(maker)
    return {"maker": maker}


if __name__ == "__main__":
    print(stored("test", {"of": 1}, make).facts["maker"], flush=True)
