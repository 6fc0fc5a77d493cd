"""Time commands with one process and with several, in pairs, and print the ratio of the times.

    python benchmarks/processes.py RUN --judge JUDGE --out benchmarks/results/processes

A pair is one call with each number of processes, one right after the other, each process with one thread; start-up is included.
The ratio of a pair is the time with one process over that with several. The load of the machine beside them is shown: on a
machine that is busy otherwise, a ratio says little, as several processes also get a larger share of it. The CPU time does not
depend on the load; what several processes need more of it is their start-up.
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
from collections.abc import Mapping, Sequence
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


def seconds(words: Sequence[str], processes: int) -> tuple[float, float]:
    """Run a command and return its wall-clock and its CPU time. Raises CalledProcessError where it fails."""
    started, before = time.perf_counter(), os.times()
    command = [sys.executable, "-m", "diffusionlm", *words, "--processes", str(processes)]
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    after = os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return time.perf_counter() - started, cpu


def table_of(rows: Sequence[Mapping[str, Any]], processes: int) -> str:
    """Return the medians over the pairs of each command, and the ratio of each pair."""
    many = f"{processes} processes"
    header = ("1 process, s", f"{many}, s", "CPU, s", f"CPU of {many}", "load", "ratio (pairs)")
    lines = [f"{'command':<22}" + "".join(f"{each:>20}" for each in header)]
    for name in dict.fromkeys(row["command"] for row in rows):
        mine = [row for row in rows if row["command"] == name]
        ratios = [row["one"] / row["several"] for row in mine]
        keys = ("one", "several", "one_cpu", "several_cpu", "load")
        figures = "".join(f"{statistics.median(row[key] for row in mine):>20.1f}" for key in keys)
        pairs = f"{statistics.median(ratios):.2f} ({', '.join(f'{each:.2f}' for each in ratios)})"
        lines.append(f"{name:<22}{figures}  {pairs}")
    return "\n".join(lines) + "\n"


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
            one, several = times[1], times[options.processes]
            row = {"one": one[0], "several": several[0], "one_cpu": one[1], "several_cpu": several[1]}
            rows.append({"command": name, **row, "load": load})
            print(f"{name}: {', '.join(f'{key} {value:.1f}' for key, value in row.items())}; load {load:.1f}", file=sys.stderr)
    table = table_of(rows, options.processes)
    print(table, end="")
    if options.out is not None:
        about = {"count": options.count, "processes": options.processes, "machine": machine(), "rows": rows}
        write_text(options.out / "processes.json", json.dumps(about, indent=2) + "\n")
        write_text(options.out / "table.txt", table)


if __name__ == "__main__":
    main()
