"""Time commands with one process and with several, in pairs, and print the ratio of the times.

    python benchmarks/processes.py RUN --judge JUDGE --out benchmarks/results/processes

A pair is one call with each number of processes, one right after the other, each process with one thread; start-up is included.
The ratio of a pair is the time with one process over that with several. The load of the machine beside them is shown, since a
core that is busy otherwise halves the gain.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diffusionlm.evaluation.provenance import machine
from diffusionlm.files import write_text


def commands(options: argparse.Namespace, folder: Path) -> dict[str, list[str]]:
    """Return the commands that are timed, by name; ``folder`` is a new one for each call."""
    run, count, texts = options.run, str(options.count), str(options.texts)
    size = ["--batch-size", str(max(1, options.count // 8))]
    found = {
        "generate": ["generate", run, "--count", count, *size],
        "generate, a length": ["generate", run, "--count", count, *size, "--control", "Length(12)"],
        "score": ["score", run, texts, "--strata", "128"],
    }
    if options.judge:
        judged = ["evaluate", run, "--judge", options.judge, "--out", str(folder)]
        pace = ["--count", count, "--temperatures", "1.0", "--bound-texts", str(max(2, options.count // 4)), "--orders", "0"]
        found["evaluate"] = [*judged, *pace, f"--sampling.batch_size={size[1]}"]
        found["evaluate --controls"] = [*judged, "--controls", options.task, "--targets-count", "12", "--samples", "4"]
    return {name: found[name] for name in options.commands or found}


def seconds(words: Sequence[str], processes: int) -> float:
    """Run a command and return its wall-clock time. Raises CalledProcessError where it fails."""
    started = time.perf_counter()
    command = [sys.executable, "-m", "diffusionlm", *words, "--processes", str(processes)]
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    return time.perf_counter() - started


def main(arguments: Sequence[str] | None = None) -> None:
    """Time the commands and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", metavar="RUN", help="run folder of a diffusion model")
    parser.add_argument("--texts", required=True, help="file of texts to score")
    parser.add_argument("--judge", help="judge LM; without one, evaluate is left out")
    parser.add_argument("--task", default="configs/control/length.yaml", help="task of evaluate --controls")
    parser.add_argument("--commands", nargs="+", help="of these alone")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--count", type=int, default=256, help="texts to generate")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--out", type=Path, help="folder for processes.json and table.txt")
    options = parser.parse_args(arguments)
    rows: list[dict[str, Any]] = []
    for name in commands(options, Path()):
        for pair in range(options.pairs):
            times = {}
            for processes in (1, options.processes) if pair % 2 == 0 else (options.processes, 1):
                with tempfile.TemporaryDirectory() as folder:
                    times[processes] = seconds(commands(options, Path(folder) / "out")[name], processes)
            load = os.getloadavg()[0]
            rows.append({"command": name, "one": times[1], "several": times[options.processes], "load": load})
            print(f"{name}: {times[1]:.1f} s, {times[options.processes]:.1f} s; load {load:.1f}", file=sys.stderr)
    lines = [f"{'command':<22}{'1 process, s':>14}{f'{options.processes} processes, s':>16}{'ratio (pairs)':>28}{'load':>7}"]
    for name in dict.fromkeys(row["command"] for row in rows):
        mine = [row for row in rows if row["command"] == name]
        ratios = [row["one"] / row["several"] for row in mine]
        one, several, load = (statistics.median(row[key] for row in mine) for key in ("one", "several", "load"))
        pairs = f"{statistics.median(ratios):.2f} ({', '.join(f'{each:.2f}' for each in ratios)})"
        lines.append(f"{name:<22}{one:>14.1f}{several:>16.1f}{pairs:>28}{load:>7.1f}")
    table = "\n".join(lines) + "\n"
    print(table, end="")
    if options.out is not None:
        about = {"count": options.count, "processes": options.processes, "machine": machine(), "rows": rows}
        write_text(options.out / "processes.json", json.dumps(about, indent=2) + "\n")
        write_text(options.out / "table.txt", table)


if __name__ == "__main__":
    main()
