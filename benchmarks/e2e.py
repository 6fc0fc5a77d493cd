"""Three recipes on E2E with one network and equal processor time: ours, masked diffusion, Diffusion-LM's as published.

    python benchmarks/e2e.py --folder E2E --judge runs/e2e-judge [--minutes 30] [--jobs 2]

Each trains on one thread for as many minutes of processor time; then all are judged beside real text and the judge's own
samples, over temperatures, and ours over the network evaluations that a text may cost. The table goes to stdout; it and
the report, the figures and the texts are in ``benchmarks/results/e2e-30-minutes``. What is there is not done again.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from measure import ROOT, TEMPERATURES, arguments, asked, check, every, exit_status, trained

from diffusionlm.evaluation.benchmark import EvaluationConfig, evaluate
from diffusionlm.evaluation.report import table
from diffusionlm.pipelines.base import saved_sampling
from diffusionlm.training.run import RunConfig, read_config

# One network that all can use, and the sampling that goes with it: a sweep of corrections would take eleven evaluations.
ONE = {"model.backbone": "{name: transformer, layers: 5, width: 192, heads: 6, dropout: 0.1}"}
PLAIN = {"sampling.steps": "16", "sampling.sweeps": "0"}
ROWS: dict[str, tuple[str, dict[str, str]]] = {
    "ours": ("e2e-small", {**ONE, **PLAIN}),
    "masked": ("e2e-masked", ONE),
    "paper": (
        "e2e-paper",
        {
            **ONE,
            # The published rate and average are for 200,000 steps: here they would hardly leave the first weights.
            "training.optimizer.learning_rate": "1.0e-3",
            "training.warmup": "200",
            "training.ema_warmup": "true",
            "sampling.steps": "200",  # the paper's for control; its 2000 take ten times as long
        },
    ),
}
EVALUATIONS = (32, 64, 128, 256)


def config_of(row: str, folder: str) -> RunConfig:
    """Return a row's run on E2E in ``folder``, its steps not settled yet."""
    name, changes = ROWS[row]
    return read_config([ROOT / "configs" / f"{name}.yaml"], [("data.corpus.folder", json.dumps(folder)), *changes.items()])


def judge_all(runs: dict[str, Path], options: argparse.Namespace) -> None:
    """Judge the runs that are trained, ours at several numbers of network evaluations as well; print the table."""
    finished = {row: run for row, run in runs.items() if (run / "model" / "finished").exists()}
    if not finished:
        return
    corpus, out = config_of("ours", options.folder).data.corpus, Path(options.results) / f"e2e-{options.length}"
    count = {"count": options.texts, "bound_texts": options.bound_texts}
    plain = EvaluationConfig(temperatures=TEMPERATURES, **count)
    report = evaluate(options.judge, list(finished.values()), config=plain, corpus=corpus, out=out, device=options.device)
    if "ours" in finished:
        passes = saved_sampling(finished["ours"]).passes
        steps = tuple(max(1, n // passes) for n in EVALUATIONS)
        several = EvaluationConfig(temperatures=TEMPERATURES, steps=steps, **count)
        report = evaluate(options.judge, [finished["ours"]], config=several, corpus=corpus, out=out, device=options.device)
    print(table(report), end="", flush=True)


def main(words: Sequence[str] | None = None) -> int:
    """Train what is missing, and judge."""
    options = asked(arguments(__doc__, list(ROWS), minutes=30), list(ROWS), words)
    folder = Path(options.runs) / f"e2e-{options.length}"
    runs = {row: folder / row for row in options.rows}
    missing = [row for row, run in runs.items() if not (run / "model" / "finished").exists()]

    def train_row(row: str) -> None:
        trained(config_of(row, options.folder), runs[row], options)

    def train_missing() -> list[str]:
        if options.alone:
            return every(missing, __file__, options, train_row, folder)
        check(config_of("ours", options.folder).data.corpus, options)
        failed = every(missing, __file__, options, train_row, folder)
        judge_all(runs, options)
        return failed

    return exit_status(train_missing)


if __name__ == "__main__":
    sys.exit(main())
