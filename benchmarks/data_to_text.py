"""Measure how well a conditional model of the restaurants corpus states the facts of its sources.

    python benchmarks/data_to_text.py RUN [RUN ...] [--texts 500] [--cfg 1 2 3]

Trained with ``configs/restaurants-source.yaml``: the sources are attributes of texts, such as food[Japanese], price[low]. For
sources of the test texts the table has the share of samples that the corpus's grammar accepts and, as it reads the accepted
ones, the share of the source's facts that are stated correctly, stated with another value, and left out, and of stated facts
that the source does not have (invented). The last columns are the same samples read beside the source of another text: what is
stated correctly by chance. Needs only the model, and takes some minutes per run. Lengths, entropy and copies stand beside.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from measure import exit_status
from tabulate import tabulate

from diffusionlm.data.copies import KnownTexts
from diffusionlm.evaluation.text_metrics import unigram_entropy
from diffusionlm.models.source import linearised
from diffusionlm.pipelines.auto import open_pipeline
from diffusionlm.pipelines.base import BasePipeline
from diffusionlm.restaurants.annotator import Grammar
from diffusionlm.restaurants.corpus import Restaurants


def facts(source: Mapping[str, str], stated: Mapping[str, str]) -> Counter[str]:
    """Count the facts of a ``source`` that a text states correctly, wrongly or not at all, and those that it adds."""
    found: Counter[str] = Counter(source=len(source), stated=len(stated))
    for name, value in source.items():
        found["correct" if stated.get(name) == value else "wrong" if name in stated else "missing"] += 1
    found["invented"] = len(stated.keys() - source.keys())
    return found


def row(pipe: BasePipeline[Any], rows: Sequence[Mapping[str, Any]], known: KnownTexts, seed: int, cfg: float) -> dict[str, Any]:
    """Return the figures of a sample for each of the ``rows`` of the corpus."""
    sources = [{name: value for name, value in each["attributes"].items() if value is not None} for each in rows]
    begun = time.process_time()
    texts = [each.text for each in pipe(source=[linearised(source) for source in sources], seed=seed, cfg=cfg)]
    seconds = time.process_time() - begun
    notes = [Grammar().annotate(text) for text in texts]
    read = [(source, note.attributes or {}) for source, note in zip(sources, notes, strict=True) if note is not None]
    own: Counter[str] = sum((facts(source, stated) for source, stated in read), Counter())
    other = [(read[(i + 1) % len(read)][0], stated) for i, (_, stated) in enumerate(read)]
    chance: Counter[str] = sum((facts(source, stated) for source, stated in other), Counter())
    return {
        "accepted": len(read) / len(texts), "correct": own["correct"] / max(own["source"], 1),
        "wrong": own["wrong"] / max(own["source"], 1), "missing": own["missing"] / max(own["source"], 1),
        "invented": own["invented"] / max(own["stated"], 1), "correct by chance": chance["correct"] / max(chance["source"], 1),
        "copies": known.copied(texts), "distinct": len({*texts}) / len(texts),
        "entropy": unigram_entropy(texts), "CPU seconds per sample": seconds / len(texts),
    }  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="RUN")
    parser.add_argument("--texts", type=int, default=500, help="sources, of the first test texts (%(default)s)")
    parser.add_argument("--cfg", type=float, nargs="+", default=[1.0], help="scales of classifier-free guidance (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the samples (%(default)s)")
    options = parser.parse_args(arguments)

    def run() -> list[str]:
        torch.set_num_threads(1)
        splits = Restaurants().load()
        rows, known = list(splits["test"])[: options.texts], KnownTexts(splits["train"]["text"][:])
        table = {
            f"{folder}, cfg {cfg:g}": row(open_pipeline(folder), rows, known, options.seed, cfg)
            for folder in options.runs
            for cfg in options.cfg
        }
        names = list(next(iter(table.values())))
        cells = [[name, *(f"{figures[name]:.3f}" for figures in table.values())] for name in names]
        print(tabulate(cells, ["", *table], tablefmt="github"))
        return []

    return exit_status(run)


if __name__ == "__main__":
    sys.exit(main())
