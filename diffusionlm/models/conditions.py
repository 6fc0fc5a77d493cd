"""Conditions: what samples are conditioned on beside their own noise, such as a source text or a label.

A value comes from a corpus row in training and from the caller in sampling, and goes the same way from there:

    value  ->  encoded (token ids)  ->  collate: tensors  ->  build(): Conditioning  ->  network

Of the ``Conditioning``, features are concatenated to the network's inputs, states are attended to (their keys and values are
computed once per sample), and a prefix is joined to the text as clean tokens. None is the null condition: no value, or one
dropped in training for classifier-free guidance. B batch, S source positions, L positions, C features, W width, V words.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedTokenizerFast

from diffusionlm.config import Component, UserError, nearest, plain_name
from diffusionlm.core.objective import Batch
from diffusionlm.models.backbones import Context

if TYPE_CHECKING:
    import datasets  # type: ignore[import-untyped]

    from diffusionlm.models.diffusion import WordVectorModel
    from diffusionlm.models.source import SourceText


@dataclass(frozen=True)
class Conditioning:
    """What the network of a model receives of the conditions of B samples.

    Args:
        features: (B, C) or (B, L, C).
        states: of an encoder, (B, S, W), with the mask ``seen`` (B, S); the model replaces them by a ``context``.
        context: keys and values of ``states`` for each layer.
        prefix: token ids (B, S) before the text, the first ``prefix_tokens`` (B,) of each row.
        length_logits: of the number of tokens of a text, BOS and EOS counted, (B, N).
    """

    features: Tensor | None = None
    states: Tensor | None = None
    seen: Tensor | None = None
    context: Context | None = None
    prefix: Tensor | None = None
    prefix_tokens: Tensor | None = None
    length_logits: Tensor | None = None

    @property
    def contexts(self) -> list[Context]:
        """The last argument of the network, where there is a context."""
        return [] if self.context is None else [self.context]

    def rows(self, index: Tensor) -> Conditioning:
        """Return the conditioning of the samples ``index``."""

        def of(value: Any) -> Any:
            return value.rows(index) if isinstance(value, Context) else None if value is None else value[index]

        return Conditioning(**{each.name: of(getattr(self, each.name)) for each in fields(self)})

    def terms(self, mask: Tensor) -> dict[str, Tensor]:
        """Return the terms of the loss that train the conditions alone: ``length``, in nats per text of ``mask`` (B, L)."""
        if self.length_logits is None:
            return {}
        return {"length": LENGTH_WEIGHT * F.cross_entropy(self.length_logits.float(), mask.sum(1))}


MOST_LABELS = 1000
LENGTH_WEIGHT = 0.1  # of the length's cross-entropy in the loss: it must not steer the encoder


class Condition(Component, family="condition"):
    """Base of the conditions. ``drop`` is the probability with which a value is replaced by the null condition in training."""

    drop: float = 0.0
    fits: ClassVar[tuple[str, ...]] = ()  # fields that ``fitted`` may set

    @property
    def key(self) -> str:
        """The name of the value in requests."""
        return self.name or "condition"

    @property
    def size(self) -> int:
        """The number C of coordinates of the features."""
        return 0

    @property
    def has_states(self) -> bool:
        """Whether the network attends to states."""
        return False

    @property
    def prefix_size(self) -> int:
        """The most tokens of a prefix."""
        return 0

    @property
    def shares_length(self) -> bool:
        """Whether the tokens of a prefix count among the model's ``max_tokens``, of which a text is padded to the rest."""
        return False

    @property
    def of_positions(self) -> bool:
        """Whether the features are those of each position."""
        return False

    @property
    def clean_prefix(self) -> bool:
        """Whether the network receives time 0 at the tokens of a prefix, else the time of the text."""
        return True

    @property
    def with_own_tokenizer(self) -> SourceText | None:
        """The condition, itself or a part of it, whose texts are read by another tokenizer than the model's texts."""
        return None

    def build(self, model: WordVectorModel) -> nn.Module:
        """Return the module of a ``model`` that maps the tensors of ``collate``, its keyword arguments, to a Conditioning."""
        raise NotImplementedError

    def fitted(self, rows: datasets.Dataset) -> Self:
        """Return the condition with what it takes from the training rows, such as the labels that occur."""
        return self

    def describes(self, fitted: Condition) -> bool:
        """Return whether ``fitted`` has these hyperparameters; what was fitted may differ where it is left open here."""
        if type(fitted) is not type(self):
            return False
        open_here = {name: getattr(fitted, name) for name in self.fits if getattr(self, name) in (None, ())}
        return replace(self, **open_here) == fitted  # type: ignore[type-var]

    def texts(self, rows: datasets.Dataset) -> list[str]:
        """Return the texts among the values, which the model's tokenizer has to know."""
        return []

    def values(self, rows: datasets.Dataset) -> list[Any]:
        """Return the value of each corpus row. Raises UserError for a missing column or an impossible value."""
        raise NotImplementedError

    @property
    def keys(self) -> tuple[str, ...]:
        """The names of the values in requests."""
        return (self.key,)

    def read(self, text: str, key: str = "") -> Any:
        """Return the value, of ``key``, that a ``text`` of the command line stands for."""
        return text

    def read_all(self, texts: Sequence[str]) -> Any:
        """Return a request of the command line: a value, or NAME=VALUE for some of ``keys``."""
        named = [text.partition("=") for text in texts]
        if len(self.keys) == 1 and not any(equals and name in self.keys for name, equals, _ in named):
            if len(texts) > 1:
                raise UserError(f"condition: expected a value of {self.key}, got {len(texts)}: {', '.join(map(repr, texts))}")
            return self.read(texts[0])
        found: dict[str, Any] = {}
        for name, equals, value in named:
            if not equals or name in found:
                problem = "is given twice" if equals else f"has no value: expected NAME=VALUE, of {', '.join(self.keys)}"
                raise UserError(f"condition: {name!r} {problem}")
            check_keys([name], self.keys)
            found[name] = self.read(value, name)
        return found

    def requested(self, given: Any) -> Any:
        """Return the value that a caller gave, itself or in a mapping by ``key``. Raises UserError for another key."""
        if not isinstance(given, Mapping):
            return given
        check_keys(given, self.keys)
        return given.get(self.key)

    def with_source(self, given: Any, text: str) -> Any:
        """Return a request for the source ``text`` and what else is ``given``. Raises UserError without such a condition."""
        raise UserError(f"source: this model is conditioned on {self.key}, not on a source text")

    def encoded(self, values: Sequence[Any], tokenizer: PreTrainedTokenizerFast) -> list[Any]:
        """Return the values as ``collate`` takes them; texts become token ids. Raises UserError for an impossible value."""
        return list(values)

    def of_piece(self, value: Any, start: int, tokens: int) -> Any:
        """Return the encoded value of ``tokens`` tokens of a text from token ``start`` on, where the text was cut or split."""
        return value

    def length(self, value: Any) -> int | None:
        """Return the number of tokens, BOS and EOS not counted, of all texts with an encoded ``value``; None if any."""
        return None

    def collate(self, values: Sequence[Any]) -> dict[str, Tensor]:
        """Return the tensors of B encoded values, those of None all 0. Raises UserError for an impossible value."""
        raise NotImplementedError


def condition_of(model: Any) -> Condition | None:
    """Return the condition that a model of any family was trained with, None without one."""
    found: Condition | None = getattr(getattr(model, "settings", None), "condition", None)
    return found


@contextmanager
def one_sentence(condition: Condition, what: str) -> Iterator[None]:
    """Turn what a condition's method raises into a UserError: it is third-party code, for values that nobody checked."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]
        raise UserError(f"condition: {plain_name(type(condition))} cannot use {what}: {reason}") from error


def check_keys(given: Iterable[str], known: Sequence[str]) -> None:
    """Raise UserError for a key that is not ``known``."""
    for key in given:
        if key not in known:
            raise UserError(f"condition: this model has no condition called {key!r}{nearest(str(key), known)}")


def column(rows: datasets.Dataset, name: str, place: str) -> list[Any]:
    """Return a column of the corpus, or an attribute of each row. Raises UserError where there is neither."""
    if name in rows.column_names:
        return list(rows[name])
    attributes = rows["attributes"] if "attributes" in rows.column_names else []
    known = {key for each in attributes for key in each or {}}
    if name not in known:
        raise UserError(f"{place}: the corpus has no column {name!r}{nearest(name, [*rows.column_names, *sorted(known)])}")
    return [(each or {}).get(name) for each in attributes]


def fitted_labels(labels: tuple[str, ...], found: Iterable[str], *, place: str, one: str, all: str) -> tuple[str, ...]:
    """Return ``labels``, or if there are none those ``found`` in the training texts, sorted.

    Raises:
        UserError: one of ``labels`` is not found; fewer than 2 or more than ``MOST_LABELS`` are. The message begins with
            ``place`` and calls a label ``one``, and them ``all``.
    """
    known = sorted({*found})
    if absent := {*labels} - {*known}:
        raise UserError(f"{place}: no training text has {one} {min(absent)!r}{nearest(min(absent), known)}")
    if not labels and not 2 <= len(known) <= MOST_LABELS:
        raise UserError(f"{place}: expected 2 to {MOST_LABELS} {all}, got {len(known)}")
    return labels or tuple(known)


def kept(module: nn.Module, count: int, drop: float, device: torch.device) -> Tensor:
    """Return which of ``count`` values are not dropped: all but a share ``drop`` in training."""
    if not (module.training and drop):
        return torch.ones(count, dtype=torch.bool, device=device)
    return torch.rand(count, device=device) >= drop


class Conditioned(nn.Module):
    """Base of models whose network may receive conditions, itself or through a ``branch`` (``models.control_branch``)."""

    settings: Any  # a spec with ``condition``
    config: Any
    network: nn.Module
    condition: nn.Module | None
    branch: nn.Module | None

    def build_network(self, settings: Any, inputs: int, outputs: int, longest: int) -> None:
        """Build the network for texts of up to ``longest`` tokens and the module of the condition, if there is one."""
        condition: Condition | None = settings.condition
        self.branch = None
        if condition is None:
            self.network, self.condition = settings.backbone.build(inputs, outputs, longest), None
            return
        if condition.of_positions and settings.backbone.excludes_self:
            raise UserError(
                f"condition: {condition.key!r} are of each position, which {settings.backbone.name!r} predicts without its own "
                "inputs; take the backbone 'transformer', or train them as an adapter 'control-branch'"
            )
        size = (inputs + condition.size, outputs, longest + condition.prefix_size)
        self.network = settings.backbone.build(*size, **({"context": True} if condition.has_states else {}))
        self.condition = condition.build(self)  # type: ignore[arg-type]

    def condition_on(self, tensors: Mapping[str, Tensor]) -> Conditioning:
        """Return what the network receives of the tensors of ``Condition.collate``, the same at all noise levels."""
        assert self.condition is not None
        given: Conditioning = self.condition(**tensors)
        if self.branch is not None:
            given = self.branch.weigh_lengths(given)  # type: ignore[operator]
        if given.states is None:
            return given
        reader: Any = self.network if self.branch is None else self.branch.network
        context = reader.context(given.states, given.seen)
        return replace(given, states=None, seen=None, context=context)

    def condition_on_batch(self, batch: Batch) -> Conditioning:
        """Return what the network receives of a batch's condition; narrow the batch's mask to the ``room`` that is left."""
        given = self.condition_on(batch.condition or {})
        batch["mask"] = self.room(batch.mask, given)
        return given

    def clean_inputs(self, ids: Tensor) -> Tensor:
        """Return the network's inputs (B, S, I) at clean given tokens."""
        raise NotImplementedError

    @property
    def clean_level(self) -> float:
        """Gamma at clean given tokens."""
        return 0.0

    def room(self, mask: Tensor, given: Conditioning | None) -> Tensor:
        """Return ``mask`` (B, L) without the positions that a prefix, where it shares their number, takes from the texts."""
        if given is None or given.prefix_tokens is None or not self.settings.condition.shares_length:
            return mask
        left = self.config.max_tokens - given.prefix_tokens
        return mask & (torch.arange(mask.shape[1], device=mask.device) < left[:, None])

    def run_network(self, inputs: Tensor, t: Tensor, gamma: Tensor, mask: Tensor | None, condition: Any) -> Tensor:
        """Run the network with the condition; without one that it was trained with, with the null condition."""
        if self.condition is None:
            output: Tensor = self.network(inputs, t, gamma, mask)
            return output
        given: Conditioning | None = condition
        if given is None:
            null = self.settings.condition.collate([None] * len(inputs))
            given = self.condition_on({name: tensor.to(inputs.device) for name, tensor in null.items()})
        if self.branch is not None:
            output = self.branch(self.network, inputs, t, gamma, mask, given)
            return output
        if given.prefix is not None:
            return self._behind_prefix(inputs, t, gamma, mask, given)
        return self.network(with_features(inputs, given.features), t, gamma, mask, *given.contexts)

    def _behind_prefix(self, inputs: Tensor, t: Tensor, gamma: Tensor, mask: Tensor | None, given: Conditioning) -> Tensor:
        """Run the network on each prefix joined with its text, and return the outputs at the text."""
        assert given.prefix is not None and given.prefix_tokens is not None
        length, inputs = inputs.shape[1], with_features(inputs, given.features)
        tokens, size = given.prefix_tokens, given.prefix.shape[1]
        texts = torch.full_like(tokens, length) if mask is None else mask.sum(1)
        features = given.features if given.features is None or given.features.dim() == 2 else given.features[:, :0]
        inputs = joined(with_features(self.clean_inputs(given.prefix), features), inputs, tokens)
        if self.settings.condition.clean_prefix:
            t, gamma = (joined_levels(x, level, tokens, size, length) for x, level in ((t, 0.0), (gamma, self.clean_level)))
        else:
            t, gamma = (x if x.dim() == 1 else x.amax(1) for x in (t, gamma))
        mask = torch.arange(size + length, device=tokens.device) < (tokens + texts)[:, None]
        if self.settings.condition.shares_length:  # beyond it there is only padding of the batch
            longest = self.config.max_tokens
            inputs, mask = inputs[:, :longest], mask[:, :longest]
            t, gamma = (x if x.dim() == 1 else x[:, :longest] for x in (t, gamma))
        return behind(self.network(inputs, t, gamma, mask, *given.contexts), tokens, length)


def with_features(inputs: Tensor, features: Tensor | None) -> Tensor:
    """Return ``inputs`` (B, L, I) with ``features``, (B, C) or (B, S, C), at each position."""
    return inputs if features is None else torch.cat([inputs, at_positions(features, inputs.shape[1]).to(inputs)], -1)


def at_positions(features: Tensor, length: int) -> Tensor:
    """Return ``features`` (B, C) of texts at each position (B, length, C), or those (B, S, C) of the first S, then 0.

    Raises:
        UserError: there are features of more positions.
    """
    if features.dim() == 2:
        return features[:, None].expand(-1, length, -1)
    if features.shape[1] > length:
        raise UserError(f"condition: expected features of up to {length} positions, got {features.shape[1]}")
    return F.pad(features, (0, 0, 0, length - features.shape[1]))


def joined(source: Tensor, target: Tensor, tokens: Tensor) -> Tensor:
    """Return rows (B, S + L, ...) of the first ``tokens`` (B,) positions of ``source``, then those of ``target``."""
    size, both = source.shape[1], torch.cat([source, target.to(source)], 1)
    place = torch.arange(both.shape[1], device=tokens.device)
    index = torch.where(place < tokens[:, None], place, place - tokens[:, None] + size).clamp(max=both.shape[1] - 1)
    return _gathered(both, index)


def behind(joint: Tensor, tokens: Tensor, length: int) -> Tensor:
    """Return the ``length`` positions behind the first ``tokens`` (B,) of ``joint`` (B, S + L, ...), or its last."""
    index = torch.arange(length, device=tokens.device) + tokens[:, None]
    return _gathered(joint, index.clamp(max=joint.shape[1] - 1))


def joined_levels(levels: Tensor, clean: float, tokens: Tensor, size: int, length: int) -> Tensor:
    """Return times or noise levels (B, S + L): ``clean`` in prefixes, and ``levels``, (B,) or (B, L), in the texts."""
    levels = levels if levels.dim() == 2 else levels[:, None].expand(-1, length)
    return joined(levels.new_full((len(levels), size), clean), levels, tokens)


def _gathered(x: Tensor, index: Tensor) -> Tensor:
    return x.gather(1, index.view(*index.shape, *[1] * (x.dim() - 2)).expand(-1, -1, *x.shape[2:]))
