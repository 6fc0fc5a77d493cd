"""Distil one teacher by several methods at equal CPU time, and evaluate all over numbers of network evaluations.

    python benchmarks/few_steps.py TEACHER --judge JUDGE [--peers RUN ...] [--made-for 4] [--minutes 10] [ROW ...]

Each row is a student of TEACHER, a run of a diffusion model, made for ``--made-for`` evaluations and trained on one thread.
Students, teacher and peers (a masked model, for example) are then evaluated over ``--evaluations``, students up to twice those
that they are made for, and compared at the entropy of the reference texts. The table goes to stdout; it, the report, the
figures and the samples are in ``--results``. Finished students and rows are used again.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from measure import RESULTS, exit_status, expect_positive, file_name, with_minutes, with_steps

from diffusionlm.evaluation.benchmark import EvaluationConfig, evaluate
from diffusionlm.evaluation.report import Report, table
from diffusionlm.training.distillation.config import distillation_config, with_rounds
from diffusionlm.training.run import read_config, train

# The method of each row, and its changes to the objective's settings.
ROWS: dict[str, tuple[str, dict[str, str]]] = {
    "joint": ("joint", {}),
    "progressive": ("progressive", {}),
    "progressive, perturbed estimate": ("progressive", {"previous": "perturbed"}),
    "progressive, no estimate": ("progressive", {"previous": "none"}),
    "consistency": ("consistency", {}),
    "consistency from data": ("consistency", {"from_data": "true"}),
    "flow map": ("flow-map", {}),
    "flow map, lagrangian": ("flow-map", {"form": "lagrangian"}),
    "flow map, eulerian": ("flow-map", {"form": "eulerian"}),
}
MAIN = ("joint", "progressive", "consistency", "flow map")


def student(row: str, options: argparse.Namespace) -> Path:
    """Return the folder of a row's student, trained if it is not finished. Raises KeyboardInterrupt where it was stopped."""
    folder = options.runs / file_name(row)
    if (folder / "config.yaml").exists():
        config = read_config([folder / "config.yaml"])
    else:
        method, changes = ROWS[row]
        given = [(f"objective.{name}", value) for name, value in changes.items()]
        if options.learning_rate:
            own = read_config([options.teacher / "config.yaml"]).training.optimizer
            rates = [name for name in ("learning_rate", "matrix_learning_rate") if hasattr(own, name)]
            given += [(f"training.optimizer.{name}", str(options.learning_rate)) for name in rates]
        config = distillation_config(str(options.teacher), method, options.made_for, (), given)
        config = with_steps(config, options.steps) if options.steps else with_minutes(config, options.minutes)
        config = with_rounds(config, given=False)
    if not train(config, folder, write_samples=False):
        raise KeyboardInterrupt
    return folder


def evaluate_all(students: Sequence[Path], options: argparse.Namespace) -> Report:
    """Evaluate teacher, peers and students; those of a student's numbers that it is not made for are left out."""
    corpus = read_config([options.teacher / "config.yaml"]).data.corpus
    few = tuple(number for number in options.evaluations if number <= 2 * options.made_for) or (options.made_for,)
    for models, numbers in (([options.teacher, *options.peers], tuple(options.evaluations)), (students, few)):
        config = EvaluationConfig(
            temperatures=tuple(options.temperatures), evaluations=numbers, count=options.texts, bound_texts=0, seed=options.seed
        )
        report = evaluate(options.judge, models, config=config, corpus=corpus, out=options.results, dtype=options.dtype)
    return report


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse and check the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("teacher", type=Path, metavar="TEACHER", help="run of the model to distil")
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"rows (default: {'; '.join(MAIN)}): {'; '.join(ROWS)}")
    parser.add_argument("--judge", type=Path, required=True, help="judge LM of the same corpus")
    parser.add_argument("--peers", type=Path, nargs="+", default=[], metavar="RUN", help="further models of the table")
    parser.add_argument("--made-for", type=int, default=4, help="evaluations that students are made for (%(default)s)")
    parser.add_argument("--minutes", type=float, default=10, help="CPU time of each student's training (%(default)s)")
    parser.add_argument("--steps", type=int, help="its number of steps, instead of --minutes")
    parser.add_argument("--learning-rate", type=float, help="of all weights (default: the teacher's rates)")
    parser.add_argument("--evaluations", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32], help="1 2 4 8 16 32")
    parser.add_argument("--temperatures", type=float, nargs="+", default=[0.8, 1.0, 1.2, 1.4], help="0.8 1 1.2 1.4")
    parser.add_argument("--texts", type=int, default=500, help="samples per setting (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the samples (%(default)s)")
    parser.add_argument("--dtype", default="fp32", help="of the networks' arithmetic in sampling (%(default)s)")
    parser.add_argument("--runs", type=Path, default=Path("runs/few-steps"), help="folder of the students (%(default)s)")
    parser.add_argument("--results", type=Path, default=RESULTS / "few-steps", help="folder of the results (%(default)s)")
    options = parser.parse_args(arguments)
    for row in options.rows:
        if row not in ROWS:
            parser.error(f"unknown row {row!r}; choose from {', '.join(ROWS)}")
    expect_positive(parser, options, "minutes", "steps", "made_for", "learning_rate")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Train the missing students, evaluate all, and print the table."""
    options = parsed(arguments)

    def run() -> None:
        torch.set_num_threads(1)
        students = [student(row, options) for row in options.rows or MAIN]
        print(table(evaluate_all(students, options)), end="", flush=True)

    return exit_status(run)


if __name__ == "__main__":
    sys.exit(main())
