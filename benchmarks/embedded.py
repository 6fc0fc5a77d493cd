"""Ablations on the restaurants corpus: short runs with equal steps, each with one change of the default recipe.

    python benchmarks/embedded.py [--steps 600] [--texts 300] [ROW ...]

Each row is a run on one thread with the same number of steps, seed and sampling. Rows in ``benchmarks/results/embedded`` are
not measured again. After an interruption the same command resumes. The table goes to stdout.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from measure import RESULTS, ROOT, exit_status, file_name, load_or_measure, with_steps

from diffusionlm.pipelines.diffusion import Pipeline
from diffusionlm.restaurants.report import grammar_report
from diffusionlm.training.run import read_config, train

EMBEDDED = ROOT / "configs" / "restaurants.yaml"
ROWS = {
    "default": {},
    "backbone with own input (transformer)": {"model.backbone": "transformer"},
    "without masked-token prediction (cloze)": {"objective.cloze_share": "0"},
    "without depthwise convolution": {"model.backbone.neighbours": "0"},
    "without token likelihood term as input": {"model.evidence_input": "false"},
    "word vectors not initialised from co-occurrence": {"model.cooccurrence": "0"},
    "without self-conditioning": {"model.self_conditioning": "false", "sampling.passes": "1"},
    "self-conditioning in half of the texts": {"objective.self_conditioning_share": "0.5"},
    "one noise level per text": {"objective.mixed_share": "0"},
    "AdamW instead of Muon": {"training.optimizer": "{name: adamw, learning_rate: 0.004, betas: [0.9, 0.98]}"},
    "dimension 32": {"model.dimension": "32"},
    "no training shift of the schedule": {"model.schedule.training_shift": "0"},
    "same learning rate for word vectors": {"training.optimizer.word_learning_rate": "0.008"},
    "one pass per step": {"sampling.passes": "1"},
    "no step temperature": {"sampling.step_temperature": "null"},
    "no refinement sweeps": {"sampling.sweeps": "0"},
}


def measure(row: str, steps: int, texts: int, run: Path) -> dict[str, Any]:
    """Train one row in the folder ``run`` and measure its samples. Raises KeyboardInterrupt on Ctrl-C."""
    config = with_steps(read_config([EMBEDDED], list(ROWS[row].items())), steps)
    splits = config.data.corpus.load()
    if not train(config, run):
        raise KeyboardInterrupt
    samples = [generated.text for generated in Pipeline.from_pretrained(run).stream(texts)]
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    report = asdict(grammar_report(samples, splits["train"]["text"][:], splits["validation"]["text"][:]))
    seconds = [line["seconds"] for line in log if "seconds" in line][-1]
    return {"row": row, "steps": config.training.steps, **report, "seconds": seconds, "seed": config.training.seed}


def main() -> None:
    """Measure the rows that have no result yet, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", choices=[[], *ROWS], default=[], metavar="ROW")
    parser.add_argument("--steps", type=int, default=600, help="training steps of each row (%(default)s)")
    parser.add_argument("--texts", type=int, default=300, help="samples per row (%(default)s)")
    parser.add_argument("--runs", default="runs", help="folder of the trained models (%(default)s)")
    options = parser.parse_args()
    print(f"{'':47} accepted  distinct  entropy (reference)  seconds")
    for row in options.rows or ROWS:
        name = f"{file_name(row)}-{options.steps}"
        run = Path(options.runs) / "embedded" / name
        result = load_or_measure(
            RESULTS / "embedded" / f"{name}.json", partial(measure, row, options.steps, options.texts, run)
        )
        entropy = f"{result['entropy']:.3f} ({result['entropy_real']:.3f})"
        print(
            f"{row:47} {result['accepted']:8.1%}  {result['distinct']:8.1%}  {entropy:19}  {result['seconds']:7.0f}",
            flush=True,
        )


if __name__ == "__main__":
    sys.exit(exit_status(main))
