"""The quickstart: train on the restaurants corpus for a few minutes, sample with and without controls, and report quality."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from diffusionlm.config import UserError
from diffusionlm.evaluation.provenance import training_of
from diffusionlm.files import disk_errors
from diffusionlm.models.classifier import ClassifierConfig
from diffusionlm.models.classifier.objective import Classification
from diffusionlm.pipelines.base import SamplingConfig
from diffusionlm.pipelines.diffusion import Pipeline
from diffusionlm.pipelines.rows import Controlled
from diffusionlm.progress import say
from diffusionlm.restaurants.corpus import Restaurants
from diffusionlm.restaurants.report import grammar_report, trigram_texts
from diffusionlm.training.automatic import RESERVE, fastest
from diffusionlm.training.optimizers import has_bf16
from diffusionlm.training.run import RunConfig, read_config, train
from diffusionlm.training.trainer import TrainingConfig

CLASSIFIER_STEPS = 500
# Of the corpus's attributes, those with a few values each: names and landmarks have hundreds, too rare to learn.
CLASSIFIED = ("area", "family", "food", "price", "rating", "type")
CONTROLS = (  # examples in the closing lines
    "food=Japanese",
    'Attribute("type", "pub") & Length(14, 20)',
    'Words("pub", "castle") & ~Words("food")',
    'Infill("The Golden Lion is {} because {} .")',
)
TEXTS_PER_CONTROL = 3
SAMPLING = SamplingConfig(steps=28, passes=2, temperature=1.1, step_temperature=0.5, sweeps=6, sweep_odds=2.5, batch_size=125)


def quickstart(folder: str | Path, steps: int | None = None, minutes: float = 4.2, texts: int = 500) -> dict[str, Any]:
    """Train (or resume), sample without and with controls, write ``quickstart.json``, and return its content.

    ``texts`` is the number of samples without controls. ``steps`` fixes the number of training steps; by default a few steps
    are timed, and as many are taken as fit in ``minutes``.

    Raises:
        UserError: the folder cannot be written or holds another run.
    """
    folder, started = Path(folder), time.perf_counter()
    config = _config(folder, steps, minutes)
    say(f"Training {config.training.steps} steps on the bundled corpus of restaurant descriptions, in {folder} ...")
    if not train(config, folder, show_texts=True):
        raise UserError(f"{folder}: stopped before the end; run the same command again to resume")
    say(f"Sampling {texts} texts ...")
    pipeline = Pipeline.from_pretrained(folder, dtype="bf16" if has_bf16() else "fp32")
    rows = list(pipeline.stream(texts, config.sampling))
    with disk_errors(folder / "texts.jsonl"):
        (folder / "texts.jsonl").write_text("".join(json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in rows))
    splits = config.data.corpus.load()
    training, real = splits["train"]["text"][:], splits["validation"]["text"][:]
    written = [row.text for row in rows]
    report = asdict(grammar_report(written, training, real))
    trigrams = trigram_texts(training, texts, seed=0)
    report["trigram_accepted"] = grammar_report(trigrams, training, real).accepted
    say("Training a classifier of the attributes for guidance, and sampling with controls ...")
    _classify(folder, config.training)
    controlled = _controlled(pipeline, config.sampling)
    report["controlled"] = sum(bool(row.controls[0].passed) for row in controlled) / len(controlled)
    report["seconds_training"] = training_of(folder)["training_seconds"]
    report["seconds_total"] = round(time.perf_counter() - started, 1)
    with disk_errors(folder / "quickstart.json"):
        (folder / "quickstart.json").write_text(json.dumps(report, indent=2) + "\n")
    _close(folder, written, report, controlled)
    return report


def _classify(folder: Path, training: TrainingConfig) -> None:
    """Train the classifier of attributes on the model's predictions, unless it exists."""
    place = folder / "model" / "classifiers" / "attributes"
    steps = min(CLASSIFIER_STEPS, training.steps)
    own = TrainingConfig(
        steps=steps, warmup=min(50, steps), threads=training.threads, evaluate_every=steps, evaluation_texts=100,
        save_every=steps,
    )  # fmt: skip
    model = ClassifierConfig(str(folder), tuple(f"attributes.{name}" for name in CLASSIFIED), min_count=100)
    config = RunConfig(model=model, objective=Classification(report_texts=200), training=own)
    if (place / "config.yaml").exists():  # of an earlier version, perhaps, which classified all attributes
        config = read_config([place / "config.yaml"])
    if not train(config, place):
        raise UserError(f"{folder}: stopped before the end; run the same command again to resume")


def _controlled(pipeline: Pipeline, sampling: SamplingConfig) -> list[Controlled]:
    """Sample texts for each of ``CONTROLS``."""
    sampling = replace(sampling, temperature=1.0)
    rows: list[Controlled] = []
    for control in CONTROLS:
        rows += [row for row in pipeline.stream(TEXTS_PER_CONTROL, sampling, None, [control]) if isinstance(row, Controlled)]
    return rows


def _config(folder: Path, steps: int | None, minutes: float) -> RunConfig:
    """Return the config of the run in ``folder``, or a new one whose number of steps fits in ``minutes``."""
    if (folder / "config.yaml").exists():
        config = read_config([folder / "config.yaml"])
        if not isinstance(config.data.corpus, Restaurants):
            raise UserError(f"{folder}: holds another run, not a quickstart's; choose another --out")
        say(f"Found a run in {folder}: resuming it.")
        return config
    config = RunConfig(sampling=SAMPLING)
    if steps is None:
        steps, threads = _fitting(config, minutes)
        config = replace(config, training=replace(config.training, threads=threads))
    share = max(1, steps // 4)
    training = replace(
        config.training, steps=steps, log_every=min(config.training.log_every, steps), evaluate_every=share,
        sample_every=share, save_every=share,
    )  # fmt: skip
    return replace(config, training=training)


def _fitting(config: RunConfig, minutes: float) -> tuple[int, int]:
    """Time a few steps on one core and on all; return how many fit in ``minutes`` on the faster, and its threads."""
    say("Timing a few steps on this machine ...")
    seconds, threads = fastest(config)
    return max(20, int(minutes * 60 * RESERVE / seconds)), threads


def _close(folder: Path, texts: Sequence[str], report: dict[str, Any], controlled: Sequence[Controlled]) -> None:
    """Print samples, figures, the files and further commands."""
    print("\n".join(texts[:10]), flush=True)
    for place, row in enumerate(controlled):
        if place % TEXTS_PER_CONTROL == 0:
            say(f"\nControl: {row.controls[0].control}")
        say(f"  {'✓' if row.controls[0].passed else '✗'} {row.text}")
    say(f"""
Of {report["texts"]} consecutive, unfiltered texts of one seed
  {report["accepted"]:6.1%}  are accepted by the corpus's grammar (a word-trigram model: {report["trigram_accepted"]:.1%})
  {report["new"]:6.1%}  of those are not in the training texts
  {report["distinct"]:6.1%}  are distinct
  {report["entropy"]:6.3f}  nats of unigram entropy (reference texts: {report["entropy_real"]:.3f})
after {report["seconds_training"]:.0f} seconds of training; this call took {report["seconds_total"]:.0f}.

Where things are
  {folder}/model           the model, for Pipeline.from_pretrained and AutoModel
  {folder}/texts.jsonl     the texts; the figures are in quickstart.json
  {folder}/config.yaml     every setting of the run; log.jsonl and tensorboard/ hold its curves
Try next
  diffusionlm generate {folder} --count 5 --watch      see noise become words
  diffusionlm generate {folder} --count 5 --control food=Japanese --control 'Length(14, 18) & ~Words("cheap")'
  diffusionlm train --out runs/mine --data.corpus my_texts.txt     your own texts, one a line
  diffusionlm show config                              every setting there is""")
