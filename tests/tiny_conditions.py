"""Tiny models with and without conditions, trained on the same pairs, shared by the tests of the command line."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from tiny_runs import TINY

from diffusionlm.config import build, merge
from diffusionlm.training.run import RunConfig, train

ANIMALS = ["ant", "bee", "cat", "dog"]
SOURCE: dict[str, Any] = {"name": "source", "max_length": 6, "layers": 1}
LABEL: dict[str, Any] = {"name": "label", "field": "kind"}
CONDITIONS: dict[str, dict[str, Any] | None] = {
    "source": SOURCE,
    "label": LABEL,
    "several": {"name": "several", "parts": [LABEL, SOURCE]},
    "plain": None,
    "masked": SOURCE,
    "causal": None,
}


def pairs(folder: Path) -> Path:
    """Write texts that are their source backwards, with one of two labels, and return the file."""
    draw = random.Random(0)
    path = folder / "pairs.jsonl"
    with path.open("w") as file:
        for number in range(60):
            words = draw.choices(ANIMALS, k=draw.randint(2, 4))
            row = {"text": " ".join(words[::-1]), "source": " ".join(words), "kind": ("low", "high")[number % 2]}
            file.write(json.dumps(row) + "\n")
    return path


def trained(folder: Path, name: str) -> str:
    """Train one of ``CONDITIONS`` for two steps on the pairs in ``folder``; return its run folder."""
    data = {"corpus": str(pairs(folder)), "max_length": 8}
    plain: dict[str, Any] = merge(TINY, {"data": data, "training": {"steps": 2}})
    if name == "causal":
        plain |= {"model": {"name": "causal", "layers": 1, "width": 16, "heads": 2}, "objective": "causal"}
        plain["sampling"] = {"passes": 1, "sweeps": 0}
    else:
        plain["model"] = {**plain["model"], "condition": CONDITIONS[name]}
    if name == "masked":
        plain["model"]["name"], plain["objective"] = "masked", "masked"
        plain["sampling"] = {"steps": 4, "passes": 1, "sampler": "ancestral", "sweeps": 0}
    train(build(RunConfig, plain), folder / name, write_samples=False, quiet=True)
    return str(folder / name)
