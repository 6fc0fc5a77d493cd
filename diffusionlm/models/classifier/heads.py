"""The heads of classifiers: what is classified, from features (B, L, W), and how it is trained and measured.

sequence: log p(value of a field | text)      (B, values)         attention and maximum over positions; a pointer
token:    log p(tag of position i)            (B, L, tags)        linear
span:     log p(label of positions i ... j)   (B, L, L, labels)   a perceptron on the features of both ends
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffusionlm.config import UserError
from diffusionlm.data.labels import Labelled, SpanLabels, TextLabels, TokenLabels
from diffusionlm.models.classifier.accuracy import span_measures
from diffusionlm.models.classifier.model import IGNORED, LatentClassifier
from diffusionlm.models.classifier.templates import find_templates, list_templates, span_places
from diffusionlm.recipe.posterior import SMALLEST

SENSES = 2  # meanings of a word that the pointer tells apart: "not expensive" indicates another price than "expensive"


class LatentSequenceClassifier(LatentClassifier):
    """Classifies texts, by one or more fields."""

    reads_labels, many_fields, can_point = TextLabels(), True, True

    def make_head(self) -> None:
        W = self.settings.features
        self.attend = nn.Linear(W, len(self.labels), bias=False)
        if self.settings.points:
            self.widths = [SENSES * size for size in self.sizes]
            self.point = nn.Linear(W, SENSES * len(self.labels), bias=False)
            self.stated = nn.Embedding(self.config.vocabulary, sum(self.widths))

    def logits(self, features: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
        scores, largest = self.attend(features).float(), features
        if mask is not None:
            scores, largest = _padded_out(scores, mask), _padded_out(features, mask)
        attended = scores.softmax(1).transpose(1, 2).to(features) @ features
        # One word often decides a value: attention takes long to find it, the maximum of each feature does not.
        pooled = attended + largest.amax(1, keepdim=True)
        parts = zip(pooled.unbind(1), self.values.weight.split(self.sizes), self.values.bias.split(self.sizes), strict=True)
        return {name: F.linear(*part) for name, part in zip(self.labels, parts, strict=True)}

    def pointed(self, features: Tensor, mask: Tensor | None, words: Tensor | None) -> dict[str, Tensor]:
        """Return log E[p(value | word)] over attended positions, senses and the token posteriors there."""
        if words is None:
            raise UserError("classifier: this one has a pointer and needs the probabilities of the words")
        scores = self.point(features).float() if mask is None else _padded_out(self.point(features).float(), mask)
        where = scores.unflatten(-1, (-1, SENSES)).transpose(1, 2).flatten(2).softmax(-1).unflatten(-1, (-1, SENSES))
        pointed_at = torch.einsum("bfls,blv->bfsv", where, words.float())
        found = {}
        for f, (name, table) in enumerate(zip(self.labels, self.stated.weight.float().split(self.widths, -1), strict=True)):
            stated = table.unflatten(-1, (SENSES, -1)).softmax(-1)
            found[name] = (torch.einsum("bsv,vsc->bc", pointed_at[:, f], stated) + SMALLEST).log()
        return found

    def targets(self, rows: Sequence[Labelled], length: int) -> Tensor:
        return torch.tensor([[self.index(name, row.labels[name]) for name in self.labels] for row in rows])

    def by_field(self, targets: Tensor) -> Sequence[Tensor]:
        return targets.unbind(1)


class LatentTokenClassifier(LatentClassifier):
    """Classifies tokens. ``lexicon_counts`` (V, tags) counts the tags of each token in the training texts."""

    reads_labels = TokenLabels()
    lexicon_counts: Tensor

    def make_head(self) -> None:
        self.register_buffer("lexicon_counts", torch.zeros(self.config.vocabulary, self.sizes[0], dtype=torch.int32))

    def logits(self, features: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
        return {name: self.values(features) for name in self.labels}

    def count(self, rows: Sequence[Labelled]) -> None:
        (name,) = self.labels
        counts: Counter[tuple[int, int]] = Counter()
        for row in rows:
            counts.update((i, self.index(name, tag)) for i, tag in zip(row, row.labels[name], strict=True) if tag is not None)
        for (token, tag), count in counts.items():
            self.lexicon_counts[token, tag] = count

    def lexicon(self) -> Tensor:
        """Return p(tag | token) (V, tags) as counted in the training texts; zeros for tokens without a count."""
        return self.lexicon_counts / self.lexicon_counts.sum(1, keepdim=True).clamp(min=1)

    def targets(self, rows: Sequence[Labelled], length: int) -> Tensor:
        (name,) = self.labels
        targets = torch.full((len(rows), length), IGNORED)
        for i, row in enumerate(rows):
            known = [IGNORED if tag is None else self.index(name, tag) for tag in row.labels[name]]
            targets[i, : len(known)] = torch.tensor(known)
        return targets


class LatentSpanClassifier(LatentClassifier):
    """Classifies spans: constituents by label, and "" for spans that are none.

    ``span_places`` (N, 6) counts the constituents of the training texts by position, see ``templates.span_places``.
    """

    reads_labels = SpanLabels()
    span_places: Tensor

    def make_head(self) -> None:
        W = self.settings.features
        self.first, self.last = nn.Linear(W, W), nn.Linear(W, W, bias=False)
        self._set_places(torch.zeros(self.config.span_places, 6, dtype=torch.int32))

    def _set_places(self, places: Tensor) -> None:
        self.register_buffer("span_places", places, persistent=bool(len(places)))

    def logits(self, features: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
        pairs = self.first(features)[:, :, None] + self.last(features)[:, None]
        return {name: self.values(F.gelu(pairs)) for name in self.labels}

    def count(self, rows: Sequence[Labelled]) -> None:
        ((name, values),) = self.labels.items()
        self.config.templates = find_templates(rows, name) if self.settings.templates else {}
        self._set_places(span_places(rows, name, values, self.config.templates))
        self.config.span_places = len(self.span_places)

    def length_probabilities(self, first: int, last: int, chains: Tensor) -> list[float]:
        """Return by text length the probability that positions ``first`` to ``last`` are labelled one of ``chains``.

        Lengths count BOS and EOS. Frequencies in the training texts, each length smoothed with one text that has the
        frequency of all lengths; empty where no training text has such a span.
        """
        spans = self._places(first, last, chains)

        def by_length(rows: Tensor) -> Tensor:
            length, texts = rows[:, 4:].unbind(1)
            return torch.zeros(self.config.max_tokens + 1).index_add_(0, length, texts.float())

        having, all_texts = by_length(spans), by_length(self._places(0, 0, torch.tensor([0])))
        return ((having + having.sum() / all_texts.sum()) / (all_texts + 1)).tolist() if having.any() else []

    def template_lengths(self, first: int, last: int, chains: Tensor) -> dict[str, set[int]]:
        """Return the templates of such spans in training, each with the lengths of the texts where it was found."""
        templates, found = list_templates(self.config.templates), defaultdict(set)
        for _, _, _, number, length, _ in self._places(first, last, chains).tolist():
            if number:
                found[templates[number - 1]].add(length)
        return dict(found)

    def _places(self, first: int, last: int, chains: Tensor) -> Tensor:
        """Return the rows of ``span_places`` for these positions and labels."""
        places = self.span_places.cpu()
        return places[(places[:, 0] == first) & (places[:, 1] == last) & torch.isin(places[:, 2], chains.int())]

    def targets(self, rows: Sequence[Labelled], length: int) -> Tensor:
        (name,) = self.labels
        targets = torch.full((len(rows), length, length), IGNORED)
        for i, row in enumerate(rows):
            end = len(row) - 1
            targets[i, 1:end, 1:end].masked_fill_(torch.ones(end - 1, end - 1, dtype=torch.bool).triu(), 0)
            for (first, last), label in row.labels[name].items():
                targets[i, first, last] = self.index(name, label)
        return targets

    def class_weights(self, size: int, none_weight: float) -> Tensor:
        weights = torch.ones(size)
        weights[0] = none_weight
        return weights

    def measures(self, confusion: Tensor) -> dict[str, float]:
        return span_measures(confusion)


HEADS: dict[str, type[LatentClassifier]] = {
    kind.reads_labels.head: kind for kind in (LatentSequenceClassifier, LatentTokenClassifier, LatentSpanClassifier)
}


def _padded_out(x: Tensor, mask: Tensor) -> Tensor:
    """Return ``x`` (B, L, ...) with -inf at padding."""
    return x.masked_fill(~mask[..., None], -torch.inf)
