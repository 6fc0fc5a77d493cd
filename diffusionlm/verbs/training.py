"""``quickstart``, ``train``, ``distill`` and ``convert``."""

from __future__ import annotations

import argparse
from pathlib import Path

from diffusionlm.arguments import command, option
from diffusionlm.config import UserError
from diffusionlm.processes import check_whole, is_first
from diffusionlm.verbs.shared import CONFIG, MODEL, expect_positive


@command(
    option("--out", "run folder (default %(default)s)", "FOLDER", default="runs/quickstart"),
    option("--minutes", "training time on this machine (default 4.2)", "X"),
    option("--steps", "training steps; replaces --minutes"),
    option("--texts", "texts to generate and evaluate, of each model (default %(default)s)", default=300),
)
def _quickstart(options: argparse.Namespace) -> int:
    """Train on the restaurants corpus for a few minutes, generate texts and evaluate them."""
    from diffusionlm.restaurants.quickstart import quickstart

    expect_positive(options, "steps", "texts")
    if options.steps is not None and options.minutes is not None:
        raise UserError("--minutes: --steps replaces it, so it has no effect; give one of the two")
    quickstart(options.out, options.steps, 4.2 if options.minutes is None else options.minutes, options.texts)
    return 0


@command(
    CONFIG,
    option("--out", "run folder: model, log, samples, checkpoints", "FOLDER", required=True),
    option("--minutes", "training time on this machine; chooses the steps, and whatever else is not set", "X"),
    option("--steps", "training steps; short for --training.steps"),
    option("--init-from", "fine-tune this model folder on the corpus", "MODEL"),
    option("--extend-vocabulary", "add up to N frequent words of the corpus to the vocabulary of --init-from"),
    option("--adapter", "train and save a part of the weights, such as lora; see: diffusionlm show adapters", "NAME"),
    option("--processes", "processes on this machine, each with batches of its own (default 1)"),
    example="train --config configs/e2e-small.yaml --training.steps 500 --data.corpus.folder e2e",
)
def _train(options: argparse.Namespace) -> int:
    """Train a model; after an interruption, the same command resumes the run."""
    from diffusionlm.evaluation.closing import close, is_pending
    from diffusionlm.models.named import bundled_models
    from diffusionlm.training.automatic import automatic, given_names
    from diffusionlm.training.run import read_config, train

    expect_positive(options, "steps", "extend_vocabulary")
    check_whole()
    given = [(name, value) for name in ("init_from", "adapter") if (value := getattr(options, name))]
    short = {"training.steps": options.steps, "extend_vocabulary.words": options.extend_vocabulary}
    given += [(name, str(value)) for name, value in short.items() if value is not None]
    assignments = options.overrides + given
    config = read_config(options.config, assignments)
    if config.init_from in bundled_models() and Path(options.out).resolve() == Path(str(config.init_from)).resolve():
        raise UserError(f"{options.out}: would take the name of the bundled model that it starts from; choose another --out")
    names = given_names(options.config, assignments)
    own_corpus = not options.config and any(name.startswith("data.corpus") for name in names)
    fits_itself = options.minutes is not None or (own_corpus and config.model.generates)
    if fits_itself:
        config = automatic(config, names, options.minutes, options.out)
    was_closed = (Path(options.out) / "model" / "finished").exists() and not is_pending(options.out)
    if not train(config, options.out):
        return 130
    if fits_itself and config.model.generates and not was_closed and is_first():
        close(options.out, fit_temperature="sampling.temperature" not in names)
    return 0


@command(
    MODEL,
    CONFIG,
    option("--out", "run folder: the student, log, samples, checkpoints", "FOLDER", required=True),
    option("--method", "see: diffusionlm show objectives (default %(default)s)", "NAME", default="joint"),
    option("--evaluations", "evaluations of the network per text (default %(default)s)", default=4),
    example="distill runs/e2e --out runs/e2e-4 --method progressive --objective.teacher_steps 32",
)
def _distill(options: argparse.Namespace) -> int:
    """Train a student that generates in a few evaluations what a trained model does in many; resumed like ``train``."""
    from diffusionlm.models.classifier.model import copy_classifiers
    from diffusionlm.training.distillation.config import distillation_config
    from diffusionlm.training.run import train

    expect_positive(options, "evaluations")
    config = distillation_config(options.model, options.method, options.evaluations, options.config, options.overrides)
    if not train(config, options.out):
        return 130
    if config.adapter.complete:  # that of an adapter finds the classifiers of its base
        copy_classifiers(options.model, options.out)
    return 0


@command(
    option("checkpoint", "checkpoint (.pt) of Diffusion-LM's or DiffuSeq's own code, or its folder", "CHECKPOINT"),
    option("--out", "model folder to write", "FOLDER", required=True),
    option("--tokenizer", "where the tokens are BERT's: the tokenizer's folder, or its vocab.txt", "FOLDER"),
    option("--heads", "attention heads, where the BERT of the checkpoint is none of the usual sizes"),
)
def _convert(options: argparse.Namespace) -> int:
    """Convert a checkpoint of the original code to a model folder, with training_args.json and vocab.json beside it."""
    from diffusionlm.training.convert import convert

    convert(options.checkpoint, options.out, options.tokenizer, options.heads)
    return 0
