"""Controls in sampling runs of a small model with random weights: samples satisfy them with every sampler."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from test_diffusion import LEFT_OUT, LENGTH_COUNTS, PAPER, _pipeline
from torch import Tensor

from diffusionlm.config import UserError
from diffusionlm.constraints.dfa import DFA, any_number, one_of, repeat, sequence
from diffusionlm.controls import Binding, CompiledControl, Control, Reward, read_controls
from diffusionlm.core.guidance import Adagrad, GuidanceState
from diffusionlm.core.process import Gaussian, GaussianDiffusion, Process, alpha, sigma
from diffusionlm.core.sampler import DDPM, Denoise, Denoised, History, Noise, Sampler
from diffusionlm.pipelines.cost import metered
from diffusionlm.pipelines.denoiser import WordDenoiser
from diffusionlm.pipelines.diffusion import Pipeline
from diffusionlm.pipelines.draft import salient_tokens
from diffusionlm.pipelines.gradient import Gradient
from diffusionlm.pipelines.lengths import energy_probabilities
from diffusionlm.pipelines.noise import RowNoise
from diffusionlm.pipelines.particles import Particles
from diffusionlm.pipelines.rows import Controlled, Generated
from diffusionlm.pipelines.steering import Steering
from diffusionlm.recipe.samplers import DDIM, DPMSolver, Renoise, renoised
from diffusionlm.recipe.schedules import Cosine


@dataclass(frozen=True)
class Only(Control, name="only-for-test"):
    """Texts of some words alone, ``least`` or more of them, by construction."""

    words: tuple[str, ...]
    least: int = 1
    most: int | None = None

    def compile(self, binding: Binding) -> CompiledControl:
        return CompiledControl(
            automata=(repeat(one_of(_ids(binding, self.words), len(binding.tokenizer)), self.least, self.most),)
        )

    def score(self, texts: Sequence[str], binding: Binding) -> list[float]:
        return [float(set(text.split()) <= set(self.words) and len(text.split()) >= self.least) for text in texts]


@dataclass(frozen=True)
class Often(Control, name="often-for-test"):
    """A word at as many places as can be, by the gradient of its chance."""

    word: str
    noisy: bool = False

    def compile(self, binding: Binding) -> CompiledControl:
        (token,) = _ids(binding, [self.word])
        vector = binding.model.word_vectors()[token].detach()

        def energy(belief: GuidanceState) -> Tensor:
            near = (belief.xt if self.noisy else belief.x0) @ vector
            return -(near * belief.mask).sum(1)

        return CompiledControl(energies=(energy,))

    def score(self, texts: Sequence[str], binding: Binding) -> list[float]:
        return [text.split().count(self.word) / max(len(text.split()), 1) for text in texts]


def _ids(binding: Binding, words: Sequence[str]) -> list[int]:
    return [i for word in words for i in binding.tokenizer(word, add_special_tokens=False)["input_ids"]]


def _share(texts: Sequence[Generated], word: str) -> float:
    words = [w for one in texts for w in one.text.split()]
    return words.count(word) / len(words)


def _texts(generated: Sequence[Generated]) -> list[str]:
    return [one.text for one in generated]


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return _pipeline()


SAMPLERS = [DDPM(), DDPM("upper"), DDIM(), DDIM(0.5), Renoise(), DPMSolver()]


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("steps", [1, 2, 9])
def test_what_holds_by_construction_always_holds(pipeline: Pipeline, sampler: Any, steps: int) -> None:
    only = Only(("tea", "rain", "cold"), least=3)
    rows = pipeline(12, only, steps=steps, sampler=sampler)
    assert all(isinstance(row, Controlled) and row.controls[0].passed for row in rows)
    assert all(row.length >= 3 for row in rows)
    assert len(set(_texts(rows))) > 1


@pytest.mark.parametrize("backbone", [{}, LEFT_OUT])
def test_sweeps_stay_within_the_constraints(backbone: dict[str, Any]) -> None:
    pipeline, only = _pipeline(**backbone), Only(("tea", "rain"), least=3)
    corrected = pipeline(12, only, sweeps=3, sweep_odds=1.0)
    assert all(isinstance(row, Controlled) and row.controls[0].passed for row in corrected)
    assert _texts(corrected) != _texts(pipeline(12, only))


def test_sweeps_introduce_what_the_energy_favours() -> None:
    pipeline = _pipeline(**LEFT_OUT)
    asked = Often("rain")
    settings: dict[str, Any] = {"length": 8, "guidance": Gradient(logit_scale=20.0, denoiser_scale=0.0, draft=0.0)}
    before, after = (_share(pipeline(12, asked, sweeps=n, **settings), "rain") for n in (0, 4))
    assert before < after


@dataclass(frozen=True)
class Says(Control, name="says-for-test"):
    """Each of some words, somewhere, by the gradient of its chance."""

    words: tuple[str, ...]

    def compile(self, binding: Binding) -> CompiledControl:
        ids = _ids(binding, self.words)

        def energy(belief: GuidanceState) -> Tensor:
            assert belief.words is not None
            return -torch.stack([(1 - (1 - belief.words[..., i]).prod(1)).clamp(min=1e-9).log() for i in ids]).sum(0)

        return CompiledControl(energies=(energy,))

    def score(self, texts: Sequence[str], binding: Binding) -> list[float]:
        return [sum(word in text.split() for word in self.words) / len(self.words) for text in texts]


def test_as_many_words_of_a_draft_are_kept_as_make_it_clear(pipeline: Pipeline) -> None:
    energy = pipeline.steering([Says(("rain", "tea"))], pipeline.sampling).energy
    assert energy is not None
    E = pipeline.model.word_vectors()
    draft = [
        ["cold", "rain", "the", "tea", "cold"],
        ["rain", "rain", "the", "tea", "cold"],
        ["tea", "the", "cold", "the", "the"],
    ]
    words = torch.tensor([_ids(pipeline.binding, text) for text in draft])
    free = torch.ones_like(words, dtype=torch.bool)
    anything = torch.zeros(*words.shape, len(E))
    kept = salient_tokens(energy, words, anything, free, free, E)
    assert kept[0].tolist() == [False, True, False, True, False]
    assert kept[1, 3] and kept[1].sum() == 2, "one of two that say the same is enough"
    assert kept[2, 0], "what the draft does not say is left to the second time"
    free[0, 1] = False
    assert not salient_tokens(energy, words, anything, free, free, E)[0, 1]


def test_a_draft_costs_no_more_steps_and_one_look_at_nothing(pipeline: Pipeline) -> None:
    calls = 0

    def count(*_: Any) -> None:
        nonlocal calls
        calls += 1

    asked: dict[str, Any] = {"controls": Says(("rain", "tea")), "length": 6, "steps": 10, "sampler": DDPM()}
    for draft, expected in ((0.0, 10), (0.04, 10), (0.4, 11)):
        calls, handle = 0, pipeline.model.network.register_forward_pre_hook(count)
        written = pipeline(8, guidance=Gradient(draft=draft), **asked)
        handle.remove()
        assert calls == expected
        assert all(isinstance(row, Controlled) and row.controls[0].score == 1 for row in written)
    assert _texts(written) == _texts(pipeline(3, guidance=Gradient(draft=0.4), **asked)) + _texts(written)[3:]


def test_a_draft_is_shared_by_the_particles_of_a_text(pipeline: Pipeline) -> None:
    asked = [Says(("rain",)), Reward(_length)]
    rows = pipeline(4, asked, length=6, steps=9, particles=Particles(count=3, every=2))
    assert all(isinstance(row, Controlled) and row.controls[0].passed for row in rows)


def _length(texts: Sequence[str]) -> list[float]:
    return [float(len(text)) for text in texts]


def test_lengths_are_drawn_from_the_possible_ones(pipeline: Pipeline) -> None:
    assert {n - 2 for n, count in enumerate(LENGTH_COUNTS) if count} == {1, 2, 8}
    words = tuple(w for w in pipeline.tokenizer.get_vocab() if not w.startswith("["))
    assert {row.length for row in pipeline(20, Only(words, 2))} == {2, 8}
    assert {row.length for row in pipeline(20, Only(words, 3, 5))} == {3, 4, 5}, "none of these is in training"
    assert {row.length for row in pipeline(3, Only(("tea",)), length=4)} == {4}


@dataclass(frozen=True)
class Long(Control, name="long-for-test"):
    """Texts whose length an energy finds ``odds`` times as likely where there are eight words or more."""

    odds: float

    def compile(self, binding: Binding) -> CompiledControl:
        return CompiledControl(
            energies=(lambda belief: math.log(self.odds) * (belief.mask.sum(1) < 10) + 0 * belief.x0.sum((1, 2)),)
        )

    def score(self, texts: Sequence[str], binding: Binding) -> list[float]:
        return [1.0 for _ in texts]


def _prior(pipeline: Pipeline, control: Control) -> list[float]:
    return pipeline.length_prior(pipeline.sampling, pipeline.steering([control], pipeline.sampling))


def test_lengths_follow_energies_by_bayes_rule(pipeline: Pipeline) -> None:
    prior = _prior(pipeline, Long(1.0))
    assert prior == [*LENGTH_COUNTS, *[0] * (len(prior) - len(LENGTH_COUNTS))]
    posterior = _prior(pipeline, Long(20.0))
    assert posterior == pytest.approx([w / 20 if n < 10 else w for n, w in enumerate(prior)])
    assert {row.length for row in pipeline(8, Long(1e9), steps=2)} == {8}
    assert {row.length for row in pipeline(8, Long(1e9), steps=2, guidance=Gradient(strength=0.0))} == {1, 2, 8}


def test_energies_are_evaluated_at_few_lengths(pipeline: Pipeline) -> None:
    asked = []

    def energy(belief: GuidanceState) -> Tensor:
        asked.extend(belief.mask.sum(1).tolist())
        return 0.5 * belief.mask.sum(1)

    found = energy_probabilities(
        pipeline.predictor, None, energy, [0.0] * 3 + [1.0] * 8 + [100.0]
    )  # nearly all texts have length 11
    assert asked == [9, 11]
    assert found[3:] == pytest.approx([1.0] * 7 + [math.exp(-0.5), math.exp(-1)])
    even = [0.0] * 3 + [1.0] * 10
    found = energy_probabilities(pipeline.predictor, None, energy, even)
    assert len(asked) == 2 + 8 and (asked[2], asked[-1]) == (3, 12)
    assert found[3:] == pytest.approx([math.exp(-0.5 * (n - 3)) for n in range(3, 13)])


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize(
    "guidance",
    [
        Gradient(logit_scale=3.0),
        Gradient(logit_scale=0.0, denoiser_scale=3.0),
        Gradient(logit_scale=2.0, denoiser_scale=2.0, inner_steps=3),
    ],
)
def test_gradients_lead_there(pipeline: Pipeline, sampler: Any, guidance: Gradient) -> None:
    before = _share(pipeline(16, length=6, sampler=sampler), "rain")
    after = _share(pipeline(16, Often("rain"), length=6, sampler=sampler, guidance=guidance), "rain")
    assert after > before + 0.2


def test_noisy_vectors_are_moved_as_in_the_paper(pipeline: Pipeline) -> None:
    steered = pipeline(16, Often("rain", noisy=True), steps=10, guidance=Adagrad(learning_rate=0.5))
    assert _share(steered, "rain") > _share(pipeline(16, steps=10), "rain") + 0.2


def test_the_papers_model_is_steered_too() -> None:
    paper, asked = _pipeline(**PAPER), Often("rain", noisy=True)
    unguided = _texts(paper(8))
    assert _texts(paper(8, asked, guidance=Adagrad(learning_rate=0.5))) != unguided
    assert _texts(paper(8, asked, guidance=Gradient(logit_scale=0.0, denoiser_scale=5.0))) != unguided
    assert _texts(paper(8, asked, guidance=Adagrad(strength=0.0))) == unguided
    with pytest.raises(UserError, match="this model predicts x0, not logits"):
        paper(8, asked)


def test_what_holds_for_one_word_moves_the_words_that_depend_on_it_by_bayes_rule() -> None:
    """Texts of two words with a joint distribution, and their exact denoiser: E[x_0 | x_t, the first is one of a few]."""
    q, t, draws = GaussianDiffusion(Cosine()), torch.full((1,), 0.6, dtype=torch.float64), torch.Generator().manual_seed(2)
    gamma = q.schedule.gamma(t)
    binding = _pipeline().binding
    size = len(binding.tokenizer)
    words, xt = (torch.randn(*shape, dtype=torch.float64, generator=draws) for shape in ((size, 3), (1, 4, 3)))
    joint = torch.rand(size, size, dtype=torch.float64, generator=draws).square()
    told = torch.arange(size) % 22 == 7
    first = sequence(one_of(told, size), one_of(told | ~told, size))
    steering = Steering((), binding, CompiledControl(automata=(first,)), Gradient(), Particles())

    def means(joint: Tensor, xt: Tensor) -> Denoised:
        near = [-(xt[0, i] - alpha(gamma) * words).square().sum(-1) / (2 * sigma(gamma) ** 2) for i in (1, 2)]
        p = (joint.log() + near[0][:, None] + near[1]).flatten().softmax(0).view(size, size)
        inside = torch.stack([p.sum(1), p.sum(0)])
        logits = torch.cat([torch.ones(1, size) / size, inside, torch.ones(1, size) / size]).log()[None]
        return Denoised(inside @ words, logits)

    with torch.enable_grad():
        xt = xt.requires_grad_()
        free = means(joint, xt)
        mask = torch.ones(1, 4, dtype=torch.bool)
        followed = steering.guidance.denoiser_energy(None, steering.constraint(mask, torch.zeros(1, 4, size)))
        assert followed is not None
        (slope,) = torch.autograd.grad(-followed(GuidanceState(xt, t, mask, lambda: free)).sum(), xt)
    expected = means(joint * told[:, None] + 1e-300, xt).x0
    torch.testing.assert_close(free.x0 + (sigma(gamma) ** 2 / alpha(gamma)) * slope[0, 1:3], expected)
    assert float((expected - free.x0)[1].detach().abs().sum()) > 0.1  # the second word, which no control concerns


def test_a_gradient_of_every_few_steps_is_repeated_between_them(pipeline: Pipeline) -> None:
    shifts: list[Tensor] = []

    class Watched(WordDenoiser):
        def _guided(self, xt: Tensor, t: Tensor) -> tuple[Denoised, Tensor | None]:
            prediction, shift = super()._guided(xt, t)
            assert shift is not None
            shifts.append(shift)
            return prediction, shift

    for every, taken in ((1, 6), (3, 2), (10, 1)):
        shifts.clear()
        sampling = replace(pipeline.sampling, steps=7, guidance=Gradient(constraint_every=every))
        steering = pipeline.steering(read_controls(['Words("rain", "green")']), sampling)
        predict = pipeline.predictor([8, 7])
        with torch.no_grad(), metered(pipeline) as meter:
            list(Watched(predict, sampling, steering).states(RowNoise([[1], [2]], [8, 7])))
        assert meter.backwards == 2 * taken  # none for the last step, whose logits alone are used
        assert len({id(shift) for shift in shifts}) == taken
        assert all(shifts[i] is shifts[i - i % every] for i in range(6))


def test_what_holds_by_construction_is_followed_through_the_denoiser_where_words_are_left_to_choose(pipeline: Pipeline) -> None:
    """As strongly as ``constraints`` says, whatever the strength of energies; fixed words and a gap leave nothing to follow."""

    def written(control: Control | str, constraints: float, strength: float = 1.0) -> list[str]:
        guidance = Gradient(constraint_scale=constraints, strength=strength)
        return _texts(pipeline(8, control, length=6, guidance=guidance, sweeps=0))

    somewhere = 'Words("rain", "green")'
    assert written(somewhere, 1.0) == written(somewhere, 1.0, strength=0.0) != written(somewhere, 0.0)
    assert all({"rain", "green"} <= set(text.split()) for text in written(somewhere, 1.0))
    filled = 'Infill("rain {4} green")'
    assert written(filled, 1.0) == written(filled, 0.0)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("guidance", [Gradient(strength=0.0, denoiser_scale=1.0), Adagrad(strength=0.0)])
def test_strength_0_writes_the_unguided_text(pipeline: Pipeline, sampler: Any, guidance: Any) -> None:
    rows = pipeline(8, Often("rain"), sampler=sampler, guidance=guidance, sweeps=1, passes=2)
    assert _texts(rows) == _texts(pipeline(8, sampler=sampler, sweeps=1, passes=2))


def test_strength_0_writes_the_unguided_text_of_a_network_that_leaves_words_out() -> None:
    pipeline = _pipeline(**LEFT_OUT)
    rows = pipeline(8, Often("rain"), guidance=Gradient(strength=0.0), sweeps=3, sweep_odds=1.0)
    assert _texts(rows) == _texts(pipeline(8, sweeps=3, sweep_odds=1.0))


def test_more_strength_more_of_it(pipeline: Pipeline) -> None:
    shares = [
        _share(pipeline(24, Often("rain"), length=6, guidance=Gradient(s, logit_scale=0.5)), "rain") for s in (0, 0.5, 1, 4)
    ]
    assert shares == sorted(shares) and shares[0] < shares[-1]


def test_controls_act_together(pipeline: Pipeline) -> None:
    controls = [Often("tea"), Only(("tea", "rain", "cold"))]
    rows = pipeline(16, controls, length=6)
    assert all(row.controls[1].passed for row in rows if isinstance(row, Controlled))
    assert _share(rows, "tea") > _share(pipeline(16, controls[1], length=6), "tea")
    opposite = pipeline(16, [1 * Often("tea"), ~Only(("tea",))], length=6)
    assert not any(set(text.split()) == {"tea"} for text in _texts(opposite))


# Particles


def _rain(texts: Sequence[str]) -> list[float]:
    return [text.split().count("rain") / max(len(text.split()), 1) for text in texts]


@pytest.mark.parametrize("sampler", [DDPM(), Renoise(), DDIM(1.0)])
def test_particles_follow_any_callable(pipeline: Pipeline, sampler: Any) -> None:
    def mean(count: int) -> float:
        particles = Particles(count=count, strength=30.0, every=1)
        rows = pipeline(12, Reward(_rain), length=6, steps=12, sampler=sampler, particles=particles)
        return sum(_rain(_texts(rows))) / 12

    assert mean(16) > mean(1) + 0.05


def test_particles_are_weighed_as_corrections_left_them(pipeline: Pipeline) -> None:
    asked: list[list[str]] = []

    def rain(texts: Sequence[str]) -> list[float]:
        asked.append(list(texts))
        return _rain(texts)

    particles = Particles(count=6, strength=1e6, every=100)
    rows = pipeline(3, Reward(rain), length=6, steps=4, sweeps=3, particles=particles)
    *_, finished, written = asked
    assert written == _texts(rows) and len(finished) == 18
    assert _rain(written) == [max(_rain(finished[i : i + 6])) for i in (0, 6, 12)]


def test_particles_are_scored_each_so_many_steps_whatever_their_times(pipeline: Pipeline) -> None:
    calls: list[int] = []

    def counted(texts: Sequence[str]) -> list[float]:
        calls.append(len(texts))
        return [0.0] * len(texts)

    pipeline(2, Reward(counted), length=6, steps=12, particles=Particles(count=3, every=4))
    *scored, finished = calls
    assert scored == [6, 6, 6] and finished == 2  # after steps 4, 8 and 12; the texts that are left, in the end


def test_particles_draw_from_generators_of_their_own(pipeline: Pipeline) -> None:
    """Indifferent particles: the text is one of those that the same noise writes without a reward."""

    def indifferent(texts: Sequence[str]) -> list[float]:
        return [0.5] * len(texts)

    one = pipeline(4, Reward(indifferent), particles=Particles(count=1))
    assert _texts(one) == _texts(pipeline(4))
    many = pipeline(4, Reward(indifferent), particles=Particles(count=3))
    assert many == pipeline(4, Reward(indifferent), particles=Particles(count=3))
    torch.manual_seed(7)
    state = torch.random.get_rng_state()
    pipeline(2, Reward(indifferent), particles=Particles(count=3))
    assert torch.equal(torch.random.get_rng_state(), state)


def test_controlled_samples_do_not_depend_on_the_count(pipeline: Pipeline) -> None:
    for asked in ([Often("rain"), Only(("tea", "rain"))], [Reward(_rain)]):
        settings: dict[str, Any] = {"particles": Particles(count=2)} if len(asked) == 1 else {}
        first = pipeline(3, asked, **settings)
        assert first == pipeline(7, asked, **settings)[:3]
        assert first == pipeline(3, asked, batch_size=2, **settings)


# Trying again


def test_texts_are_tried_until_they_pass(pipeline: Pipeline) -> None:
    reward = Reward(lambda texts: [float("rain" in text) for text in texts])
    alone = Particles(count=1)
    once = pipeline(12, reward, length=6, particles=alone)
    tried = pipeline(12, reward, tries=20, length=6, particles=alone)
    assert isinstance(tried[0], Controlled)
    for first, last in zip(once, tried, strict=True):
        assert isinstance(first, Controlled) and isinstance(last, Controlled)
        assert last.controls[0].passed == (last.tried < 20) or last.controls[0].passed
        if first.controls[0].passed:
            assert last == first and last.tried == 1
        else:
            assert last.tried > 1
    passed = [bool(row.controls[0].passed) for row in tried if isinstance(row, Controlled)]
    assert sum(passed) > sum(bool(row.controls[0].passed) for row in once if isinstance(row, Controlled))


def test_of_several_candidates_one_that_passes_is_kept(pipeline: Pipeline) -> None:
    reward = Reward(lambda texts: [float("rain" in text) for text in texts])

    def passing(candidates: int) -> int:
        rows = pipeline(12, reward, length=6, candidates=candidates, particles=Particles(count=1))
        return sum(bool(row.controls[0].passed) for row in rows if isinstance(row, Controlled))

    assert passing(6) > passing(1)


def test_rows_are_plain_json(pipeline: Pipeline) -> None:
    row = pipeline(1, Only(("tea",)), length=2)[0]
    assert json.loads(json.dumps(row.row())) == {
        "text": "tea tea",
        "index": 0,
        "seed": 0,
        "length": 2,
        "controls": [{"control": 'Only(["tea"])', "passed": True, "score": 1.0}],
        "tried": 1,
    }


# What cannot be


@dataclass(frozen=True)
class Exactly(Control, name="exactly-for-test"):
    """So many words."""

    count: int

    def compile(self, binding: Binding) -> CompiledControl:
        size = len(binding.tokenizer)
        return CompiledControl(automata=(repeat(one_of(range(size), size), self.count, self.count),))

    def score(self, texts: Sequence[str], binding: Binding) -> list[float]:
        return [float(len(text.split()) == self.count) for text in texts]


@pytest.mark.parametrize(
    ("controls", "changes", "message"),
    [
        ([Exactly(30)], {}, r"no sequence of at most 10 tokens, this model's limit, satisfies Exactly\(30\)"),
        ([Exactly(3), Exactly(4)], {}, r"Exactly\(3\) needs 3 tokens, but Exactly\(4\) needs 4 tokens"),
        ([Exactly(3), Only(("tea",), 5)], {}, r"Exactly\(3\) needs 3 tokens, but Only\(.*\) needs 5 to 10 tokens"),
        ([Only(("tea",)), Only(("rain",))], {}, "no sequence of at most 10 tokens satisfies both Only"),
        ([Exactly(3)], {"length": 4}, r"Exactly\(3\) needs 3 tokens, but length is 4"),
        ([Exactly(3) & Exactly(4)], {}, "no sequence of at most 10 tokens"),
        ([Reward(_rain) | Exactly(3)], {}, "can only be combined so with other rewards"),
    ],
)
def test_the_impossible_is_refused_before_any_work(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, controls: Any, changes: dict[str, Any], message: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("sampling began")

    monkeypatch.setattr(Pipeline, "sample_ids", fail)
    with pytest.raises(UserError, match=message):
        pipeline(2, controls, **changes)


def test_three_that_only_together_are_impossible(pipeline: Pipeline) -> None:
    def ends(word: str, other: str) -> Control:
        return Ends(word) | Ends(other)

    with pytest.raises(UserError, match="tokens satisfies all of"):
        pipeline(1, [ends("tea", "rain"), ends("rain", "cold"), ends("cold", "tea")])


@dataclass(frozen=True)
class Ends(Control, name="ends-for-test"):
    """The last word."""

    word: str

    def compile(self, binding: Binding) -> CompiledControl:
        size = len(binding.tokenizer)
        language: DFA = sequence(any_number(one_of(range(size), size)), one_of(_ids(binding, [self.word]), size))
        return CompiledControl(automata=(language,))

    def score(self, texts: Sequence[str], binding: Binding) -> list[float]:
        return [float(text.split()[-1:] == [self.word]) for text in texts]


def test_a_model_of_other_output_holds_nothing_by_construction() -> None:
    with pytest.raises(UserError, match="need a model with prediction 'logits' and explicit_length"):
        _pipeline(**PAPER)(1, Only(("tea",)))


@dataclass(frozen=True)
class Stub(Control, name="stub-for-test"):
    """A control without effect that cannot be checked."""

    def compile(self, binding: Binding) -> CompiledControl:
        return CompiledControl()

    def checkable(self, binding: Binding) -> bool:
        return False

    def score(self, texts: Sequence[str], binding: Binding) -> list[float | None]:
        return [None for _ in texts]


def test_tries_need_a_control_that_can_be_checked(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = pipeline(2, Stub(), length=3, candidates=3)
    assert [row.controls[0].passed for row in rows if isinstance(row, Controlled)] == [None, None]
    monkeypatch.setattr(Pipeline, "sample_ids", None)  # refused before any sampling
    with pytest.raises(UserError, match=r"^control: Stub\(\) cannot be checked, .* give an annotator"):
        pipeline(2, Stub(), tries=2)


# Samplers that evaluate the denoiser twice


@dataclass(frozen=True)
class Heun(Sampler):
    """Heun's method on the probability flow, as an exponential integrator: the mean of x_0 at both ends of the step."""

    def step(
        self, denoise: Denoise, process: Process, history: History, xt: Tensor, t: Tensor, s: Tensor, noise: Noise
    ) -> tuple[Denoised, Gaussian]:
        denoised = denoise(xt, t)
        euler = renoised(process, denoised.x0, xt, t, s, torch.zeros_like(t))
        if not bool((s > 0).all()):
            return denoised, euler
        x0 = (denoised.x0 + denoise(euler.mean, s).x0) / 2
        return denoised, renoised(process, x0, xt, t, s, torch.zeros_like(t))


def test_a_sampler_may_evaluate_the_denoiser_twice(pipeline: Pipeline) -> None:
    previous: list[bool] = []
    hook = pipeline.model.register_forward_pre_hook(lambda _, args: previous.append(args[3] is not None))
    settings: dict[str, Any] = {"sampler": Heun(), "steps": 6, "length": 6}
    first = pipeline(4, **settings)
    hook.remove()
    assert previous == [False] + [True] * 10  # twice in each step but the last, with the estimate of the evaluation before
    assert first == pipeline(4, batch_size=2, **settings)
    assert _texts(first) != _texts(pipeline(4, sampler=DDIM(), steps=6, length=6))


def test_a_sampler_with_two_evaluations_is_steered(pipeline: Pipeline) -> None:
    settings: dict[str, Any] = {"sampler": Heun(), "steps": 6, "length": 6}
    assert all(set(text.split()) <= {"tea", "rain"} for text in _texts(pipeline(6, Only(("tea", "rain")), **settings)))
    steered = pipeline(16, Often("rain"), guidance=Gradient(logit_scale=2.0, denoiser_scale=2.0), **settings)
    assert _share(steered, "rain") > _share(pipeline(16, **settings), "rain") + 0.2
    particles = Particles(count=8, strength=30.0, every=1)
    selected = _rain(_texts(pipeline(12, Reward(_rain), particles=particles, **settings)))
    assert sum(selected) > sum(_rain(_texts(pipeline(12, **settings))))
