"""Evaluate a model on all control tasks of configs/control for its corpus, and print one table.

    python benchmarks/control.py --restaurants RUN --judge JUDGE [--evaluations 8]
    python benchmarks/control.py --e2e RUN --judge JUDGE --folder E2E --tagger TAGGER [--stanza MODELS]

Classifiers that the run lacks are trained first, on one thread each, and saved in its model/classifiers. The table goes to
stdout; it, the report, the figure and all samples are in ``benchmarks/results/control-restaurants`` (or control-e2e).
Finished targets are not sampled again; a larger ``--targets`` adds to them.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from measure import RESULTS, ROOT, exit_status

from diffusionlm.config import UserError
from diffusionlm.evaluation.control.evaluation import ControlConfig, evaluate_control
from diffusionlm.evaluation.control.report import control_table
from diffusionlm.evaluation.control.tasks import TaskConfig, read_tasks
from diffusionlm.models.io import model_folder
from diffusionlm.training.run import read_config, train

Changes = list[tuple[str, str]]

CLASSIFIERS = {"restaurants": ("attributes", "tags", "spans"), "e2e": ("attributes", "tags")}
TASKS = {
    "restaurants": (
        "semantic-content", "parts-of-speech", "syntax-tree", "syntax-spans", "length", "infilling", "infilling-told",
        "attribute-tree", "attribute-tags",
    ),
    "e2e": ("semantic-content", "parts-of-speech", "length", "infilling", "infilling-told", "attribute-tags"),
}  # fmt: skip
SYNTAX = ("syntax-tree", "syntax-spans")  # on E2E these require a parser (--stanza)


def train_classifiers(corpus: str, options: argparse.Namespace) -> None:
    """Train the classifiers that the run lacks. Raises KeyboardInterrupt if Ctrl-C stopped the training."""
    torch.set_num_threads(1)
    for name in (*CLASSIFIERS[corpus], *(("spans",) if options.stanza else ())):
        folder = model_folder(options.run) / "classifiers" / name
        if (folder / "model" / "finished").exists() or (folder / "config.json").exists():  # trained here, or a teacher's
            continue
        changes: Changes = [("model.denoiser", str(options.run)), ("training.threads", "1")]
        path = ROOT / "configs" / "classifiers" / f"{name}.yaml"
        if corpus == "e2e":
            changes += [
                ("data.corpus", json.dumps({"name": "e2e", "folder": options.folder})),
                *annotator_changes(name, options),
            ]
            path = path if name == "spans" else path.with_name(f"e2e-{name}.yaml")
        if not train(read_config([path], changes), folder):
            raise KeyboardInterrupt


def annotator_changes(name: str, options: argparse.Namespace) -> Changes:
    """Return the change of a classifier's config that sets the annotator of E2E's texts."""
    chosen = {"name": "stanza", "folder": options.stanza} if name == "spans" else {"name": "tagger", "folder": options.tagger}
    return [] if name == "attributes" else [("model.annotator", json.dumps(chosen))]


def tasks_of(corpus: str, options: argparse.Namespace) -> list[TaskConfig]:
    """Return the control tasks, one per row of the table."""
    if corpus == "restaurants":
        return [task for name in TASKS[corpus] for task in read_tasks(ROOT / "configs" / "control" / f"{name}.yaml")]
    tasks = []
    for name in (*TASKS[corpus], *(SYNTAX if options.stanza else ())):
        changes = [("annotator.folder", options.stanza if name in SYNTAX else options.tagger)]
        path = ROOT / "configs" / "control" / f"e2e-{name}.yaml"
        tasks += read_tasks(path, changes if "annotator:" in path.read_text() else [])
    return tasks


def main(arguments: Sequence[str] | None = None) -> int:
    """Train the missing classifiers, evaluate the tasks, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    corpora = parser.add_mutually_exclusive_group(required=True)
    corpora.add_argument("--restaurants", metavar="RUN", help="a run on the restaurants corpus")
    corpora.add_argument("--e2e", metavar="RUN", help="a run of configs/e2e-small.yaml")
    parser.add_argument("--judge", required=True, help="judge LM: a causal language model of the same corpus")
    parser.add_argument("--folder", help="folder with E2E's trainset.csv, devset.csv and testset_w_refs.csv")
    parser.add_argument("--tagger", help="output folder of benchmarks/tagger.py, or of any NLTK tagger")
    parser.add_argument("--stanza", help="folder of Stanza's models, for the syntax tasks on E2E")
    parser.add_argument("--tasks", nargs="*", default=(), help="tasks to evaluate (default: all)")
    parser.add_argument("--targets", type=int, default=40, help="targets per task (%(default)s)")
    parser.add_argument("--samples", type=int, default=25, help="samples per target (%(default)s)")
    parser.add_argument("--evaluations", type=int, help="network evaluations of each sample (default: the tasks' settings)")
    parser.add_argument("--temperature", help="of the token posterior (default: the tasks')")
    parser.add_argument("--dtype", default="fp32", help="of the networks' arithmetic in sampling (%(default)s)")
    parser.add_argument("--results", default=str(RESULTS), help="folder of the results (%(default)s)")
    options = parser.parse_args(arguments)
    corpus = "e2e" if options.e2e else "restaurants"
    options.run = options.e2e or options.restaurants
    if corpus == "e2e" and not (options.folder and options.tagger):
        parser.error("--e2e: --folder and --tagger are required as well")

    def run() -> None:
        tasks = tasks_of(corpus, options)
        if unknown := set(options.tasks) - {task.title for task in tasks}:
            raise UserError(f"--tasks: unknown task {min(unknown)!r}; choose from {', '.join(task.title for task in tasks)}")
        train_classifiers(corpus, options)
        selected = [task for task in tasks if task.title in (options.tasks or [task.title])]
        config = ControlConfig(targets_count=options.targets, samples=options.samples, evaluations=options.evaluations)
        out = Path(options.results) / f"control-{corpus}"
        sampling = [("temperature", options.temperature)] if options.temperature else []
        report = evaluate_control(
            options.judge, [options.run], selected, config, sampling=sampling, dtype=options.dtype, out=out
        )  # fmt: skip
        print(control_table(report), end="", flush=True)

    return exit_status(run)


if __name__ == "__main__":
    sys.exit(main())
