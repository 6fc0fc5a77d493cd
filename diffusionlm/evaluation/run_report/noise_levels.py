"""The loss of a saved model at single noise levels, on some held-out texts of its run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor
from transformers import PreTrainedModel

from diffusionlm.config import UserError
from diffusionlm.core.objective import Batch, Objective
from diffusionlm.data.batches import encode
from diffusionlm.data.corpora import Hub
from diffusionlm.data.reading import collected_reports
from diffusionlm.data.rows import texts_of
from diffusionlm.evaluation.likelihood import proposal_for
from diffusionlm.evaluation.run_report.run import Run
from diffusionlm.models.diffusion import DiffusionLM
from diffusionlm.models.io import model_folder, model_tokenizer
from diffusionlm.models.masked import MaskedLM, hide, masked_token_losses, word_positions
from diffusionlm.models.spec import ModelSpec, Rows

LEVELS = 12
WORK = 2e11  # floating-point operations: some seconds of a CPU
FEWEST, MOST = 4, 64  # texts
LARGEST = 1_000_000  # texts of a corpus that is read for this


@dataclass(frozen=True)
class Losses:
    """The mean loss of ``texts`` held-out texts at each noise level, with what the axes show."""

    points: Sequence[tuple[float, float]]
    texts: int
    across: str
    up: str


@torch.no_grad()
def losses_by_level(run: Run) -> Losses:
    """Return the loss by noise level. Raises UserError with the reason where it is not computed."""
    model = run.model
    if not isinstance(model, (DiffusionLM, MaskedLM)):
        raise UserError(f"a {run.config.model.name} model has no noise levels")
    rows = _held_out(run, model)
    objective = Objective(model, model.config.special_ids["pad"], getattr(model, "padded_width", None))
    batch = objective.collate(rows)
    condition, _ = objective.conditioning(batch)
    model.train(False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if isinstance(model, MaskedLM):
            return _by_share(model, batch, condition)
        return _by_gamma(model, batch, condition)


def _by_gamma(model: DiffusionLM, batch: Batch, condition: object) -> Losses:
    """Measure a diffusion model, which denoises twice, as in sampling: by token losses, or without logits by vectors."""
    ids, free, process = batch.ids, model.free_positions(batch), model.process
    counted = free & batch.mask
    x0 = model.encode(ids)

    def loss(gamma: float) -> Tensor:
        t = process.schedule.time(torch.tensor(gamma, dtype=torch.float64)).expand(ids.shape)
        xt = torch.where(free[..., None], process.noise(x0, t), process.rescale(x0, 0.0))
        inputs = (xt, torch.where(free, t, 0), batch.attend)
        previous = model.estimate(*inputs, None, None, condition) if model.self_conditions else None
        if model.has_logits:
            return model.token_losses(ids, *inputs, previous, None, condition)
        return (model.estimate(*inputs, previous, None, condition) - x0).square().sum(-1)

    up = "cross-entropy (nats per token)" if model.has_logits else "squared error of x_0 (per token)"
    low, high = proposal_for(model).edges[[0, -1]].tolist()  # the range of the likelihood bound
    levels = torch.linspace(low, high, LEVELS).tolist()
    points = [(level, float((loss(level) * counted).sum() / counted.sum())) for level in levels]
    return Losses(points, len(ids), "gamma = log(sigma² / alpha²), noisier to the right", up)


def _by_share(model: MaskedLM, batch: Batch, condition: object) -> Losses:
    """Measure a masked model: the loss of a masked word given the others."""
    words = word_positions(batch.mask) & batch.free
    points = []
    for number in range(1, LEVELS + 1):
        share = number / LEVELS
        counts = (share * words.sum(1)).round().clamp(min=1)
        hidden = hide(words, counts, torch.rand(words.shape))
        losses = masked_token_losses(model, batch.ids, batch.mask, hidden, condition)
        points.append((share, float(losses.sum() / hidden.sum())))
    return Losses(points, len(words), "share of the words that is masked", "cross-entropy (nats per masked word)")


def _held_out(run: Run, model: PreTrainedModel) -> Rows:
    """Return encoded rows of validation texts, as many as a CPU measures in some seconds."""
    data = run.config.data
    if isinstance(data.corpus, Hub) or data.corpus.streams:
        raise UserError("it is not computed for texts of the hub or of a stream")
    if run.data.get("training_texts", 0) > LARGEST:
        raise UserError(f"it is not computed for a corpus of more than {LARGEST:,} texts, which takes long to read")
    of_a_text = 4 * LEVELS * model.num_parameters() * data.max_length  # two passes, a multiplication and an addition each
    if (count := int(WORK // of_a_text)) < FEWEST:
        raise UserError("it is not computed for a model of this size, which takes long on a CPU")
    with collected_reports():
        splits = data.corpus.load()
    if not len(splits.get("validation", ())):
        raise UserError("the corpus has no validation texts")
    rows = splits["validation"]
    rows = rows.select(range(min(count, MOST, len(rows))))
    tokenizer = model_tokenizer(model, model_folder(run.folder))
    encoded = encode(texts_of(rows), tokenizer, data.max_length, data.too_long, data.context, data.packing)
    settings = cast(ModelSpec, model.settings)  # which are fitted to the corpus, as those of the config are not
    return settings.rows({"validation": encoded}, {"validation": rows}, tokenizer)["validation"][:MOST]
