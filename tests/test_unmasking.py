"""Decoders of masked diffusion: when words are shown, an oracle's text, exact chances, seeds."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from diffusionlm.config import UserError
from diffusionlm.masked import lowest
from diffusionlm.sampling import RowNoise
from diffusionlm.unmasking import Ancestral, Draft, MaskGIT, MaskPredict, Predict, Unmasking, draw_words, unmask

DECODERS: list[Unmasking] = [Ancestral(), MaskPredict(), MaskGIT(), MaskGIT(noise=0), MaskGIT(schedule="linear")]


def _oracle(truth: Tensor, certainty: float = 50.0) -> Predict:
    return lambda ids, hidden: certainty * torch.nn.functional.one_hot(truth, 12).float()


def _even(ids: Tensor, hidden: Tensor) -> Tensor:
    return torch.zeros(*ids.shape, 12)


def _run(predict: Predict, decoder: Unmasking, steps: int, lengths: tuple[int, ...] = (10, 7, 1)) -> list[Draft]:
    words = torch.arange(10) < torch.tensor(lengths)[:, None]
    noise = RowNoise([(0, row) for row in range(len(lengths))], [10] * len(lengths))
    start = torch.full(words.shape, 11)
    return list(unmask(predict, start, words, decoder=decoder, steps=steps, noise=noise))


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("steps", [1, 4, 10, 33])
def test_an_oracles_text_is_written(decoder: Unmasking, steps: int) -> None:
    truth = torch.randint(0, 11, (3, 10))
    states = _run(_oracle(truth), decoder, steps)
    last = states[-1]
    assert len(states) <= steps
    assert not bool(last.hidden.any())
    assert torch.equal(last.ids[last.words], truth[last.words])
    assert bool((last.ids[~last.words] == 11).all())


@pytest.mark.parametrize("decoder", [Ancestral(), MaskGIT(), MaskGIT(noise=0), MaskGIT(schedule="linear")])
def test_every_word_is_shown_once_and_stays(decoder: Unmasking) -> None:
    states = _run(_even, decoder, 10)
    words, before = states[0].words, states[0].words
    shown = torch.zeros(words.shape, dtype=torch.int64)
    for earlier, later in itertools.pairwise(states):
        assert not bool((later.hidden & ~earlier.hidden).any())
        kept = words & ~earlier.hidden
        assert torch.equal(later.ids[kept], earlier.ids[kept])
    for draft in states:
        shown += before & ~draft.hidden
        before = draft.hidden
    assert torch.equal(shown, words.long())


def test_as_many_words_are_hidden_as_the_papers_say() -> None:
    counts = torch.tensor([10, 7, 1])
    mask_predict = [draft.hidden.sum(1) for draft in _run(_even, MaskPredict(), 5)]
    linear = [draft.hidden.sum(1) for draft in _run(_even, MaskGIT(schedule="linear"), 5)]
    for step, (found, other) in enumerate(zip(mask_predict, linear, strict=True), 1):
        torch.testing.assert_close(found, (counts * (5 - step) // 5))
        torch.testing.assert_close(other, (counts * (5 - step) // 5))
    cosine = [int(draft.hidden[0].sum()) for draft in _run(_even, MaskGIT(), 5)]
    assert cosine == [math.floor(10 * math.cos(math.pi / 2 * step / 5)) for step in range(1, 5)] + [0]


def test_ancestral_shows_each_word_at_a_uniform_step() -> None:
    words = torch.ones(500, 40, dtype=torch.bool)
    states = list(unmask(_even, torch.zeros(500, 40, dtype=torch.long), words, decoder=Ancestral(), steps=5))
    for step, draft in enumerate(states):
        assert draft.t == pytest.approx(1 - step / 5)
        share = float(draft.hidden.float().mean())
        assert share == pytest.approx(1 - (step + 1) / 5, abs=5 * (0.25 / 20_000) ** 0.5)


def test_only_mask_predict_hides_words_of_earlier_steps_again() -> None:
    draft = Draft(
        1.0, torch.zeros(1, 4, dtype=torch.long), torch.tensor([[False, True, True, False]]),
        torch.tensor([[-5.0, -1.0, -2.0, -9.0]]), torch.tensor([[True, True, True, False]]),
    )  # fmt: skip
    uniform = torch.full((1, 4), 0.5)
    assert MaskPredict().hide(draft, 0.4, uniform).tolist() == [[True, False, False, False]]
    assert MaskGIT(noise=0, schedule="linear").hide(draft, 0.4, uniform).tolist() == [[False, False, True, False]]


def test_words_are_drawn_with_their_chances() -> None:
    logits = torch.tensor([0.1, 0.0, 0.6, 0.3, 0.0]).log()
    drawn, confidence = draw_words(logits.expand(1, 20_000, 5), torch.rand(1, 20_000), 1.0)
    found = torch.bincount(drawn.flatten(), minlength=5) / 20_000
    torch.testing.assert_close(found, logits.exp(), rtol=0, atol=5 * (0.25 / 20_000) ** 0.5)
    torch.testing.assert_close(confidence, logits.double()[drawn])
    cold, _ = draw_words(logits.expand(1, 1000, 5), torch.rand(1, 1000), 0.01)
    assert bool((cold == 2).all())
    half, _ = draw_words(logits.expand(1, 20_000, 5), torch.rand(1, 20_000), 0.5)
    truth = logits.exp() ** 2 / (logits.exp() ** 2).sum()
    found = torch.bincount(half.flatten(), minlength=5) / 20_000
    torch.testing.assert_close(found, truth, rtol=0, atol=5 * (0.25 / 20_000) ** 0.5)


@pytest.mark.parametrize("uniform", [0.0, 1e-300, 1 - 1e-16, 1.0])
def test_words_without_a_chance_are_never_drawn(uniform: float) -> None:
    logits = torch.tensor([-math.inf, 0.0, -math.inf, 2.0, -math.inf])
    drawn, confidence = draw_words(logits.expand(1, 1, 5), torch.full((1, 1), uniform, dtype=torch.float64), 1.0)
    assert int(drawn) in (1, 3)
    assert float(confidence) > -3


def test_the_lowest_of_each_row() -> None:
    scores = torch.tensor([[3.0, 1.0, 2.0, 1.0], [0.0, math.inf, -1.0, 5.0]])
    assert lowest(scores, torch.tensor([1, 2])).tolist() == [[False, True, False, False], [True, False, True, False]]
    assert not bool(lowest(scores, torch.tensor([0, -1])).any())


@pytest.mark.parametrize("decoder", DECODERS)
def test_a_text_depends_on_its_own_seed_alone(decoder: Unmasking) -> None:
    both = _run(_even, decoder, 6, (10, 7))[-1].ids
    alone = _run(_even, decoder, 6, (10,))[-1].ids
    assert torch.equal(both[:1], alone)
    assert torch.equal(_run(_even, decoder, 6, (10, 7))[-1].ids, both)
    assert len(both[0].unique()) > 2


def test_the_noise_of_maskgit_is_not_negative() -> None:
    with pytest.raises(UserError, match=r"^noise: expected 0 or more, got -1"):
        MaskGIT(noise=-1.0)
