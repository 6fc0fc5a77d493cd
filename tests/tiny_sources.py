"""Tiny models whose sources have a tokenizer of their own, digits for words, shared by the tests of several packages."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from tiny_runs import TINY

from diffusionlm.config import build, merge
from diffusionlm.training.run import RunConfig, train

WORDS = {"1": "ant", "2": "bee", "3": "cat", "4": "dog"}
OWN: dict[str, Any] = {"name": "source", "max_length": 6, "layers": 1, "dropout": 0.0, "tokenizer": "words"}
LABEL: dict[str, Any] = {"name": "label", "field": "kind"}
MASKED: dict[str, Any] = {"steps": 4, "passes": 1, "sampler": "ancestral", "sweeps": 0}
SEQ2SEQ: dict[str, Any] = {"name": "seq2seq", "layers": 1, "width": 16, "heads": 2, "condition": OWN}
MODEL: Any = TINY["model"]
FAMILIES: dict[str, dict[str, Any]] = {  # settings of a run
    "source": {"model": {**MODEL, "condition": OWN}},
    "pieces": {"model": {**MODEL, "condition": {**OWN, "tokenizer": {"name": "bpe", "vocab_size": 20}}}},
    "several": {"model": {**MODEL, "condition": {"name": "several", "parts": [LABEL, OWN]}}},
    "masked": {"model": {**MODEL, "name": "masked", "condition": OWN}, "objective": "masked", "sampling": MASKED},
    "seq2seq": {"model": SEQ2SEQ, "objective": "seq2seq", "sampling": {}},
}
PLAIN: dict[str, Any] = {"model": MODEL}


def digits(
    folder: Path, name: str = "digits.jsonl", words: dict[str, str] = WORDS, count: int = 60, least: int = 2, most: int = 4
) -> Path:
    """Write texts of a few words, each with its words as digits and one of two labels; return the file."""
    draw, path = random.Random(0), folder / name
    with path.open("w") as file:
        for number in range(count):
            source = draw.choices([*words], k=draw.randint(least, most))
            row = {"text": " ".join(words[digit] for digit in source), "source": " ".join(source)}
            file.write(json.dumps({**row, "kind": ("low", "high")[number % 2]}) + "\n")
    return path


def config(folder: Path, family: dict[str, Any], **changes: Any) -> RunConfig:
    """Return the config of a run of two steps on the texts that ``digits`` wrote to ``folder``, or another corpus."""
    plain = {**merge(TINY, {"data": {"max_length": 8}, "training": {"steps": 2}}), **family}
    plain["data"] = {**plain["data"], "corpus": str(folder / "digits.jsonl"), **changes.pop("data", {})}
    return build(RunConfig, merge(plain, changes))


def trained(folder: Path, name: str, **changes: Any) -> Path:
    """Train one of ``FAMILIES`` for two steps in ``folder``; return its run folder."""
    digits(folder)
    train(config(folder, FAMILIES[name], **changes), folder / name, write_samples=False, quiet=True)
    return folder / name
