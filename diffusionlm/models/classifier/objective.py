"""The objective of classifiers: cross-entropy of the labels at the noise levels of sampling, and the accuracy at each.

The diffusion model is frozen: it makes the latents, and is neither trained nor saved. Shape letters: B batch, L positions, D
latent dimension, V words.
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
from diffusionlm.core.objective import Batch, Objective, ObjectiveConfig, expect_family
from diffusionlm.data.labels import Labelled
from diffusionlm.models.classifier.accuracy import CLEAN, LOG_SNRS, Accuracy
from diffusionlm.models.classifier.model import IGNORED, LatentClassifier
from diffusionlm.models.diffusion import DiffusionLM
from diffusionlm.models.io import model_folder
from diffusionlm.models.spec import ModelSpec
from diffusionlm.recipe.frozen import Frozen

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Classification(ObjectiveConfig, name="classification"):
    """Mean cross-entropy of the labels given latents, in nats per label.

    Times are drawn from the denoiser's noise schedule, as in its own training. A self-conditioned denoiser predicts twice,
    the second time with its first estimate, as in sampling.

    Args:
        clean_share: share of the texts with clean words, at t = 0.
        blank_share: share of the texts that are pure noise, at t = 1, where only their length is known: the label's
            probability at each length reweights the lengths that are sampled.
        replaced_share: share of the words replaced by random ones, for a classifier of clean words: it is applied to
            predictions, and would otherwise be overconfident on wrong words.
        none_weight: weight of a span that is no constituent, as most are; constituents have 1. The log-probabilities stay
            calibrated.
        report_texts: the most held-out texts that the accuracy is measured on.
    """

    clean_share: float = 0.2
    blank_share: float = 0.1
    replaced_share: float = 0.15
    none_weight: float = 0.3
    report_texts: int = 1000

    def __post_init__(self) -> None:
        self.expect("a share between 0 and 1", "clean_share", "blank_share", "replaced_share")
        self.expect("a positive number", "none_weight")
        self.expect("at least 1", "report_texts")

    def check(self, model: ModelSpec) -> None:
        expect_family(self, model, "classifier")

    def build(self, model: LatentClassifier) -> ClassificationObjective:
        """Return the module. Raises UserError where the denoiser cannot be loaded, or has other word vectors."""
        self.check(model.settings)
        denoiser = DiffusionLM.load(model_folder(model.settings.denoiser))
        model.check_fits(denoiser)
        return ClassificationObjective(self, model, denoiser)


class ClassificationObjective(Objective):
    """The module of ``Classification``."""

    model: LatentClassifier

    def __init__(self, spec: Classification, model: LatentClassifier, denoiser: DiffusionLM) -> None:
        super().__init__(model, denoiser.config.special_ids["pad"], denoiser.padded_width)
        self.spec, self.frozen = spec, Frozen(denoiser)

    @property
    def denoiser(self) -> DiffusionLM:
        """The frozen diffusion model, on the classifier's device."""
        return self.frozen.on(self.model.device)

    def collate(self, rows: Sequence[list[int]]) -> Batch:
        """Return a batch of ``Labelled`` rows with their ``targets``, the indices of the labels."""
        batch = super().collate(rows)
        batch["targets"] = self.model.targets([row for row in rows if isinstance(row, Labelled)], batch.ids.shape[1])
        return batch

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return ``cross_entropy``, the mean over fields, and over network and pointer, which are trained separately."""
        t = self._draw_times(batch)
        batch = self._replace_words(batch)
        latents, words = self.latents_at(batch, t)
        targets = self.model.by_field(batch["targets"])
        losses = [
            self._loss(log_probs, wanted)
            for found in self.model.experts(latents, t, batch.attend, words)
            for log_probs, wanted in zip(found.values(), targets, strict=True)
        ]
        labelled = sum(bool((wanted != IGNORED).any()) for wanted in targets)  # fields; the loss of another is 0
        return {"cross_entropy": torch.stack(losses).mean() * (len(targets) / max(labelled, 1))}

    def measurable(self, held_out: Sequence[list[int]]) -> Sequence[list[int]]:
        """Return the rows with a label that the training texts have."""
        return [row for row in held_out if (self.collate([row])["targets"] != IGNORED).any()]

    def _draw_times(self, batch: Batch) -> Tensor:
        """Draw the times (B,), stratified as in the denoiser's training: 0 for clean texts, 1 for blank ones."""
        B, device = len(batch.ids), batch.ids.device
        u = (torch.randperm(B, device=device) + torch.rand(B, device=device)) / B
        t = self.model.schedule.training_times(u)
        clean = torch.rand(B, device=device) < (1.0 if self.model.settings.reads == "clean" else self.spec.clean_share)
        blank = torch.rand(B, device=device) < self.spec.blank_share
        return torch.where(clean, 0, torch.where(blank, 1, t))

    def _replace_words(self, batch: Batch) -> Batch:
        """Replace a share of the words by random ones in training, for a classifier of clean words."""
        if self.model.settings.reads != "clean" or not self.training:
            return batch
        ids = batch.ids
        replaced = (torch.rand(ids.shape, device=ids.device) < self.spec.replaced_share) & self.denoiser.free_positions(batch)
        return Batch({**batch, "ids": torch.where(replaced, torch.randint_like(ids, self.model.config.vocabulary), ids)})

    def _loss(self, log_probs: Tensor, targets: Tensor) -> Tensor:
        """Return the weighted cross-entropy, 0 without labels; the logits are adjusted for the weights (Menon et al. 2021)."""
        weights = self.model.class_weights(log_probs.shape[-1], self.spec.none_weight).to(log_probs.device)
        adjusted = (log_probs + weights.log()).log_softmax(-1).flatten(0, -2)
        mean = "mean" if bool((targets != IGNORED).any()) else "sum"  # the mean over no label is not a number
        return F.nll_loss(adjusted, targets.flatten(), weights, ignore_index=IGNORED, reduction=mean)

    @torch.no_grad()
    def latents_at(self, batch: Batch, t: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the latents (B, L, D) of texts at times ``t`` (B,), and the token posteriors (B, L, V) for a pointer.

        At t = 0 they are the word vectors. At other times a classifier of clean words gets predictions, as in sampling.
        """
        denoiser, free = self.denoiser, self.denoiser.free_positions(batch)
        with torch.autocast(t.device.type, enabled=False):
            x0 = denoiser.encode(batch.ids)
            xt = torch.where(free[..., None], denoiser.process.noise(x0, t), x0)
        words = self.model.word_probabilities(batch.ids)
        if self.model.settings.reads == "noisy":
            return torch.where((t > 0)[:, None, None], xt, x0), words
        noisy = (t > 0).nonzero()[:, 0]
        if not len(noisy):
            return x0, words
        free, attend = free[noisy], None if batch.attend is None else batch.mask[noisy]
        prediction = denoiser.denoise(xt[noisy], torch.where(free, t[noisy, None], 0), attend)
        if words is not None:
            predicted = torch.where(free[..., None], prediction.logits.softmax(-1), words[noisy])
            words = words.index_copy(0, noisy, predicted)
        return x0.index_copy(0, noisy, torch.where(free[..., None], prediction.x0, x0[noisy])), words

    @torch.no_grad()
    def confusion(self, rows: Sequence[list[int]], log_snr: float) -> dict[str, Tensor]:
        """Return for each field the confusion matrix (true, predicted) at a noise level.

        The noise is the same at each call; torch's random state and the module's mode are left unchanged.
        """
        was_training, device = self.training, self.model.device
        self.train(False)
        gamma = torch.tensor(-log_snr, dtype=torch.float64)
        time = torch.zeros_like(gamma) if log_snr == CLEAN else self.model.schedule.time(gamma).clamp(0, 1)
        counts = [torch.zeros(n * n, dtype=torch.long) for n in self.model.sizes]
        ordered = sorted(rows, key=len)
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(0)
            for start in range(0, len(ordered), 32):
                batch = send_to_device(self.collate(ordered[start : start + 32]), device)
                t = time.to(device).expand(len(batch.ids))
                latents, words = self.latents_at(batch, t)
                found = self.model(latents, t, batch.attend, words)
                targets = self.model.by_field(batch["targets"])
                for n, count, log_probs, wanted in zip(self.model.sizes, counts, found.values(), targets, strict=True):
                    known = wanted != IGNORED
                    count += (wanted[known] * n + log_probs.argmax(-1)[known]).bincount(minlength=n * n).cpu()
        self.train(was_training)
        return {name: count.view(n, n) for name, count, n in zip(self.model.labels, counts, self.model.sizes, strict=True)}

    def accuracy(self, rows: Sequence[list[int]]) -> Accuracy:
        """Measure the classifier on ``rows`` at each noise level."""
        scores: dict[str, dict[str, list[float]]] = {}
        for log_snr in LOG_SNRS:
            for name, confusion in self.confusion(rows, log_snr).items():
                for measure, figure in self.model.measures(confusion).items():
                    scores.setdefault(name, {}).setdefault(measure, []).append(round(figure, 4))
        return Accuracy(self.model.settings.head, self.model.settings.reads, len(rows), scores)

    def figures(self, held_out: Sequence[list[int]] = ()) -> dict[str, Figure]:
        return {"accuracy": self.accuracy(held_out).figure()} if held_out else {}

    def report(self, held_out: Sequence[list[int]], folder: Path) -> str:
        """Write ``model/accuracy.json`` and ``figures/accuracy.png``; return the accuracies as a table."""
        if not held_out:
            return "there are no held-out texts to measure the accuracy on"
        found = self.accuracy(held_out[: self.spec.report_texts])
        (folder / "model" / "accuracy.json").write_text(json.dumps(found.plain(), indent=2) + "\n")
        if plots.available():
            plots.save(found.figure(), folder / "figures" / "accuracy.png")
        return found.table()
