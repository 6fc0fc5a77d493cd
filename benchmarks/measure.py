"""Shared code of the benchmarks: training with a budget of CPU time, parallel processes and saved results.

A run's number of steps is fixed before training, by timing a few of its steps on one thread. The budget is CPU time, not
wall-clock time, so other jobs on the machine change the number little. After an interruption the same command resumes.
With ``--time-only`` the number of steps is computed and saved without training, so that a GPU can train as many steps.
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
from safetensors.torch import load_file
from tqdm import tqdm

from diffusionlm.config import UserError
from diffusionlm.core.objective import Objective
from diffusionlm.data.corpora import Corpus
from diffusionlm.evaluation.benchmark import BenchmarkRunner, EvaluationConfig
from diffusionlm.evaluation.provenance import machine
from diffusionlm.files import write_text
from diffusionlm.training.run import RunConfig, claim, read_config, train

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results"
TIMED_STEPS, IGNORED_STEPS = 40, 10
TEMPERATURES = (0.9, 1.0, 1.1, 1.2)


def seconds_per_step(config: RunConfig) -> float:
    """Train a few steps on one thread and return the CPU seconds per step, without the first steps.

    Raises:
        KeyboardInterrupt: Ctrl-C stopped the training.
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


def with_steps(config: RunConfig, steps: int, evaluations: int = 1) -> RunConfig:
    """Return ``config`` with ``steps`` training steps on one thread; 50 steps or more are rounded down to a multiple of 50.

    The validation loss is measured ``evaluations`` times, the last at the end; the weights with the lowest are kept.
    """
    log_every = min(50, steps)
    steps -= steps % log_every  # so that the last step is logged
    training = replace(
        config.training, steps=steps, threads=1, log_every=log_every, sample_every=steps,
        evaluate_every=max(1, steps // evaluations), save_every=max(1, steps // 4),
    )  # fmt: skip
    return replace(config, training=training)


def with_minutes(config: RunConfig, minutes: float, evaluations: int = 1) -> RunConfig:
    """Return ``config`` with as many training steps as one thread computes in ``minutes`` of CPU time."""
    return with_steps(config, max(1, int(minutes * 60 / seconds_per_step(config))), evaluations)


def train_or_resume(config: RunConfig, folder: Path, options: argparse.Namespace, evaluations: int = 1) -> None:
    """Train in ``folder`` for ``options.steps`` or ``options.minutes``; an existing run resumes with its saved config.

    A new run measures its validation loss ``evaluations`` times.

    Raises:
        UserError: the number of steps is not known and cannot be timed, because the device is not the CPU.
        KeyboardInterrupt: Ctrl-C stopped the training.
    """
    torch.set_num_threads(1)
    if (folder / "config.yaml").exists():
        config = read_config([folder / "config.yaml"])
    elif options.steps:
        config = with_steps(config, options.steps, evaluations)
    elif options.device == "cpu":
        config = with_minutes(config, options.minutes, evaluations)
    else:
        raise UserError(f"{folder}: unknown number of steps; first run with --time-only --device cpu, or give --steps")
    if options.time_only:
        claim(config, folder)
    elif not train(config, folder, write_samples=False):
        raise KeyboardInterrupt


def load_averaged(objective: Objective, path: Path) -> None:
    """Load the averaged weights of a checkpoint, its EMA's or the best ones, into an objective of the run."""
    weights = load_file(path)
    objective.load_state_dict({name.removeprefix("module."): value for name, value in weights.items() if "." in name})


def load_or_measure(path: Path, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return the result in ``path``; if there is no such file, call ``measure`` and save its result with the machine's data."""
    if not path.exists():
        write_text(path, json.dumps({**measure(), "machine": machine()}, indent=2, ensure_ascii=False) + "\n")
    result: dict[str, Any] = json.loads(path.read_text())
    return result


def file_name(row: str) -> str:
    """Return the name of a row's folder and files: its label with hyphens for all but letters, digits and underscores."""
    return re.sub(r"\W+", "-", row).strip("-")


def in_processes(commands: Mapping[str, Sequence[str]], jobs: int, logs: Path, device: str = "cpu") -> list[str]:
    """Run named commands, ``jobs`` at a time and each on one thread; return the names of those that failed.

    Their output goes to ``logs``. After Ctrl-C, which the running commands receive as well, no other command is started,
    and the function waits until the running ones have saved their checkpoints.
    """
    logs.mkdir(parents=True, exist_ok=True)
    failed = []

    def run(name: str) -> int:
        with (logs / f"{file_name(name)}.log").open("w") as log:
            env = {**os.environ, "OMP_NUM_THREADS": "1"}
            if device == "cpu":
                env["CUDA_VISIBLE_DEVICES"] = ""  # CPU time is measured, so no GPU may be used
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
            print("\nstopping; finished rows are saved, and the same command resumes", file=sys.stderr)
            for future in running:
                future.cancel()
            raise
    return failed


def argument_parser(description: str | None, rows: Sequence[str], minutes: float) -> argparse.ArgumentParser:
    """Return the command-line parser that the benchmarks on E2E share."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "rows", nargs="*", metavar="ROW", help=("rows to measure (default: all): " + "; ".join(rows)).replace("%", "%%")
    )
    parser.add_argument("--folder", required=True, help="folder with E2E's trainset.csv, devset.csv and testset_w_refs.csv")
    parser.add_argument(
        "--judge", required=True, help="judge LM: a run of configs/e2e-judge.yaml, or any causal language model"
    )
    parser.add_argument(
        "--minutes", type=float, default=minutes, help="CPU time of each training run, one thread (%(default)s)"
    )
    parser.add_argument("--steps", type=int, help="number of training steps, instead of --minutes")
    parser.add_argument("--texts", type=int, default=500, help="samples per setting (%(default)s)")
    parser.add_argument("--bound-texts", type=int, default=100, help="held-out texts for the likelihood bounds (%(default)s)")
    parser.add_argument("--jobs", type=int, default=2, help="parallel training runs; 0: one, in this process (%(default)s)")
    parser.add_argument(
        "--device", default="cpu", help="device of training and sampling; --minutes are always CPU time (%(default)s)"
    )
    parser.add_argument(
        "--time-only", action="store_true", help="time the steps on this CPU and save their number; do not train"
    )
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)  # set by ``run_rows`` in one row's process
    parser.add_argument("--runs", default="runs/benchmarks", help="folder of the trained models (%(default)s)")
    parser.add_argument("--results", default=str(RESULTS), help="folder of the results (%(default)s)")
    return parser


def expect_positive(parser: argparse.ArgumentParser, options: argparse.Namespace, *names: str) -> None:
    """End with a message where a number among the options ``names`` is given and not above 0."""
    for name in names:
        if (value := getattr(options, name)) is not None and value <= 0:
            parser.error(f"--{name.replace('_', '-')}: expected more than 0, got {value}")


def parse_options(parser: argparse.ArgumentParser, rows: Sequence[str], arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse and check the command line; ``budget`` names the training budget, such as 10-minutes."""
    options = parser.parse_args(arguments)
    if unknown := [row for row in options.rows if row not in rows]:
        parser.error(f"unknown row {unknown[0]!r}; choose from {', '.join(rows)}")
    expect_positive(parser, options, "minutes", "steps")
    if options.jobs < 0:
        parser.error(f"--jobs: expected 0 or more, got {options.jobs}")
    options.rows = options.rows or list(rows)
    options.budget = f"{options.steps}-steps" if options.steps else f"{options.minutes:g}-minutes"
    return options


def check(corpus: Corpus, options: argparse.Namespace) -> None:
    """Raise UserError if the judge LM, the corpus or an option is wrong, before any training starts."""
    config = EvaluationConfig(count=options.texts, bound_texts=options.bound_texts)
    BenchmarkRunner.prepare(options.judge, corpus, config, None, options.device, quiet=True)


def run_rows(
    rows: Sequence[str], script: str, options: argparse.Namespace, run_row: Callable[[str], Any], logs: Path
) -> list[str]:
    """Call ``run_row`` for each row, or run ``script`` in one process per row (``--jobs``); return the rows that failed."""
    if options.jobs and not options.worker:
        names = ("folder", "judge", "minutes", "steps", "texts", "bound_texts", "device", "runs", "results")
        given = {name.replace("_", "-"): value for name in names if (value := getattr(options, name)) is not None}
        flags = [*(f"--{name}={value}" for name, value in given.items()), *["--time-only"] * options.time_only]
        commands = {row: [sys.executable, script, "--worker", *flags, row] for row in rows}
        return in_processes(commands, options.jobs, logs, options.device)
    for row in rows:
        run_row(row)
    return []


def exit_status(run: Callable[[], list[str] | None], finish: Callable[[], None] | None = None) -> int:
    """Call ``run``, then ``finish``; return the exit status: 0, 1 if rows failed, 2 after a user's error, 130 after Ctrl-C.

    ``finish`` is also called after Ctrl-C, with the results that there are, but not after a user's error.
    """
    try:
        status = 1 if run() else 0
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    except LookupError as error:
        if not (missing := re.search(r"nltk\.download\('(\w+)'\)", str(error))):
            raise
        print(f"NLTK_DATA: NLTK's {missing[1]} is neither there nor in NLTK's default folders; download it", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        status = 130
    if finish is not None:
        finish()
    return status
