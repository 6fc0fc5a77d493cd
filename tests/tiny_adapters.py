"""A tiny model and adapters of it, shared by the tests of adapters."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tiny_runs import TINY, tiny_plain

from diffusionlm.config import build, merge
from diffusionlm.training.run import RunConfig, train

SMALL: dict[str, Any] = TINY
LORA = {"name": "lora", "rank": 2}
FAMILIES: dict[str, dict[str, Any]] = {  # settings of the run of a tiny model
    "diffusion": {},
    "masked": {
        "model": {**SMALL["model"], "name": "masked"},
        "objective": "masked",
        "sampling": {"steps": 4, "passes": 1, "sampler": "ancestral", "sweeps": 0},
    },
    "causal": {
        "model": {"name": "causal", "layers": 1, "width": 16, "heads": 2},
        "objective": "causal",
        "sampling": {"passes": 1, "sweeps": 0},
    },
    "seq2seq": {
        "model": {"name": "seq2seq", "layers": 1, "width": 16, "heads": 2, "condition": {"column": "text", "layers": 1}},
        "objective": "seq2seq",
        "sampling": {},
    },
}


def tiny_family(folder: Path, family: str, **changes: Any) -> RunConfig:
    """Return the config of a run of a model family on the texts in ``folder``."""
    return build(RunConfig, merge({**tiny_plain(folder), **FAMILIES[family]}, changes))


def base_and_tuned(folder: Path, family: str = "diffusion", **changes: Any) -> tuple[Path, Path]:
    """Train a model and an adapter of it in ``folder``; return their runs."""
    base, tuned = folder / "base", folder / "tuned"
    assert train(tiny_family(folder, family, training={"steps": 2, "batch_tokens": 128}), base, write_samples=False, quiet=True)
    plain: dict[str, Any] = {"init_from": str(base), "adapter": LORA, **changes}
    assert train(tiny_family(folder, family, **plain), tuned, write_samples=False, quiet=True)
    return base, tuned


def edit(path: Path, **changes: Any) -> None:
    """Change keys of a JSON file."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
