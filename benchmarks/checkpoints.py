"""Does the validation loss rank the checkpoints of a run as their samples do?

    python benchmarks/checkpoints.py RUN [--texts 500] [--judge-texts FILE ...]

RUN was trained with a ``training.keep`` that keeps its checkpoints. Each one's EMA weights are measured twice. First by the
validation losses: the diffusion term of the bound at fixed noise levels, which ``training.select: best`` takes, and the
training loss on held-out texts, which depends on the noise schedule that is learned. Then by samples at several temperatures:
metrics of the corpus, such as the share of texts that a grammar accepts, and the perplexity under a word-trigram model of
``--judge-texts``, which are not training texts (default: the held-out ones). Figures of samples are interpolated at the entropy
of the held-out texts. Printed last is Spearman's rank correlation of each loss with each of them, over the checkpoints.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import RESULTS, TEMPERATURES, exit_status, load_averaged

from diffusionlm.config import UserError
from diffusionlm.core.objective import Objective
from diffusionlm.data.corpora import TextMetric
from diffusionlm.data.reading import read_text
from diffusionlm.evaluation.judge import perplexity
from diffusionlm.evaluation.ngrams import NGrams
from diffusionlm.evaluation.provenance import machine
from diffusionlm.evaluation.text_metrics import interpolated, unigram_entropy
from diffusionlm.files import write_text
from diffusionlm.models.spec import Rows
from diffusionlm.pipelines.auto import pipeline_of
from diffusionlm.progress import say
from diffusionlm.training.checkpoints import EMA, checkpoint_step, complete_checkpoints
from diffusionlm.training.run import RunConfig, prepare, read_config
from diffusionlm.training.validation import evaluate_terms

PERPLEXITY = "trigram perplexity"  # the only figure of samples of which less is better


@dataclass(frozen=True)
class Run:
    """A run's settings, its held-out texts with their rows, and what measures samples: name -> figure of texts."""

    config: RunConfig
    validation: Rows
    entropy: float
    metrics: dict[str, Callable[[list[str]], float]]


def opened(folder: Path, judge_texts: Iterable[str]) -> tuple[Run, Objective, Any]:
    """Return a run, its objective and its tokenizer, before any weights are loaded."""
    config = read_config([folder / "config.yaml"])
    splits = config.data.corpus.load()
    if "validation" not in splits:
        raise UserError(f"{folder}: its corpus has no held-out texts")
    held_out = splits["validation"]["text"][:]
    judge = NGrams([line for path in judge_texts for line in read_text(path).splitlines()] or held_out)
    metrics: dict[str, Callable[[list[str]], float]] = {PERPLEXITY: lambda texts: perplexity(judge.score(texts))}
    for name, metric in config.data.corpus.metrics(splits["train"]["text"][:]).items():
        metrics[name] = partial(mean, metric)
    torch.manual_seed(config.training.seed)
    model, tokenizer, _, validation = prepare(config)
    return Run(config, validation, unigram_entropy(held_out), metrics), config.objective.build(model), tokenizer


def mean(metric: TextMetric, texts: Sequence[str]) -> float:
    """Return the mean of a metric over the texts that it applies to, NaN where it applies to none."""
    found = [value for value in metric(texts) if value is not None]
    return statistics.fmean(found) if found else math.nan


def measured(run: Run, objective: Objective, tokenizer: Any, checkpoint: Path, texts: int) -> dict[str, Any]:
    """Return the losses of a checkpoint's EMA weights, and the figures of samples at each temperature."""
    load_averaged(objective, checkpoint / EMA)
    objective.finish()
    losses = evaluate_terms(objective, run.validation, run.config.training.batch_tokens, torch.device("cpu"), bf16=False)
    pipeline = pipeline_of(objective.model)(objective.model.eval(), tokenizer, run.config.sampling)
    points = []
    for temperature in TEMPERATURES:
        say(f"{checkpoint.name}: {texts} samples, temperature {temperature}")
        settings = replace(run.config.sampling, temperature=temperature, candidates=1)
        sampled = [row.text for row in pipeline.stream(texts, settings)]
        figures = {name: metric(sampled) for name, metric in run.metrics.items()}
        points.append({"temperature": temperature, "entropy": unigram_entropy(sampled), **figures})
    return {"step": checkpoint_step(checkpoint), "losses": losses, "points": points}


def at_entropy(row: dict[str, Any], name: str, entropy: float) -> float:
    """Return a figure of samples at an entropy, between the two temperatures around it; else that of the nearest one."""
    points = [(point["entropy"], point[name]) for point in row["points"]]
    between = interpolated(points, entropy)
    return min(points, key=lambda point: abs(point[0] - entropy))[1] if between is None else between


def spearman(first: Sequence[float], second: Sequence[float]) -> float:
    """Return the rank correlation of two lists without equal values."""
    return statistics.correlation(*(np.argsort(np.argsort(values)).tolist() for values in (first, second)))


def table(rows: Sequence[dict[str, Any]], run: Run) -> str:
    """Return the figures of all checkpoints, and the rank correlations."""
    losses = [*rows[0]["losses"]]
    values = {name: [row["losses"][name] for row in rows] for name in losses}
    values |= {name: [at_entropy(row, name, run.entropy) for row in rows] for name in run.metrics}
    lines = ["step".rjust(8) + "".join(f"{name:>20}" for name in values)]
    for i, row in enumerate(rows):
        lines.append(f"{row['step']:>8}" + "".join(f"{value[i]:>20.4g}" for value in values.values()))
    lines.append(f"\nrank correlation over {len(rows)} checkpoints (1: the loss falls where the samples improve)")
    for loss in losses if len(rows) > 2 else []:
        signs = {name: 1 if name == PERPLEXITY else -1 for name in run.metrics if len({*values[name]}) > 1}
        found = (f"{sign * spearman(values[loss], values[name]):.2f} with {name}" for name, sign in signs.items())
        lines.append(f"{loss:>12}: " + ", ".join(found))
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the checkpoints that are not in the results yet, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("--texts", type=int, default=500, help="samples per temperature (%(default)s)")
    parser.add_argument("--judge-texts", nargs="*", default=[], metavar="FILE", help="texts of the trigram model")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the results (%(default)s)")
    options = parser.parse_args(arguments)

    def body() -> None:
        run, objective, tokenizer = opened(options.run, options.judge_texts)
        path = options.results / "checkpoints" / f"{options.run.name}-{options.texts}.json"
        rows = json.loads(read_text(path))["checkpoints"] if path.exists() else []
        for checkpoint in complete_checkpoints(options.run):
            if checkpoint_step(checkpoint) not in {row["step"] for row in rows}:
                rows.append(measured(run, objective, tokenizer, checkpoint, options.texts))
                rows.sort(key=lambda row: row["step"])
                found = {"entropy": run.entropy, "checkpoints": rows, "machine": machine()}
                write_text(path, json.dumps(found, indent=2) + "\n")
        if not rows:
            raise UserError(f"{options.run}: no checkpoint; train it with training.keep 100")
        print(table(rows, run))

    return exit_status(body)


if __name__ == "__main__":
    sys.exit(main())
