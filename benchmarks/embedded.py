"""What each piece of the default recipe is worth on the embedded corpus: short runs, one piece taken away in each.

    python benchmarks/embedded.py [--steps 600] [--texts 300] [ROW ...]

Each row is a run on one thread with the same steps, seed and sampling; rows already in ``benchmarks/results`` are
skipped, and one that Ctrl-C stopped goes on with the same command. The table is written to stdout.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from measure import RESULTS, ROOT, exit_status, file_name, kept, of_steps

from diffusionlm.pipelines.diffusion import Pipeline
from diffusionlm.restaurants.report import grammar_report
from diffusionlm.training.run import read_config, train

EMBEDDED = ROOT / "configs" / "restaurants.yaml"
ROWS = {
    "default": {},
    "a network that reads each word's own vector": {"model.backbone": "transformer"},
    "without clozes": {"objective.cloze_share": "0"},
    "without neighbours": {"model.backbone.neighbours": "0"},
    "without evidence as input": {"model.evidence_input": "false"},
    "without co-occurrence": {"model.cooccurrence": "0"},
    "without self-conditioning": {"model.self_conditioning": "false", "sampling.passes": "1"},
    "self-conditioning in half of the texts": {"objective.self_conditioning_share": "0.5"},
    "one noise level a text": {"objective.mixed_share": "0"},
    "AdamW alone": {"training.optimizer": "{name: adamw, learning_rate: 0.004, betas: [0.9, 0.98]}"},
    "dimension 32": {"model.dimension": "32"},
    "noise drawn from the learned density itself": {"model.schedule.training_shift": "0"},
    "word vectors as fast as the rest": {"training.optimizer.word_learning_rate": "0.008"},
    "one pass a step": {"sampling.passes": "1"},
    "no temperature of the step": {"sampling.step_temperature": "null"},
    "no corrections": {"sampling.sweeps": "0"},
}


def measure(row: str, steps: int, texts: int, run: Path) -> dict[str, Any]:
    """Train one row in the folder ``run`` and sample it; return its figures. Raises KeyboardInterrupt on Ctrl-C."""
    config = of_steps(read_config([EMBEDDED], list(ROWS[row].items())), steps)
    splits = config.data.corpus.load()
    if not train(config, run):
        raise KeyboardInterrupt
    written = [generated.text for generated in Pipeline.from_pretrained(run).stream(texts)]
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    report = asdict(grammar_report(written, splits["train"]["text"][:], splits["validation"]["text"][:]))
    seconds = [line["seconds"] for line in log if "seconds" in line][-1]
    return {"row": row, "steps": config.training.steps, **report, "seconds": seconds, "seed": config.training.seed}


def main() -> None:
    """Measure the rows that are missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", choices=[[], *ROWS], default=[], metavar="ROW")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--texts", type=int, default=300)
    parser.add_argument("--runs", default="runs", help="where to train")
    options = parser.parse_args()
    print(f"{'':40} accepted  distinct  entropy (real)   seconds")
    for row in options.rows or ROWS:
        name = f"{file_name(row)}-{options.steps}"
        run = Path(options.runs) / "embedded" / name
        found = kept(RESULTS / "embedded" / f"{name}.json", partial(measure, row, options.steps, options.texts, run))
        entropy = f"{found['entropy']:.3f} ({found['entropy_real']:.3f})"
        print(
            f"{row:40} {found['accepted']:8.1%}  {found['distinct']:8.1%}  {entropy:14}  {found['seconds']:7.0f}",
            flush=True,
        )


if __name__ == "__main__":
    sys.exit(exit_status(main))
