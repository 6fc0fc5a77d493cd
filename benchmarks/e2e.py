"""Three recipes on E2E with one network and equal CPU time: ours, masked diffusion, and Diffusion-LM as published.

    python benchmarks/e2e.py --folder E2E --judge runs/e2e-judge [--minutes 30] [--jobs 2]

Each recipe is trained on one thread with the same CPU time. Then all are evaluated over temperatures, beside reference texts
and the judge LM's own samples, and ours also over numbers of network evaluations per sample. The table goes to stdout; it,
the report, the figures and the samples are in ``benchmarks/results/e2e-30-minutes``. Rows in that report are not measured
again.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from measure import ROOT, TEMPERATURES, argument_parser, check, exit_status, parse_options, run_rows, train_or_resume

from diffusionlm.evaluation.benchmark import EvaluationConfig, evaluate
from diffusionlm.evaluation.report import table
from diffusionlm.pipelines.base import saved_sampling
from diffusionlm.training.run import RunConfig, read_config

# One network for all recipes. Sampling with it has no refinement sweeps, because a sweep would take eleven evaluations.
NETWORK = {"model.backbone": "{name: transformer, layers: 5, width: 192, heads: 6, dropout: 0.1}"}
NO_SWEEPS = {"sampling.steps": "16", "sampling.sweeps": "0"}
ROWS: dict[str, tuple[str, dict[str, str]]] = {
    "ours": ("e2e-small", {**NETWORK, **NO_SWEEPS}),
    "masked": ("e2e-masked", NETWORK),
    "paper": (
        "e2e-paper",
        {
            **NETWORK,
            # The published learning rate and EMA are for 200,000 steps: in so short a run the weights would hardly change.
            "training.optimizer.learning_rate": "1.0e-3",
            "training.warmup": "200",
            "training.ema_warmup": "true",
            "sampling.steps": "200",  # as the paper for control; its 2000 steps would take ten times as long
        },
    ),
}
EVALUATIONS = (32, 64, 128, 256)


def config_of(row: str, folder: str) -> RunConfig:
    """Return a row's training config for the E2E corpus in ``folder``; the number of steps is set later."""
    name, changes = ROWS[row]
    return read_config([ROOT / "configs" / f"{name}.yaml"], [("data.corpus.folder", json.dumps(folder)), *changes.items()])


def evaluate_all(runs: dict[str, Path], options: argparse.Namespace) -> None:
    """Evaluate the finished runs, ours also at several numbers of network evaluations, and print the table."""
    finished = {row: run for row, run in runs.items() if (run / "model" / "finished").exists()}
    if not finished:
        return
    corpus, out = config_of("ours", options.folder).data.corpus, Path(options.results) / f"e2e-{options.budget}"
    counts = {"count": options.texts, "bound_texts": options.bound_texts}
    default_steps = EvaluationConfig(temperatures=TEMPERATURES, **counts)
    report = evaluate(
        options.judge, list(finished.values()), config=default_steps, corpus=corpus, out=out, device=options.device
    )
    if "ours" in finished:
        passes = saved_sampling(finished["ours"]).passes
        steps = tuple(max(1, n // passes) for n in EVALUATIONS)
        several_steps = EvaluationConfig(temperatures=TEMPERATURES, steps=steps, **counts)
        report = evaluate(
            options.judge, [finished["ours"]], config=several_steps, corpus=corpus, out=out, device=options.device
        )
    print(table(report), end="", flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Train the recipes that are not finished yet, evaluate all, and print the table."""
    options = parse_options(argument_parser(__doc__, list(ROWS), minutes=30), list(ROWS), arguments)
    folder = Path(options.runs) / f"e2e-{options.budget}"
    runs = {row: folder / row for row in options.rows}
    missing = [row for row, run in runs.items() if not (run / "model" / "finished").exists()]

    def train_row(row: str) -> None:
        train_or_resume(config_of(row, options.folder), runs[row], options)

    def train_and_evaluate() -> list[str]:
        if options.worker:
            return run_rows(missing, __file__, options, train_row, folder)
        check(config_of("ours", options.folder).data.corpus, options)
        failed = run_rows(missing, __file__, options, train_row, folder)
        evaluate_all(runs, options)
        return failed

    return exit_status(train_and_evaluate)


if __name__ == "__main__":
    sys.exit(main())
