"""Texts in, likelihoods out: reads a model's folder, whatever kind of model it holds, and scores texts with it.

Each kind of model has a scorer, a function ``(folder, texts, options)`` that yields every text with a dataclass of its
figures: ``nats`` and ``tokens``, and whatever else that kind knows. A new kind is one line in ``SCORERS``.
"""

from __future__ import annotations

import importlib
import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from diffusionlm.config import Settings, UserError
from diffusionlm.data import encode
from diffusionlm.likelihood import Bound, bound
from diffusionlm.model import model_folder
from diffusionlm.pipeline import Pipeline
from diffusionlm.tokenizer import decode_texts

SCORERS = {  # by the model_type in the folder's config.json
    "diffusionlm": "diffusionlm.scoring:score_diffusion",
}


@dataclass(frozen=True)
class ScoringConfig(Settings):
    """How texts are scored.

    Args:
        strata: noise levels a text is looked at, one in each of as many equally likely parts: more is more precise.
        seed: of the noise.
        batch_size: noisy copies of a text that are denoised together.
        device: cpu, cuda, cuda:1, mps ...
        dtype: of the network's arithmetic, fp32 or bf16.
    """

    strata: int = 128
    seed: int = 0
    batch_size: int = 64
    device: str = "cpu"
    dtype: str = "fp32"

    def __post_init__(self) -> None:
        """Check the numbers."""
        for name, least in (("strata", 2), ("seed", 0), ("batch_size", 1)):
            if getattr(self, name) < least:
                raise UserError(f"{name}: expected {least} or more, got {getattr(self, name)}")


Scorer = Callable[[Path, Sequence[tuple[str, str]], ScoringConfig], Iterator[tuple[str, Bound]]]


def score(
    folder: str | Path, texts: Sequence[tuple[str, str]], options: ScoringConfig | None = None
) -> Iterator[tuple[str, Bound]]:
    """Yield each text with its likelihood under the model in ``folder``; ``texts`` are pairs (place, text).

    Raises:
        UserError: before the first text: not a model folder, or a text that is longer than the model reads, since a mean
            over the shorter texts would be another figure.
    """
    folder = model_folder(folder)
    kind = None
    with suppress(OSError, ValueError, AttributeError):  # the model's own loading says better what is wrong
        kind = json.loads((folder / "config.json").read_text()).get("model_type")
    module, _, name = SCORERS.get(str(kind), SCORERS["diffusionlm"]).partition(":")
    scorer: Scorer = getattr(importlib.import_module(module), name)
    return scorer(folder, texts, ScoringConfig() if options is None else options)


def score_diffusion(folder: Path, texts: Sequence[tuple[str, str]], options: ScoringConfig) -> Iterator[tuple[str, Bound]]:
    """Yield each text with its bound under a diffusion model."""
    pipeline = Pipeline.from_pretrained(folder, options.device, options.dtype)
    longest = pipeline.model.config.max_tokens
    encoded = encode([text for _, text in texts], pipeline.tokenizer, sys.maxsize)
    for number, row in zip(encoded.texts, encoded.ids, strict=True):
        if len(row) > longest:
            got = f"{len(row) - 2} tokens, more than the {longest - 2} that this model reads"
            raise UserError(f"{texts[number][0]}: {got}; shorten the text or leave it out")
    bounds = bound(
        pipeline.model, encoded.ids, decode_texts(pipeline.tokenizer, encoded.ids), strata=options.strata,
        seed=options.seed, batch_size=options.batch_size, dtype=pipeline.dtype,
    )  # fmt: skip
    for number, result in zip(encoded.texts, bounds, strict=True):
        yield texts[number][1], result


@dataclass(frozen=True)
class Summary:
    """The bound of a set of texts, in nats a token (END counted), its four terms, and bits a character.

    ``standard_error`` is that of the Monte Carlo estimate for these very texts; it says nothing of other texts.
    """

    nats_per_token: float
    standard_error: float
    prior: float
    reconstruction: float
    diffusion: float
    length: float
    bits_per_character: float
    texts: int
    tokens: int
    characters: int
    unknown: int

    def __str__(self) -> str:
        """Return two lines for a reader."""
        terms = ", ".join(f"{name} {getattr(self, name):.4f}" for name in ("prior", "reconstruction", "diffusion", "length"))
        characters = f"; {self.bits_per_character:.3f} bits a character" if self.characters else ""
        unknown = f", {self.unknown} of them unknown words" if self.unknown else ""
        return (
            f"at most {self.nats_per_token:.4f} +- {self.standard_error:.4f} nats a token ({terms}){characters}\n"
            f"{self.texts} texts, {self.tokens} tokens: words and one end a text{unknown}"
        )


def summary(bounds: Sequence[Bound]) -> Summary:
    """Sum up the bounds of a set of texts."""
    tokens, characters = sum(b.tokens for b in bounds), sum(b.characters for b in bounds)

    def mean(name: str) -> float:
        return math.fsum(getattr(b, name) for b in bounds) / tokens

    return Summary(
        nats_per_token=mean("nats"),
        standard_error=math.sqrt(math.fsum(b.deviation**2 for b in bounds)) / tokens,
        **{name: mean(name) for name in ("prior", "reconstruction", "diffusion", "length")},
        bits_per_character=math.fsum(b.nats for b in bounds) / math.log(2) / characters if characters else math.nan,
        texts=len(bounds),
        tokens=tokens,
        characters=characters,
        unknown=sum(b.unknown for b in bounds),
    )
