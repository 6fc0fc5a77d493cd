"""How time and memory grow with length, vocabulary, parameters, lines of the corpus and processes: one figure, one JSON.

    python benchmarks/growth.py [--only length vocabulary] [--largest length=256 corpus=100000]

Each measurement runs in a process of its own, on one thread, and is saved when it ends: after an interruption the same command
continues. Times are CPU seconds (wall-clock times are in the JSON), peaks those of the process, libraries included. A training
step is forward, backward and update of the default model, of 1,024 tokens or one text, in bf16 where the machine has it;
sampling is four steps and one sweep without controls, per evaluation of the network. ``corpus`` starts training on generated
lines with an empty cache and again with a full one (benchmarks/data_scale.py). A power law is fitted to the upper half of each
series, and where it meets a limit is the first wall: this machine's memory, a step of a second, an epoch of a day. The two
largest corpora are extrapolated.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from data_scale import both_starts
from growth_report import PANELS, Point, Points, draw, limits, report_of, sentences, table
from measure import RESULTS, exit_status, load_or_measure
from processes import seconds as command_seconds
from speed import bare
from tqdm import tqdm
from vocabulary import new_model, tokenizer_of

from diffusionlm import plots
from diffusionlm.config import UserError, nearest
from diffusionlm.evaluation.provenance import machine
from diffusionlm.files import write_text
from diffusionlm.models.diffusion import DiffusionLM
from diffusionlm.pipelines.base import SamplingConfig
from diffusionlm.pipelines.cost import metered
from diffusionlm.pipelines.diffusion import Pipeline
from diffusionlm.training.run import RunConfig

TOKENS, LENGTH, WORDS = 1024, 64, 11_000  # of a training batch, of a text, of the vocabulary, where these do not vary
ENOUGH, MOST = 3.0, 20  # CPU seconds of timed training steps, and their number
SAMPLED, GENERATED = 4, 128  # texts of a sampling measurement, and of a command with several processes
SHAPES = {  # parameters: layers, query layers, width, heads
    1_000_000: (2, 2, 128, 4),
    5_000_000: (2, 2, 256, 8),
    20_000_000: (4, 2, 384, 8),
    87_000_000: (5, 2, 768, 12),
    350_000_000: (12, 4, 1024, 16),
}


def model_of(panel: str, size: int) -> tuple[DiffusionLM, int]:
    """Return a model with random weights at a ``size`` of ``panel``, and its longest text."""
    longest = size if panel == "length" else LENGTH
    words = size if panel == "vocabulary" else WORDS if panel == "length" else 1000
    settings: dict[str, Any] = {"cooccurrence": 0.0}  # which takes memory once, at the start of training
    if panel == "parameters":
        layers, queries, width, heads = SHAPES[size]
        settings["backbone"] = {
            "name": "leave-one-out", "layers": layers, "query_layers": queries, "width": width, "heads": heads
        }  # fmt: skip
    return new_model(tokenizer_of("words", words, longest), longest, settings), longest


def measure_train(panel: str, size: int) -> dict[str, float]:
    """Time training steps, after one that is not counted."""
    model, longest = model_of(panel, size)
    tokens = max(TOKENS, longest)
    config = RunConfig()
    config = replace(config, training=replace(config.training, batch_tokens=tokens))
    words, texts = model.config.vocabulary, 4 * tokens // longest
    rows = [[2, *torch.randint(4, words, (longest - 2,)).tolist(), 3] for _ in range(texts)]
    steps = bare(config, model, rows)
    next(steps)
    done, trained, begun = 0, 0, [time.process_time(), time.perf_counter()]
    while done < 2 or (done < MOST and time.process_time() - begun[0] < ENOUGH):
        trained, done = trained + next(steps), done + 1
    cpu, wall = time.process_time() - begun[0], time.perf_counter() - begun[1]
    return {
        "parameters": sum(p.numel() for p in model.parameters()), "tokens": trained / done, "step": cpu / done,
        "per token": cpu / trained, "per second": trained / cpu, "wall": wall / done, "steps": done,
    }  # fmt: skip


def measure_sample(panel: str, size: int) -> dict[str, float]:
    """Time samples of the longest length, and count the evaluations of the network."""
    model, longest = model_of(panel, size)
    sampling = SamplingConfig(steps=4, passes=1, sweeps=1, batch_size=SAMPLED, length=longest - 2)
    pipe = Pipeline(model.train(False), tokenizer_of("words", model.config.vocabulary, longest), sampling)
    with metered(pipe) as meter:
        found = pipe(SAMPLED)
    assert all(row.length == longest - 2 for row in found)
    each = {"cpu": meter.cpu_seconds / SAMPLED, "wall": meter.seconds / SAMPLED}
    return {**each, "evaluations": meter.evaluations / SAMPLED, "per evaluation": meter.cpu_seconds / meter.evaluations}


def measure_start(_panel: str, size: int) -> dict[str, Any]:
    """Start training twice on a generated corpus."""
    with tempfile.TemporaryDirectory() as folder:
        megabytes, starts = both_starts(size, Path(folder))
    return {"MB": megabytes, **{f"{name} {key}": value for name, one in starts.items() for key, value in vars(one).items()}}


def measure_generate(panel: str, size: int) -> dict[str, float]:
    """Time ``diffusionlm generate`` with ``size`` processes; start-up is included."""
    with tempfile.TemporaryDirectory() as folder:
        model, longest = model_of(panel, size)
        tokenizer = tokenizer_of("words", model.config.vocabulary, longest)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        command = ["generate", folder, "--count", str(GENERATED), "--batch-size", str(GENERATED // 8), "--steps", "8"]
        wall, cpu = command_seconds(command, size)
    return {"wall": wall, "cpu": cpu, "per text": wall / GENERATED, "cpu per text": cpu / GENERATED}


MEASURES: dict[str, Callable[[str, int], dict[str, Any]]] = {
    "train": measure_train, "sample": measure_sample, "start": measure_start, "generate": measure_generate
}  # fmt: skip


def in_child(panel: str, part: str, size: int) -> dict[str, Any]:
    """Run one measurement in a process of its own. Raises UserError where it fails."""
    command = [sys.executable, str(Path(__file__)), "--one", panel, part, str(size)]
    child = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False)
    if child.returncode:
        last = (child.stderr.strip().splitlines() or [f"ended with status {child.returncode}"])[-1]  # -9: out of memory
        raise UserError(f"{panel}, {part} at {size:,}: {last}")
    return dict(json.loads(child.stdout.strip().splitlines()[-1]))


def one(panel: str, part: str, size: int) -> None:
    """Measure in this process, and print the figures with the peak of its memory in GB."""
    torch.set_num_threads(1)
    found = MEASURES[part](panel, size)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # of kilobytes
    print(json.dumps({**found, "peak": peak, "load": os.getloadavg()[0]}))


def measured(options: argparse.Namespace) -> tuple[Points, list[str]]:
    """Measure what is not saved yet; return all saved points of the chosen panels, and which measurements failed."""
    folder, failed = Path(options.results) / "growth" / "points", []
    points: Points = {}
    for panel, sizes in options.sizes.items():
        for size in tqdm(sizes, panel, disable=None):
            parts = {}
            try:
                for part in PANELS[panel].parts:
                    measure = partial(in_child, panel, part, size)
                    parts[part] = load_or_measure(folder / f"{panel}-{part}-{size}.json", measure)
            except UserError as error:
                failed.append(str(error))
                print(error, file=sys.stderr)
                break  # a larger size would fail as well
            points.setdefault(panel, []).append(Point(size, parts))
    return points, failed


def sizes_of(only: Sequence[str], largest: Mapping[str, int]) -> dict[str, list[int]]:
    """Return the sizes of each chosen panel. Raises UserError for a bound without effect, or below the smallest size."""
    for panel in (*only, *largest):
        if panel not in PANELS:
            raise UserError(f"--only, --largest: there is no panel {panel!r}{nearest(panel, PANELS)}")
    chosen = [panel for panel in PANELS if panel in (only or PANELS)]
    if unused := [panel for panel in largest if panel not in chosen]:
        raise UserError(f"--largest: {unused[0]} is not measured, so its largest size has no effect; add it to --only")
    sizes = {}
    for panel in chosen:
        all_sizes = range(1, (os.cpu_count() or 1) + 1) if panel == "processes" else PANELS[panel].sizes
        sizes[panel] = [size for size in all_sizes if size <= largest.get(panel, max(all_sizes))]
        if not sizes[panel]:
            raise UserError(f"--largest: expected {panel}={min(all_sizes)} or more, got {largest[panel]}")
    return sizes


def bounds(words: Sequence[str]) -> dict[str, int]:
    """Return the largest size by panel of words such as length=256. Raises UserError for another form."""
    found = {}
    for word in words:
        name, _, value = word.partition("=")
        if not value.isdecimal():
            raise UserError(f"--largest: expected a panel and its largest size such as length=256, got {word!r}")
        found[name] = int(value)
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the tables and the first walls, and save the JSON and the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=(), metavar="PANEL", help=f"of {', '.join(PANELS)} (default: all)")
    parser.add_argument("--largest", nargs="+", default=(), metavar="PANEL=SIZE", help="no larger sizes, such as length=256")
    parser.add_argument("--results", default=str(RESULTS), help="folder of the results (%(default)s)")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.one:
        panel, part, size = options.one
        one(panel, part, int(size))
        return 0

    def run() -> list[str]:
        options.sizes = sizes_of(options.only, bounds(options.largest))
        points, failed = measured(options)
        out = Path(options.results) / "growth"
        report = report_of(points, limits())
        write_text(out / "growth.json", json.dumps({**report, "machine": machine()}, indent=2) + "\n")
        if plots.available():
            plots.save(draw(points), out / "growth.png")
        print(table(points))
        print("\n".join(sentences(report)), flush=True)
        return failed

    return exit_status(run)


if __name__ == "__main__":
    sys.exit(main())
