"""The quickstart: texts of the bundled model, a few minutes of training on its corpus, and figures of both models."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from diffusionlm.config import UserError
from diffusionlm.evaluation.provenance import training_of
from diffusionlm.files import disk_errors, write_text
from diffusionlm.models.classifier import ClassifierConfig
from diffusionlm.models.classifier.objective import Classification
from diffusionlm.models.named import bundled_models
from diffusionlm.pipelines.base import SamplingConfig
from diffusionlm.pipelines.diffusion import Pipeline
from diffusionlm.pipelines.rows import Controlled
from diffusionlm.progress import say
from diffusionlm.restaurants.corpus import Restaurants
from diffusionlm.restaurants.report import grammar_report, trigram_texts
from diffusionlm.training.automatic import RESERVE, check_minutes, fastest
from diffusionlm.training.optimizers import has_bf16
from diffusionlm.training.run import RunConfig, read_config, refuse_another, train
from diffusionlm.training.trainer import TrainingConfig

BUNDLED = "restaurants"  # the name of the model that comes with the package
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


def quickstart(folder: str | Path, steps: int | None = None, minutes: float = 4.2, texts: int = 300) -> dict[str, Any]:
    """Sample from the bundled model, train one in ``folder`` (or resume), compare them; return what ``quickstart.json`` has.

    ``texts`` is the number of samples without controls of each model. ``steps`` fixes the number of training steps; by default
    a few steps are timed, and as many are taken as fit in ``minutes``.

    Raises:
        UserError: the folder cannot be written or holds another run.
    """
    folder, started = Path(folder), time.perf_counter()
    check_minutes(minutes)
    found = _found(folder)
    say(f"Texts of the model {BUNDLED}, which comes with the library:")
    bundled = _opened(bundled_models()[BUNDLED])
    others = _controlled(bundled, bundled.sampling)
    config = found or _new_config(steps, minutes)
    say(f"Training {config.training.steps} steps on the bundled corpus of restaurant descriptions, in {folder} ...")
    if not train(config, folder, show_texts=True):
        raise UserError(f"{folder}: stopped before the end; run the same command again to resume")
    say("Training a classifier of the attributes for guidance ...")
    _classify(folder, config.training)
    pipeline = _opened(folder)
    say("Texts of your model:")
    controlled = _controlled(pipeline, config.sampling)
    say(f"Sampling {texts} texts of each model ...")
    rows = list(pipeline.stream(texts, config.sampling))
    write_text(folder / "texts.jsonl", "".join(json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in rows))
    written = [row.text for row in rows]
    training, real = (config.data.corpus.load()[split]["text"][:] for split in ("train", "validation"))
    report = asdict(grammar_report(written, training, real)) | {"controlled": _passed(controlled)}
    report["trigram_accepted"] = grammar_report(trigram_texts(training, texts, seed=0), training, real).accepted
    theirs = [row.text for row in bundled.stream(texts, bundled.sampling)]
    report[BUNDLED] = asdict(grammar_report(theirs, training, real)) | {"controlled": _passed(others)}
    report["seconds_training"] = training_of(folder)["training_seconds"]
    report["seconds_total"] = round(time.perf_counter() - started, 1)
    write_text(folder / "quickstart.json", json.dumps(report, indent=2) + "\n")
    _close(folder, written, report)
    return report


def _opened(model: str | Path) -> Pipeline:
    return Pipeline.from_pretrained(model, dtype="bf16" if has_bf16() else "fp32")


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
    """Sample texts for each of ``CONTROLS``, and print them."""
    sampling = replace(sampling, temperature=1.0)
    rows: list[Controlled] = []
    for control in CONTROLS:
        say(f"\nControl: {control}")
        for row in pipeline.stream(TEXTS_PER_CONTROL, sampling, None, [control]):
            assert isinstance(row, Controlled)
            say(f"  {'✓' if row.controls[0].passed else '✗'} {row.text}")
            rows.append(row)
    say("")
    return rows


def _passed(rows: Sequence[Controlled]) -> float:
    """Return the share of texts that meet their control."""
    return sum(bool(row.controls[0].passed) for row in rows) / len(rows)


def _found(folder: Path) -> RunConfig | None:
    """Return the config of the quickstart's run in ``folder``; None where there is no run."""
    if not (folder / "config.yaml").exists():
        refuse_another(RunConfig(), folder)  # before time is spent
        with disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        return None
    config = read_config([folder / "config.yaml"])
    if not isinstance(config.data.corpus, Restaurants):
        raise UserError(f"{folder}: holds another run, not a quickstart's; choose another --out")
    say(f"Found a run in {folder}: resuming it.")
    return config


def _new_config(steps: int | None, minutes: float) -> RunConfig:
    """Return the config of a new run, whose number of steps fits in ``minutes`` unless it is given."""
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


def _table(report: dict[str, Any]) -> str:
    """Return the figures of both models, side by side."""
    rows = [
        ("accepted by the corpus's grammar", "accepted", ".1%", f"a word-trigram model: {report['trigram_accepted']:.1%}"),
        ("of those, not in the training texts", "new", ".1%", ""),
        ("distinct", "distinct", ".1%", ""),
        ("nats of unigram entropy", "entropy", ".3f", f"reference texts: {report['entropy_real']:.3f}"),
        ("under a control: meet it", "controlled", ".1%", "whether or not the grammar accepts them"),
    ]
    head = f"{'':40}{'your model':>12}{BUNDLED:>13}"
    lines = []
    for said, key, form, note in rows:
        own, other = (
            "-" if key == "new" and not one["accepted"] else format(one[key], form) for one in (report, report[BUNDLED])
        )
        lines.append(f"  {said:38}{own:>12}{other:>13}   {note}".rstrip())
    return "\n".join([head, *lines])


def _close(folder: Path, texts: Sequence[str], report: dict[str, Any]) -> None:
    """Print samples, the figures of both models, the files and further commands."""
    say("The first ten of your model, without a control:")
    print("\n".join(texts[:10]), flush=True)
    trained, whole = report["seconds_training"], report["seconds_total"]
    say(f"""
Of {report["texts"]} consecutive, unfiltered texts of one seed, and {len(CONTROLS) * TEXTS_PER_CONTROL} under controls
{_table(report)}
Your model was trained for {trained:.0f} seconds, {BUNDLED} for about an hour; this call took {whole:.0f} seconds.

Where things are
  {folder}/model           the model, for Pipeline.from_pretrained and AutoModel
  {folder}/texts.jsonl     the texts; the figures are in quickstart.json
  {folder}/config.yaml     every setting of the run; log.jsonl and tensorboard/ hold its curves
Try next
  diffusionlm generate {BUNDLED} --count 5 --watch      see noise become words
  diffusionlm generate {folder} --count 5 --control food=Japanese --control 'Length(14, 18) & ~Words("cheap")'
  diffusionlm train --out runs/mine --data.corpus my_texts.txt     your own texts, one a line
  diffusionlm show config                              every setting there is""")
