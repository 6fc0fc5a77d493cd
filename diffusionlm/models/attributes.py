"""Conditions on a label or a number of each text, and on several conditions at once.

Their features are concatenated to the network's inputs at each position, which its first layer embeds and adds; the null
condition has features 0. B batch, C features.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedTokenizerFast

from diffusionlm.config import UserError, nearest
from diffusionlm.data.reading import is_nan, nfc
from diffusionlm.models.conditions import Condition, Conditioning, at_positions, check_keys, column, fitted_labels, kept
from diffusionlm.processes import is_first

if TYPE_CHECKING:
    import datasets  # type: ignore[import-untyped]

    from diffusionlm.models.diffusion import WordVectorModel
    from diffusionlm.models.source import SourceText


@dataclass(frozen=True)
class Label(Condition, name="label"):
    """The value of a corpus column or attribute, one of a few; texts without a value have the null condition.

    Args:
        field: the column or attribute.
        labels: its values; empty is those of the training texts.
        drop: share of the labels that are hidden in training, for classifier-free guidance (Ho and Salimans 2021).
    """

    fits: ClassVar[tuple[str, ...]] = ("labels",)

    field: str
    labels: tuple[str, ...] = ()
    drop: float = 0.1

    def __post_init__(self) -> None:
        self.expect("a share from 0 to below 1", "drop")
        if len({*self.labels}) < len(self.labels):
            raise UserError(f"labels: expected different labels, got {', '.join(self.labels)}")

    @property
    def key(self) -> str:
        return self.field

    @property
    def size(self) -> int:
        return len(self.labels)

    def build(self, model: WordVectorModel) -> nn.Module:
        return OneHot(self)

    def fitted(self, rows: datasets.Dataset) -> Self:
        found = [value for value in self._strings(rows) if value is not None]
        names = {"place": "model.condition", "one": self.field, "all": f"labels in {self.field!r}"}
        return replace(self, labels=fitted_labels(self.labels, found, **names))

    def values(self, rows: datasets.Dataset) -> list[Any]:
        same = self._same()
        return [None if value is None else same.get(value) for value in self._strings(rows)]

    def encoded(self, values: Sequence[Any], tokenizer: PreTrainedTokenizerFast) -> list[Any]:
        same = self._same()
        return [same.get(nfc(value), value) if isinstance(value, str) else value for value in values]

    def _same(self) -> dict[str, str]:
        """Return the labels by their forms in Unicode's normal form C, in which they are compared."""
        return {nfc(label): label for label in self.labels}

    def _strings(self, rows: datasets.Dataset) -> list[str | None]:
        found = column(rows, self.field, "model.condition")
        for row, value in enumerate(found, 1):
            if isinstance(value, list | tuple | Mapping | bytes):
                got = f"{str(value)[:60]} in text {row}"
                raise UserError(f"model.condition: expected a word or a number in {self.field!r}, got {got}")
        return [None if value in (None, "") or is_nan(value) else nfc(str(value)) for value in found]

    def collate(self, values: Sequence[Any]) -> dict[str, Tensor]:
        for value in values:
            if value is not None and value not in self.labels:
                raise UserError(f"condition: {self.field} has no value {value!r}{nearest(str(value), self.labels)}")
        return {"label": torch.tensor([0 if value is None else 1 + self.labels.index(value) for value in values])}


class OneHot(nn.Module):
    """The module of ``Label``: numbers of labels (B,), 0 for none, to a one-hot vector or 0."""

    def __init__(self, spec: Label) -> None:
        super().__init__()
        self.size, self.drop = spec.size, spec.drop

    def forward(self, label: Tensor) -> Conditioning:
        """Return the features (B, C)."""
        label = label * kept(self, len(label), self.drop, label.device)
        return Conditioning(features=F.one_hot(label, self.size + 1)[:, 1:].float())


@dataclass(frozen=True)
class Number(Condition, name="number"):
    """A number in a corpus column or attribute, such as a rating; texts without one have the null condition.

    Args:
        field: the column or attribute.
        mean: of the numbers in the training texts, measured there; also ``deviation``.
        drop: share of the numbers that are hidden in training, for classifier-free guidance.
    """

    fits: ClassVar[tuple[str, ...]] = ("mean", "deviation")

    field: str
    mean: float | None = None
    deviation: float | None = None
    drop: float = 0.1

    def __post_init__(self) -> None:
        self.expect("a share from 0 to below 1", "drop")
        self.expect("a finite number", "mean")
        self.expect("a positive number", "deviation")

    @property
    def key(self) -> str:
        return self.field

    @property
    def size(self) -> int:
        return 1 + 2 * FREQUENCIES

    def build(self, model: WordVectorModel) -> nn.Module:
        return Waves(self)

    def fitted(self, rows: datasets.Dataset) -> Self:
        numbers = torch.tensor([value for value in self.values(rows) if value is not None], dtype=torch.float64)
        if len(numbers.unique()) < 2:
            raise UserError(
                f"model.condition: expected two different numbers or more in {self.field!r}, got {len(numbers.unique())}"
            )
        mean, deviation = float(numbers.mean()), float(numbers.std(correction=0))
        self._report_outliers(numbers, mean, deviation * PERIOD / 2)
        return replace(self, mean=mean, deviation=deviation)

    def _report_outliers(self, numbers: Tensor, mean: float, most: float) -> None:
        """Say on stderr which of the training texts' ``numbers`` (N,) are more than ``most`` from their ``mean``."""
        far = numbers[(numbers - mean).abs() > most]
        if len(far) and is_first():
            print(
                f"model.condition: {len(far)} of {len(numbers)} numbers in {self.field!r} are more than {PERIOD // 2} standard "
                f"deviations from their mean {mean:.4g}, such as {float(far[0]):.4g}, and are the same to the network as "
                "others that are nearer; correct them, or take logarithms",
                file=sys.stderr,
            )

    def values(self, rows: datasets.Dataset) -> list[Any]:
        found = column(rows, self.field, "model.condition")
        return [None if is_nan(value) else self._number(value, f" in text {row}") for row, value in enumerate(found, 1)]

    def requested(self, given: Any) -> Any:
        """Return the value that a caller gave. Raises UserError for one that the network takes for another number."""
        if (value := super().requested(given)) is None:
            return None
        assert self.mean is not None and self.deviation is not None
        number, most = self._number(value), PERIOD / 2 * self.deviation
        if number is None or abs(number - self.mean) > most:
            span = f"{self.mean - most:.4g} to {self.mean + most:.4g}"
            raise UserError(
                f"condition: {self.field}: expected a number from {span}, {PERIOD // 2} standard deviations of the training "
                f"texts' on each side of their mean, got {value!r}"
            )
        return number

    def encoded(self, values: Sequence[Any], tokenizer: PreTrainedTokenizerFast) -> list[Any]:
        return [self._number(value) for value in values]

    def _number(self, value: Any, place: str = "") -> float | None:
        if value is None or value == "":
            return None
        try:
            number = math.nan if isinstance(value, bool) else float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            raise UserError(f"condition: {self.field}: expected a number, got {value!r}{place}")
        return number

    def collate(self, values: Sequence[Any]) -> dict[str, Tensor]:
        assert self.mean is not None and self.deviation is not None
        scaled = [0.0 if value is None else (value - self.mean) / self.deviation for value in values]
        return {"number": torch.tensor(scaled), "given": torch.tensor([value is not None for value in values])}


PERIOD = 8  # of the lowest frequency, in standard deviations: numbers so far apart are the same to the network
FREQUENCIES = 4  # octaves


class Waves(nn.Module):
    """The module of ``Number``: sines and cosines of the standardised number, and 1; all are 0 where there is none."""

    def __init__(self, spec: Number) -> None:
        super().__init__()
        self.drop = spec.drop

    def forward(self, number: Tensor, given: Tensor) -> Conditioning:
        """Return the features (B, C) of ``number`` (B,), where it is ``given`` (B,)."""
        given = given & kept(self, len(given), self.drop, given.device)
        angles = number[:, None] * math.pi / (PERIOD / 2) * 2.0 ** torch.arange(FREQUENCIES, device=number.device)
        features = torch.cat([torch.ones_like(number)[:, None], angles.sin(), angles.cos()], -1)
        return Conditioning(features=features * given[:, None])


@dataclass(frozen=True)
class Several(Condition, name="several"):
    """Several conditions, ``parts``, each with its own value.

    In training, a share ``drop`` of the texts loses all values together, so that the null condition is learned from all texts;
    of the others each value is dropped on its own, with the share of its part.
    """

    parts: tuple[Condition, ...]

    def __post_init__(self) -> None:
        keys = [part.key for part in self.parts]
        if len({*keys}) < len(keys) or not keys:
            raise UserError(f"parts: expected conditions of different names, got {', '.join(keys) or 'none'}")
        if (
            sum(isinstance(part, Several) for part in self.parts)
            or sum(part.has_states or part.prefix_size > 0 for part in self.parts) > 1
            or sum(part.with_own_tokenizer is not None for part in self.parts) > 1
        ):
            raise UserError("parts: expected at most one source, and no 'several' within 'several'")

    @property
    def drop(self) -> float:  # type: ignore[override]
        """The smallest of the parts' shares: of the texts of which all values are dropped together."""
        return min(part.drop for part in self.parts)

    @property
    def size(self) -> int:
        return sum(part.size for part in self.parts)

    @property
    def has_states(self) -> bool:
        return any(part.has_states for part in self.parts)

    @property
    def prefix_size(self) -> int:
        return max(part.prefix_size for part in self.parts)

    @property
    def shares_length(self) -> bool:
        return any(part.shares_length for part in self.parts)

    @property
    def of_positions(self) -> bool:
        return any(part.of_positions for part in self.parts)

    @property
    def clean_prefix(self) -> bool:
        return all(part.clean_prefix for part in self.parts)

    @property
    def with_own_tokenizer(self) -> SourceText | None:
        return next((part.with_own_tokenizer for part in self.parts if part.with_own_tokenizer is not None), None)

    def build(self, model: WordVectorModel) -> nn.Module:
        return Merged([part.build(model) for part in self.parts], self.drop)

    def fitted(self, rows: datasets.Dataset) -> Self:
        found = replace(self, parts=tuple(part.fitted(rows) for part in self.parts))
        for part in found.parts if self.drop else ():
            if any(tensor.count_nonzero() for tensor in part.collate([None]).values()):
                raise UserError(
                    f"parts: all values are dropped together as tensors of 0, but {part.key!r} collates None to others; "
                    "expected 0, or drop: 0"
                )
        return found

    def describes(self, fitted: Condition) -> bool:
        if not isinstance(fitted, Several) or len(fitted.parts) != len(self.parts):
            return False
        return all(part.describes(other) for part, other in zip(self.parts, fitted.parts, strict=True))

    def texts(self, rows: datasets.Dataset) -> list[str]:
        return [text for part in self.parts for text in part.texts(rows)]

    def values(self, rows: datasets.Dataset) -> list[Any]:
        by_part = [part.values(rows) for part in self.parts]
        return [dict(zip(self.keys, row, strict=True)) for row in zip(*by_part, strict=True)]

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(part.key for part in self.parts)

    def read(self, text: str, key: str = "") -> Any:
        return next((part.read(text) for part in self.parts if part.key == key), text)

    def requested(self, given: Any) -> Any:
        if given is None:
            return None
        if not isinstance(given, Mapping):
            raise UserError(f"condition: expected a value for some of {', '.join(self.keys)}, by name, got {given!r}")
        check_keys(given, self.keys)
        return {part.key: part.requested(given.get(part.key)) for part in self.parts}

    def with_source(self, given: Any, text: str) -> Any:
        if "source" not in self.keys:
            return super().with_source(given, text)
        if isinstance(given, Mapping) and given.get("source") is not None:
            raise UserError("condition: the source is given twice; leave one out")
        return {**(given or {}), "source": text} if given is None or isinstance(given, Mapping) else given

    def encoded(self, values: Sequence[Any], tokenizer: PreTrainedTokenizerFast) -> list[Any]:
        by_part = [part.encoded([(value or {}).get(part.key) for value in values], tokenizer) for part in self.parts]
        rows = [dict(zip(self.keys, row, strict=True)) for row in zip(*by_part, strict=True)]
        return [None if all(value is None for value in row.values()) else row for row in rows]

    def of_piece(self, value: Any, start: int, tokens: int) -> Any:
        return {part.key: part.of_piece((value or {}).get(part.key), start, tokens) for part in self.parts}

    def length(self, value: Any) -> int | None:
        lengths = (part.length((value or {}).get(part.key)) for part in self.parts)
        return next((length for length in lengths if length is not None), None)

    def collate(self, values: Sequence[Any]) -> dict[str, Tensor]:
        return {
            f"{number}.{name}": tensor
            for number, part in enumerate(self.parts)
            for name, tensor in part.collate([(value or {}).get(part.key) for value in values]).items()
        }


class Merged(nn.Module):
    """The module of ``Several``: the features of the parts side by side, and the source of the one that has one."""

    def __init__(self, parts: Sequence[nn.Module], drop: float) -> None:
        super().__init__()
        self.drop = drop
        self.parts = nn.ModuleDict({str(number): part for number, part in enumerate(parts)})

    def forward(self, **tensors: Tensor) -> Conditioning:
        """Return the conditioning of all parts; a name is ``<number of the part>.<its own name>``."""
        found: dict[str, Any] = {}
        features: list[Tensor] = []
        tensors = self._dropped_together(tensors)
        for number, part in self.parts.items():
            own = {name.partition(".")[2]: tensor for name, tensor in tensors.items() if name.partition(".")[0] == number}
            given: Conditioning = part(**own)
            features += [] if given.features is None else [given.features]
            found |= {name: value for name, value in vars(given).items() if value is not None}
        if positions := max((each.shape[1] for each in features if each.dim() == 3), default=0):
            features = [at_positions(each, positions) for each in features]
        return Conditioning(**{**found, "features": torch.cat(features, -1) if features else None})

    def _dropped_together(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return ``tensors`` with the null condition, which is 0, in the rows of which all values are dropped."""
        if not (self.training and self.drop):
            return tensors
        first = next(iter(tensors.values()))
        rows = kept(self, len(first), self.drop, first.device)
        return {name: tensor * rows.view(-1, *[1] * (tensor.dim() - 1)) for name, tensor in tensors.items()}
