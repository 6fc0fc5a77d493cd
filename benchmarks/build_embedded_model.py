"""Build the models that come with the package: ``restaurants``, its classifiers, and its version for few evaluations.

    python benchmarks/build_embedded_model.py [--runs runs/embedded] [--out data/models]

On one thread and from one seed: the model of the restaurants corpus (configs/restaurants.yaml, about an hour), classifiers
of attributes, parts of speech and constituents on its predictions, and a joint head for few evaluations (``distill``), which is
an adapter of the model. Matrices are rounded to bf16, the rest stays in fp32. The rounded models are then measured: accepted by
the corpus's grammar, new, distinct, entropy of the words in nats, samples that meet a control, accuracy of the classifiers. The
figures go to stdout and ``--results``. After an interruption the same command resumes; finished runs are used again.

The models together may have 8 MB (``MOST_BYTES``); larger ones are an error, and nothing is written.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from measure import RESULTS, ROOT, exit_status, expect_positive
from safetensors.torch import load_file, save_file
from torch import Tensor

from diffusionlm.config import UserError
from diffusionlm.evaluation.provenance import machine, training_of
from diffusionlm.files import write_text
from diffusionlm.models.card import current_card, unmarked
from diffusionlm.models.io import model_folder
from diffusionlm.pipelines.diffusion import Pipeline
from diffusionlm.pipelines.rows import Controlled
from diffusionlm.restaurants.corpus import Restaurants
from diffusionlm.restaurants.report import grammar_report
from diffusionlm.training.distillation.config import distillation_config
from diffusionlm.training.run import RunConfig, read_config, train

MODEL, FEW = "restaurants", "restaurants-few-steps"
CLASSIFIERS = ("attributes", "tags", "spans")
STEPS = {MODEL: 24_000, FEW: 5_000}  # of training; the classifiers' are in their configs
EVALUATIONS = 4  # of the version for few
MOST_BYTES = 8_000_000
CONTROLS = (
    "food=Japanese", "price=high", "family=no", 'Attribute("type", "pub") & Length(14, 20)', 'Words("castle") & ~Words("food")',
    'Infill("The Golden Lion is {} because {} .")',
)  # fmt: skip
EACH = 20  # samples of each control
BUILT = "built"  # folder of the models, in that of the runs


def config_of(name: str, runs: Path, steps: int | None) -> RunConfig:
    """Return the training config of a model or a classifier; ``steps`` are its steps, where they are given."""
    taken, base = [("training.threads", "1")], str(runs / BUILT / MODEL)  # the base is rounded before others are made for it
    if count := steps or STEPS.get(name):
        taken += [("training.steps", str(count))]
    if steps:  # a quick run, of which only the end is looked at
        taken += [(f"training.{each}", str(steps)) for each in ("evaluate_every", "save_every", "warmup")]
        taken += [("training.evaluation_texts", "20")]
    if name == FEW:
        return distillation_config(base, "joint", EVALUATIONS, (), [*taken, ("adapter", "{name: joint-head}")])
    if name == MODEL:
        # The last weights: the bound is lowest after a third of the steps, and samples improve until the end.
        taken += [("model.backbone.dropout", "0.05"), ("training.select", "last"), ("sampling.temperature", "1.0")]
        return read_config([ROOT / "configs" / "restaurants.yaml"], taken)
    return read_config([ROOT / "configs" / "classifiers" / f"{name}.yaml"], [*taken, ("model.denoiser", base)])


def train_all(runs: Path, steps: int | None) -> None:
    """Train what is missing, and write each model rounded. Raises KeyboardInterrupt where Ctrl-C stopped a training."""
    torch.set_num_threads(1)
    for name in (MODEL, *CLASSIFIERS, FEW):
        own = runs / name / "config.yaml"
        config = read_config([own]) if own.exists() else config_of(name, runs, steps)
        if not train(config, runs / name, write_samples=False):
            raise KeyboardInterrupt
        write_rounded(runs / name, runs / BUILT / (f"{MODEL}/classifiers/{name}" if name in CLASSIFIERS else name))


def rounded(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights with the fp32 matrices in bf16."""
    return {name: w.bfloat16() if w.dtype == torch.float32 and w.ndim > 1 else w for name, w in weights.items()}


def write_rounded(run: Path, folder: Path) -> None:
    """Write the files of a run's model to ``folder``, with rounded weights, and its base named by its place in the package."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted(model_folder(run).iterdir()):
        if path.suffix == ".safetensors":
            save_file(rounded(load_file(path)), folder / path.name, metadata={"format": "pt"})
        elif path.suffix == ".json":
            plain = json.loads(path.read_text(encoding="utf-8"))
            if path.name == "adapter.json":
                plain["base"] = f"../{MODEL}"
            if "denoiser" in plain.get("settings", {}):
                plain["settings"]["denoiser"] = MODEL
            write_text(folder / path.name, json.dumps(plain, ensure_ascii=False) + "\n")
    if run.name not in CLASSIFIERS:  # it tells the corpus
        settings = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
        settings["init_from"] = MODEL if settings["init_from"] else None
        write_text(folder / "config.yaml", yaml.safe_dump(settings, sort_keys=False, allow_unicode=True))


def write_models(built: Path, out: Path) -> dict[str, int]:
    """Copy the models to ``out``; return the bytes of each. Raises UserError for more than ``MOST_BYTES`` together."""
    sizes = {name: sum(path.stat().st_size for path in (built / name).rglob("*") if path.is_file()) for name in (MODEL, FEW)}
    if sum(sizes.values()) > MOST_BYTES:
        raise UserError(f"{built}: the models may have {MOST_BYTES:,} bytes together, they have {sum(sizes.values()):,}")
    for name in sizes:
        shutil.rmtree(out / name, ignore_errors=True)
        shutil.copytree(built / name, out / name)
    return sizes


def measured(folder: Path, count: int) -> dict[str, Any]:
    """Return the figures of ``count`` samples of the model in ``folder``, and of ``EACH`` for each of the ``CONTROLS``."""
    pipeline, started = Pipeline.from_pretrained(folder), time.process_time()
    texts = [row.text for row in pipeline.stream(count, replace(pipeline.sampling, seed=0))]
    seconds = time.process_time() - started
    splits = Restaurants().load()
    figures = asdict(grammar_report(texts, splits["train"]["text"][:], splits["validation"]["text"][:]))
    figures["CPU seconds per sample"] = round(seconds / count, 4)
    passed = {}
    for control in CONTROLS:
        rows = [row for row in pipeline(min(EACH, count), control, seed=0) if isinstance(row, Controlled)]
        passed[control] = sum(bool(each.passed) for row in rows for each in row.controls) / len(rows)
    return figures | {"controls": passed, "samples of each control": min(EACH, count)}


def write_card(name: str, runs: Path, out: Path, figures: dict[str, Any]) -> None:
    """Write the card of a model into its folder in ``out``: that of its run, with the figures measured here."""
    card = current_card(model_folder(runs / name), base=None if name == MODEL else MODEL)
    before, _, limits = unmarked(card).replace("license: unknown", "license: apache-2.0").partition("## Limits")
    told = {
        "accepted by the corpus's grammar": f"{figures['accepted']:.1%}",
        "of those, not in the training texts": f"{figures['new']:.1%}",
        "distinct": f"{figures['distinct']:.1%}",
        "nats of unigram entropy": f"{figures['entropy']:.3f} (reference texts: {figures['entropy_real']:.3f})",
        **{f"meet `{control}`": f"{share:.0%}" for control, share in figures["controls"].items()},
    }
    lines = [f"- {said}: {figure}" for said, figure in told.items()]
    count, each = figures["texts"], figures["samples of each control"]
    measured = f"{count} samples of one seed, unfiltered, and {each} for each control, with weights in bf16:"
    text = "\n".join([f"{before}## Evaluation\n\n{measured}\n", *lines, f"\n## Limits{limits}"])
    write_text(out / name / "README.md", text)


def build(options: argparse.Namespace) -> None:
    """Train, write and measure the models."""
    train_all(options.runs, options.steps)
    sizes = write_models(options.runs / BUILT, options.out)
    figures: dict[str, Any] = {
        name: {"bytes": size, **measured(options.out / name, options.texts), "training": training_of(options.runs / name)}
        for name, size in sizes.items()
    }
    for name in sizes:
        write_card(name, options.runs, options.out, figures[name])
    accuracies = {name: options.out / MODEL / "classifiers" / name / "accuracy.json" for name in CLASSIFIERS}
    figures["classifiers"] = {name: json.loads(path.read_text(encoding="utf-8")) for name, path in accuracies.items()}
    print(json.dumps(figures, indent=2, ensure_ascii=False))
    write_text(
        options.results / "embedded-model.json",
        json.dumps({**figures, "machine": machine()}, indent=2, ensure_ascii=False) + "\n",
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Build the models."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/embedded"), help="folder of the runs (%(default)s)")
    parser.add_argument("--out", type=Path, default=ROOT / "data" / "models", help="folder of the models (data/models)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the results (%(default)s)")
    parser.add_argument("--texts", type=int, default=500, help="samples that are measured (%(default)s)")
    parser.add_argument("--steps", type=int, help="training steps of every run, for a quick run")
    options = parser.parse_args(arguments)
    expect_positive(parser, options, "texts", "steps")
    return exit_status(lambda: build(options))


if __name__ == "__main__":
    sys.exit(main())
