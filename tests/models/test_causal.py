"""Autoregressive models: the loss of given tokens; ``evaluation/test_judge.py`` has their likelihood and training."""

from __future__ import annotations

import pytest
import torch
from transformers import PreTrainedModel

from diffusionlm.data.batches import Example
from diffusionlm.data.tokenizers import TokenizerRecipe
from diffusionlm.models.causal import CausalConfig, NextToken, NextTokenObjective

IDS = [2, 4, 5, 6, 7, 3]  # BOS, four words, EOS


def _model() -> PreTrainedModel:
    torch.manual_seed(0)
    tokenizer = TokenizerRecipe.find("words")().make(["a b c d"])
    return CausalConfig(layers=2, width=16, heads=2).make(tokenizer, [], 8).requires_grad_(False)


def _nats(objective: NextTokenObjective, ids: list[int], given: int = 0) -> float:
    """Return the loss of a text, ``given`` tokens of which are given, times the number of its other tokens."""
    row = Example(ids)
    row.known = [i < given for i in range(len(ids))]
    return float(objective(objective.collate([row]))["cross_entropy"]) * (len(ids) - max(1, given))


@pytest.mark.parametrize("given", [2, 3, 5])
def test_the_loss_of_given_tokens_follows_the_chain_rule(given: int) -> None:
    """-log p(the others | given) = -log p(all) + log p(given)."""
    objective = NextToken().build(_model())
    objective.train(False)
    expected = _nats(objective, IDS) - _nats(objective, IDS[:given])
    assert _nats(objective, IDS, given) == pytest.approx(expected, rel=1e-5)


def test_given_tokens_are_not_dropped_from_the_context() -> None:
    model = _model()
    dropping, plain = NextToken(dropped_share=0.99).build(model), NextToken().build(model)
    assert _nats(dropping, IDS, 5) == _nats(plain, IDS, 5) != _nats(dropping, IDS)
    assert _nats(dropping, IDS) != _nats(plain, IDS)
