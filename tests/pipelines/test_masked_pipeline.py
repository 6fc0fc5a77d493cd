"""Decoders of masked diffusion: when words are shown, an oracle's text, exact chances, seeds."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import pytest
import torch
import yaml
from tiny_runs import TINY, tiny_plain
from torch import Tensor

from diffusionlm.cli import main
from diffusionlm.config import UserError, build, merge
from diffusionlm.core.process import GaussianDiffusion
from diffusionlm.core.sampler import Denoised, sample
from diffusionlm.core.schedule import Sqrt
from diffusionlm.data.tokenizers import SPECIAL_TOKENS, WordTokenizer
from diffusionlm.models.masked import MaskedConfig, lowest
from diffusionlm.pipelines.base import SamplingConfig
from diffusionlm.pipelines.masked import (
    Ancestral,
    MaskedPipeline,
    MaskedState,
    MaskGIT,
    MaskPredict,
    Predict,
    Unmasking,
    draw_words,
    unmask,
)
from diffusionlm.pipelines.noise import RowNoise
from diffusionlm.recipe.samplers import DDIM

DECODERS: list[Unmasking] = [Ancestral(), MaskPredict(), MaskGIT(), MaskGIT(noise=0), MaskGIT(schedule="linear")]


def _oracle(truth: Tensor, certainty: float = 50.0) -> Predict:
    return lambda ids, hidden: certainty * torch.nn.functional.one_hot(truth, 12).float()


def _even(ids: Tensor, hidden: Tensor) -> Tensor:
    return torch.zeros(*ids.shape, 12)


def _run(predict: Predict, decoder: Unmasking, steps: int, lengths: tuple[int, ...] = (10, 7, 1)) -> list[MaskedState]:
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
    for state in states:
        shown += before & ~state.hidden
        before = state.hidden
    assert torch.equal(shown, words.long())


def test_as_many_words_are_hidden_as_in_the_papers() -> None:
    counts = torch.tensor([10, 7, 1])
    mask_predict = [state.hidden.sum(1) for state in _run(_even, MaskPredict(), 5)]
    linear = [state.hidden.sum(1) for state in _run(_even, MaskGIT(schedule="linear"), 5)]
    for step, (found, other) in enumerate(zip(mask_predict, linear, strict=True), 1):
        torch.testing.assert_close(found, (counts * (5 - step) // 5))
        torch.testing.assert_close(other, (counts * (5 - step) // 5))
    cosine = [int(state.hidden[0].sum()) for state in _run(_even, MaskGIT(), 5)]
    assert cosine == [math.floor(10 * math.cos(math.pi / 2 * step / 5)) for step in range(1, 5)] + [0]


def test_ancestral_shows_each_word_at_a_uniform_step() -> None:
    words = torch.ones(500, 40, dtype=torch.bool)
    states = list(unmask(_even, torch.zeros(500, 40, dtype=torch.long), words, decoder=Ancestral(), steps=5))
    for step, state in enumerate(states):
        assert state.t == pytest.approx(1 - step / 5)
        share = float(state.hidden.float().mean())
        assert share == pytest.approx(1 - (step + 1) / 5, abs=5 * (0.25 / 20_000) ** 0.5)


def test_only_mask_predict_hides_words_of_earlier_steps_again() -> None:
    state = MaskedState(
        1.0, torch.zeros(1, 4, dtype=torch.long), torch.tensor([[False, True, True, False]]),
        torch.tensor([[-5.0, -1.0, -2.0, -9.0]]), torch.tensor([[True, True, True, False]]),
    )  # fmt: skip
    uniform = torch.full((1, 4), 0.5)
    assert MaskPredict().hide(state, 0.4, uniform).tolist() == [[True, False, False, False]]
    assert MaskGIT(noise=0, schedule="linear").hide(state, 0.4, uniform).tolist() == [[False, False, True, False]]


def test_tokens_are_drawn_with_their_probabilities() -> None:
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
def test_tokens_of_probability_zero_are_never_drawn(uniform: float) -> None:
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


# The pipeline


@pytest.fixture(scope="module")
def pipeline() -> MaskedPipeline:
    tokenizer = WordTokenizer().make(["a small blue house by the long green river", "an old man walks his dogs in a park"], 12)
    spec = build(MaskedConfig, {"dimension": 8, "backbone": {"name": "transformer", "layers": 1, "width": 16, "heads": 2}})
    torch.manual_seed(0)
    model = spec.make(tokenizer, [[2, 4, 5, 6, 7, 3]], 12).train(False)
    model.config.length_counts = [0, 0, 0, 5, 0, 0, 0, 5, 0, 10]
    return MaskedPipeline(model, tokenizer, SamplingConfig(steps=5, sampler=MaskGIT()))


@pytest.mark.parametrize("decoder", DECODERS)
def test_a_seed_decides_the_texts(pipeline: MaskedPipeline, decoder: Unmasking) -> None:
    torch.manual_seed(99)
    before = torch.get_rng_state()
    first = pipeline(7, seed=3, sampler=decoder)
    assert torch.equal(torch.get_rng_state(), before)
    assert pipeline(7, seed=3, sampler=decoder) == first
    assert pipeline(3, seed=3, sampler=decoder) == first[:3]
    assert pipeline(7, seed=3, sampler=decoder, batch_size=2) == first
    assert [one.text for one in pipeline(7, seed=4, sampler=decoder)] != [one.text for one in first]
    assert len({one.text for one in first}) > 1


def test_lengths(pipeline: MaskedPipeline) -> None:
    assert {one.length for one in pipeline(40)} == {1, 5, 7}
    for length in (1, 10):
        for one in pipeline(4, length=length):
            assert one.length == length == len(one.text.split())
    with pytest.raises(UserError, match=r"^length: expected 1 to 10 tokens for this model, got 11"):
        pipeline(1, length=11)


def test_special_tokens_are_never_written(pipeline: MaskedPipeline) -> None:
    bias = dict(pipeline.model.named_parameters())["network.down.bias"]
    with torch.no_grad():
        bias[:4] += 50.0
        for decoder in DECODERS:
            texts = pipeline(60, length=10, temperature=3.0, sampler=decoder)
            assert not any(token in one.text for one in texts for token in SPECIAL_TOKENS)
        bias[:4] -= 50.0


def test_every_step_is_watched(pipeline: MaskedPipeline) -> None:
    seen: list[tuple[float, list[str]]] = []
    sampling = SamplingConfig(steps=4, sampler=MaskPredict(), batch_size=3, length=8)
    generated = list(pipeline.stream(5, sampling, lambda state, texts: seen.append((state.t, texts))))
    assert [t for t, _ in seen] == [1, 0.75, 0.5, 0.25] * 2
    assert seen[3][1] + seen[7][1] == [one.text for one in generated]


def test_samplers_of_other_models_are_refused(pipeline: MaskedPipeline) -> None:
    with pytest.raises(UserError, match=r"^sampler: 'ddim' moves word vectors; a masked model needs ancestral or mask-predict"):
        pipeline(1, sampler=DDIM())
    with pytest.raises(UserError, match=r"^clamp: "):
        pipeline(1, clamp=True)
    x = torch.randn(1, 3, 2)
    with pytest.raises(UserError, match=r"^sampler: 'maskgit' decodes masked models"):
        next(sample(lambda xt, t: Denoised(xt, xt), GaussianDiffusion(Sqrt()), x, sampler=MaskGIT(), steps=2))


def test_train_and_generate_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = merge(tiny_plain(tmp_path), {"objective": "masked", "sampling": {"sampler": "ancestral"}})
    plain["model"] = {"name": "masked", **TINY["model"]}  # type: ignore[dict-item]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(plain))
    run = str(tmp_path / "run")
    assert main(["train", "--config", str(tmp_path / "config.yaml"), "--out", run]) == 0
    assert (tmp_path / "run" / "samples" / "step-8.txt").read_text().count("\n") == 10
    capsys.readouterr()
    flags = ["--steps", "6", "--temperature", "0.8", "--length", "9", "--count", "3", "--seed", "2"]
    for sampler in ("ancestral", "mask-predict", "maskgit"):
        assert main(["generate", run, "--sampler", sampler, *flags]) == 0
        written = capsys.readouterr().out
        rows = [json.loads(line) for line in written.splitlines()]
        assert [(row["index"], row["seed"], row["length"]) for row in rows] == [(i, 2, 9) for i in range(3)]
        assert main(["generate", run, "--sampler", sampler, *flags, "--batch-size", "1", "--watch"]) == 0
        assert capsys.readouterr().out == written
    assert main(["generate", run, "--sampler.name", "maskgit", "--sampler.noise", "0", "--count", "1"]) == 0
    capsys.readouterr()
    assert main(["generate", run, "--sampler", "ddpm"]) == 2
    assert "a masked model needs ancestral or mask-predict or maskgit" in capsys.readouterr().err
    targets = tmp_path / "targets.jsonl"
    targets.write_text('{"controls": ["Length(5)"]}\n')
    for argument in (["--annotator", "words"], ["--control", "Length(5)"], ["--condition", "low"], ["--targets", str(targets)]):
        assert main(["generate", run, *argument]) == 2
        told = capsys.readouterr()
        missing = (
            "was trained without a condition" if "low" in argument else "takes no controls; only diffusion on word vectors does"
        )
        assert f"model {missing}" in told.err and not told.out
    assert main(["generate", run, "--particles.cuont", "3"]) == 2
    assert "sampling.particles.cuont: there is no such setting; did you mean 'count'?" in capsys.readouterr().err


def test_a_wrong_sampler_is_refused_before_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = merge(tiny_plain(tmp_path), {"objective": "masked"})
    plain["model"] = {"name": "masked", **TINY["model"]}  # type: ignore[dict-item]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(plain))
    assert main(["train", "--config", str(tmp_path / "config.yaml"), "--out", str(tmp_path / "run")]) == 2
    assert "sampler: 'ddpm' moves word vectors" in capsys.readouterr().err
    assert not (tmp_path / "run" / "checkpoints").exists()
