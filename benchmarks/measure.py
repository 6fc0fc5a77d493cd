"""What the benchmarks share: runs of so many minutes of one thread's time, several at once, and results that are kept.

A run's steps are fixed before it starts, so that its own steps are timed first. Minutes are the processor's, not the
clock's: what else the machine does then changes no row much. Whatever was stopped goes on with the same command. Runs
whose steps are settled (``--settle``) may be trained elsewhere, on a GPU: so many steps are what the minutes hold.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from diffusionlm.config import UserError
from diffusionlm.data.corpora import Corpus
from diffusionlm.evaluation.benchmark import BenchmarkRunner, EvaluationConfig
from diffusionlm.evaluation.provenance import machine
from diffusionlm.files import write_text
from diffusionlm.training.run import RunConfig, claim, read_config, train

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results"
TIMED_STEPS, IGNORED_STEPS = 40, 10
TEMPERATURES = (0.9, 1.0, 1.1, 1.2)


def seconds_a_step(config: RunConfig) -> float:
    """Time a few steps of a run on one thread; return the processor's seconds a step, the first steps left out.

    Raises:
        KeyboardInterrupt: Ctrl-C stopped them.
    """
    never = 10**9
    training = replace(
        config.training, steps=TIMED_STEPS, threads=1, log_every=IGNORED_STEPS, evaluate_every=never, evaluation_texts=1,
        sample_every=never, save_every=never,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        if not train(replace(config, training=training), Path(folder) / "timed", write_samples=False, quiet=True):
            raise KeyboardInterrupt
        lines = (Path(folder) / "timed" / "log.jsonl").read_text().splitlines()
    seconds = [row["processor_seconds"] for row in map(json.loads, lines) if "processor_seconds" in row]
    return float(seconds[-1] - seconds[0]) / (TIMED_STEPS - IGNORED_STEPS)


def of_steps(config: RunConfig, steps: int) -> RunConfig:
    """Return a run of ``steps`` on one thread (a multiple of 50 of them, where there are so many)."""
    log_every = min(50, steps)
    steps -= steps % log_every  # the log's last row is then the last step's
    training = replace(
        config.training, steps=steps, threads=1, log_every=log_every, evaluate_every=steps, sample_every=steps,
        save_every=max(1, steps // 4),
    )  # fmt: skip
    return replace(config, training=training)


def of_minutes(config: RunConfig, minutes: float) -> RunConfig:
    """Return a run on one thread of as many steps as fit in ``minutes`` of the processor."""
    return of_steps(config, max(1, int(minutes * 60 / seconds_a_step(config))))


def trained(config: RunConfig, folder: Path, options: argparse.Namespace) -> None:
    """Train in ``folder`` for ``options.steps`` or ``options.minutes``; a run that is there goes on as it began.

    Raises:
        UserError: minutes of the processor cannot be timed on another device.
        KeyboardInterrupt: Ctrl-C stopped it after a step.
    """
    torch.set_num_threads(1)
    if (folder / "config.yaml").exists():
        config = read_config([folder / "config.yaml"])
    elif options.steps:
        config = of_steps(config, options.steps)
    elif options.device == "cpu":
        config = of_minutes(config, options.minutes)
    else:
        raise UserError(f"{folder}: not settled; call with --settle and --device cpu first, or say --steps")
    if options.settle:
        claim(config, folder)
    elif not train(config, folder, write_samples=False):
        raise KeyboardInterrupt


def kept(path: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return the figures in ``path``; where there are none yet they are made, and written with the machine's description."""
    if not path.exists():
        write_text(path, json.dumps({**make(), "machine": machine()}, indent=2, ensure_ascii=False) + "\n")
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def file_name(row: str) -> str:
    """Return what a row's folder and files are called."""
    return re.sub(r"\W+", "-", row)


def in_processes(commands: Mapping[str, Sequence[str]], jobs: int, logs: Path, device: str = "cpu") -> list[str]:
    """Run named commands, ``jobs`` at a time and each on one thread; return the names of those that failed.

    What they say goes to ``logs``. After Ctrl-C, which they get as well, no other is started, and this waits for those
    that run to save where they are.
    """
    logs.mkdir(parents=True, exist_ok=True)
    failed = []

    def run(name: str) -> int:
        with (logs / f"{file_name(name)}.log").open("w") as log:
            env = {**os.environ, "OMP_NUM_THREADS": "1"}
            if device == "cpu":
                env["CUDA_VISIBLE_DEVICES"] = ""  # what is timed is the processor
            return subprocess.run(commands[name], stdout=log, stderr=log, env=env, check=False).returncode

    with ThreadPoolExecutor(jobs) as pool, tqdm(total=len(commands), unit="row", disable=not commands) as bar:
        running = {pool.submit(run, name): name for name in commands}
        try:
            for future in as_completed(running):
                bar.update()
                if future.result():
                    failed.append(running[future])
                    tqdm.write(f"{running[future]}: failed; see {logs}/{file_name(running[future])}.log", file=sys.stderr)
        except KeyboardInterrupt:
            print("\nstopping; what is finished is kept, and the same command goes on", file=sys.stderr)
            for future in running:
                future.cancel()
            raise
    return failed


def arguments(description: str | None, rows: Sequence[str], minutes: float) -> argparse.ArgumentParser:
    """Return a parser of what the benchmarks on E2E are asked."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "rows", nargs="*", metavar="ROW", help=("all of them, or some of: " + "; ".join(rows)).replace("%", "%%")
    )
    parser.add_argument("--folder", required=True, help="of E2E's trainset.csv, devset.csv and testset_w_refs.csv")
    parser.add_argument("--judge", required=True, help="the run of configs/e2e-judge.yaml, or any causal language model")
    parser.add_argument("--minutes", type=float, default=minutes, help="of one thread, for each training (%(default)s)")
    parser.add_argument("--steps", type=int, help="train exactly so many steps, whatever the time")
    parser.add_argument("--texts", type=int, default=500, help="to write at each setting (%(default)s)")
    parser.add_argument("--bound-texts", type=int, default=100, help="real texts whose likelihood is bounded (%(default)s)")
    parser.add_argument("--jobs", type=int, default=2, help="trainings at a time; 0 is one, in this process (%(default)s)")
    parser.add_argument("--device", default="cpu", help="what trains and writes; minutes stay a processor's (%(default)s)")
    parser.add_argument("--settle", action="store_true", help="time the rows' steps on this processor, and train nothing yet")
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)  # one row's process, started by ``every``
    parser.add_argument("--runs", default="runs/benchmarks", help="where the trained models go (%(default)s)")
    parser.add_argument("--results", default=str(RESULTS), help="where the figures go (%(default)s)")
    return parser


def asked(parser: argparse.ArgumentParser, rows: Sequence[str], words: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; ``length`` names what is trained for, such as 10-minutes."""
    options = parser.parse_args(words)
    if unknown := [row for row in options.rows if row not in rows]:
        parser.error(f"no row is called {unknown[0]!r}: choose from {', '.join(rows)}")
    for name in ("minutes", "steps"):
        if (value := getattr(options, name)) is not None and value <= 0:
            parser.error(f"--{name}: expected more than 0, got {value}")
    if options.jobs < 0:
        parser.error(f"--jobs: expected 0 or more, got {options.jobs}")
    options.rows = options.rows or list(rows)
    options.length = f"{options.steps}-steps" if options.steps else f"{options.minutes:g}-minutes"
    return options


def check(corpus: Corpus, options: argparse.Namespace) -> None:
    """Find mistakes before anything is trained for minutes. Raises UserError: the judge, the data or a number is wrong."""
    asking = EvaluationConfig(count=options.texts, bound_texts=options.bound_texts)
    BenchmarkRunner.prepare(options.judge, corpus, asking, None, options.device, quiet=True)


def every(rows: Sequence[str], script: str, options: argparse.Namespace, make: Callable[[str], Any], logs: Path) -> list[str]:
    """Call ``make`` for each row, or the same script for one row each in processes of its own; return which failed."""
    if options.jobs and not options.alone:
        names = ("folder", "judge", "minutes", "steps", "texts", "bound_texts", "device", "runs", "results")
        given = {name.replace("_", "-"): value for name in names if (value := getattr(options, name)) is not None}
        flags = [*(f"--{name}={value}" for name, value in given.items()), *["--settle"] * options.settle]
        commands = {row: [sys.executable, script, "--alone", *flags, row] for row in rows}
        return in_processes(commands, options.jobs, logs, options.device)
    for row in rows:
        make(row)
    return []


def exit_status(run: Callable[[], list[str] | None], finish: Callable[[], None] | None = None) -> int:
    """Run, then finish with what there is; return 0, 1 where rows failed, 2 for a user's mistake, 130 after Ctrl-C."""
    try:
        status = 1 if run() else 0
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    except LookupError as error:
        if not (missing := re.search(r"nltk\.download\('(\w+)'\)", str(error))):
            raise
        print(f"NLTK_DATA: NLTK's {missing[1]} is neither there nor where NLTK keeps its own; download it", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        status = 130
    if finish is not None:
        finish()
    return status
