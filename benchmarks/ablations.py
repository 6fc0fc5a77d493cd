"""What each piece of the recipe is worth on E2E: short runs of equal processor time, one piece changed in each.

    python benchmarks/ablations.py --folder E2E --judge runs/e2e-judge [--minutes 10] [--jobs 2] [ROW ...]

Every row is one change of configs/e2e-small.yaml, trained on one thread for as many minutes of processor time, and asked
for texts at several temperatures, because a single perplexity is no figure: rows are compared where their texts are as
diverse as the default's. With ``--settle`` the steps that these minutes hold are only timed; ``--device cuda`` then
trains so many on a GPU. Rows in ``benchmarks/results/ablations`` are known and not measured again; delete a file to
measure its row anew. The table goes to stdout.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from measure import ROOT, TEMPERATURES, arguments, asked, check, every, exit_status, file_name, kept, trained

from diffusionlm.evaluation.benchmark import BenchmarkRunner, EvaluationConfig
from diffusionlm.evaluation.report import Report
from diffusionlm.evaluation.text_metrics import at_entropy
from diffusionlm.pipelines.auto import open_pipeline
from diffusionlm.pipelines.base import saved_sampling
from diffusionlm.training.run import RunConfig, read_config

BASE = ROOT / "configs" / "e2e-small.yaml"
CORRECTED = (1.1, 1.2, 1.3, 1.4)  # corrections sharpen what they correct
MIDDLE = 1.3
# All texts cost 32 evaluations: what a piece makes impossible, or dear (a sweep of corrections of a network that reads each
# word's own vector takes eleven), goes into steps.
READING = {
    "model.backbone": "{name: transformer, layers: 5, width: 192, heads: 6, dropout: 0.1}",
    "sampling.steps": "10",
    "sampling.sweeps": "1",
}
PADDED = {"model.explicit_length": "false", "sampling.sweeps": "0", "sampling.steps": "16"}
STEPS = {"model.schedule": "sqrt", "model.self_conditioning": "false", "sampling.passes": "1", "sampling.steps": "32"}
VECTORS = {  # what regression needs: a network that reads all, steps of time, padded texts, no logits in sampling
    **READING,
    **PADDED,
    **STEPS,
    "model.prediction": "x0",
    "objective": "regression",
    "sampling.temperature": "1",
    "sampling.step_temperature": "null",
}
ROWS: dict[str, dict[str, str]] = {
    "default": {},
    "a network that reads each word's own vector": READING,
    "clozes of which all words may be hidden": {"objective.cloze_hidden": "1"},
    "without clozes": {"objective.cloze_share": "0"},
    "dimension 16": {"model.dimension": "16"},
    "dimension 64": {"model.dimension": "64"},
    "AdamW alone": {"training.optimizer": "{name: adamw, learning_rate: 0.004, betas: [0.9, 0.98], weight_decay: 0.01}"},
    "one noise level a text": {"objective.mixed_share": "0"},
    "noise levels by position in 50 % of the texts": {"objective.mixed_share": "0.5"},
    "without self-conditioning": {"model.self_conditioning": "false", "sampling.passes": "1", "sampling.steps": "26"},
    "padded, no explicit length": PADDED,
    "random frozen word vectors": {"model.cooccurrence": "0", "model.embedding": "frozen"},
    "sqrt schedule": {"model.schedule": "sqrt"},
    "without evidence as input": {"model.evidence_input": "false"},
    "without co-occurrence": {"model.cooccurrence": "0"},
    "without neighbours": {"model.backbone.neighbours": "0"},
    "noise drawn from the learned density itself": {"model.schedule.training_shift": "0"},
    "word vectors as fast as the rest": {"training.optimizer.word_learning_rate": "0.008"},
    "reading network, without evidence in the logits": {**READING, "model.evidence": "0"},
    "reading network, without evidence": {**READING, "model.evidence": "0", "model.evidence_input": "false"},
    "reading network, sqrt schedule, padded, no self-conditioning": {**READING, **PADDED, **STEPS},  # beside the next two
    "x0 regression, padded": VECTORS,
    "x0 regression, padded, free word vectors": {**VECTORS, "model.embedding": "free"},  # the paper's objective
}


def config_of(row: str, folder: str) -> RunConfig:
    """Return a row's run on E2E in ``folder``, its steps not settled yet."""
    return read_config([BASE], [("data.corpus.folder", json.dumps(folder)), *ROWS[row].items()])


def run_of(row: str, options: argparse.Namespace) -> Path:
    """Return where a row is trained."""
    return Path(options.runs) / "ablations" / options.length / file_name(row)


def measured(row: str, options: argparse.Namespace) -> dict[str, Any]:
    """Train and judge one row; return its figures."""
    config = config_of(row, options.folder)
    run = run_of(row, options)
    trained(config, run, options)
    report = judged(run, config, options)
    (system,) = (name for name, about in report.systems.items() if about["folder"] == str(run))
    about = report.systems[system]
    real, *points = report.rows
    return {
        "row": row,
        "changes": ROWS[row],
        "asked": options.length,
        "seed": config.training.seed,
        **{name: value for name, value in about.items() if name.startswith("training_") or name == "parameters"},
        "texts": options.texts,
        "judge": report.about["judge_fingerprint"],
        "real": {"judge_perplexity": real.judge_perplexity, "entropy": real.diversity.entropy},
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


def judged(run: Path, config: RunConfig, options: argparse.Namespace) -> Report:
    """Judge a run's texts at each temperature beside real text, and bound its likelihood; resumed in its folder."""
    temperatures = CORRECTED if saved_sampling(run).sweeps else TEMPERATURES
    asking = EvaluationConfig(temperatures=temperatures, count=options.texts, bound_texts=options.bound_texts)
    judging = BenchmarkRunner.prepare(
        options.judge, config.data.corpus, asking, run / "evaluation", options.device, quiet=False
    )
    pipeline = open_pipeline(run, options.device)
    system = judging.report.enter_model(run, (), pipeline.model)
    real = next(judging.reference_jobs())  # the judge's own samples would be the same in every row
    judging.run([real, *judging.model_jobs(system, pipeline, (), "fp32"), *judging.likelihood_jobs(system, pipeline)])
    return judging.report


def table(found: Sequence[dict[str, Any]]) -> str:
    """Return the rows as a table in Markdown, compared at the default's entropy."""
    shown = sorted({*TEMPERATURES, *CORRECTED})
    default = next((row for row in found if row["row"] == "default"), None)
    anchor = None if default is None else at(default, MIDDLE)["entropy"]
    real = found[0]["real"]
    columns = ["", "steps", "tokens", "CPU s", *(f"t {t:g}" for t in shown)]
    columns += ["at equal entropy", "unique", "copied", "nats a token", "in turn"]
    lines = [
        "Judge perplexity (entropy of the words, nats) of "
        f"{found[0]['texts']} texts at each temperature t; real text: {real['judge_perplexity']:.2f} ({real['entropy']:.3f}).",
        ""
        if anchor is None
        else f"At equal entropy: {anchor:.3f} nats, the default's at t {MIDDLE:g}; log-linear between the"
        " row's temperatures, - beyond them.",
        f"Unique texts and copies of training texts: at t {MIDDLE:g}, or the only one. Nats a token: an upper bound, of words"
        " that leave the noise together or in turn.",
        "",
        "| " + " | ".join(columns) + " |",
        "|---" + "|---:" * (len(columns) - 1) + "|",
    ]
    return "\n".join([*lines, *("| " + " | ".join(cells(row, shown, anchor)) + " |" for row in found)])


def at(row: dict[str, Any], temperature: float) -> dict[str, Any]:
    """Return a row's figures at the temperature nearest to ``temperature``."""
    nearest: dict[str, Any] = min(row["points"], key=lambda point: abs(point["temperature"] - temperature))
    return nearest


def cells(row: dict[str, Any], temperatures: Sequence[float], anchor: float | None) -> list[str]:
    """Return a row's cells."""
    known = {p["temperature"]: f"{p['judge_perplexity']:.2f} ({p['entropy']:.3f})" for p in row["points"]}
    line = [(p["entropy"], p["judge_perplexity"]) for p in row["points"]]
    equal = None if anchor is None else at_entropy(line, anchor)
    bounds = {one["orders"] > 0: f"{one['nats_per_token']:.3f} ± {one['error']:.3f}" for one in row["likelihoods"]}
    return [
        row["row"],
        f"{row['training_steps']:,}",
        f"{row['training_tokens'] / 1e6:.2f} M",
        f"{row['training_processor_seconds']:.0f}",
        *(known.get(t, "-") for t in temperatures),
        "-" if equal is None else f"{equal:.2f}",
        f"{at(row, MIDDLE)['unique']:.1%}",
        f"{at(row, MIDDLE)['copied']:.1%}",
        *(bounds.get(in_turn, "-") for in_turn in (False, True)),
    ]


def main(words: Sequence[str] | None = None) -> int:
    """Measure the rows that are missing, and print the table of all that are known."""
    options = asked(arguments(__doc__, list(ROWS), minutes=10), list(ROWS), words)
    results = Path(options.results) / "ablations"
    paths = {row: results / f"{file_name(row)}-{options.length}.json" for row in options.rows}
    logs = Path(options.runs) / "ablations" / options.length

    def make(row: str) -> None:
        if options.settle:
            trained(config_of(row, options.folder), run_of(row, options), options)
        else:
            kept(paths[row], lambda: measured(row, options))

    def measure_missing() -> list[str]:
        if not options.alone:
            check(config_of("default", options.folder).data.corpus, options)
        missing = [row for row, path in paths.items() if not path.exists()]
        if known := len(paths) - len(missing):
            print(f"{known} of {len(paths)} rows are measured already, in {results}", file=sys.stderr)
        return every(missing, __file__, options, make, logs)

    def show() -> None:
        found = [json.loads(path.read_text()) for path in paths.values() if path.exists()]
        if counts := {row["texts"] for row in found} - {options.texts}:
            print(f"rows of {', '.join(map(str, sorted(counts)))} texts are among them, kept from before", file=sys.stderr)
        if found and not options.alone:
            print(table(found), flush=True)

    return exit_status(measure_missing, show)


if __name__ == "__main__":
    sys.exit(main())
