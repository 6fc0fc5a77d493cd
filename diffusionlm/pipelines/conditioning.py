"""What samples are conditioned on: from a caller's request to what the network receives, once for each source."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import groupby
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from tokenizers import Encoding
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from diffusionlm.config import UserError
from diffusionlm.data.batches import encodings
from diffusionlm.models.conditions import Condition, Conditioning, condition_of, one_sentence

if TYPE_CHECKING:
    import datasets  # type: ignore[import-untyped]

    from diffusionlm.pipelines.base import SamplingConfig

S = TypeVar("S", bound="SamplingConfig")


@dataclass(frozen=True)
class Requested:
    """What samples are conditioned on: the encoded value of the model's condition (None is none), and the source in it.

    ``ids`` are the tokens of the text that is edited, which then is the ``source``.
    """

    value: Any = None
    source: str | None = None
    ids: tuple[int, ...] | None = None


def requested(
    model: Any, tokenizer: PreTrainedTokenizerFast, condition: Any = None, source: str | Sequence[str] | None = None
) -> list[Requested]:
    """Return what a caller asks for: a ``condition`` for all samples, or one for each ``source``.

    A list of ``Requested`` as the ``condition``, one for each sample, is returned as it is.

    Words of sources that the tokenizer does not know are read as [UNK], which a line on stderr says.

    Raises:
        UserError: the model has no such condition; a value that is impossible.
    """
    spec = condition_of(model)
    if spec is None:
        if condition is not None or source is not None:
            name = "condition" if source is None else "source"
            raise UserError(f"{name}: this model was trained without a condition; leave it out")
        return [Requested()]
    if source is None and isinstance(condition, list) and condition and all(isinstance(each, Requested) for each in condition):
        return condition
    sources: Sequence[Any] = [None] if source is None else listed(source, "source")
    given = [condition if text is None else spec.with_source(condition, text) for text in sources]
    with one_sentence(spec, repr(given[0])[:60]):
        wanted = [spec.requested(value) for value in given]
        values = _encoded(spec, wanted, tokenizer)
    return [Requested(value, text) for value, text in zip(values, sources, strict=True)]


def listed(texts: str | Iterable[str], where: str) -> list[str]:
    """Return a text, or a list of them, as a list. Raises UserError, which begins with ``where``, for none or another type."""
    if isinstance(texts, str):
        return [texts]
    if isinstance(texts, bytes | Mapping) or not isinstance(texts, Iterable):
        raise UserError(f"{where}: expected a text or a list of texts, got {texts!r}"[:200])
    found = list(texts)
    if not found:
        raise UserError(f"{where}: expected a text or several, got an empty list")
    if wrong := [f"{text!r} as number {n}" for n, text in enumerate(found, 1) if not isinstance(text, str)]:
        raise UserError(f"{where}: expected a list of texts, got {wrong[0]}"[:200])
    return found


def conditions_of(model: Any, tokenizer: PreTrainedTokenizerFast, rows: datasets.Dataset, where: str) -> list[Requested] | None:
    """Return the conditions of corpus ``rows``, as ``stream`` and ``score`` take them; None for a model without a condition.

    Raises:
        UserError: a row has no value, or an impossible one; the sentence begins with ``where``.
    """
    spec = condition_of(model)
    if spec is None:
        return None
    try:
        with one_sentence(spec, "the rows"):
            values = _encoded(spec, spec.values(rows), tokenizer)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    return [Requested(value) for value in values]


def _encoded(spec: Condition, wanted: Sequence[Any], tokenizer: PreTrainedTokenizerFast) -> list[Any]:
    """Return encoded values, which can be collated, and say which words of their sources are unknown."""
    values = spec.encoded(wanted, tokenizer)
    spec.collate(values)
    if "source" in spec.keys and (texts := _texts(wanted)):
        own = spec.with_own_tokenizer
        if said := unknown_words(texts, tokenizer if own is None else own.reader(tokenizer)):
            say_once(f"source: {said}")
    return values


def _texts(wanted: Sequence[Any]) -> list[str]:
    sources = [value.get("source") if isinstance(value, Mapping) else value for value in wanted]
    return [text for text in sources if isinstance(text, str)]


def unknown_words(texts: Sequence[str], tokenizer: PreTrainedTokenizerFast) -> str:
    """Return a sentence on the words of ``texts`` that become [UNK]: their number and the first one; "" for none."""
    words = []
    for text, encoding in zip(texts, encodings(texts, tokenizer), strict=True):
        words += unknown_in(text, encoding, tokenizer.unk_token_id)
    if not words:
        return ""
    noun, be, first = ("word", "is", "") if len(words) == 1 else ("words", "are", "the first is ")
    read = f"{be} read as {tokenizer.unk_token}: {first}{words[0]!r}"
    return f"{len(words)} {noun} {be} not in the vocabulary of this model and {read}"


def unknown_in(text: str, encoding: Encoding, unknown: int | None) -> list[str]:
    """Return the words of a ``text`` whose ids are ``unknown`` in its ``encoding``."""
    spans = zip(encoding.ids, encoding.offsets, strict=True)
    return [text[start:end].strip() for i, (start, end) in spans if i == unknown]


@lru_cache(maxsize=1000)
def say_once(line: str) -> None:
    """Write a line to stderr, once: the same sources are requested again for each target and each report."""
    print(line, file=sys.stderr)


def at_length(sampling: S, model: Any, conditions: Sequence[Requested]) -> S:
    """Return the settings with the length that the conditions fix, such as tags of each position, if all fix the same one.

    Raises:
        UserError: it is longer than the model's texts, or another length is given.
    """
    lengths = {fixed_tokens(model, each.value) for each in conditions}
    for length in lengths - {None}:
        longest = model.config.max_tokens - 2
        if length > longest:
            raise UserError(f"condition: expected values for 1 to {longest} tokens, got one for {length}")
        if model.explicit_length and sampling.length not in (None, length):
            raise UserError(f"length: the condition is for {length} tokens, got {sampling.length}; leave the length out")
    if len(lengths) > 1 or None in lengths or not model.explicit_length:  # of several lengths each sample has its own
        return sampling
    return replace(sampling, length=lengths.pop())


def fixed_tokens(model: Any, value: Any) -> int | None:
    """Return the number of tokens, BOS and EOS not counted, that an encoded value of a model's condition fixes, or None."""
    spec = condition_of(model)
    return None if spec is None else spec.length(value)


def check_cfg(model: Any, cfg: float, conditions: Sequence[Requested]) -> None:
    """Raise UserError for classifier-free guidance without a condition, or of a model that never saw the null condition."""
    if cfg == 1:
        return
    if model.settings.condition is None or all(each.value is None for each in conditions):
        raise UserError("cfg: there is no condition to guide to; leave it at 1")
    if not model.settings.condition.drop:
        raise UserError("cfg: this model was trained without dropping its condition (drop: 0); leave it at 1")


@torch.no_grad()
def conditioning(model: Any, values: Sequence[Any], dtype: torch.dtype = torch.float32) -> Conditioning | None:
    """Return what the network receives of encoded ``values``, one for each sample; None where all are None.

    Equal consecutive values are encoded once: the candidates of a source share its states.
    """
    if all(value is None for value in values):
        return None
    tensors, rows = distinct(model, values)
    with torch.autocast(model.device.type, dtype, enabled=dtype != torch.float32):
        given: Conditioning = model.condition_on(tensors)
    return given.rows(rows)


def distinct(model: Any, values: Sequence[Any]) -> tuple[dict[str, Tensor], Tensor]:
    """Return the tensors of encoded ``values``, equal consecutive ones once, and the row of each value among them (B,)."""
    runs = [list(group) for _, group in groupby(values)]
    collated = model.settings.condition.collate([run[0] for run in runs])
    rows = torch.arange(len(runs)).repeat_interleave(torch.tensor([*map(len, runs)]))
    return {name: tensor.to(model.device) for name, tensor in collated.items()}, rows.to(model.device)


def repeated(given: Conditioning | None, count: int) -> Conditioning | None:
    """Return the conditioning of ``count`` samples that all have that of one."""
    return None if given is None else given.rows(torch.zeros(count, dtype=torch.long))


def room_of(model: Any, given: Conditioning | None) -> int:
    """Return the most tokens of a text with this condition: all of the model's, but those that a source takes of them."""
    longest: int = model.config.max_tokens
    return int(model.room(torch.ones(1, longest, dtype=torch.bool, device=model.device), given).sum())


def expected_counts(model: Any, given: Conditioning | None) -> list[list[float]] | None:
    """Return the numbers of training texts of 0, 1, 2, ... tokens that the model expects for each of B conditions.

    None where the condition predicts no lengths. Lengths of no training text are not expected.
    """
    if given is None or given.length_logits is None:
        return None
    seen = torch.tensor(model.config.length_counts, dtype=torch.float64)
    logits: Tensor = given.length_logits.double().cpu()[:, : len(seen)]
    return (logits.masked_fill(seen == 0, -math.inf).softmax(-1) * seen.sum()).tolist()


def edited(model: Any, tokenizer: PreTrainedTokenizerFast, texts: Sequence[str], given: Requested) -> list[Requested]:
    """Return requests for edits of ``texts``, all with the condition ``given``.

    Raises:
        UserError: a text is empty, too long, or has words that the model does not know.
    """
    longest, unknown = model.config.max_tokens - 2, model.config.special_ids.get("unk")
    length = None if model.settings.condition is None else model.settings.condition.length(given.value)
    found = []
    for text, encoding in zip(texts, encodings(texts, tokenizer), strict=True):
        if not 1 <= len(encoding.ids) <= longest:
            raise UserError(f"text: expected 1 to {longest} tokens, got {len(encoding.ids)}: {text[:60]!r}")
        if length not in (None, len(encoding.ids)):
            raise UserError(f"text: the condition is for {length} tokens, got {len(encoding.ids)}: {text[:60]!r}")
        if words := unknown_in(text, encoding, unknown):
            raise UserError(f"text: the model does not know the word {words[0]!r} of {text[:60]!r}")
        found.append(Requested(given.value, text, tuple(encoding.ids)))
    return found


def guided(without: Tensor, given: Tensor, scale: float) -> Tensor:
    """Return logits or vectors moved from those ``without`` a condition through those ``given`` it: 1 is no guidance.

    Ho and Salimans 2021, equation 6, with ``scale`` 1 + w. Logits of -inf in both stay.
    """
    moved = torch.lerp(without.float(), given.float(), scale)
    return torch.where(given == -math.inf, given, moved)


def guided_logits(without: Tensor, given: Tensor, scale: float, floor: float) -> Tensor:
    """Return logits (..., V) as ``guided`` does; a ``scale`` above 1 raises only tokens that are plausible with the condition.

    Others, of less than ``floor`` times the largest conditional probability, are lowered at most (Li et al. 2023, Contrastive
    Decoding, section 3.2): their logits are the least exact, and guidance multiplies the error of the difference. ``floor`` 0
    is classifier-free guidance without a limit.
    """
    if scale <= 1 or floor == 0:
        return guided(without, given, scale)
    start, end = without.float().log_softmax(-1), given.float().log_softmax(-1)
    plausible = end >= end.amax(-1, keepdim=True) + math.log(floor)
    moved = guided(start, end, scale)
    return torch.where(plausible, moved, torch.minimum(moved, end))
