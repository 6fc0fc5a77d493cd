"""Measure how a conditional model of E2E satisfies controls beside its source, and whether it uses the source.

    python benchmarks/e2e_source.py RUN [RUN ...] --references E2E/testset_w_refs.csv [--sources 200] [--candidates 10]

Trained with ``configs/e2e-source.yaml``. The sources are drawn from those of the file, by the seed. Each row has an output for
each source, of several candidates the one with the fewest slot errors, and of equals the one with the least Bayes risk:

    source alone         no control
    length and word      Length(n) & ~Words(word): n tokens are those of a reference of the source, drawn at random; the word
                         occurs in a reference of the source, in no value of its slots, and in at most half of the references
    another source       the outputs of the first row, read as those of the next source: what is right by chance. The name is
                         not counted

``controls hold`` is checked on the finished texts. Slot errors are those of ``evaluate --references``; ``right`` is the share
of the slots of the source that are stated correctly. BLEU is in lower case, as the E2E challenge's script counts it.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from measure import RESULTS, exit_status
from sacrebleu import BLEU
from tabulate import tabulate

from diffusionlm.config import UserError
from diffusionlm.controls import Length, Words
from diffusionlm.data.references import Item, read_items
from diffusionlm.evaluation.provenance import machine
from diffusionlm.evaluation.slots import Places, realised, slot_errors
from diffusionlm.files import write_text
from diffusionlm.pipelines.auto import open_pipeline
from diffusionlm.pipelines.base import BasePipeline
from diffusionlm.pipelines.ranking import FunctionRanking
from diffusionlm.pipelines.rows import Controlled


@dataclass(frozen=True)
class Output:
    """A text, the item that it is scored against, and whether its controls hold, None without controls."""

    item: Item
    text: str
    holds: bool | None = None


def words(text: str) -> list[str]:
    """Return the words of ``text`` in lower case."""
    return re.findall(r"[a-z]+", text.lower())


def forbidden(item: Item, draw: random.Random, known: frozenset[str]) -> str | None:
    """Draw a ``known`` word of some references of ``item`` that its slots do not need, None if there is none."""
    texts = [{*words(reference)} for reference in item.references]
    needed = {*words(item.source)}
    found = sorted(
        word
        for word in set().union(*texts) & known - needed
        if len(word) > 3 and sum(word in text for text in texts) <= len(texts) / 2
    )
    return draw.choice(found) if found else None


def figures(outputs: Sequence[Output], places: Places, seconds: float, counted: Sequence[str] = ()) -> dict[str, Any]:
    """Return the figures of a row; of the slots only those ``counted``, by default all."""
    slots = [{k: v for k, v in (each.item.slots or {}).items() if not counted or k in counted} for each in outputs]
    errors = [slot_errors(each.item.slots or {}, each.text, places) for each in outputs]
    total = sum(map(len, slots))
    missed = sum(len(mr.keys() & row) for mr, row in zip(slots, errors, strict=True))  # a slot of the source is never "added"
    added = sum(kind == "added" for row in errors for kind in row.values())
    most = max(len(each.item.references) for each in outputs)
    references: list[Any] = [[[*each.item.references, *[None] * most][i] for each in outputs] for i in range(most)]
    held = [each.holds for each in outputs if each.holds is not None]
    return {
        "outputs": len(outputs), "controls hold": sum(held) / len(held) if held else None, "right": 1 - missed / total,
        "missing or wrong": missed / total, "added": added / total,
        "BLEU": BLEU(lowercase=True).corpus_score([each.text for each in outputs], references).score,
        "distinct": len({each.text for each in outputs}) / len(outputs), "CPU seconds per output": seconds / len(outputs),
    }  # fmt: skip


def rows(pipe: BasePipeline[Any], items: Sequence[Item], options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Return the figures of a model by row."""
    places, draw = Places.of(item.slots for item in items if item.slots), random.Random(options.seed)
    chosen = {"candidates": options.candidates, "ranking": FunctionRanking(realised), "seed": options.seed}
    begun = time.process_time()
    texts = [row.text for row in pipe(source=[item.source for item in items], **chosen)]
    alone = time.process_time() - begun
    own = [Output(item, text) for item, text in zip(items, texts, strict=True)]
    others = [Output(items[(i + 1) % len(items)], text) for i, text in enumerate(texts)]
    known = frozenset(word for word in pipe.tokenizer.get_vocab() if word.isalpha())
    steered, begun = [], time.process_time()
    for item in items:
        word = forbidden(item, draw, known)
        length = len(pipe.tokenizer(draw.choice(item.references), add_special_tokens=False)["input_ids"])
        controls = [Length(length), *([~Words(word)] if word else [])]
        (row,) = pipe(source=item.source, controls=controls, **chosen)
        assert isinstance(row, Controlled)
        steered.append(Output(item, row.text, all(check.passed for check in row.controls)))
    beside = time.process_time() - begun
    counted = ("eatType", "food", "priceRange", "customer rating", "area", "familyFriendly", "near")
    return {
        "source alone": figures(own, places, alone), "length and word": figures(steered, places, beside),
        "another source": figures(others, places, alone, counted),
    }  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="RUN")
    parser.add_argument("--references", required=True, metavar="FILE", help="meaning representations with their references")
    parser.add_argument("--sources", type=int, default=200, help="number of sources, drawn at random (%(default)s)")
    parser.add_argument("--candidates", type=int, default=10, help="for each output (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the draw and of the samples (%(default)s)")
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32", help="of the network's arithmetic (%(default)s)")
    parser.add_argument("--results", default=str(RESULTS), help="folder of the results (%(default)s)")
    options = parser.parse_args(arguments)

    def run() -> None:
        torch.set_num_threads(1)
        items = read_items(options.references)
        if not all(item.slots for item in items):
            raise UserError(f"{options.references}: expected meaning representations such as name[Aromi], food[Chinese]")
        items = random.Random(options.seed).sample(items, min(options.sources, len(items)))
        found = {}
        for folder in options.runs:
            found[folder] = rows(open_pipeline(folder, dtype=options.dtype), items, options)
            names = list(next(iter(found[folder].values())))
            cells = [[name, *(_cell(row[name]) for row in found[folder].values())] for name in names]
            print(f"{folder}\n{tabulate(cells, ['', *found[folder]], tablefmt='github', disable_numparse=True)}")
        settings = {name: value for name, value in vars(options).items() if name not in ("results", "runs")}
        plain = {"settings": settings, "machine": machine(), "rows": found}
        write_text(Path(options.results) / "e2e-source" / "controls.json", json.dumps(plain, indent=2) + "\n")

    return exit_status(run)


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    sys.exit(main())
