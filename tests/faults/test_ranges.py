"""Every number in the settings has a range: what is not a number, infinite or negative is refused in a sentence that names it."""

from __future__ import annotations

import dataclasses
import importlib
import math
import pkgutil
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
from originals import DIFFUSEQ, DIFFUSION_LM

import diffusionlm
from diffusionlm import UserError
from diffusionlm.config import Settings, _leaves, _types, build
from diffusionlm.models.io import SavedConfig
from diffusionlm.models.seq2seq import SavedSeq2Seq

NUMBERS = (math.nan, math.inf, -1)
NEEDED: dict[str, Any] = {  # values of the fields without a default
    "train": "a.txt", "folder": "f", "path": "p", "denoiser": "d", "labels": ("x",), "control": {"name": "words", "words": ["x"]},
    "classifier": "x", "label": "NP", "tags": "NOUN", "tree": "(S (NP it))", "first": 0, "last": 1, "weight": 1.0, "low": 1,
    "function": "math:fsum", "task": {"name": "attributes"}, "field": "f", "parts": [{"name": "label", "field": "f"}],
    "peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["query"],
    **{name: value for name, value in {**DIFFUSION_LM, **DIFFUSEQ}.items() if name != "seed"}, "vocab_size": 22,
    "condition": {"name": "tags"},
}  # fmt: skip
ALLOWED: dict[str, tuple[list[float], str]] = {  # the numbers that a field takes, and why
    "Gumbel.location": ([-1], "gamma, the logarithm of a ratio"),
    "Gumbel.low": ([-1], "gamma"),
    "Gumbel.end": ([-1], "gamma"),
    "Gumbel.training_shift": ([-1], "a difference of gamma"),
    "Gradient.max_logit_step": ([math.inf], "infinity is no limit, and the default of this setting"),
    "Number.mean": ([-1], "the mean of any numbers"),
    "Reward.passes": ([-1], "a score of the user's own function"),
    "SamplingConfig.noise_shift": ([-1], "a difference of gamma"),
    "SamplingConfig.length": ([-1], "is compared with the longest text of the model, check_length"),
}


def kinds(base: Any) -> Iterator[Any]:
    for kind in base.__subclasses__():
        yield kind
        yield from kinds(kind)


def numeric_fields() -> Iterator[tuple[Any, dataclasses.Field[Any], bool]]:
    """Yield the numeric fields of all settings of the library, with whether a field takes fractions.

    The configs of model folders are left out: they are read by ``build`` alone, and other tests of faults mutate them.
    """
    for _, name, _ in pkgutil.walk_packages(diffusionlm.__path__, "diffusionlm."):
        if not name.endswith("__main__"):
            importlib.import_module(name)
    found: list[Any] = sorted({*kinds(Settings)}, key=lambda kind: f"{kind.__module__}.{kind.__name__}")
    for kind in found:
        own = kind.__module__.startswith("diffusionlm.") and not issubclass(kind, SavedConfig | SavedSeq2Seq)
        for field in dataclasses.fields(kind) if own and dataclasses.is_dataclass(kind) else ():
            if (leaves := {*_leaves(_types(kind)[field.name])}) & {int, float}:
                yield kind, field, float in leaves


FIELDS = [pytest.param(*found, id=f"{found[0].__name__}.{found[1].name}") for found in numeric_fields()]


@pytest.mark.parametrize(("kind", "field", "fractions"), FIELDS)
def test_a_number_out_of_range_is_refused_by_name(kind: Any, field: dataclasses.Field[Any], fractions: bool) -> None:
    missing = dataclasses.MISSING
    needed = {f.name: NEEDED[f.name] for f in dataclasses.fields(kind) if f.default is f.default_factory is missing}
    base = build(kind, needed)
    allowed, _ = ALLOWED.get(f"{kind.__name__}.{field.name}", ([], ""))
    for number in NUMBERS if fractions else NUMBERS[-1:]:
        before = getattr(base, field.name)
        value = (number, *before[1:]) if isinstance(before, tuple) else number
        makers: list[Callable[[], object]] = [partial(dataclasses.replace, base, **{field.name: value})]
        if number == -1:  # the others are refused by their type
            makers.append(partial(build, kind, {**needed, field.name: value}))
        for make in makers:
            if number in allowed:
                make()
                continue
            with pytest.raises(UserError) as caught:
                make()
            place, colon, _ = str(caught.value).partition(": ")
            named = field.name in place or kind.__name__ in ("Length", "Weighted")  # which name the control
            assert colon and named and "\n" not in str(caught.value)


def test_all_families_were_walked_through() -> None:
    found = {str(param.id) for param in FIELDS}
    names = "ModelConfig.evidence Transformer.dropout TrainingConfig.ema AdamW.betas Files.validation_share Sqrt.T DDIM.eta"
    assert {
        *names.split(),
        "DataConfig.max_length",
        "CrossEntropy.cloze_share",
        "LikelihoodRanking.strata",
        *ALLOWED,
    } <= found and len(found) > 120


@pytest.mark.parametrize("dropout", [1.0, 1.5, -0.1, math.nan])
def test_dropout_is_a_share_below_1(dropout: float) -> None:
    backbone = {"name": "transformer", "dropout": dropout}
    with pytest.raises(UserError, match="model.backbone.dropout: expected a "):
        build(diffusionlm.RunConfig, {"model": {"name": "diffusion", "backbone": backbone}})
