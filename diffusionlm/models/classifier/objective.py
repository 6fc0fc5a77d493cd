"""The objective of classifiers: cross-entropy at the noise levels that sampling passes, and how right they are at each.

The diffusion model is frozen and stays outside: it makes the latents, and is neither trained nor saved. Shape letters:
B batch, L positions, D latent dimension, F fields.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from accelerate.utils import send_to_device
from torch import Tensor
from torch.nn import functional as F

from diffusionlm import plots
from diffusionlm.config import UserError
from diffusionlm.core.objective import Batch, Objective, ObjectiveConfig, expect_family
from diffusionlm.data.labels import Labelled
from diffusionlm.models.classifier.accuracy import CLEAN, LOG_SNRS, Accuracy, span_scores, value_scores
from diffusionlm.models.classifier.model import LatentClassifier
from diffusionlm.models.diffusion import DiffusionLM
from diffusionlm.models.io import model_folder
from diffusionlm.models.spec import ModelSpec
from diffusionlm.recipe.frozen import Frozen

if TYPE_CHECKING:
    from matplotlib.figure import Figure

IGNORED = -100


@dataclass(frozen=True)
class Classification(ObjectiveConfig, name="classification"):
    """Mean cross-entropy of the labels given latents, in nats a label.

    Times follow the denoiser's schedule, as in its own training. A belief is x0-hat as sampling sees it: where the
    denoiser conditions on itself it denoises twice, the second time told the first.

    Args:
        clean_share: of the texts, whose words are given as they are, at t = 0.
        blank_share: of the texts, of which nothing is seen but how long they are, at t = 1: how likely a label is at each
            length decides how long texts are to be that have it.
        replaced_share: of the words, each replaced by a random one, where the classifier reads clean words: else it would
            be sure of itself on words that say nothing yet.
        none_weight: of a span that is no constituent, as most are, where a constituent counts 1; what the classifier then says
            of how likely a constituent is stays calibrated.
        report_texts: the most held-out texts to measure the accuracy on.
    """

    clean_share: float = 0.2
    blank_share: float = 0.1
    replaced_share: float = 0.15
    none_weight: float = 0.3
    report_texts: int = 1000

    def __post_init__(self) -> None:
        """Check the numbers."""
        for name in ("clean_share", "blank_share", "replaced_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name}: expected a share between 0 and 1, got {getattr(self, name)}")
        if self.none_weight <= 0:
            raise UserError(f"none_weight: expected a positive number, got {self.none_weight}")
        if self.report_texts < 1:
            raise UserError(f"report_texts: expected at least 1, got {self.report_texts}")

    def check(self, model: ModelSpec) -> None:
        """Check that the model is a classifier."""
        expect_family(self, model, "classifier")

    def build(self, model: LatentClassifier) -> ClassificationObjective:
        """Make the module. Raises UserError where the denoiser cannot be read, or is not the classifier's."""
        self.check(model.settings)
        denoiser = DiffusionLM.load(model_folder(model.settings.denoiser))
        model.check_fits(denoiser)
        return ClassificationObjective(self, model, denoiser)


class ClassificationObjective(Objective):
    """The module of ``Classification``."""

    model: LatentClassifier

    def __init__(self, spec: Classification, model: LatentClassifier, denoiser: DiffusionLM) -> None:
        """Pad as the denoiser's own texts are padded."""
        super().__init__(model, denoiser.config.special_ids["pad"], denoiser.padded_width)
        self.spec, self.frozen = spec, Frozen(denoiser)

    @property
    def denoiser(self) -> DiffusionLM:
        """Return the frozen diffusion model, on the classifier's device."""
        return self.frozen.on(self.model.device)

    def collate(self, rows: Sequence[list[int]]) -> Batch:
        """Make a batch of ``Labelled`` rows; ``targets`` are indices: (B, F) of texts, (B, L) of tokens, (B, L, L) of spans."""
        batch = super().collate(rows)
        labelled = [row for row in rows if isinstance(row, Labelled)]
        names, length = list(self.model.labels), batch["ids"].shape[1]
        index = self.model.index
        if self.model.settings.head == "sequence":
            targets = torch.tensor([[index(name, row.labels[name]) for name in names] for row in labelled])
        elif self.model.settings.head == "token":
            targets = torch.full((len(rows), length), IGNORED)
            for i, row in enumerate(labelled):
                known = [IGNORED if tag is None else index(names[0], tag) for tag in row.labels[names[0]]]
                targets[i, : len(known)] = torch.tensor(known)
        else:
            targets = torch.full((len(rows), length, length), IGNORED)
            for i, row in enumerate(labelled):
                last = len(row) - 1
                targets[i, 1:last, 1:last].masked_fill_(torch.ones(last - 1, last - 1, dtype=torch.bool).triu(), 0)
                for (start, end), label in row.labels[names[0]].items():
                    targets[i, start, end] = index(names[0], label)
        batch["targets"] = targets
        return batch

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return ``cross_entropy``, in nats a label: of spans a weighted mean, of network and pointer that of each alone."""
        ids, mask, targets = batch.ids, batch.mask, batch["targets"]
        B, device = len(ids), ids.device
        u = (torch.randperm(B, device=device) + torch.rand(B, device=device)) / B  # stratified, as the denoiser's
        t = self.model.schedule.training_times(u)
        reads = self.model.settings.reads
        clean = torch.rand(B, device=device) < (1.0 if reads == "clean" else self.spec.clean_share)
        blank = torch.rand(B, device=device) < self.spec.blank_share
        t = torch.where(clean, 0, torch.where(blank, 1, t))
        if reads == "clean" and self.training:
            replaced = (torch.rand(ids.shape, device=device) < self.spec.replaced_share) & self._free(ids, mask)
            ids = torch.where(replaced, torch.randint_like(ids, self.model.config.vocabulary), ids)
        losses, wanted_by_field = [], self._by_field(targets)
        latents, words = self.believed(ids, mask, t)
        for found in self.model.readings(latents, t, self._attend(mask), words):
            for log_probs, wanted in zip(found.values(), wanted_by_field, strict=True):
                weights = torch.ones(log_probs.shape[-1], device=device)
                if self.model.settings.head == "span":
                    weights[0] = self.spec.none_weight
                # Told of the weights, the log-probabilities need not learn them (Menon et al. 2021, logit adjustment).
                weighted = (log_probs + weights.log()).log_softmax(-1).flatten(0, -2)
                losses.append(F.nll_loss(weighted, wanted.flatten(), weights, ignore_index=IGNORED))
        return {"cross_entropy": torch.stack(losses).mean()}

    def _by_field(self, targets: Tensor) -> Sequence[Tensor]:
        return targets.unbind(1) if self.model.settings.head == "sequence" else [targets]

    def _attend(self, mask: Tensor) -> Tensor | None:
        return None if bool(mask.all()) else mask

    def _free(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Return which positions are noised: with an explicit length, START, END and padding are given."""
        special = self.denoiser.config.special_ids
        boundary = (ids == special["start"]) | (ids == special["end"])
        return mask & ~boundary if self.denoiser.settings.explicit_length else torch.ones_like(mask)

    @torch.no_grad()
    def believed(self, ids: Tensor, mask: Tensor, t: Tensor) -> tuple[Tensor, Tensor | None]:
        """Draw what the classifier reads (B, L, D) of texts at times ``t`` (B,): at t = 0 the words' own vectors.

        The chances of the words (B, L, V) come with it where a pointer asks for them. A classifier of clean words reads
        beliefs at other times, for that is what it is used on.
        """
        denoiser, free = self.denoiser, self._free(ids, mask)
        with torch.autocast(ids.device.type, enabled=False):
            x0 = denoiser.encode(ids)
            xt = torch.where(free[..., None], denoiser.process.noise(x0, t), x0)
        words = self.model.chances(ids)
        if self.model.settings.reads == "noisy":
            return torch.where((t > 0)[:, None, None], xt, x0), words
        noisy = (t > 0).nonzero()[:, 0]
        if not len(noisy):
            return x0, words
        levels, attend = torch.where(free[noisy], t[noisy, None], 0), self._attend(mask)
        attend, estimate = None if attend is None else attend[noisy], None
        for _ in range(2 if denoiser.settings.self_conditioning else 1):
            belief = denoiser(xt[noisy], levels, attend, estimate)
            estimate = belief.x0
        open_ = free[noisy][..., None]
        if words is not None:
            words = words.index_copy(0, noisy, torch.where(open_, belief.logits.softmax(-1), words[noisy]))
        return x0.index_copy(0, noisy, torch.where(open_, belief.x0, x0[noisy])), words

    @torch.no_grad()
    def confusion(self, rows: Sequence[list[int]], log_snr: float) -> dict[str, Tensor]:
        """Count, for each field, labels by their true and their most likely value (values, values), at a noise level.

        The noise is the same at every call; torch's random state and the module's mode are left as they were.
        """
        was_training, device = self.training, self.model.device
        self.train(False)
        gamma = torch.tensor(-log_snr, dtype=torch.float64)
        level = torch.zeros((), dtype=torch.float64) if log_snr == CLEAN else self.model.schedule.time(gamma).clamp(0, 1)
        counts = [torch.zeros(n * n, dtype=torch.long) for n in self.model.sizes]
        ordered = sorted(rows, key=len)
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(0)
            for start in range(0, len(ordered), 32):
                batch = send_to_device(self.collate(ordered[start : start + 32]), device)
                ids, mask, targets = batch.ids, batch.mask, batch["targets"]
                t = level.to(device).expand(len(ids))
                latents, words = self.believed(ids, mask, t)
                found = self.model(latents, t, self._attend(mask), words)
                for field, (log_probs, wanted) in enumerate(zip(found.values(), self._by_field(targets), strict=True)):
                    known = wanted != IGNORED
                    pairs = wanted[known] * self.model.sizes[field] + log_probs.argmax(-1)[known]
                    counts[field] += pairs.bincount(minlength=len(counts[field])).cpu()
        self.train(was_training)
        return {name: count.view(n, n) for name, count, n in zip(self.model.labels, counts, self.model.sizes, strict=True)}

    def accuracy(self, rows: Sequence[list[int]]) -> Accuracy:
        """Measure the classifier on ``rows`` at each noise level."""
        spans = self.model.settings.head == "span"
        scores: dict[str, dict[str, list[float]]] = {}
        for log_snr in LOG_SNRS:
            for name, counts in self.confusion(rows, log_snr).items():
                figures = span_scores(counts) if spans else value_scores(counts)
                for measure, figure in figures.items():
                    scores.setdefault(name, {}).setdefault(measure, []).append(round(figure, 4))
        return Accuracy(self.model.settings.head, self.model.settings.reads, len(rows), scores)

    def figures(self, held_out: Sequence[list[int]] = ()) -> dict[str, Figure]:
        """Draw the accuracy on ``held_out`` rows against the noise level."""
        return {"accuracy": self.accuracy(held_out).figure()} if held_out else {}

    def report(self, held_out: Sequence[list[int]], folder: Path) -> str:
        """Write ``model/accuracy.json`` and ``figures/accuracy.png``; return the accuracies as a table."""
        if not held_out:
            return "there are no held-out texts to measure the accuracy on"
        found = self.accuracy(held_out[: self.spec.report_texts])
        (folder / "model" / "accuracy.json").write_text(json.dumps(found.plain(), indent=2) + "\n")
        if plots.available():
            (folder / "figures").mkdir(exist_ok=True)
            plots.save(found.figure(), folder / "figures" / "accuracy.png")
        return found.table()
