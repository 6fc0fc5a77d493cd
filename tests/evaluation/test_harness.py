"""Answers to the requests of the lm-evaluation-harness: exact where they can be, with the context never noised."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy
import pytest
import torch

from diffusionlm.config import UserError
from diffusionlm.data.tokenizers import WordTokenizer
from diffusionlm.evaluation.harness import HarnessModel
from diffusionlm.evaluation.likelihood import denoiser, hidden_token_losses
from diffusionlm.evaluation.scoring import ScoringConfig, score
from diffusionlm.models.backbones import Transformer
from diffusionlm.models.causal import CausalConfig
from diffusionlm.models.diffusion import ModelConfig
from diffusionlm.models.masked import MaskedConfig, masked_token_losses
from diffusionlm.pipelines.base import SamplingConfig
from diffusionlm.pipelines.masked import Ancestral
from diffusionlm.training.run import save_model

SMALL = Transformer(layers=1, width=16, heads=2)
KINDS = ("diffusion", "masked", "causal")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A folder for each kind of model, untrained."""
    torch.manual_seed(0)
    home = tmp_path_factory.mktemp("models")
    tokenizer = WordTokenizer().make(["a b c d e f g h i j"])
    made: dict[str, Any] = {
        "diffusion": (ModelConfig(dimension=16, backbone=SMALL), SamplingConfig(steps=2, passes=1, sweeps=0)),
        "masked": (MaskedConfig(backbone=SMALL), SamplingConfig(steps=2, sampler=Ancestral())),
        "causal": (CausalConfig(layers=1, width=16, heads=2), SamplingConfig()),
    }
    for name, (config, sampling) in made.items():
        model = config.make(tokenizer, [[2, 4, 5, 6, 3]], 12)
        for parameter in model.parameters():  # untrained weights are so small that all words are as probable
            torch.nn.init.normal_(parameter, std=0.3)
        model.config.length_counts = [0, 0, 0, 3, 1, 2, 2, 2]
        save_model(model, tokenizer, sampling, home / name / "model")
    return {name: str(home / name) for name in made}


def asked(*args: Any) -> Any:
    return [SimpleNamespace(args=args)]


def test_autoregressive_answers_are_exact_and_follow_the_chain_rule(folders: dict[str, str]) -> None:
    model = HarnessModel(folders["causal"])
    ((begin, _),), ((rest, _),), ((whole, _),) = (
        model.loglikelihood(asked(*args)) for args in (("", "a b"), ("a b", " c d"), ("", "a b c d"))
    )
    assert begin + rest == pytest.approx(whole, rel=1e-4)
    (text,) = model.loglikelihood_rolling(asked("a b c d"))
    assert text == pytest.approx(-next(iter(score(folders["causal"], ["a b c d"])))[1].nats, rel=1e-4)
    assert text < whole
    (continued,) = model.generate_until(asked("a b", {"until": [], "max_gen_toks": 3}))
    assert model.loglikelihood(asked("a b", f" {continued}"))[0][1], "greedy decoding gives what it gives"


def test_one_masked_word_has_its_conditional_probability(folders: dict[str, str]) -> None:
    harness = HarnessModel(folders["masked"], strata=4)
    ((found, greedy),) = harness.loglikelihood(asked("a b", " c"))
    tokenizer, model = harness.pipeline.tokenizer, harness.pipeline.model
    ids = torch.tensor([tokenizer("a b c")["input_ids"]])
    hidden = torch.zeros_like(ids, dtype=torch.bool)
    hidden[0, 3] = True
    with torch.no_grad():
        losses = masked_token_losses(model, ids, torch.ones_like(hidden), hidden, None)
    assert found == pytest.approx(-float(losses[0, 3])) and not greedy


def test_the_context_of_a_diffusion_model_is_given_as_it_is(folders: dict[str, str]) -> None:
    harness = HarnessModel(folders["diffusion"], orders=2, seed=5)
    ((found, _),) = harness.loglikelihood(asked("a b", " c"))
    model = harness.pipeline.model
    ids = torch.tensor([harness.pipeline.tokenizer("a b c")["input_ids"]])
    hidden = torch.zeros_like(ids, dtype=torch.bool)
    hidden[0, 3] = True
    draw = numpy.random.default_rng([5, 0])
    for _ in range(2):
        draw.permutation(1)
    with torch.no_grad():
        denoise, _ = denoiser(model, ids)
        losses = hidden_token_losses(denoise, model.encode(ids)[0], ids[0], draw)(hidden.expand(2, -1))[:, 3].double()
    assert found == pytest.approx(float((-losses).logsumexp(0)) - numpy.log(2))
    ((joint, _),) = HarnessModel(folders["diffusion"], strata=8).loglikelihood(asked("a b", " c"))
    (whole,) = HarnessModel(folders["diffusion"], strata=8).loglikelihood_rolling(asked("a b c"))
    assert whole < joint < 0


@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_depends_on_the_seed_alone(kind: str, folders: dict[str, str]) -> None:
    given: dict[str, Any] = {} if kind == "causal" else {"strata": 4}
    model = HarnessModel(folders[kind], **given)
    requests = [asked("a", " b c")[0], asked("a b", " d")[0], asked("a b", "")[0]]
    found = model.loglikelihood(requests)
    assert found[1:] == model.loglikelihood(requests[1:]) and found[2][0] == 0
    texts = [("a b c",), ("d e",)]
    rolling = model.loglikelihood_rolling([SimpleNamespace(args=each) for each in texts])
    options = ScoringConfig(**given)
    assert rolling == [-next(iter(score(folders[kind], list(each), options)))[1].nats for each in texts]


def test_a_diffusion_model_continues_a_text(folders: dict[str, str]) -> None:
    model = HarnessModel(folders["diffusion"])
    (text,) = model.generate_until(asked("a b", {"until": ["\n"], "max_gen_toks": 1}))
    assert len(text.split()) == 1
    (cut,) = model.generate_until(asked("a b", {"until": text}))
    assert cut == ""


def test_what_is_refused(folders: dict[str, str]) -> None:
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"strata": 1}, "strata: expected 2 or more"),
        ({"stratta": 5}, "model_args.stratta: there is no such setting; did you"),
        ({"flow": 2}, "model_args.flow: it has no likelihood"),
        ({"batch_size": 8}, "batch_size: requests are answered one by one"),
    ]
    for settings, message in wrong:
        with pytest.raises(UserError, match=message):
            HarnessModel(folders["diffusion"], **settings)
    with pytest.raises(UserError, match="strata"):
        HarnessModel(folders["causal"], strata=5)
    with pytest.raises(UserError, match="'a a a.*: 13 tokens, more than this model's maximum of 10; ask with fewer examples"):
        HarnessModel(folders["masked"]).loglikelihood(asked("a " * 12, "b"))
    with pytest.raises(UserError, match="generate_until: a masked model samples no text with a given beginning"):
        HarnessModel(folders["masked"]).generate_until(asked("a", {"until": []}))
