"""Compare four ways to give samples an attribute: guidance by classifiers, two kinds of conditions, and LoRA.

    python benchmarks/attributes.py [--judge JUDGE] [--base RUN] [--labelled RUN] [--out FOLDER] [--quick]

The targets are all values of the attributes ``--fields``, such as food=Japanese. For each, every row of the table has as many
samples, with the same seeds and the same sampling settings, which are those of the unconditional model:

    unconditional        the model alone: success by chance
    classifiers          gradients of attribute classifiers through this model (the control ``food=Japanese``)
    labels, cfg S        a model trained with the attributes as labels, classifier-free guidance of scale S; the other
                         attributes are not given
    control branch, cfg S    a branch of the unconditional model that reads the same labels
    LoRA                 one adapter of the unconditional model for each value, trained on the texts that state it

What is missing is trained in ``--out``, on one thread, by the commands that are printed; finished runs and rows are used again.
The unconditional model has ``--minutes`` of CPU time, which fixes its steps; the model with labels has as many steps, and the
others shares of them (``SHARES``).

``success`` is the share of the samples that have the attribute as the corpus's annotator reads it, ± its standard error over
targets; a rejected sample has none. Training CPU seconds and trained parameters of ``classifiers``, ``control branch`` and
``LoRA`` (all adapters together) come on top of those of the unconditional model.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from statistics import stdev
from typing import Any

import torch
from measure import RESULTS, ROOT, exit_status, expect_positive, file_name, load_or_measure, with_minutes
from safetensors import safe_open
from tabulate import tabulate

from diffusionlm.config import UserError, nearest, to_plain
from diffusionlm.controls import Attribute
from diffusionlm.data.annotators import Annotator
from diffusionlm.data.copies import KnownTexts
from diffusionlm.data.corpora import Corpus
from diffusionlm.evaluation.judge import Judge, perplexity
from diffusionlm.evaluation.provenance import training_of
from diffusionlm.evaluation.text_metrics import mean_error, unigram_entropy
from diffusionlm.files import write_text
from diffusionlm.models.conditions import condition_of
from diffusionlm.models.io import model_folder
from diffusionlm.pipelines.auto import open_pipeline
from diffusionlm.pipelines.base import BasePipeline
from diffusionlm.training.run import read_config, train

Changes = tuple[tuple[str, str], ...]
Target = tuple[str, str]  # a field and its value
SHARES = {"labels": 1.0, "classifier": 1 / 8, "branch": 1 / 5, "lora": 1 / 60}  # of the unconditional model's steps
QUICK = {"fields": ["price"], "steps": 40, "samples": 2, "scales": [1.0, 2.0]}


@dataclass(frozen=True)
class Run:
    """A training run: its folder, and the settings in ``config`` with ``changes``."""

    folder: Path
    config: Path
    changes: Changes

    @property
    def command(self) -> str:
        """The command that trains it."""
        flags = [word for name, value in self.changes for word in (f"--{name.replace('init_from', 'init-from')}", value)]
        return shlex.join(["diffusionlm", "train", "--config", str(self.config), "--out", str(self.folder), *flags])

    def train(self) -> None:
        """Train it unless it is finished. Raises UserError where the folder holds another run, KeyboardInterrupt at Ctrl-C."""
        print(self.command, flush=True)
        if not train(read_config([self.config], self.changes), self.folder, write_samples=False):
            raise KeyboardInterrupt


def training(steps: float) -> Changes:
    """Return the settings of a training of ``steps`` steps, a multiple of the steps between two lines of its log."""
    log_every = max(1, min(50, int(steps) // 4))
    count = max(1, int(steps) - int(steps) % log_every)
    settings = {"steps": count, "threads": 1, "seed": 0, "log_every": log_every, "warmup": min(200, count // 10)}
    settings |= dict.fromkeys(("evaluate_every", "sample_every"), count) | {"save_every": max(1, count // 2)}
    return tuple((f"training.{name}", str(value)) for name, value in settings.items())


def labels(fields: Sequence[str]) -> dict[str, Any]:
    """Return the plain settings of a condition on the labels ``fields``, each of which may be absent."""
    return {"name": "several", "parts": [{"name": "label", "field": field} for field in fields]}


def unconditional(options: argparse.Namespace) -> Path:
    """Return the folder of the unconditional model, and train it if none is given. ``options.steps`` becomes its steps."""
    folder: Path = options.base or options.out / "base"
    config = ROOT / "configs" / "restaurants.yaml"
    if options.steps is None and (folder / "config.yaml").exists():
        options.steps = read_config([folder / "config.yaml"]).training.steps
    if options.base is None:
        options.steps = options.steps or with_minutes(read_config([config]), options.minutes).training.steps
        Run(folder, config, training(options.steps)).train()
    if options.steps is None:
        raise UserError(f"{folder}: expected the folder of a run, whose config.yaml has its number of steps; or give --steps")
    return folder


def trained(options: argparse.Namespace, corpus: Corpus, targets: Mapping[Target, Sequence[str]]) -> dict[str, Path]:
    """Train what is missing beside the unconditional model ``options.base``; return the folders of the runs, by name."""
    base, out, config = options.base, options.out, options.base / "config.yaml"
    condition, start = labels(options.fields), ("init_from", str(base))
    branch = {"name": "control-branch", "condition": condition}
    texts = json.dumps(to_plain(corpus))
    size = str(read_config([config]).data.max_length)
    found = {
        "classifier": Run(
            model_folder(base) / "classifiers" / "attributes", ROOT / "configs" / "classifiers" / "attributes.yaml",
            (("data.corpus", texts), ("data.max_length", size), ("model.denoiser", str(base)),
             ("model.min_count", str(options.min_count)), *training(SHARES["classifier"] * options.steps)),
        ),
        "labels": Run(
            out / "labels", config, (("model.condition", json.dumps(condition)), *training(SHARES["labels"] * options.steps))
        ),
        "branch": Run(
            out / "branch", config, (start, ("adapter", json.dumps(branch)), *training(SHARES["branch"] * options.steps))
        ),
    }  # fmt: skip
    tokenizer = json.dumps({"name": "pretrained", "path": str(model_folder(base))})
    for target, stating in targets.items():
        file = out / "texts" / f"{name_of(target)}.jsonl"
        if not file.exists():
            write_text(file, "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in stating))
        own = (("data.corpus", json.dumps({"name": "files", "train": str(file)})), ("data.tokenizer", tokenizer))
        changes = (start, ("adapter", "lora"), *own, *training(SHARES["lora"] * options.steps))
        found[f"lora {name_of(target)}"] = Run(out / "lora" / name_of(target), config, changes)
    if options.labelled is not None:
        del found["labels"]
    for name, run in found.items():
        if name != "classifier" or not (run.folder / "model" / "finished").exists():  # a given model may have its own
            run.train()
    return {"labels": options.labelled, **{name: run.folder for name, run in found.items()}}


def check_labelled(run: Path | None, fields: Sequence[str]) -> None:
    """Raise UserError where a given model has no labels of these fields."""
    if run is None:
        return
    condition = condition_of(open_pipeline(run).model)
    keys = () if condition is None else condition.keys
    if missing := next((field for field in fields if field not in keys), None):
        raise UserError(f"--labelled: {run} is not conditioned on {missing!r}; it reads {', '.join(keys) or 'no condition'}")


def name_of(target: Target) -> str:
    """Return a target's name in the names of files."""
    return file_name("-".join(target))


def stated(corpus: Corpus, fields: Sequence[str], least: int) -> tuple[list[str], dict[Target, list[str]]]:
    """Return the training texts, and those that state each value of ``fields`` that ``least`` of them state or more.

    Raises:
        UserError: the corpus has no such attributes, or no annotator that reads them.
    """
    rows = corpus.load()["train"]
    texts: list[str] = rows["text"][:]
    attributes = rows["attributes"][:] if "attributes" in rows.column_names else [{}]
    if "attributes" not in corpus.annotator().reads:
        raise UserError(f"--base: expected a corpus whose annotator reads attributes, such as restaurants, got {corpus}")
    known = sorted({name for each in attributes for name in each or ()})
    found: dict[Target, list[str]] = {}
    for field in fields:
        if field not in known:
            raise UserError(f"--fields: the corpus has no attribute {field!r}{nearest(field, known)}")
        pairs = [(each[field], text) for text, each in zip(texts, attributes, strict=True) if (each or {}).get(field)]
        counts = Counter(value for value, _ in pairs)
        values = sorted(value for value, count in counts.items() if count >= least)
        if not values:
            raise UserError(f"--fields: no value of {field!r} is stated by {least} training texts or more (--min-count)")
        found |= {(field, value): [text for own, text in pairs if own == value] for value in values}
    return texts, found


@dataclass(frozen=True)
class Row:
    """A row of the table: the runs beside the unconditional model, and how samples of a target are requested."""

    runs: tuple[Path, ...]
    pipeline: Callable[[Target], BasePipeline[Any]]
    request: Callable[[Target], dict[str, Any]]
    cfg: float = 1.0


def conditional(pipe: BasePipeline[Any], target: Target) -> BasePipeline[Any]:
    """Return the one pipeline of all targets."""
    return pipe


def rows_of(runs: Mapping[str, Path], base: Path, scales: Sequence[float]) -> dict[str, Row]:
    """Return the rows by name."""
    opened = cache(open_pipeline)
    adapters = tuple(folder for name, folder in runs.items() if name.startswith("lora "))
    rows = {
        "unconditional": Row((base,), lambda _: opened(base), lambda _: {}),
        "classifiers": Row((runs["classifier"],), lambda _: opened(base), lambda target: {"controls": [Attribute(*target)]}),
    }
    for name, run in {"labels": runs["labels"], "control branch": runs["branch"]}.items():
        own = partial(conditional, opened(run))
        rows |= {
            f"{name}, cfg {scale:g}": Row((run,), own, lambda target: {"condition": dict([target])}, scale) for scale in scales
        }
    rows["LoRA"] = Row(adapters, lambda target: open_pipeline(runs[f"lora {name_of(target)}"]), lambda target: {})
    return rows


def parameters(run: Path) -> int:
    """Return the number of the weights that a run trained, which are those in its model folder."""
    count = 0
    for path in model_folder(run).glob("*.safetensors"):
        with safe_open(path, "pt") as weights:
            count += sum(math.prod(weights.get_slice(name).get_shape()) for name in weights.keys())  # noqa: SIM118
    return count


def sampled(row: Row, targets: Sequence[Target], options: argparse.Namespace) -> Iterator[tuple[list[str], float]]:
    """Yield the samples of each target, with the CPU seconds that they took."""
    sampling = open_pipeline(options.base).sampling
    for number, target in enumerate(targets):
        pipe = row.pipeline(target)
        settings = replace(sampling, seed=options.seed + number, cfg=row.cfg)
        begun = time.process_time()
        texts = [each.text for each in pipe.stream(options.samples, settings, **row.request(target))]
        yield texts, time.process_time() - begun


def figures(
    row: Row, targets: Sequence[Target], options: argparse.Namespace, judge: Judge, annotator: Annotator, known: KnownTexts
) -> dict[str, Any]:
    """Return the figures of a row, and its samples by target."""
    found = list(sampled(row, targets, options))
    texts = [text for own, _ in found for text in own]
    notes = {text: annotator.annotate(text) for text in texts}
    success = [
        sum((note := notes[text]) is not None and (note.attributes or {}).get(field) == value for text in own) / len(own)
        for (field, value), (own, _) in zip(targets, found, strict=True)
    ]
    scored = judge.score(texts)
    ppl = perplexity(scored)
    taken = [training_of(run).get("training_processor_seconds") for run in row.runs]
    return {
        "success": sum(success) / len(success),
        "success_error": stdev(success) / math.sqrt(len(success)) if len(success) > 1 else math.nan,
        "accepted": sum(notes[text] is not None for text in texts) / len(texts),
        "perplexity": ppl,
        "perplexity_error": ppl * mean_error([one.nats for one in scored], [one.tokens for one in scored]),
        "entropy": unigram_entropy(texts),
        "distinct": len({*texts}) / len(texts),
        "copies": known.copied(texts),
        "seconds_per_sample": sum(seconds for _, seconds in found) / len(texts),
        "training_seconds": None if None in taken else sum(taken),
        "trained_parameters": sum(map(parameters, row.runs)),
        "samples": {"=".join(target): own for target, (own, _) in zip(targets, found, strict=True)},
    }


def saved_or_measured(path: Path, settings: Mapping[str, str], measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return the figures in ``path``, or measure and save them. Raises UserError for a file of other ``settings``."""
    found = load_or_measure(path, lambda: {"settings": settings, **measure()})
    was: Mapping[str, str] = found["settings"]
    if (other := next((key for key in settings if was.get(key) != settings[key]), None)) is not None:
        raise UserError(f"{path}: measured with {other} {was.get(other)}, not {settings[other]}; choose another --results")
    return found


def table(found: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the table of the rows."""
    names = ["", "success %", "accepted %", "perplexity", "entropy", "distinct %", "copies %", "CPU s per sample"]
    cells = [
        [
            name, f"{100 * row['success']:.1f} ± {100 * row['success_error']:.1f}", f"{100 * row['accepted']:.1f}",
            f"{row['perplexity']:.2f} ± {row['perplexity_error']:.2f}", f"{row['entropy']:.3f}", f"{100 * row['distinct']:.1f}",
            f"{100 * row['copies']:.1f}", f"{row['seconds_per_sample']:.2f}",
            "-" if row["training_seconds"] is None else f"{row['training_seconds']:,.0f}", f"{row['trained_parameters']:,}",
        ]
        for name, row in found.items()
    ]  # fmt: skip
    return tabulate(cells, [*names, "training CPU s", "trained parameters"], tablefmt="github", disable_numparse=True)


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse and check the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--judge", type=Path, help="judge LM of the corpus (default: trained in --out)")
    parser.add_argument("--base", type=Path, metavar="RUN", help="run of an unconditional model (default: trained in --out)")
    parser.add_argument("--labelled", type=Path, metavar="RUN", help="run of a model with the labels (default: trained)")
    parser.add_argument("--out", type=Path, default=Path("runs/attributes"), help="folder of what is trained (%(default)s)")
    parser.add_argument("--fields", nargs="+", default=["food", "price", "area"], help="attributes (food price area)")
    parser.add_argument("--min-count", type=int, default=100, help="training texts that state a value, at least (%(default)s)")
    parser.add_argument("--scales", type=float, nargs="+", default=[1.0, 1.5, 2.0, 3.0], help="of guidance (1 1.5 2 3)")
    parser.add_argument("--samples", type=int, default=4, help="samples per target (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the first target's samples (%(default)s)")
    parser.add_argument("--minutes", type=float, default=16.0, help="CPU time of the unconditional model (%(default)s)")
    parser.add_argument("--steps", type=int, help="its number of steps, instead of --minutes")
    parser.add_argument("--quick", action="store_true", help="a try of two minutes: prices only, 40 steps, 2 samples")
    parser.add_argument("--results", type=Path, default=RESULTS / "attributes", help="folder of the results (%(default)s)")
    options = parser.parse_args(arguments)
    if options.quick:
        vars(options).update(QUICK)
    expect_positive(parser, options, "minutes", "steps", "samples", "min_count")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Train what is missing, measure the rows that are missing, and print the table."""
    options = parsed(arguments)

    def run() -> None:
        torch.set_num_threads(1)
        options.base = unconditional(options)
        corpus = read_config([options.base / "config.yaml"]).data.corpus
        texts, targets = stated(corpus, options.fields, options.min_count)
        check_labelled(options.labelled, options.fields)
        if options.judge is None:
            options.judge = options.out / "judge"
            own = training(options.steps) if options.quick else (("training.threads", "1"),)
            Run(options.judge, ROOT / "configs" / "restaurants-judge.yaml", own).train()
        judge, known, annotator = Judge.load(options.judge), KnownTexts(texts), corpus.annotator()
        rows = rows_of(trained(options, corpus, targets), options.base, options.scales)
        settings = {
            name: str(getattr(options, name))
            for name in ("base", "labelled", "judge", "fields", "min_count", "samples", "seed")
        }
        found = {}
        for name, row in rows.items():
            path = options.results / f"{file_name(name)}.json"
            measure = partial(figures, row, [*targets], options, judge, annotator, known)
            found[name] = saved_or_measured(path, settings, measure)
        print(table(found), flush=True)

    return exit_status(run)


if __name__ == "__main__":
    sys.exit(main())
