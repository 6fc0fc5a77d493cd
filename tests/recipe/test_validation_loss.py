"""The validation loss of the cross-entropy objective: a fixed grid of noise levels, whatever the schedule is."""

from typing import Any

import pytest
import torch

from diffusionlm.config import build, merge, to_plain
from diffusionlm.evaluation.likelihood import Proposal, at_levels, continuous_terms, denoiser
from diffusionlm.models.diffusion import DiffusionLM, DiffusionLMConfig, ModelConfig
from diffusionlm.recipe.cross_entropy import VALIDATION_GAMMAS, CrossEntropy
from diffusionlm.recipe.gumbel import Gumbel

ROW = [2, 5, 9, 4, 4, 7, 3]


def model(**settings: Any) -> DiffusionLM:
    small = {"dimension": 8, "backbone": {"name": "transformer", "layers": 1, "width": 16, "heads": 2}}
    config = build(ModelConfig, merge(small, settings))
    plain = DiffusionLMConfig(settings=to_plain(config), vocabulary=12, max_tokens=10, length_counts=[0, 0, 0, 3, 1, 0, 2])
    return DiffusionLM(plain).train(False)


def bound_at_grid(found: DiffusionLM, seed: int, texts: int = 8) -> float:
    objective = CrossEntropy().build(found).eval()
    torch.manual_seed(seed)
    return float(objective.validation_terms(objective.collate([ROW] * texts))["bound"])


def test_it_does_not_depend_on_the_schedule_that_is_being_learned() -> None:
    found = model()
    before = bound_at_grid(found, 0)
    schedule = found.settings.schedule
    assert isinstance(schedule, Gumbel)
    found.set_schedule(Gumbel(**{**vars(schedule), "location": schedule.location + 3, "scale": 2.0}))
    assert bound_at_grid(found, 0) == before


def test_it_is_the_diffusion_term_of_the_likelihood_bound() -> None:
    """Both are estimates; a token here is a word, whereas the bound's texts are given BOS and EOS too."""
    found = model()
    draws = torch.tensor([bound_at_grid(found, seed, 32) for seed in range(24)])
    ids = torch.tensor([ROW])
    denoise, known = denoiser(found, ids)
    x0 = found.encode(ids)[0]
    proposal = Proposal.between(*VALIDATION_GAMMAS)
    levels = at_levels(found, denoise, known, x0)
    terms = continuous_terms(levels, x0, ids[0], ~known, proposal, strata=4000, seed=(1,))
    deviation = float(draws.std()) / len(draws) ** 0.5 + terms.deviation / 5
    # The bound bars BOS, EOS and PAD from the prediction of a word, the validation loss does not: a small difference.
    assert float(draws.mean()) == pytest.approx(terms.diffusion / 5, abs=4 * deviation + 0.05 * terms.diffusion / 5)
