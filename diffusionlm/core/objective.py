"""Training objectives: a batch in, named loss terms out; their sum is minimised. And the objective of the paper.

    L = sum_t E |x_0 - x0_hat(x_t, t)|^2  +  E -log p(w | x_0)  +  |alpha_1 x_0|^2          (Li et al. 2022, section 4.2)

An objective is a module that holds the model and whatever else it learns, so that one forward covers every parameter: DDP
needs nothing more. All random draws come from torch's global generator. Shapes: B batch, L positions, D dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffusionlm.config import Component, UserError, plain_name
from diffusionlm.core.model import Conditions
from diffusionlm.core.process import Process, VariancePreserving, over_coordinates
from diffusionlm.core.sampler import Denoised

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from transformers import PreTrainedModel


class Batch(dict[str, Any]):
    """Token ids (B, L) with what belongs to them. A mapping, so that accelerate and DDP move it to their devices.

    Attributes:
        ids: (B, L) token ids.
        mask: (B, L), True at non-padding tokens.
        known: (B, L), True at tokens that are given: never noised, never in the loss; None where no token is.
        condition: tensors of the model's condition; None where it has none.
    """

    @property
    def ids(self) -> Tensor:
        """Token ids (B, L)."""
        return cast(Tensor, self["ids"])

    @property
    def mask(self) -> Tensor:
        """True at non-padding tokens (B, L)."""
        return cast(Tensor, self["mask"])

    @property
    def known(self) -> Tensor | None:
        """True at given tokens (B, L)."""
        return self.get("known")

    @property
    def condition(self) -> Conditions:
        """The tensors of the model's condition."""
        return self.get("condition")

    def to(self, device: torch.device) -> Batch:
        """Return the batch with its tensors on ``device``."""
        move = {
            name: {k: x.to(device) for k, x in v.items()} if name == "condition" else v.to(device) for name, v in self.items()
        }
        return Batch(move)

    @property
    def attend(self) -> Tensor | None:
        """The mask, None where no position is padding: attention is then faster."""
        return None if bool(self.mask.all()) else self.mask


class Example(list[int]):
    """The token ids of one text that also carries a ``condition`` or ``known`` positions (as many booleans as ids)."""

    condition: Any = None
    known: Sequence[bool] | None = None


def collate(rows: Sequence[Sequence[int]], pad_id: int, width: int | None = None) -> Batch:
    """Pad rows of token ids to the longest, or to ``width``.

    Raises:
        UserError: a row is longer than ``width``.
    """
    lengths = torch.tensor([len(row) for row in rows])
    longest = int(lengths.max())
    width = longest if width is None else width
    if longest > width:
        raise UserError(f"width: expected {longest} or more, the longest row, got {width}")
    ids = torch.tensor([[*row, *[pad_id] * (width - len(row))] for row in rows])
    batch = Batch(ids=ids, mask=torch.arange(width) < lengths[:, None])
    given = [getattr(row, "known", None) for row in rows]
    if any(known is not None for known in given):
        batch["known"] = torch.zeros_like(batch.mask)
        for row, known in zip(batch["known"], given, strict=True):
            row[: len(known or ())] = torch.tensor(known or [], dtype=torch.bool)
    return batch


class Objective(nn.Module):
    """Base of the objectives' modules, for every family of models.

    Batches are padded with ``pad_id`` to their longest row, or to ``width`` tokens where PAD is a word like others.
    """

    model: Any  # a PreTrainedModel

    def __init__(self, model: PreTrainedModel, pad_id: int, width: int | None = None) -> None:
        """Hold the model to train."""
        super().__init__()
        self.model, self.pad_id, self.width = model, pad_id, width

    def collate(self, rows: Sequence[list[int]]) -> Batch:
        """Make a batch of rows of token ids."""
        batch = collate(rows, self.pad_id, self.width)
        if self.width is not None:
            batch["mask"] = torch.ones_like(batch.mask)
        condition = getattr(getattr(self.model, "settings", None), "condition", None)
        if condition is not None:
            batch["condition"] = condition.collate([getattr(row, "condition", None) for row in rows])
        return batch

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return the scalar terms of the loss."""
        raise NotImplementedError

    def after_step(self) -> None:
        """Act after each update of the weights, such as to move an averaged teacher."""

    def finish(self) -> None:
        """Write what was learned beside the weights into the model's config."""

    def figures(self, held_out: Sequence[list[int]] = ()) -> dict[str, Figure]:
        """Draw what the log's numbers do not show, by name; called at evaluations where matplotlib is installed."""
        return {}

    def report(self, held_out: Sequence[list[int]], folder: Path) -> str:
        """Measure the trained model on ``held_out`` rows, write the result into the run's ``folder``, return a summary."""
        return ""


class ObjectiveConfig(Component, family="objective"):
    """Base of the objectives' hyperparameters."""

    def check(self, model: Any) -> None:
        """Check that the objective trains models of the spec ``model``.

        Raises:
            UserError: it trains another family, or the model's settings do not go with it.
        """
        raise NotImplementedError

    def build(self, model: Any) -> Objective:
        """Return the module for a model that passes ``check``."""
        raise NotImplementedError


def expect_family(objective: ObjectiveConfig, model: Component, family: str) -> None:
    """Check that the spec ``model`` is of the ``family`` that the objective trains. Raises UserError where it is not."""
    if family not in [plain_name(kind) for kind in type(model).__mro__ if issubclass(kind, Component)]:
        name, got = plain_name(type(objective)), plain_name(type(model))
        raise UserError(f"objective: {name!r} trains a {family!r} model, and model is {got!r}: name the objective for it too")


class EndToEnd(Objective):
    """Diffusion-LM's objective: regress the clean vectors, and keep words apart by rounding (Li et al. 2022, section 4.1).

    With q(x_0 | w) = N(E_w, sigma_0^2 I) and x_0 sampled, as in the released code: the regression of the model's prediction
    (x_0, eps or v; against E_w itself at the lowest level), the cross-entropy of rounding the sampled x_0 (which gives the
    network no gradient), and the prior term, mean of (alpha_T x_0)^2. All weights are 1.
    """

    def __init__(
        self, model: PreTrainedModel, pad_id: int, width: int | None, T: int, loss: Literal["l2", "l1", "huber"] = "l2"
    ) -> None:
        """Train at the times 1/T, ..., 1."""
        super().__init__(model, pad_id, width)
        self.T, self.loss = T, loss

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return ``regression``, ``rounding`` and ``prior``, each a mean."""
        process, words = self.model.process, self.model.encode(batch.ids)
        x0 = words + lowest_deviation(process, self.T) * torch.randn_like(words)
        t, weight = self.draw_times(len(words))
        t, weight = t.to(words.device), weight.to(words.device)
        xt = process.noise(x0, t)
        denoised = self.model(xt, t, batch.attend, condition=batch.condition)
        return self.terms(denoised, words, x0, xt, t, weight, batch)

    def draw_times(self, count: int) -> tuple[Tensor, Tensor]:
        """Return ``count`` times and their weights in the loss."""
        return self.model.process.schedule.training_times(torch.rand(count, dtype=torch.float64)), torch.ones(count)

    def terms(
        self, denoised: Denoised, words: Tensor, x0: Tensor, xt: Tensor, t: Tensor, weight: Tensor, batch: Batch
    ) -> dict[str, Tensor]:
        """Return the terms of the loss for a prediction ``denoised`` of ``x0``."""
        by_text = (self.regression(denoised, words, x0, xt, t) * batch.mask).sum(1) / batch.mask.sum(1)
        share = batch.mask / batch.mask.sum()
        prior = (self.model.process.noise(x0, torch.ones_like(t), torch.zeros_like(x0)) ** 2).mean(-1)
        rounding = F.cross_entropy(self.model.decode(x0).transpose(1, 2), batch.ids, reduction="none")
        terms = {"rounding": (rounding * share).sum(), "prior": (prior * share).sum()}
        return {"regression": (by_text * weight).mean(), **terms}

    def regression(self, denoised: Denoised, words: Tensor, x0: Tensor, xt: Tensor, t: Tensor) -> Tensor:
        """Return the loss at each position (B, L)."""
        process = VariancePreserving(self.model.process.schedule)
        match self.model.prediction:
            case "eps":
                output, target = process.eps_from_x0(denoised.x0, xt, t), process.eps_from_x0(x0, xt, t)
            case "v":
                output, target = process.v_from_x0(denoised.x0, xt, t), process.v_from_x0(x0, xt, t)
            case _:
                lowest = over_coordinates(t <= 1 / self.T, x0) > 0
                output, target = denoised.x0, torch.where(lowest, words, x0)
        function: Any = {"l2": F.mse_loss, "l1": F.l1_loss, "huber": F.smooth_l1_loss}[self.loss]
        return cast(Tensor, function(output, target, reduction="none").mean(-1))


def lowest_deviation(process: Process, T: int) -> float:
    """Return sigma_0, the standard deviation of q(x_0 | w): the noise of the lowest level, t = 1/T."""
    return float(process.alpha_sigma(process.schedule.gamma(torch.tensor(1 / T, dtype=torch.float64)))[1])
