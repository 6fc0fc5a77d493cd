"""Measure how long training takes to its first step on large corpora, and the memory of its process.

``python benchmarks/data_scale.py --lines 1000 1000000 --folder FOLDER`` writes files of so many lines (words of a Zipf
distribution, by a seed), starts ``diffusionlm train`` on each twice, the first time with an empty cache, and prints a table:
seconds and CPU seconds from the start of the process to its first logged step, the peak of its resident memory, and the peak
of what is its own of that (pages of mapped files are shared by all processes). The first count is the reference: what the
library and the model need without a corpus to speak of.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tabulate import tabulate

VOCABULARY = 20_000
SETTINGS = {
    "training.steps": "2",
    "training.log_every": "1",
    "training.threads": "1",
    "training.precision": "fp32",
    "model.dimension": "32",
    "model.backbone.layers": "2",
    "model.backbone.width": "64",
    "model.backbone.heads": "2",
}


@dataclass
class Start:
    """What one start of a training run needed up to its first step: seconds, CPU seconds, megabytes."""

    seconds: float = 0.0
    cpu: float = 0.0
    resident: float = 0.0
    own: float = 0.0


def lines(count: int, seed: int = 0) -> Iterator[str]:
    """Yield ``count`` lines of 4 to 11 words, in blocks of text."""
    draw = np.random.default_rng(seed)
    letters = np.array([*"abcdefghijklmnopqrstuvwxyz"])
    words: dict[str, None] = {}
    while len(words) < VOCABULARY:
        words["".join(draw.choice(letters, draw.integers(2, 9)))] = None
    known = np.array([*words], dtype=object)
    probabilities = np.cumsum(1 / np.arange(1, VOCABULARY + 1))
    for start in range(0, count, 100_000):
        sizes = draw.integers(4, 12, min(100_000, count - start))
        drawn = known[np.searchsorted(probabilities / probabilities[-1], draw.random(sizes.sum())).clip(max=VOCABULARY - 1)]
        yield "".join(" ".join(part) + "\n" for part in np.split(drawn, np.cumsum(sizes)[:-1]))


def measured(corpus: Path, run: Path, cache: Path, show: bool) -> Start:
    """Start training in ``run``, wait for its first step, stop it, and return what it needed."""
    shutil.rmtree(run, ignore_errors=True)
    options = [part for name, value in SETTINGS.items() for part in (f"--{name}", value)]
    command = [sys.executable, "-m", "diffusionlm", "train", "--data.corpus", str(corpus), "--out", str(run), *options]
    begin, start = time.monotonic(), Start()
    process = subprocess.Popen(
        command, env={**os.environ, "DIFFUSIONLM_CACHE": str(cache)}, stderr=None if show else subprocess.DEVNULL
    )
    proc, log = Path(f"/proc/{process.pid}"), run / "log.jsonl"
    while process.poll() is None and not (log.exists() and log.stat().st_size):
        try:
            memory = dict(line.split()[:2] for line in (proc / "smaps_rollup").read_text().splitlines()[1:])
            start.resident = max(start.resident, int(memory["Rss:"]) / 1024)
            start.own = max(start.own, (int(memory["Private_Dirty:"]) + int(memory["Private_Clean:"])) / 1024)
            ticks = sum(map(int, (proc / "stat").read_text().rpartition(")")[2].split()[11:13]))
            start.cpu = ticks / os.sysconf("SC_CLK_TCK")
        except (OSError, KeyError, ValueError):  # it has ended
            break
        time.sleep(0.2)
    start.seconds = time.monotonic() - begin
    if not log.exists():
        raise SystemExit(f"training on {corpus} failed with status {process.wait()}")
    process.kill()  # the rest of the run is not measured
    process.wait()
    return start


def both_starts(count: int, folder: Path, show: bool = False) -> tuple[float, dict[str, Start]]:
    """Write a corpus of ``count`` lines below ``folder``, start training twice, and remove it; return its size and the starts.

    The size is in MB; the first start has an empty cache.
    """
    folder = folder / f"{count}-lines"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with (folder / "texts.txt").open("w", encoding="utf-8") as file:
            file.writelines(lines(count))
        size = (folder / "texts.txt").stat().st_size / 1e6
        where = (folder / "texts.txt", folder / "run", folder / "cache")
        return size, {name: measured(*where, show) for name in ("first", "second")}
    finally:
        shutil.rmtree(folder)


def main() -> None:
    """Measure, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", type=int, nargs="+", default=[1000, 1_000_000], help="lines of each corpus")
    parser.add_argument("--folder", type=Path, required=True, help="folder of the corpora, runs and caches, which are removed")
    parser.add_argument("--show", action="store_true", help="show what the runs print")
    options = parser.parse_args()
    rows = []
    for count in options.lines:
        size, starts = both_starts(count, options.folder, options.show)
        for name, found in starts.items():
            rows.append([count, round(size, 1), name, found.seconds, found.cpu, found.resident, found.own])
    header = ["lines", "MB", "start", "seconds", "CPU seconds", "resident MB", "own MB"]
    print(tabulate(rows, header, tablefmt="github", floatfmt=".0f", intfmt=","))


if __name__ == "__main__":
    main()
