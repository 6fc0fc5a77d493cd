"""Options and checks that several commands share."""

from __future__ import annotations

import argparse
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from diffusionlm.arguments import option, several
from diffusionlm.config import UserError, build, override, to_plain

if TYPE_CHECKING:
    from diffusionlm.pipelines.base import SamplingConfig

CONFIG = several("--config", "YAML file with settings")
MODEL = option("model", "model folder or run folder", "MODEL")
PROCESSES = option("--processes", "processes on this machine that share the work (default 1)")
DEVICE, DTYPE = "cpu", "fp32"
LOADING = (
    option("--adapter", "adapter (LoRA, control branch) trained on this model: its folder or run folder", "FOLDER"),
    option("--device", f"cpu, cuda or cuda:1 (default {DEVICE})", "NAME", default=DEVICE),
    option("--dtype", f"fp32 or bf16 (default {DTYPE})", "NAME", default=DTYPE),
    PROCESSES,
)


def expect_positive(options: argparse.Namespace, *names: str) -> None:
    """Raise UserError for a given option of ``names`` below 1."""
    for name in names:
        if (count := getattr(options, name)) is not None and count < 1:
            raise UserError(f"--{name}: expected at least 1, got {count}")


def given_options(options: argparse.Namespace, kind: Any) -> dict[str, Any]:
    """Return the given options that are fields of the dataclass ``kind``."""
    return {f.name: value for f in fields(kind) if (value := getattr(options, f.name, None)) is not None}


def refuse(options: argparse.Namespace, names: str, reason: str) -> None:
    """Raise UserError, with the ``reason``, for a given option of ``names``, which blanks separate."""
    for name in names.split():
        if getattr(options, name) not in (None, []):
            raise UserError(f"--{name.replace('_', '-')}: {reason}")


def sampling_settings(options: argparse.Namespace) -> tuple[SamplingConfig, dict[str, Any]]:
    """Return the model's saved sampling settings, changed by the flags and the dotted overrides, and what these give."""
    from diffusionlm.pipelines.base import SamplingConfig, saved_sampling
    from diffusionlm.pipelines.effect import given_names

    flags = given_options(options, SamplingConfig)
    flags |= {"guidance.strength": options.strength, "particles.count": flags.pop("particles", None)}
    changes = [(name, str(value)) for name, value in flags.items() if value is not None]
    changes += [(name.removeprefix("sampling."), value) for name, value in options.overrides]
    plain = override(to_plain(saved_sampling(options.adapter or options.model)), changes, SamplingConfig)
    sampling = build(SamplingConfig, plain, "sampling")
    named = {"tries": "ensure", "condition": "condition", "source": "source", "annotator": "annotator"}
    given = {name: value for name, option in named.items() if (value := getattr(options, option, None)) not in (None, [])}
    return sampling, given_names((name for name, _ in changes), sampling) | given
