"""Samples as rows: what pipelines yield."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any

from transformers import PreTrainedTokenizerFast

from diffusionlm.controls import Outcome
from diffusionlm.data.tokenizers import decode_texts
from diffusionlm.models.pieces import is_packed


@dataclass(frozen=True)
class Generated:
    """A sample: its text, index in the run, seed, length in tokens (BOS and EOS not counted), and source if it has one.

    A packed row has several ``texts``, which are the lines of ``text``; the first and the last may be cut off.
    """

    text: str
    index: int
    seed: int
    length: int
    source: str | None = None
    texts: list[str] | None = None

    def row(self) -> dict[str, Any]:
        """Return the sample as a row of JSON lines."""
        return {name: value for name, value in asdict(self).items() if name not in ("source", "texts") or value is not None}


@dataclass(frozen=True, kw_only=True)
class Controlled(Generated):
    """A sample of a run with controls: the outcome of each check, and the number of attempts."""

    controls: tuple[Outcome, ...]
    tried: int


def decoded(model: Any, tokenizer: PreTrainedTokenizerFast, ids: Sequence[Sequence[int]]) -> tuple[list[str], list[Any]]:
    """Return the text of each sample, and its texts where a sample is a packed row, else None."""
    if not is_packed(model) or not hasattr(model, "barred"):  # an autoregressive model samples the text before the first EOS
        return decode_texts(tokenizer, ids), [None] * len(ids)
    end = model.config.special_ids["end"]
    parts = [[list(part) for last, part in groupby(row, lambda i: i == end) if not last] for row in ids]
    texts = iter(decode_texts(tokenizer, [part for row in parts for part in row]))
    split = [[next(texts) for _ in row] for row in parts]
    return ["\n".join(row) for row in split], split


def restored(rows: list[dict[str, Any]]) -> list[Generated]:
    """Return the samples of another process, from the JSON values of their fields."""
    return [
        Controlled(**{**row, "controls": tuple(Outcome(**each) for each in row["controls"])}) if "controls" in row
        else Generated(**row)
        for row in rows
    ]  # fmt: skip
