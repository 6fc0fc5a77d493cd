"""The pipeline: what a seed decides, lengths, barred words, mistakes told, minimum Bayes risk, loading."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from diffusionlm.config import UserError, build, merge, to_plain
from diffusionlm.core.sampler import DDPM, Denoise, State
from diffusionlm.data.tokenizers import SPECIAL_TOKENS, WordTokenizer
from diffusionlm.models.diffusion import DiffusionLM, DiffusionLMConfig, ModelConfig
from diffusionlm.models.io import model_folder
from diffusionlm.pipelines.base import SamplingConfig
from diffusionlm.pipelines.conditioning import Requested
from diffusionlm.pipelines.denoiser import Predictor, WordDenoiser, until_end
from diffusionlm.pipelines.diffusion import Pipeline
from diffusionlm.pipelines.lengths import draw_lengths
from diffusionlm.pipelines.ranking import best_candidates
from diffusionlm.pipelines.rows import Generated
from diffusionlm.recipe.samplers import DDIM, DPMSolver, Renoise

SENTENCES = [
    "the small blue house stands by the long green river",
    "an old man walks his three grey dogs in the park",
    "every morning she reads a new book under that tall tree",
    "we drink hot tea and watch cold rain on quiet streets",
]
LONGEST = 12
SMALL: dict[str, Any] = {
    "dimension": 8,
    "backbone": {"name": "transformer", "layers": 1, "width": 16, "heads": 2},
    "schedule": {"name": "gumbel", "location": 0.5, "end": -1.0},
}
LEFT_OUT: dict[str, Any] = {"backbone": {"name": "leave-one-out", "query_layers": 1}}
# Lengths with START and END: a quarter of the texts have one token of their own, a quarter two, half of them eight.
LENGTH_COUNTS = [0, 0, 0, 5, 5, 0, 0, 0, 0, 0, 10]
PAPER: dict[str, Any] = {
    "prediction": "x0",
    "schedule": {"name": "sqrt", "T": 20, "offset": 1e-4},
    "backbone": {"name": "bert", "layers": 1, "width": 16, "heads": 2, "feedforward": 32, "T": 20},
    "embedding": "free",
    "self_conditioning": False,
    "explicit_length": False,
}


PLAIN = SamplingConfig(steps=6, passes=1, sweeps=0)  # any model can be sampled so


def _pipeline(sampling: SamplingConfig | None = None, **settings: Any) -> Pipeline:
    tokenizer = WordTokenizer().make(SENTENCES, LONGEST)
    config = DiffusionLMConfig(
        settings=to_plain(build(ModelConfig, merge(SMALL, settings))),
        vocabulary=len(tokenizer),
        max_tokens=LONGEST,
        length_counts=LENGTH_COUNTS,
        special_ids={
            "pad": tokenizer.pad_token_id,
            "unk": tokenizer.unk_token_id,
            "start": tokenizer.bos_token_id,
            "end": tokenizer.eos_token_id,
        },
    )
    torch.manual_seed(0)
    return Pipeline(DiffusionLM(config).train(False), tokenizer, sampling or PLAIN)


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return _pipeline()


@pytest.fixture(scope="module")
def paper() -> Pipeline:
    return _pipeline(replace(PLAIN, steps=10, clamp=True), **PAPER)


def _denoise(pipeline: Pipeline, mask: Tensor, sampling: SamplingConfig) -> Denoise:
    return WordDenoiser(Predictor(pipeline.model, mask), sampling, pipeline.steering((), sampling)).wrapped()


def _texts(generated: list[Generated]) -> list[str]:
    return [one.text for one in generated]


def _tokens(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


# What decides a text


@pytest.mark.parametrize("sampler", [DDPM(), DDPM("upper"), DDIM(), DDIM(0.5), Renoise(), DPMSolver()])
def test_a_seed_decides_the_texts(pipeline: Pipeline, sampler: Any) -> None:
    first = pipeline(6, seed=3, sampler=sampler)
    torch.manual_seed(99)
    assert pipeline(6, seed=3, sampler=sampler) == first
    assert _texts(pipeline(6, seed=4, sampler=sampler)) != _texts(first)
    assert len(set(_texts(first))) > 1
    assert [(one.index, one.seed) for one in first] == [(i, 3) for i in range(6)]


def test_the_first_samples_do_not_depend_on_the_count(pipeline: Pipeline) -> None:
    assert pipeline(3) == pipeline(7)[:3]
    assert pipeline(0) == []


@pytest.mark.parametrize("batch_size", [1, 3, 8])
@pytest.mark.parametrize("settings", [{}, LEFT_OUT, PAPER])
def test_the_batch_size_changes_no_text(batch_size: int, settings: dict[str, Any]) -> None:
    pipeline = _pipeline(**settings)
    assert pipeline(8, batch_size=batch_size) == pipeline(8, batch_size=128)


def test_texts_come_batch_by_batch(pipeline: Pipeline) -> None:
    states: list[float] = []
    stream = pipeline.stream(9, replace(PLAIN, steps=4, batch_size=3), lambda state, texts: states.append(state.t))
    next(stream)
    assert len(states) == 4
    assert len(list(stream)) == 8
    assert len(states) == 12


def test_the_global_random_state_is_left_alone(pipeline: Pipeline) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    pipeline(4)
    assert torch.equal(torch.get_rng_state(), before)


# Lengths and words


@pytest.mark.parametrize("length", [1, 4, LONGEST - 2])
def test_a_length_is_kept(pipeline: Pipeline, length: int) -> None:
    for one in pipeline(10, length=length):
        assert one.length == length
        assert len(_tokens(pipeline.tokenizer, one.text)) == length


def test_lengths_are_drawn_from_the_training_texts(pipeline: Pipeline) -> None:
    prior = pipeline.length_prior(PLAIN, pipeline.steering((), PLAIN))
    lengths = draw_lengths(prior, [(0, index, 0) for index in range(4000)])
    counts = Counter(lengths)
    assert set(counts) == {3, 4, 10}
    assert [counts[n] / 4000 for n in (3, 4, 10)] == pytest.approx([0.25, 0.25, 0.5], abs=5 * (0.25 / 4000) ** 0.5)
    assert [one.length + 2 for one in pipeline(12)] == lengths[:12]
    assert all(one.length == len(_tokens(pipeline.tokenizer, one.text)) for one in pipeline(12))


def test_a_temperature_sharpens_the_draw_of_lengths(pipeline: Pipeline) -> None:
    seeds = [(0, index, 0) for index in range(4000)]
    counts = Counter(draw_lengths([0, 1, 2], seeds, temperature=0.5))
    assert counts[2] / 4000 == pytest.approx(4 / 5, abs=5 * (0.16 / 4000) ** 0.5)  # 2 ** 2 to 1 ** 2
    assert draw_lengths([0, 1, 2], seeds, temperature=1e-3) == [2] * 4000
    assert {one.length for one in pipeline(12, length_temperature=0.01)} == {8}


def test_a_shift_moves_the_noise_of_the_steps(pipeline: Pipeline) -> None:
    def gammas(**changes: Any) -> list[float]:
        seen: list[float] = []
        sampling, schedule = pipeline.changed({"steps": 4, "length": 5, **changes}), pipeline.model.process.schedule
        list(pipeline.stream(1, sampling, lambda state, _: seen.append(float(schedule.gamma(torch.tensor(state.t))))))
        return seen[:4]

    plain, moved = gammas(), gammas(noise_shift=-1.0)
    assert moved == pytest.approx([plain[0], *(gamma - 1 for gamma in plain[1:])], abs=1e-4)
    assert _texts(pipeline(3, noise_shift=0.0)) == _texts(pipeline(3))


def test_a_model_without_training_lengths_needs_a_length() -> None:
    pipeline = _pipeline()
    pipeline.model.config.length_counts = []
    assert len(pipeline(2, length=3)) == 2
    with pytest.raises(UserError, match=r"^length: "):
        pipeline(2)


@pytest.mark.parametrize(
    ("settings", "changes"),
    [
        ({}, {"temperature": 0.5}),
        ({}, {"temperature": 30.0}),
        ({}, {"clamp": True}),
        (PAPER | {"explicit_length": True}, {}),
        (PAPER | {"explicit_length": True}, {"clamp": True}),
    ],
)
def test_special_tokens_are_never_written(settings: dict[str, Any], changes: dict[str, Any]) -> None:
    pipeline = _pipeline(**settings)
    with torch.no_grad():  # long vectors, which rounding would choose if it might
        pipeline.model.embedding.weight[list(pipeline.model.config.special_ids.values())] *= 20
    texts = _texts(pipeline(60, length=10, **changes))
    assert not any(token in text for text in texts for token in SPECIAL_TOKENS)
    vocabulary = {word for sentence in SENTENCES for word in sentence.split()}
    assert {word for text in texts for word in text.split()} <= vocabulary


def test_boundaries_are_given_to_the_model_and_padding_is_hidden(pipeline: Pipeline) -> None:
    model, mask = pipeline.model, torch.arange(6) < torch.tensor([[6], [4]])
    denoise = _denoise(pipeline, mask, PLAIN)
    xt = torch.randn(2, 6, 8)
    with torch.no_grad():
        believed = denoise(xt, torch.full((2,), 0.7)).x0
        E, special = model.word_vectors(), model.config.special_ids
    for row, last in ((0, 5), (1, 3)):
        assert torch.equal(believed[row, 0], E[special["start"]])
        assert torch.equal(believed[row, last], E[special["end"]])
    other = torch.where(mask[..., None], xt, 50.0)
    with torch.no_grad():
        again = _denoise(pipeline, mask, PLAIN)(other, torch.full((2,), 0.7)).x0
    torch.testing.assert_close(again[mask], believed[mask])


def test_self_conditioning_carries_the_last_estimate(pipeline: Pipeline) -> None:
    mask, t = torch.ones(1, 6, dtype=torch.bool), torch.full((1,), 0.7)
    xt = torch.randn(1, 6, 8)
    denoise = _denoise(pipeline, mask, PLAIN)
    with torch.no_grad():
        first = denoise(xt, t)
        second = denoise(xt, t)
        held = torch.where(torch.tensor([True, *[False] * 4, True])[:, None], first.x0, xt)
        levels = torch.tensor([[0, *[0.7] * 4, 0]])
        assert torch.equal(_denoise(pipeline, mask, PLAIN)(xt, t).x0, first.x0)
        unconditioned = pipeline.model(held, levels)
    inside = slice(1, 5)
    words = [i for i in range(len(pipeline.tokenizer)) if i not in pipeline.model.config.special_ids.values()]
    torch.testing.assert_close(first.logits[:, inside, words], unconditioned.logits[:, inside, words])
    assert not torch.equal(second.logits[:, inside, words], first.logits[:, inside, words])


def test_a_low_temperature_changes_the_texts(pipeline: Pipeline) -> None:
    assert _texts(pipeline(8, length=8, temperature=0.1)) != _texts(pipeline(8, length=8))


def test_the_last_pass_receives_the_estimate_of_the_others(pipeline: Pipeline) -> None:
    mask = torch.ones(2, 6, dtype=torch.bool)
    xt, t = torch.randn(2, 6, pipeline.model.settings.dimension), torch.full((2,), 0.7)
    with torch.no_grad():
        apart = _denoise(pipeline, mask, replace(PLAIN, temperature=0.8))
        separate = [apart(xt, t) for _ in range(3)]
        together = _denoise(pipeline, mask, replace(PLAIN, temperature=0.8, passes=3))(xt, t)
    assert torch.equal(together.x0, separate[-1].x0)
    assert not torch.equal(separate[-1].x0, separate[0].x0)


def test_the_step_has_a_temperature_of_its_own(pipeline: Pipeline) -> None:
    mask = torch.ones(2, 6, dtype=torch.bool)
    xt, t = torch.randn(2, 6, pipeline.model.settings.dimension), torch.full((2,), 0.7)
    with torch.no_grad():
        plain = _denoise(pipeline, mask, replace(PLAIN, temperature=0.8))
        sharp = _denoise(pipeline, mask, replace(PLAIN, temperature=0.8, step_temperature=1e-6))
        viterbi = plain(xt, t).logits.argmax(-1)[:, 1:-1]
        nearest = sharp(xt, t).x0[:, 1:-1]
        # The self-conditioning input is the same: the second estimates differ in their sharpness alone.
        torch.testing.assert_close(plain(xt, t).logits[:, 1:-1] * 0.8, sharp(xt, t).logits[:, 1:-1] * 1e-6)
    torch.testing.assert_close(nearest, pipeline.model.encode(viterbi))


@pytest.mark.parametrize("backbone", [{}, LEFT_OUT])
def test_corrections_keep_lengths_and_seeds(backbone: dict[str, Any]) -> None:
    pipeline = _pipeline(**backbone)
    settings: dict[str, Any] = {"steps": 4, "length": 8, "sweeps": 2, "sweep_odds": 1.0}
    corrected = pipeline(6, **settings)
    assert [row.length for row in corrected] == [8] * 6
    assert _texts(corrected) != _texts(pipeline(6, steps=4, length=8))
    assert _texts(pipeline(3, **settings)) == _texts(corrected)[:3]
    specials = set(pipeline.tokenizer.all_special_tokens)
    assert not specials & {word for text in _texts(corrected) for word in text.split()}


def test_a_network_that_leaves_words_out_corrects_them_in_one_evaluation() -> None:
    pipeline = _pipeline(**LEFT_OUT)
    calls = 0

    def count(*_: Any) -> None:
        nonlocal calls
        calls += 1

    pipeline.model.network.register_forward_hook(count)
    uncorrected = pipeline(6, steps=4, length=8)
    assert calls == 4
    settings: dict[str, Any] = {"steps": 4, "length": 8, "sweep_odds": 1.0}
    corrected = pipeline(6, sweeps=1, **settings)
    assert calls == 4 + 5
    pairs = zip(_texts(uncorrected), _texts(corrected), strict=True)
    changed = [sum(old != new for old, new in zip(a.split(), b.split(), strict=True)) for a, b in pairs]
    assert max(changed) == 1  # within five words of one another, the one that fits least


# Watching


@pytest.mark.parametrize("settings", [{}, PAPER])
def test_every_step_is_watched(settings: dict[str, Any]) -> None:
    pipeline = _pipeline(**settings)
    seen: list[tuple[float, list[str]]] = []

    def watch(state: State, texts: list[str]) -> None:
        assert state.x.shape[0] == len(texts)
        seen.append((state.t, texts))

    sampling = replace(PLAIN, steps=5, batch_size=4)
    generated = list(pipeline.stream(6, sampling, watch))
    times = pipeline.model.settings.schedule.sampling_times(5)[:-1].tolist()
    assert [t for t, _ in seen] == pytest.approx(times * 2)
    assert [len(texts) for _, texts in seen] == [4] * 5 + [2] * 5
    assert seen[4][1] + seen[9][1] == _texts(generated)
    assert generated == list(pipeline.stream(6, sampling))


# The paper's way: padding is modelled, vectors are predicted and clamped


def test_a_model_in_the_papers_way_writes(paper: Pipeline) -> None:
    generated = paper(6)
    assert generated == paper(6)
    for one in generated:
        assert one.length <= LONGEST
        assert not any(token in one.text for token in ("[PAD]", "[START]", "[END]"))


class _Knows(nn.Module):
    """A network that puts out the same vectors whatever it sees."""

    def __init__(self, vectors: Tensor) -> None:
        super().__init__()
        self.vectors = vectors

    def forward(self, latents: Tensor, t: Tensor, gamma: Tensor, mask: Tensor | None) -> Tensor:
        return self.vectors.expand(len(latents), -1, -1)


@pytest.mark.parametrize("clamp", [True, False])
@pytest.mark.parametrize("sampler", [DDPM(), DDIM(), DPMSolver()])
def test_a_model_with_a_certain_prediction_samples_it(clamp: bool, sampler: Any) -> None:
    pipeline = _pipeline(**PAPER | {"embedding": "normalised"})
    model, text = pipeline.model, "the small house stands by the river"
    ids = [*pipeline.tokenizer(text)["input_ids"], *[model.config.special_ids["pad"]] * LONGEST][:LONGEST]
    assert model.config.special_ids["pad"] in ids
    model.network = _Knows(model.word_vectors().detach()[ids])
    changes = {"clamp": clamp, "sampler": sampler}
    assert [(one.text, one.length) for one in pipeline(2, **changes)] == [(text, 7)] * 2


def test_a_text_ends_at_its_end_token(paper: Pipeline) -> None:
    special, content = paper.model.config.special_ids, [7, 8]
    row = [special["start"], *content, special["end"], 9, special["pad"]]
    assert until_end(row, special) == content
    assert until_end([special["start"], *content, special["pad"], 9], special) == [*content, 9]


def test_the_last_vectors_are_rounded_as_they_stand(paper: Pipeline) -> None:
    """With clamping, x_0 is an exact row of E, and the words are those that the rounding says of that row."""
    last: list[State] = []
    read: list[list[str]] = []

    def watch(state: State, texts: list[str]) -> None:
        last.append(state)
        read.append(texts)

    list(paper.stream(20, replace(PLAIN, steps=5, clamp=True), watch))
    E = paper.model.word_vectors()
    assert bool((torch.cdist(last[-1].x, E.expand(20, -1, -1)).amin(-1) < 1e-3).all())
    ids = [until_end(row, paper.model.config.special_ids) for row in paper.model.decode(last[-1].x).argmax(-1).tolist()]
    assert read[-1] == paper.tokenizer.batch_decode(ids)


@pytest.mark.parametrize("prediction", ["eps", "v"])
@pytest.mark.parametrize("explicit", [True, False])
def test_the_other_predictions_write_too(prediction: str, explicit: bool) -> None:
    pipeline = _pipeline(**PAPER | {"prediction": prediction, "explicit_length": explicit})
    assert pipeline(4) == pipeline(4)


def test_learned_variances_are_used() -> None:
    pipeline = _pipeline(**PAPER | {"learned_variance": True})
    assert len(pipeline(3, sampler=DDPM("learned"))) == 3
    with pytest.raises(UserError, match=r"^sampler\.variance: 'learned' needs a model that predicts variances"):
        _pipeline(**PAPER)(3, sampler=DDPM("learned"))


def test_coarser_arithmetic_writes_too(pipeline: Pipeline) -> None:
    coarse = Pipeline(pipeline.model, pipeline.tokenizer, pipeline.sampling, torch.bfloat16)
    assert [one.length for one in coarse(5)] == [one.length for one in pipeline(5)]


def test_only_the_network_is_in_coarser_arithmetic(pipeline: Pipeline) -> None:
    coarse = Pipeline(pipeline.model, pipeline.tokenizer, pipeline.sampling, torch.bfloat16)
    seen: list[bool] = []
    hook = pipeline.model.network.register_forward_pre_hook(lambda *_: seen.append(torch.is_autocast_enabled("cpu")))
    outside: list[bool] = []

    def watch(state: State, texts: list[str]) -> None:
        outside.append(torch.is_autocast_enabled("cpu"))
        mean = state.denoised.logits.softmax(-1) @ pipeline.model.word_vectors()
        torch.testing.assert_close(state.denoised.x0[:, 1:2], mean[:, 1:2], rtol=1e-5, atol=1e-5)

    list(coarse.stream(2, replace(pipeline.sampling, length=5), watch))
    hook.remove()
    assert all(seen) and seen and not any(outside) and outside


def test_changes_by_name_and_mistakes_in_them(pipeline: Pipeline) -> None:
    assert pipeline(2, sampler="ddim") == pipeline(2, sampler=DDIM())
    with pytest.raises(UserError, match=r"^stepz: there is no such setting; did you mean 'steps'\?$"):
        pipeline(2, stepz=3)
    with pytest.raises(UserError, match=r"^tries: expected at least 1, got 0$"):
        pipeline(2, "length=5", tries=0)


# Mistakes


@pytest.mark.parametrize(
    ("settings", "changes", "sentence"),
    [
        (PAPER, {"temperature": 0.8}, "temperature: this model predicts x0, not logits; leave it at 1"),
        (PAPER, {"length": 3}, "length: this model generates PAD and so determines the length itself; leave it empty"),
        (PAPER, {"steps": 21}, "steps: expected 1 to 20 for the sqrt schedule, got 21"),
        ({}, {"length": 0}, "length: expected 1 to 10 tokens for this model, got 0"),
        ({}, {"length": 11}, "length: expected 1 to 10 tokens for this model, got 11"),
        ({}, {"steps": 5000}, "steps: expected 1 to 4096 for the gumbel schedule, got 5000"),
        ({}, {"steps": 0}, "steps: expected at least 1, got 0"),
        ({}, {"candidates": 0}, "candidates: expected 1 to 10000, got 0"),
        ({}, {"batch_size": 0}, "batch_size: expected at least 1, got 0"),
        ({}, {"temperature": 0.0}, "temperature: expected a positive number, got 0.0"),
        ({}, {"temperature": math.nan}, "temperature: expected a finite number, got nan"),
        ({}, {"temperature": math.inf}, "temperature: expected a finite number, got inf"),
        ({}, {"step_temperature": -1.0}, "step_temperature: expected a positive number, got -1.0"),
        (PAPER, {"step_temperature": 0.5}, "temperature: this model predicts x0, not logits; leave it at 1"),
        ({}, {"passes": 0}, "passes: expected 1 to 10000, got 0"),
        ({}, {"sweeps": -1}, "sweeps: expected 0 to 10000, got -1"),
        ({}, {"sweep_odds": 0.5}, "sweep_odds: expected at least 1, got 0.5"),
        (PAPER, {"sweeps": 1}, "sweeps: expected 0 for a model without prediction 'logits' and explicit_length"),
        (PAPER, {"passes": 2}, "passes: expected 1 for a model without self_conditioning, got 2"),
        ({}, {"seed": -1}, "seed: expected 0 or more, got -1"),
    ],
)
def test_impossible_wishes(settings: dict[str, Any], changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        _pipeline(**settings)(2, **changes)
    assert str(caught.value) == sentence


# Minimum Bayes risk


@pytest.mark.parametrize("batch_size", [2, 4, 64])
def test_the_best_of_several_candidates_is_kept(pipeline: Pipeline, batch_size: int) -> None:
    asked: list[list[str]] = []

    def watch(state: State, texts: list[str]) -> None:
        asked.append(texts)

    sampling = replace(PLAIN, steps=3, candidates=4, batch_size=batch_size, length=5)
    chosen = list(pipeline.stream(3, sampling, watch))
    all_candidates = [text for texts in asked[2::3] for text in texts]
    groups = [all_candidates[4 * i : 4 * i + 4] for i in range(3)]
    best = best_candidates(pipeline, sampling, range(3), [Requested()] * 3, [[]] * 12, all_candidates)
    assert _texts(chosen) == [all_candidates[number] for number in best]
    # The first candidate is the text that plain sampling would write.
    plain = pipeline.stream(3, replace(PLAIN, steps=3, length=5))
    assert [group[0] for group in groups] == _texts(list(plain))


# Loading


def _save(folder: Path, sampling: str | None = None) -> Pipeline:
    pipeline = _pipeline(SamplingConfig())
    pipeline.model.save_pretrained(folder)
    pipeline.tokenizer.save_pretrained(folder)
    if sampling is not None:
        (folder / "sampling.json").write_text(sampling)
    return pipeline


def test_a_saved_pipeline_writes_the_same_texts(tmp_path: Path) -> None:
    pipeline = _save(tmp_path)
    loaded = Pipeline.from_pretrained(tmp_path)
    assert loaded.sampling == SamplingConfig()
    assert not loaded.model.training
    assert loaded(5, steps=6) == pipeline(5, steps=6)


def test_saved_defaults_are_used(tmp_path: Path) -> None:
    chosen = SamplingConfig(steps=3, sampler=DDIM(eta=0.5), temperature=0.7, length=4, seed=9)
    _save(tmp_path, json.dumps(to_plain(chosen)))
    loaded = Pipeline.from_pretrained(tmp_path)
    assert loaded.sampling == chosen
    assert [(one.length, one.seed) for one in loaded(2)] == [(4, 9)] * 2
    assert [(one.length, one.seed) for one in loaded(2, length=5, seed=1)] == [(5, 1)] * 2


def test_a_runs_folder_serves_as_its_models(tmp_path: Path) -> None:
    pipeline = _save(tmp_path / "model", '{"steps": 2}')
    assert model_folder(tmp_path) == model_folder(tmp_path / "model") == tmp_path / "model"
    loaded = Pipeline.from_pretrained(tmp_path)
    assert loaded.sampling == SamplingConfig(steps=2)
    assert loaded(3) == pipeline(3, steps=2)


def _forget_tokenizer(folder: Path) -> None:
    for path in folder.glob("tokenizer*"):
        path.unlink()


def _break_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{")


def _other_tokenizer(folder: Path) -> None:
    WordTokenizer().make(SENTENCES[:2], LONGEST).save_pretrained(folder)


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (_forget_tokenizer, "the tokenizer is missing or damaged"),
        (_break_tokenizer, "the tokenizer is missing or damaged"),
        (_other_tokenizer, "tokens, the model"),
    ],
)
def test_a_tokenizer_that_does_not_serve(damage: Callable[[Path], None], sentence: str, tmp_path: Path) -> None:
    _save(tmp_path)
    damage(tmp_path)
    with pytest.raises(UserError) as caught:
        Pipeline.from_pretrained(tmp_path)
    assert sentence in str(caught.value)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "expected JSON, but the file is damaged"),
        ('{"step": 3}', "step: there is no such setting; did you mean 'steps'?"),
        ('{"sampler": "ddpn"}', "sampler: no sampler is called 'ddpn'; did you mean 'ddpm'?"),
        ('{"sampler": "no_such_module:Sampler"}', "'no_such_module:Sampler' is code from outside the library"),
    ],
)
def test_defaults_that_cannot_be_used(text: str, sentence: str, tmp_path: Path) -> None:
    _save(tmp_path, text)
    with pytest.raises(UserError) as caught:
        Pipeline.from_pretrained(tmp_path)
    assert sentence in str(caught.value)
    assert str(tmp_path / "sampling.json") in str(caught.value)


@pytest.mark.parametrize(
    ("choice", "sentence"),
    [
        ({"dtype": "fp64"}, "dtype: expected one of fp32, bf16, got 'fp64'"),
        ({"device": "nowhere"}, "device: 'nowhere' cannot be used here: "),
    ],
)
def test_a_device_or_dtype_that_is_none(choice: dict[str, str], sentence: str, tmp_path: Path) -> None:
    _save(tmp_path)
    with pytest.raises(UserError) as caught:
        Pipeline.from_pretrained(tmp_path, **choice)
    assert str(caught.value).startswith(sentence)


def test_capabilities(pipeline: Pipeline, paper: Pipeline) -> None:
    assert (pipeline.has_logits, pipeline.any_order_bound, pipeline.exact_likelihood) == (True, True, False)
    assert (paper.has_logits, paper.any_order_bound, paper.exact_likelihood) == (False, False, False)
