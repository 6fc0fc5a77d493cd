"""Ablations on E2E: short runs with equal CPU time, each with one change of the recipe.

    python benchmarks/ablations.py --folder E2E --judge runs/e2e-judge [--minutes 10] [--jobs 2] [ROW ...]

Every row is one change of configs/e2e-small.yaml, trained on one thread with the same CPU time and sampled at several
temperatures. Rows are compared at the entropy of the default's samples, because repetitive samples have a low perplexity
too. ``--time-only`` computes how many steps the CPU time allows and does not train; ``--device cuda`` then trains as many on
a GPU. Rows in ``benchmarks/results/ablations`` are not measured again; delete a row's file to measure it again. The table
goes to stdout.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from measure import (
    ROOT,
    TEMPERATURES,
    argument_parser,
    check,
    exit_status,
    file_name,
    load_or_measure,
    parse_options,
    run_rows,
    train_or_resume,
)

from diffusionlm.evaluation.benchmark import BenchmarkRunner, EvaluationConfig
from diffusionlm.evaluation.report import Report
from diffusionlm.evaluation.text_metrics import at_entropy
from diffusionlm.pipelines.auto import open_pipeline
from diffusionlm.pipelines.base import saved_sampling
from diffusionlm.training.run import RunConfig, read_config

BASE = ROOT / "configs" / "e2e-small.yaml"
TEMPERATURES_WITH_SWEEPS = (1.1, 1.2, 1.3, 1.4)  # higher, because refinement sweeps sharpen the distribution
REFERENCE_TEMPERATURE = 1.3
# Every sample takes 32 network evaluations. Where a change rules out refinement sweeps or self-conditioning passes, or makes
# them expensive (a sweep of the transformer backbone takes eleven evaluations), these evaluations are sampling steps instead.
TRANSFORMER = {
    "model.backbone": "{name: transformer, layers: 5, width: 192, heads: 6, dropout: 0.1}",
    "sampling.steps": "10",
    "sampling.sweeps": "1",
}
PADDED = {"model.explicit_length": "false", "sampling.sweeps": "0", "sampling.steps": "16"}
SQRT = {"model.schedule": "sqrt", "model.self_conditioning": "false", "sampling.passes": "1", "sampling.steps": "32"}
REGRESSION = {  # x0 regression requires: attention to all inputs, a schedule over t, padded texts, sampling without logits
    **TRANSFORMER,
    **PADDED,
    **SQRT,
    "model.prediction": "x0",
    "objective": "regression",
    "sampling.temperature": "1",
    "sampling.step_temperature": "null",
}
ROWS: dict[str, dict[str, str]] = {
    "default": {},
    "backbone with own input (transformer)": TRANSFORMER,
    "cloze with up to 100 % hidden": {"objective.cloze_hidden": "1"},
    "without masked-token prediction (cloze)": {"objective.cloze_share": "0"},
    "dimension 16": {"model.dimension": "16"},
    "dimension 64": {"model.dimension": "64"},
    "AdamW instead of Muon": {
        "training.optimizer": "{name: adamw, learning_rate: 0.004, betas: [0.9, 0.98], weight_decay: 0.01}"
    },
    "one noise level per text": {"objective.mixed_share": "0"},
    "noise levels per position in 50 % of the texts": {"objective.mixed_share": "0.5"},
    "without self-conditioning": {"model.self_conditioning": "false", "sampling.passes": "1", "sampling.steps": "26"},
    "padded, no explicit length": PADDED,
    "random frozen word vectors": {"model.cooccurrence": "0", "model.embedding": "frozen"},
    "sqrt schedule": {"model.schedule": "sqrt"},
    "without token likelihood term as input": {"model.evidence_input": "false"},
    "word vectors not initialised from co-occurrence": {"model.cooccurrence": "0"},
    "without depthwise convolution": {"model.backbone.neighbours": "0"},
    "no training shift of the schedule": {"model.schedule.training_shift": "0"},
    "same learning rate for word vectors": {"training.optimizer.word_learning_rate": "0.008"},
    "transformer, without token likelihood term in the logits": {**TRANSFORMER, "model.evidence": "0"},
    "transformer, without token likelihood term": {**TRANSFORMER, "model.evidence": "0", "model.evidence_input": "false"},
    "transformer, sqrt schedule, padded, no self-conditioning": {
        **TRANSFORMER,
        **PADDED,
        **SQRT,
    },  # for comparison with the next two
    "x0 regression, padded": REGRESSION,
    "x0 regression, padded, free word vectors": {**REGRESSION, "model.embedding": "free"},  # the objective of Diffusion-LM
}


def config_of(row: str, folder: str) -> RunConfig:
    """Return a row's training config for the E2E corpus in ``folder``; the number of steps is set later."""
    return read_config([BASE], [("data.corpus.folder", json.dumps(folder)), *ROWS[row].items()])


def run_folder(row: str, options: argparse.Namespace) -> Path:
    """Return the folder in which a row is trained."""
    return Path(options.runs) / "ablations" / options.budget / file_name(row)


def measure_row(row: str, options: argparse.Namespace) -> dict[str, Any]:
    """Train and evaluate one row; return its result as JSON."""
    config = config_of(row, options.folder)
    run = run_folder(row, options)
    train_or_resume(config, run, options)
    report = evaluate_run(run, config, options)
    (system,) = (name for name, about in report.systems.items() if about["folder"] == str(run))
    about = report.systems[system]
    reference, *points = report.rows
    return {
        "row": row,
        "changes": ROWS[row],
        "budget": options.budget,
        "seed": config.training.seed,
        **{name: value for name, value in about.items() if name.startswith("training_") or name == "parameters"},
        "texts": options.texts,
        "judge": report.about["judge_fingerprint"],
        "reference": {"judge_perplexity": reference.judge_perplexity, "entropy": reference.diversity.entropy},
        "points": [
            {
                "temperature": point.temperature,
                "steps": point.steps,
                "judge_perplexity": point.judge_perplexity,
                "judge_error": point.judge_error,
                "seconds": point.seconds,
                **{name: getattr(point.diversity, name) for name in ("entropy", "unique", "copied", "self_bleu")},
            }
            for point in points
        ],
        "likelihoods": [
            {
                name: getattr(likelihood, name)
                for name in ("orders", "nats_per_token", "error", "estimate_error", "terms", "texts", "judge_nats_per_token")
            }
            for likelihood in report.likelihoods
        ],
    }  # fmt: skip


def evaluate_run(run: Path, config: RunConfig, options: argparse.Namespace) -> Report:
    """Evaluate a run's samples at each temperature, the reference texts and the likelihood bounds; resume in its folder."""
    temperatures = TEMPERATURES_WITH_SWEEPS if saved_sampling(run).sweeps else TEMPERATURES
    settings = EvaluationConfig(temperatures=temperatures, count=options.texts, bound_texts=options.bound_texts)
    runner = BenchmarkRunner.prepare(
        options.judge, config.data.corpus, settings, run / "evaluation", options.device, quiet=False
    )
    pipeline = open_pipeline(run, options.device)
    system = runner.report.enter_model(run, (), pipeline.model)
    reference = next(runner.reference_jobs())  # without the judge's own samples, which would be the same in every row
    runner.run([reference, *runner.model_jobs(system, pipeline, (), "fp32"), *runner.likelihood_jobs(system, pipeline)])
    return runner.report


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return the rows as a Markdown table, compared at the entropy of the default's samples."""
    temperatures = sorted({*TEMPERATURES, *TEMPERATURES_WITH_SWEEPS})
    default = next((row for row in rows if row["row"] == "default"), None)
    entropy = None if default is None else nearest_point(default, REFERENCE_TEMPERATURE)["entropy"]
    reference = rows[0]["reference"]
    columns = ["", "steps", "tokens", "CPU s", *(f"t {t:g}" for t in temperatures)]
    columns += ["at equal entropy", "unique", "copied", "joint bound", "any-order bound"]
    lines = [
        f"Judge perplexity (unigram entropy of the words, nats) of {rows[0]['texts']} samples at each temperature t;"
        f" reference texts: {reference['judge_perplexity']:.2f} ({reference['entropy']:.3f}).",
        ""
        if entropy is None
        else f"At equal entropy: judge perplexity at {entropy:.3f} nats, the default's entropy at t {REFERENCE_TEMPERATURE:g};"
        " log-linear between the row's temperatures, - outside their range.",
        f"Unique samples and copies of training texts: at t {REFERENCE_TEMPERATURE:g}, or at the row's only temperature."
        " Bounds: upper bounds of -log p, nats per token.",
        "",
        "| " + " | ".join(columns) + " |",
        "|---" + "|---:" * (len(columns) - 1) + "|",
    ]
    return "\n".join([*lines, *("| " + " | ".join(cells(row, temperatures, entropy)) + " |" for row in rows)])


def nearest_point(row: dict[str, Any], temperature: float) -> dict[str, Any]:
    """Return a row's measurements at the temperature nearest to ``temperature``."""
    nearest: dict[str, Any] = min(row["points"], key=lambda point: abs(point["temperature"] - temperature))
    return nearest


def cells(row: dict[str, Any], temperatures: Sequence[float], entropy: float | None) -> list[str]:
    """Return a row's cells of the table; ``entropy`` is the entropy of the comparison at equal entropy."""
    perplexities = {p["temperature"]: f"{p['judge_perplexity']:.2f} ({p['entropy']:.3f})" for p in row["points"]}
    frontier = [(p["entropy"], p["judge_perplexity"]) for p in row["points"]]
    compared = None if entropy is None else at_entropy(frontier, entropy)
    bounds = {bound["orders"] > 0: f"{bound['nats_per_token']:.3f} ± {bound['error']:.3f}" for bound in row["likelihoods"]}
    return [
        row["row"],
        f"{row['training_steps']:,}",
        f"{row['training_tokens'] / 1e6:.2f} M",
        f"{row['training_processor_seconds']:.0f}",
        *(perplexities.get(t, "-") for t in temperatures),
        "-" if compared is None else f"{compared:.2f}",
        f"{nearest_point(row, REFERENCE_TEMPERATURE)['unique']:.1%}",
        f"{nearest_point(row, REFERENCE_TEMPERATURE)['copied']:.1%}",
        *(bounds.get(any_order, "-") for any_order in (False, True)),
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the rows that have no result yet, and print the table of all results."""
    options = parse_options(argument_parser(__doc__, list(ROWS), minutes=10), list(ROWS), arguments)
    results = Path(options.results) / "ablations"
    paths = {row: results / f"{file_name(row)}-{options.budget}.json" for row in options.rows}
    logs = Path(options.runs) / "ablations" / options.budget

    def run_row(row: str) -> None:
        if options.time_only:
            train_or_resume(config_of(row, options.folder), run_folder(row, options), options)
        else:
            load_or_measure(paths[row], lambda: measure_row(row, options))

    def measure_missing() -> list[str]:
        if not options.worker:
            check(config_of("default", options.folder).data.corpus, options)
        missing = [row for row, path in paths.items() if not path.exists()]
        if measured := len(paths) - len(missing):
            print(f"{measured} of {len(paths)} rows are already measured, in {results}", file=sys.stderr)
        return run_rows(missing, __file__, options, run_row, logs)

    def print_table() -> None:
        rows = [json.loads(path.read_text()) for path in paths.values() if path.exists()]
        if counts := {row["texts"] for row in rows} - {options.texts}:
            print(f"--texts {options.texts}: saved rows have {', '.join(map(str, sorted(counts)))} samples", file=sys.stderr)
        if rows and not options.worker:
            print(table(rows), flush=True)

    return exit_status(measure_missing, print_table)


if __name__ == "__main__":
    sys.exit(main())
