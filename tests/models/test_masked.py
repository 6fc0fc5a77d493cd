"""Masked diffusion: the bound against exact truths, which positions are hidden, the network's view, saving."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModel

from diffusionlm.config import UserError, build, merge, to_plain
from diffusionlm.core.objective import Batch
from diffusionlm.data.batches import Example
from diffusionlm.evaluation.masked_likelihood import masked_bound
from diffusionlm.models.causal import CausalConfig
from diffusionlm.models.diffusion import DiffusionLM, DiffusionLMConfig, ModelConfig
from diffusionlm.models.masked import (
    MaskedConfig,
    MaskedLM,
    MaskedLMConfig,
    MaskedWords,
    hide,
    masked_token_losses,
    stratified,
    word_positions,
)
from diffusionlm.recipe.cross_entropy import CrossEntropy

PAD, UNKNOWN, START, END = 0, 1, 2, 3
SMALL: dict[str, Any] = {"dimension": 6, "backbone": {"name": "transformer", "layers": 1, "width": 16, "heads": 2}}


def _model(vocabulary: int = 9, **settings: Any) -> MaskedLM:
    plain = to_plain(build(MaskedConfig, merge(SMALL, settings)))
    return MaskedLM(MaskedLMConfig(settings=plain, vocabulary=vocabulary, max_tokens=10)).train(False)


class Exact(nn.Module):
    """A network that knows the joint distribution of all texts of N words, and answers with the exact conditionals.

    It reads the shown words off the vectors that a model gives it. ``blur`` mixes the answers with even odds.
    """

    def __init__(self, model: MaskedLM, joint: Tensor, blur: float = 0.0) -> None:
        super().__init__()
        self.vectors, self.joint, self.blur = model.word_vectors().detach(), joint, blur

    def forward(self, latents: Tensor, t: Tensor, gamma: Tensor, mask: Tensor | None) -> Tensor:
        kinds, length = self.joint.shape[0], self.joint.dim()
        logits = torch.zeros(*latents.shape[:2], len(self.vectors))
        for row, vectors in enumerate(latents):
            inside = vectors[1 : 1 + length]
            hidden = inside.norm(dim=-1) == 0  # the mask's vector, which starts at 0
            seen = torch.cdist(inside, self.vectors).argmin(-1) - 4
            table = self.joint[
                tuple(slice(None) if hidden[i] else slice(int(seen[i]), int(seen[i]) + 1) for i in range(length))
            ]
            for i in range(length):
                of_word = table.sum([j for j in range(length) if j != i])
                of_word = of_word if hidden[i] else torch.ones(kinds)
                odds = (1 - self.blur) * of_word / of_word.sum() + self.blur / kinds
                logits[row, 1 + i] = torch.cat([torch.full((4,), 1e-9), odds]).log()
        return logits


def _toy(blur: float = 0.0) -> tuple[MaskedLM, Tensor, Tensor]:
    """Return a model of a random language of three words from a vocabulary of three, all its texts, and their chances."""
    model = _model(vocabulary=7)
    joint = torch.rand(3, 3, 3) ** 3
    joint /= joint.sum()
    model.network = Exact(model, joint, blur)
    texts = torch.tensor([[START, 4 + a, 4 + b, 4 + c, END] for a, b, c in itertools.product(range(3), repeat=3)])
    return model, texts, joint.flatten()


def _bound(model: MaskedLM, texts: Tensor) -> Tensor:
    """Return the bound of each text, in nats, from all choices of hidden words: E_k N/k E_S sum of -log p."""
    mask, total = torch.ones_like(texts, dtype=torch.bool), torch.zeros(len(texts))
    for count in (1, 2, 3):
        for chosen in itertools.combinations(range(1, 4), count):
            hidden = torch.zeros_like(mask)
            hidden[:, list(chosen)] = True
            total += masked_token_losses(model, texts, mask, hidden).sum(1) / count / math.comb(3, count)
    return total


# The bound


@torch.no_grad()
def test_with_exact_conditionals_the_bound_is_the_likelihood() -> None:
    model, texts, chances = _toy()
    bound = _bound(model, texts)
    torch.testing.assert_close(bound, -chances.log(), rtol=1e-4, atol=1e-4)
    entropy = -(chances * chances.log()).sum()
    assert float((chances * bound).sum()) == pytest.approx(float(entropy), abs=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("blur", [0.05, 0.3, 1.0])
def test_with_other_conditionals_the_bound_is_above_the_entropy(blur: float) -> None:
    model, texts, chances = _toy(blur)
    entropy, bound = float(-(chances * chances.log()).sum()), float((chances * _bound(model, texts)).sum())
    assert bound > entropy + 1e-3
    if blur == 1:
        assert bound == pytest.approx(3 * math.log(3), rel=1e-5)


@torch.no_grad()
def test_the_loss_is_an_unbiased_estimate_of_the_bound() -> None:
    model, texts, chances = _toy(0.3)
    drawn = texts[torch.multinomial(chances, 3000, replacement=True)]
    loss = MaskedWords("bound").build(model)(Batch(ids=drawn, mask=torch.ones_like(drawn, dtype=torch.bool)))["bound"]
    truth = (chances * _bound(model, texts)).sum() / 3
    assert float(loss) == pytest.approx(float(truth), abs=0.05)


@torch.no_grad()
def test_the_bound_of_even_odds_is_their_entropy_whatever_the_length() -> None:
    """Texts of different lengths: each word costs log 6 nats, since START, END and PAD of 9 have no chance."""
    model = _model()
    for weight in model.network.parameters():
        nn.init.zeros_(weight)
    ids = torch.tensor([[START, 4, 5, 6, 7, 8, END], [START, 4, 1, END, PAD, PAD, PAD], [START, 8, END, PAD, PAD, PAD, PAD]])
    for weighting in ("bound", "equal"):
        (loss,) = MaskedWords(weighting).build(model)(Batch(ids=ids, mask=ids != PAD)).values()
        assert float(loss) == pytest.approx(math.log(6), rel=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("weighting", ["bound", "equal"])
def test_given_words_are_never_hidden_and_never_in_the_loss(weighting: Literal["bound", "equal"]) -> None:
    """With two of three words given, the third is always hidden: its loss is -log p(w_i | the other two), exactly."""
    model, texts, chances = _toy()
    joint = chances.view(3, 3, 3)
    objective = MaskedWords(weighting).build(model)
    for place in range(3):
        conditional = (joint / joint.sum(place, keepdim=True)).flatten()
        known = torch.ones_like(texts, dtype=torch.bool)
        known[:, 1 + place] = False
        known[0] = True  # a text that is given completely adds nothing
        batch = Batch(ids=texts, mask=torch.ones_like(known), known=known)
        (loss,) = objective(batch).values()
        assert float(loss) == pytest.approx(-float(conditional[1:].log().mean()), rel=1e-4)


@torch.no_grad()
def test_the_loss_given_a_word_is_the_bound_of_the_others() -> None:
    """The first word is given: the bound of exact conditionals is -log p(w_2, w_3 | w_1)."""
    model, texts, chances = _toy()
    joint = chances.view(3, 3, 3)
    drawn = torch.multinomial(chances, 3000, replacement=True)
    rows = [Example(row) for row in texts[drawn].tolist()]
    for row in rows:
        row.known = [False, True, False, False, False]
    objective = MaskedWords("bound").build(model)
    truth = -(joint / joint.sum((1, 2), keepdim=True)).flatten()[drawn].log().mean() / 2
    assert float(objective(objective.collate(rows))["bound"]) == pytest.approx(float(truth), abs=0.05)


def test_the_bound_of_each_text_is_its_cost_and_that_of_its_length() -> None:
    model, texts, chances = _toy()
    model.config.length_counts = [0, 0, 0, 6, 0, 2]
    rows = texts[[0, 13, 26]].tolist()
    found = list(masked_bound(model, rows, strata=300))
    for bound, chance in zip(found, chances[[0, 13, 26]].tolist(), strict=True):
        assert bound.length == pytest.approx(math.log(16 / 3))
        assert bound.diffusion == pytest.approx(-math.log(chance), abs=4 * bound.deviation + 1e-3)
        assert bound.nats == bound.diffusion + bound.length
        assert bound.tokens == 4
    assert list(masked_bound(model, rows[:2], strata=300)) == found[:2]
    assert list(masked_bound(model, rows, strata=300, seed=1)) != found


def test_whole_orders_cost_what_the_text_does() -> None:
    model, texts, chances = _toy()
    model.config.length_counts = [0, 0, 0, 6, 0, 2]
    rows = texts[[0, 13, 26]].tolist()
    for bound, chance in zip(masked_bound(model, rows, orders=4), chances[[0, 13, 26]].tolist(), strict=True):
        assert bound.diffusion == pytest.approx(-math.log(chance), abs=1e-3)
        assert bound.nats == bound.diffusion + bound.length


def test_the_standard_error_is_that_of_repetitions() -> None:
    model, texts, _ = _toy(0.2)
    model.config.length_counts = [0, 0, 0, 6, 0, 2]
    found = [next(masked_bound(model, texts[5:6].tolist(), strata=24, seed=seed)) for seed in range(60)]
    spread = float(torch.tensor([bound.diffusion for bound in found]).std())
    mean_error = sum(bound.deviation for bound in found) / len(found)
    assert mean_error == pytest.approx(spread, rel=0.5)


def test_what_the_bound_counts_and_refuses() -> None:
    model = _model()
    model.config.length_counts = [0, 0, 0, 3]
    rows = [[START, 5, END], [START, 5, UNKNOWN, 6, END]]
    seen, new = masked_bound(model, rows, ["ab", "ab ? c"], strata=2)
    assert (seen.length, new.length) == pytest.approx((-math.log(4 / 11), -math.log(1 / 11)))
    assert [(b.tokens, b.characters, b.unknown) for b in (seen, new)] == [(2, 2, 0), (4, 6, 1)]
    with pytest.raises(UserError, match=r"^text 1: expected 10 tokens or fewer, BOS and EOS included, got 12"):
        list(masked_bound(model, [rows[0], [START, *[5] * 10, END]]))
    with pytest.raises(UserError, match=r"^strata: expected 2 or more, got 1"):
        next(masked_bound(model, rows, strata=1))


# What is hidden


def test_only_words_are_hidden() -> None:
    mask = torch.arange(7) < torch.tensor([[7], [4], [3]])
    words = word_positions(mask)
    assert words.int().tolist() == [[0, 1, 1, 1, 1, 1, 0], [0, 1, 1, 0, 0, 0, 0], [0, 1, 0, 0, 0, 0, 0]]
    hidden = hide(words, torch.tensor([3, 2, 1]), torch.rand(3, 7))
    assert hidden.sum(1).tolist() == [3, 2, 1]
    assert not bool((hidden & ~words).any())


def test_every_choice_of_words_is_equally_likely() -> None:
    words = torch.ones(6000, 4, dtype=torch.bool)
    codes = (hide(words, torch.full((6000,), 2), torch.rand(6000, 4)) * torch.tensor([1, 2, 4, 8])).sum(1)
    found = torch.bincount(codes, minlength=16)[[3, 5, 6, 9, 10, 12]] / 6000
    torch.testing.assert_close(found, torch.full((6,), 1 / 6), rtol=0, atol=5 * (1 / 6 / 6000) ** 0.5)


def test_how_many_are_hidden_is_stratified() -> None:
    u = stratified(200, torch.device("cpu"))
    assert float(u.min()) > 0 and float(u.max()) <= 1
    assert torch.equal((u * 200).ceil().sort().values, torch.arange(1.0, 201))
    assert torch.bincount((u * 10).ceil().long()).tolist() == [0, *[20] * 10]


# The model


def test_hidden_words_and_padding_are_not_seen() -> None:
    model = _model(vocabulary=30)
    ids = torch.tensor([[START, 9, 8, 7, 6, END, PAD], [START, 5, 6, 7, 8, 9, END]])
    mask = ids != PAD
    hidden = torch.zeros_like(mask)
    hidden[:, 2:4] = True
    logits = model(ids, hidden, mask)
    other = torch.where(hidden | ~mask, 20, ids)
    torch.testing.assert_close(model(other, hidden, mask)[mask], logits[mask])
    shown = ids.clone()
    shown[:, 1] = 20
    assert not torch.allclose(model(shown, hidden, mask)[hidden], logits[hidden])


def test_bos_eos_and_padding_have_probability_zero() -> None:
    ids = torch.tensor([[START, 4, 5, END]])
    chances = _model()(ids, ids > END).softmax(-1)
    assert torch.equal(chances[..., [PAD, START, END]], torch.zeros(1, 4, 3))
    assert bool((chances[..., [UNKNOWN, *range(4, 9)]] > 0).all())


@pytest.mark.parametrize("embedding", ["normalised", "free", "frozen"])
def test_every_weight_learns_but_frozen_words(embedding: str) -> None:
    model = _model(embedding=embedding)
    ids = torch.randint(4, 9, (6, 8))
    sum(MaskedWords().build(model)(Batch(ids=ids, mask=torch.ones_like(ids, dtype=torch.bool))).values()).backward()
    frozen = {name for name, p in model.named_parameters() if p.grad is None}
    assert frozen == ({"embedding.weight"} if embedding == "frozen" else set())
    norms = model.word_vectors().norm(dim=-1)
    assert (embedding == "free") != torch.allclose(norms, torch.full((9,), math.sqrt(6)))


def test_a_saved_model_is_the_same(tmp_path: Path) -> None:
    model = _model(embedding="frozen")
    model.save_pretrained(tmp_path / "masked")
    loaded = MaskedLM.load(tmp_path / "masked")
    ids = torch.randint(4, 9, (2, 6))
    assert torch.equal(loaded.train(False)(ids, ids > 6), model(ids, ids > 6))
    assert loaded.settings == model.settings
    assert not loaded.embedding.weight.requires_grad
    assert isinstance(AutoModel.from_pretrained(tmp_path / "masked"), MaskedLM)
    with pytest.raises(UserError, match="expected model_type 'diffusionlm', got 'diffusionlm-masked'"):
        DiffusionLM.load(tmp_path / "masked")


def test_capabilities_are_those_of_the_family_and_its_backbone() -> None:
    def capabilities(of: Any) -> tuple[bool, ...]:
        return of.has_logits, of.explicit_length, of.self_conditions, of.excludes_self, of.token_aligned

    def diffusion(**settings: Any) -> DiffusionLM:
        return DiffusionLM(DiffusionLMConfig(settings=to_plain(build(ModelConfig, {**SMALL, **settings}))))

    leave_one_out = {"name": "leave-one-out", "layers": 1, "query_layers": 1, "width": 16, "heads": 2}
    vectors = {"prediction": "x0", "explicit_length": False, "self_conditioning": False}
    for model, expected in (
        (_model(), (True, True, False, False, True)),
        (_model(backbone=leave_one_out), (True, True, False, True, True)),
        (diffusion(backbone=leave_one_out), (True, True, True, True, True)),
        (diffusion(**vectors), (False, False, False, False, True)),
    ):
        assert capabilities(model) == capabilities(model.settings) == expected
    assert capabilities(CausalConfig()) == (True, False, False, True, True)


def test_impossible_settings() -> None:
    with pytest.raises(UserError, match=r"^dimension: expected 1 to 100000, got 0"):
        MaskedConfig(dimension=0)
    with pytest.raises(UserError, match=r"^cooccurrence: expected a share"):
        MaskedConfig(cooccurrence=1.0)
    with pytest.raises(UserError, match=r"^objective: 'masked' trains a 'masked' model, and model is 'diffusion'"):
        MaskedWords().check(ModelConfig())
    with pytest.raises(UserError, match=r"^objective: 'cross-entropy' trains a 'diffusion' model, and model is 'masked'"):
        CrossEntropy().check(MaskedConfig())
