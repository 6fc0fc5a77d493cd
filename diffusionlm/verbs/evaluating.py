"""``evaluate``: models, and texts of other systems, beside reference texts."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from diffusionlm.arguments import command, flag, option, several
from diffusionlm.config import UserError, build
from diffusionlm.verbs.shared import LOADING, expect_positive, given_options, refuse


@command(
    option("models", "model folders or run folders; differences are to the first", "MODEL", nargs="*"),
    option("--judge", "judge: a causal language model, or its run folder (all but --references need it)", "FOLDER"),
    several("--texts", "texts of another system (.txt, .jsonl, .csv)"),
    option("--references", "sources with references (.csv, .jsonl) for conditional models and --texts", "FILE"),
    flag("--no-ter", "leave TER out, which takes minutes for thousands of references"),
    option("--temperatures", "sampling temperatures (default 0.7 0.8 0.9 1.0; with --references the model's)", "X", nargs="+"),
    option("--cfg", "scales of classifier-free guidance, one row each, with --references", "X", nargs="+"),
    option("--steps", "sampling steps of diffusion models (default: the model's)", nargs="+"),
    option("--evaluations", "network evaluations per candidate, in place of --steps: one row each", "N", nargs="+"),
    option("--count -n", "texts per row, and reference texts (default 500); of each source (default 1)"),
    option("--seed", "random seed of the samples and of the choice of reference texts (default 0)"),
    option("--strata", "noise levels per text in the likelihood bound (default 128)"),
    option("--orders", "random orders of the any-order bound; 0 leaves it out (default 8)"),
    several("--controls", "evaluate control: a task of configs/control, or a .jsonl file of targets"),
    option("--targets-count", "use the first N targets of each task (default: the task's)"),
    option("--samples", "texts per target (default: the task's; 10 for .jsonl)"),
    option("--strengths", "guidance strengths, one row each", "X", nargs="+"),
    option("--split", "corpus split of the reference texts (default validation)", "NAME"),
    option("--bound-texts", "reference texts whose likelihood is bounded (default 200)"),
    flag("--no-bound", "leave the likelihood out", 0, dest="bound_texts"),
    several("--config", "YAML file that names the corpus, where no model is a run folder"),
    option("--out", "report, figures and texts; resumed if present (default: in the run folder)", "FOLDER"),
    flag("--json", "print JSON instead of a table"),
    *LOADING,
    example="evaluate runs/e2e --judge runs/judge --steps 32 128 --sampling.sampler ddim",
)
def _evaluate(options: argparse.Namespace) -> int:
    """Compare models, or texts of other systems, with reference texts: fluency, diversity, likelihood, control."""
    from diffusionlm.evaluation.benchmark import EvaluationConfig, evaluate
    from diffusionlm.evaluation.report import table

    if options.references is not None:
        return _evaluate_references(options)
    refuse(options, "no_ter cfg", "needs --references FILE")
    if options.judge is None:
        raise UserError("evaluate: expected --judge FOLDER, or --references FILE, which needs no judge")
    if options.controls:
        return _evaluate_control(options)
    if not (options.models or options.texts):
        raise UserError("evaluate: expected a model folder, or --texts FILE")
    refuse(options, "targets_count samples strengths", "needs --controls FILE")
    given = given_options(options, EvaluationConfig)
    settings, shared = build(EvaluationConfig, given), _evaluated(options)
    _print_report(options, evaluate(options.judge, options.models, options.texts, settings, given=given, **shared), table)
    return 0


def _evaluate_references(options: argparse.Namespace) -> int:
    from diffusionlm.evaluation.reference_report import evaluate_references, json_rows, reference_table

    if not (options.models or options.texts):
        raise UserError("--references: expected a model folder, or the outputs of a system in --texts FILE")
    unused = "judge steps evaluations strata orders controls targets_count samples strengths split bound_texts"
    refuse(options, unused, "does not go with --references; see --sampling.NAME")
    shared, count = _evaluated(options, "references"), 1 if options.count is None else options.count
    expect_positive(options, "count")
    sampling = [name for name, _ in options.overrides if name.startswith("sampling.")]
    given = [*sampling, *(name for name in ("count", "cfg", "temperatures") if getattr(options, name) is not None)]
    if not options.models and given:
        raise UserError(f"--{given[0]}: there is no model to sample from, so this setting has no effect; leave it out")
    report = evaluate_references(
        options.references, options.texts, seed=options.seed or 0, ter=not options.no_ter, models=options.models, count=count,
        cfg=options.cfg or (), temperatures=options.temperatures or (), **shared,
    )  # fmt: skip
    table_to = sys.stdout if options.json or sys.stdout.isatty() else sys.stderr
    if table_to is sys.stderr:
        print(json_rows(report), end="")
    _print_report(options, report, reference_table, table_to)
    return 0


def _evaluate_control(options: argparse.Namespace) -> int:
    from diffusionlm.evaluation.control.evaluation import ControlConfig, evaluate_control
    from diffusionlm.evaluation.control.report import control_table
    from diffusionlm.evaluation.control.tasks import read_tasks

    if not options.models:
        raise UserError("evaluate: expected a model folder")
    unused = "texts temperatures steps count split bound_texts strata orders"
    refuse(options, unused, "does not go with --controls; see --samples and --sampling.steps")
    changes = [(key, value) for key, value in options.overrides if key.startswith(("annotator.", "task."))]
    options.overrides = [change for change in options.overrides if change not in changes]
    tasks = [task for path in options.controls for task in read_tasks(path, changes)]
    if len(options.evaluations or ()) > 1:
        raise UserError(f"--evaluations: expected one number with --controls, got {' '.join(map(str, options.evaluations))}")
    given = given_options(options, ControlConfig)
    if options.evaluations:
        given["evaluations"] = options.evaluations[0]
    settings = build(ControlConfig, given)
    report = evaluate_control(options.judge, options.models, tasks, settings, **_evaluated(options))
    _print_report(options, report, control_table)
    return 0


def _print_report(options: argparse.Namespace, report: Any, table: Callable[[Any], str], file: Any = None) -> None:
    shown = json.dumps(report.plain(), indent=2, ensure_ascii=False) + "\n" if options.json else table(report)
    print(shown, end="", file=file)


def _evaluated(options: argparse.Namespace, kind: str = "") -> dict[str, Any]:
    """Return the arguments that all kinds of evaluation share: corpus, folder (``kind``), sampling settings, device."""
    from diffusionlm.evaluation.provenance import config_of
    from diffusionlm.training.run import read_config

    sampling = [(key.removeprefix("sampling."), value) for key, value in options.overrides if key.startswith("sampling.")]
    rest = [(key, value) for key, value in options.overrides if not key.startswith("sampling.")]
    for name, better in {"steps": "--steps", "temperature": "--temperatures", "seed": "--seed"}.items():
        if name in dict(sampling) and not ((options.controls or options.references) and name != "seed"):
            raise UserError(f"--sampling.{name}: an evaluation sets it itself; use {better}")
    if options.strengths and "guidance.strength" in dict(sampling):
        raise UserError("--sampling.guidance.strength: an evaluation sets it itself; use --strengths")
    for key, _ in rest:
        if not key.startswith("data.corpus"):
            raise UserError(f"--{key}: expected sampling.NAME or data.corpus.NAME: an evaluation has no other settings")
    models = [options.adapter] if options.adapter else options.models  # of a report: an adapter's run is its model's
    paths = options.config or list(filter(None, [config_of([*models, *filter(None, [options.judge])])]))
    corpus = read_config(paths, rest).data.corpus if options.config or rest else None
    out = options.out or _evaluation_folder(models, kind or ("control" if options.controls else "evaluation"))
    loading = {name: getattr(options, name) for name in ("device", "dtype", "adapter")}
    return {"corpus": corpus, "out": out, "sampling": sampling, **loading}


def _evaluation_folder(models: Sequence[str], name: str) -> str | None:
    """Return the default of --out: a folder in the run folder of a single model, None where there is no model."""
    if not models:
        return None
    if len(models) > 1 or not os.path.isfile(os.path.join(models[0], "config.yaml")):
        raise UserError("--out: expected a folder for the report (only a single run folder has a default)")
    return os.path.join(models[0], name)
