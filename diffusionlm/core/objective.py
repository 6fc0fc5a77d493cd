"""Training objectives, and the paper's: regress the clean vectors, and keep the word vectors apart by rounding.

    L = E |x_0 - x0_hat(x_t, t)|^2  +  E -log p(w | x_0)  +  |alpha_1 x_0|^2          (Li et al. 2022, sections 4.1 and 4.2)

An objective is a module that holds the model and whatever else it learns, so that one forward covers every parameter: DDP
needs nothing more. Its ``forward`` returns named terms, whose sum is minimised. All random draws come from torch's global
generator. Shapes: B batch, L positions, D latent dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffusionlm.config import Component, UserError, plain_name
from diffusionlm.core.process import Process, VariancePreserving, over_coordinates, sigma
from diffusionlm.core.sampler import Denoised

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from transformers import PreTrainedModel


class Batch(dict[str, Any]):
    """A batch of texts. It is a mapping, so that accelerate and DDP can move its tensors between devices."""

    ids: Tensor  # (B, L) token ids
    mask: Tensor  # (B, L), True at non-padding tokens
    known: Tensor | None  # (B, L), True at given tokens: never noised, never in the loss
    condition: dict[str, Tensor] | None  # the tensors of the model's condition

    def __getattr__(self, name: str) -> Any:
        if name in Batch.__annotations__:
            return self.get(name)
        raise AttributeError(name)

    @property
    def free(self) -> Tensor:
        """True at non-padding tokens that are not given (B, L)."""
        return self.mask if self.known is None else self.mask & ~self.known

    @property
    def attend(self) -> Tensor | None:
        """The mask, or None where no position is padding, which makes attention faster."""
        return None if bool(self.mask.all()) else self.mask


def collate(rows: Sequence[Sequence[int]], pad_id: int, width: int | None = None) -> Batch:
    """Pad rows of token ids to the longest, or to ``width``. Raises UserError where a row is longer than that."""
    lengths = torch.tensor([len(row) for row in rows])
    longest = int(lengths.max())
    width = longest if width is None else width
    if longest > width:
        raise UserError(f"width: expected {longest} or more, the longest row, got {width}")
    ids = torch.tensor([[*row, *[pad_id] * (width - len(row))] for row in rows])
    batch = Batch(ids=ids, mask=torch.arange(width) < lengths[:, None])
    given = [getattr(row, "known", None) or () for row in rows]
    if any(given):
        batch["known"] = torch.tensor([[*known, *[False] * (width - len(known))] for known in given])
    return batch


class Objective(nn.Module):
    """Base of the objectives' modules. Batches are padded to ``width`` tokens where PAD is a word like others."""

    model: Any  # a PreTrainedModel
    ranks: ClassVar[bool] = False  # whether a lower validation loss is a better model, so that a run keeps the best one

    def __init__(self, model: PreTrainedModel, pad_id: int, width: int | None = None) -> None:
        super().__init__()
        self.model, self.pad_id, self.width = model, pad_id, width

    def collate(self, rows: Sequence[list[int]]) -> Batch:
        """Return the batch of rows of token ids; rows may have a ``condition`` and ``known`` tokens."""
        batch = collate(rows, self.pad_id, self.width)
        if self.width is not None:
            batch["mask"] = torch.ones_like(batch.mask)
        condition = getattr(getattr(self.model, "settings", None), "condition", None)
        if condition is not None:
            batch["condition"] = condition.collate([getattr(row, "condition", None) for row in rows])
        return batch

    def conditioning(self, batch: Batch) -> tuple[Any, dict[str, Tensor]]:
        """Return what the network receives of the batch's condition, None without one, and its own terms of the loss."""
        if batch.condition is None:
            return None, {}
        given = self.model.condition_on_batch(batch)
        return given, given.terms(batch.mask)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return the scalar terms of the loss by name."""
        raise NotImplementedError

    def validation_terms(self, batch: Batch) -> dict[str, Tensor]:
        """Return the terms whose sum is the validation loss: those of the loss, unless an objective measures others."""
        terms: dict[str, Tensor] = self(batch)
        return terms

    def measurable(self, held_out: Sequence[list[int]]) -> Sequence[list[int]]:
        """Return the rows of ``held_out`` that have a loss: all, unless some lack what the loss is computed from."""
        return held_out

    def after_step(self) -> None:
        """Act after each update of the weights, for instance to update a teacher."""

    def finish(self) -> None:
        """Write what was learned beside the weights into the model's config."""

    def figures(self, held_out: Sequence[list[int]] = ()) -> dict[str, Figure]:
        """Return figures by name, drawn at each evaluation where matplotlib is installed."""
        return {}

    def report(self, held_out: Sequence[list[int]], folder: Path) -> str:
        """Measure the trained model on ``held_out`` rows, write the result into the run's ``folder``, return a summary."""
        return ""


class ObjectiveConfig(Component, family="objective"):
    """Base of the objectives' hyperparameters; one that ``trains_joint`` trains only the joint head of a trained model."""

    trains_joint: ClassVar[bool] = False

    def check(self, model: Any) -> None:
        """Raise UserError where the objective does not train models of the spec ``model``."""
        raise NotImplementedError

    def build(self, model: Any) -> Objective:
        """Return the module for a model whose spec passes ``check``."""
        raise NotImplementedError


def expect_family(objective: ObjectiveConfig, model: Component, family: str) -> None:
    """Raise UserError where the spec ``model`` is not of the ``family`` that the objective trains."""
    if family not in [plain_name(kind) for kind in type(model).__mro__ if issubclass(kind, Component)]:
        name, got = plain_name(type(objective)), plain_name(type(model))
        raise UserError(f"objective: {name!r} trains a {family!r} model, and model is {got!r}: name the objective for it too")


class EndToEnd(Objective):
    """Diffusion-LM's objective: ``regression``, ``rounding`` and ``prior``, all of weight 1 (Li et al. 2022, section 4).

    x_0 is drawn from q(x_0 | w) = N(E_w, sigma_0^2 I), as in the released code. The network's prediction (x_0, eps or v) is
    regressed, against E_w itself at the lowest noise level; rounding is that of the drawn x_0 and gives it no gradient.
    """

    def __init__(
        self, model: PreTrainedModel, pad_id: int, width: int | None, T: int, loss: Literal["l2", "l1", "huber"] = "l2"
    ) -> None:
        super().__init__(model, pad_id, width)
        self.T, self.loss = T, loss

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        process, words = self.model.process, self.model.encode(batch.ids)
        x0 = words + lowest_deviation(process, self.T) * torch.randn_like(words)
        t, weight = (draws.to(words.device) for draws in self.draw_times(len(words)))
        xt = process.noise(x0, t)
        if batch.known is not None:
            xt = torch.where(batch.known[..., None], process.rescale(words, 0.0), xt)
        condition, more = self.conditioning(batch)
        denoised = self.model(xt, t, batch.attend, condition=condition)
        return self.terms(denoised, words, x0, xt, t, weight, batch) | more

    def draw_times(self, count: int) -> tuple[Tensor, Tensor]:
        """Return ``count`` times and their weights in the loss."""
        return self.model.process.schedule.training_times(torch.rand(count, dtype=torch.float64)), torch.ones(count)

    def terms(
        self, denoised: Denoised, words: Tensor, x0: Tensor, xt: Tensor, t: Tensor, weight: Tensor, batch: Batch
    ) -> dict[str, Tensor]:
        """Return the terms of the prediction ``denoised`` of ``x0``."""
        by_text = (self.regression(denoised, words, x0, xt, t) * batch.free).sum(1) / batch.free.sum(1)
        share = batch.free / batch.free.sum()
        process = VariancePreserving(self.model.process.schedule)
        prior = (process.noise(x0, torch.ones_like(t), torch.zeros_like(x0)) ** 2).mean(-1)
        rounding = F.cross_entropy(self.model.decode(x0).transpose(1, 2), batch.ids, reduction="none")
        terms = {"rounding": (rounding * share).sum(), "prior": (prior * share).sum()}
        return {"regression": (by_text * weight).mean(), **terms}

    def regression(self, denoised: Denoised, words: Tensor, x0: Tensor, xt: Tensor, t: Tensor) -> Tensor:
        """Return the loss at each position (B, L)."""
        process = VariancePreserving(self.model.process.schedule)
        xt = self.model.process.standardize(xt, process.schedule.gamma(t))
        convert = {"eps": process.eps_from_x0, "v": process.v_from_x0}.get(self.model.prediction)
        if convert is None:
            output, target = denoised.x0, torch.where(over_coordinates(t <= 1 / self.T, x0) > 0, words, x0)
        else:
            output, target = convert(denoised.x0, xt, t), convert(x0, xt, t)
        function: Any = {"l2": F.mse_loss, "l1": F.l1_loss, "huber": F.smooth_l1_loss}[self.loss]
        return cast(Tensor, function(output, target, reduction="none").mean(-1))


def lowest_deviation(process: Process, T: int) -> float:
    """Return sigma_0, the standard deviation of q(x_0 | w): the noise of the lowest level, t = 1/T."""
    return float(sigma(process.schedule.gamma(torch.tensor(1 / T, dtype=torch.float64))))
