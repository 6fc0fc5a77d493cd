"""Models of the original code: schedule, network, rounding and sampling agree with formulas written after the originals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from originals import (
    DIMENSION,
    HEADS,
    WORDS,
    alpha_bar,
    checkpoint,
    diffuseq_checkpoint,
    forward,
    rounded,
    state_dict,
)
from tiny_runs import ROOT
from torch import Tensor, nn
from transformers import BertTokenizer

from diffusionlm.config import UserError, build
from diffusionlm.core.sampler import DDPM, clamp, sample
from diffusionlm.core.schedule import NoiseSchedule
from diffusionlm.models.backbones import Bert, BertNetwork
from diffusionlm.models.diffusion import DiffusionLM
from diffusionlm.models.original_arguments import read_arguments
from diffusionlm.models.originals import checkpoint_file, original_name, read_original, renamed
from diffusionlm.pipelines.base import saved_sampling
from diffusionlm.pipelines.diffusion import Pipeline
from diffusionlm.training.convert import convert, original_model, original_tokenizer
from diffusionlm.training.run import read_config

STEPS = torch.tensor([0, 1, 40, 700, 1337, 1999])  # of 2000, as the original counts them


def converted(folder: Path, **arguments: Any) -> Pipeline:
    convert(checkpoint(folder / "original", **arguments), folder / "model", heads=HEADS, quiet=True)
    return Pipeline.from_pretrained(folder / "model")


def weights_of(folder: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = torch.load(folder / "original" / "ema_0.9999_200000.pt", weights_only=True)
    return found


@pytest.mark.parametrize("name", ["sqrt", "cosine", "linear"])
@pytest.mark.parametrize("steps", [50, 1000, 2000])
def test_step_i_has_the_noise_of_our_time_i_plus_1_over_T(name: str, steps: int) -> None:
    schedule = build(NoiseSchedule, {"name": name, "T": steps})
    t = torch.arange(1, steps + 1, dtype=torch.float64) / steps
    torch.testing.assert_close(torch.sigmoid(-schedule.gamma(t)), alpha_bar(name, steps), rtol=1e-12, atol=0)


def test_the_network_receives_the_originals_step_to_the_rounding_of_fp32() -> None:
    network = Bert(layers=1, width=8, heads=1, feedforward=8).build(2, 2, 16)
    seen: list[Tensor] = []
    assert isinstance(network, BertNetwork)
    network.time.register_forward_hook(lambda _module, given, _output: seen.append(given[0]))
    index = torch.arange(2000)
    t = ((index + 1).double() / 2000).float()
    network(torch.zeros(2000, 1, 2), t, t, None)
    frequencies = 10_000 ** (-torch.arange(64, dtype=torch.float64) / 64)
    angles = (index * 0.5)[:, None] * frequencies
    exact = torch.cat([angles.cos(), angles.sin()], 1)
    assert float((seen[0] - exact).abs().max()) < 2e-4
    assert float((t * 2000 - 1 - index).abs().max()) < 1e-4


@torch.no_grad()
@pytest.mark.parametrize("arguments", [{}, {"diffusion_steps": 1000, "rescale_timesteps": False}])
def test_predictions_and_rounded_words_are_those_of_the_original_network(arguments: dict[str, Any], tmp_path: Path) -> None:
    model, weights = converted(tmp_path, **arguments).model, weights_of(tmp_path)
    steps = arguments.get("diffusion_steps", 2000)
    index = STEPS * (steps - 1) // 1999
    x = 2 * torch.randn(len(index), 16, DIMENSION)
    expected = forward(weights, x, index, steps)
    found = model(x, (index + 1).double() / steps)
    torch.testing.assert_close(found.x0, expected, rtol=0, atol=1e-5)
    assert torch.equal(found.logits.argmax(-1), rounded(weights, expected))
    assert torch.equal(model.word_vectors(), weights["word_embedding.weight"])


@torch.no_grad()
def test_predicted_noise_gives_the_clean_vectors_that_it_implies(tmp_path: Path) -> None:
    model, weights = converted(tmp_path, predict_xstart=False).model, weights_of(tmp_path)
    x, index = torch.randn(3, 16, DIMENSION), torch.tensor([100, 800, 1500])
    level = alpha_bar("sqrt", 2000)[index].float()[:, None, None]
    expected = (x - (1 - level).sqrt() * forward(weights, x, index, 2000)) / level.sqrt()
    torch.testing.assert_close(model(x, (index + 1).double() / 2000).x0, expected, rtol=1e-4, atol=1e-5)


def original_samples(weights: dict[str, Tensor], noise: list[Tensor]) -> Tensor:
    """Return the vectors of ancestral sampling with clamping, as text_sample.py computes them; a step for each but one noise."""
    steps = len(noise) - 1
    level = alpha_bar("sqrt", steps)
    previous = torch.cat([torch.ones(1, dtype=torch.float64), level[:-1]])
    beta = 1 - level / previous
    variance = beta * (1 - previous) / (1 - level)
    x, table = noise[0], weights["word_embedding.weight"]
    for i in reversed(range(steps)):
        x0 = forward(weights, x, torch.full((len(x),), i), steps)
        x0 = table[torch.cdist(x0.flatten(0, 1), table).argmin(1)].view_as(x)
        of_x0, of_x = beta * previous.sqrt() / (1 - level), (1 - previous) * (1 - beta).sqrt() / (1 - level)
        mean = float(of_x0[i]) * x0 + float(of_x[i]) * x
        x = mean + (float(variance[i].sqrt()) * noise[steps - i] if i else 0)
    return x


@torch.no_grad()
def test_sampling_takes_the_originals_steps(tmp_path: Path) -> None:
    pipe, weights = converted(tmp_path, diffusion_steps=40), weights_of(tmp_path)
    assert (pipe.sampling.steps, pipe.sampling.clamp, pipe.sampling.sampler) == (40, True, DDPM("posterior"))
    noise = [torch.randn(4, 16, DIMENSION) for _ in range(41)]
    draws = iter(noise[1:])
    denoise = clamp(lambda xt, t: pipe.model(xt, t), pipe.model.word_vectors())
    states = list(sample(denoise, pipe.model.process, noise[0], sampler=DDPM(), steps=40, noise=lambda _like: next(draws)))
    expected = original_samples(weights, noise)
    torch.testing.assert_close(states[-1].x, expected)
    tokens = pipe.model.decode(states[-1].x).argmax(-1)
    assert torch.equal(tokens, rounded(weights, expected)) and len(tokens.unique()) > 1


def test_words_are_averaged_in_one_copy_and_the_original_keeps_the_other(tmp_path: Path) -> None:
    """The released code saves the average of ``word_embedding.weight`` beside the live ``lm_head.weight``, and loads both."""

    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.word_embedding, self.lm_head = nn.Embedding(4, 3), nn.Linear(3, 4)
            self.lm_head.weight = self.word_embedding.weight

    original = Tied()
    assert [name for name, _ in original.named_parameters()] == ["word_embedding.weight", "lm_head.bias"]
    saved = {**original.state_dict(), "word_embedding.weight": torch.zeros(4, 3), "lm_head.weight": torch.ones(4, 3)}
    original.load_state_dict(saved)
    assert torch.equal(original.word_embedding.weight, torch.ones(4, 3))

    path = checkpoint(tmp_path / "original")
    weights = torch.load(path, weights_only=True)
    weights["word_embedding.weight"] = weights["lm_head.weight"] + 0.25
    torch.save(weights, path)
    assert read_original(path).embedding_gap == pytest.approx(0.25)
    convert(path, tmp_path / "model", heads=HEADS, quiet=True)
    assert torch.equal(DiffusionLM.load(tmp_path / "model").word_vectors(), weights["lm_head.weight"])


def test_the_papers_arguments_are_the_papers_config(tmp_path: Path) -> None:
    """All but the data: README's command for E2E with the sizes of BERT, whose tensors are not written here."""
    path = checkpoint(tmp_path, in_channel=16, out_channel=16, num_channels=128, image_size=8)
    original = read_original(path)
    shapes = state_dict(5, 16, 16, 12, 24, 128)
    with torch.device("meta"):
        big = {
            name: torch.empty([{16: 768, 24: 3072}.get(size, size) for size in tensor.shape]) for name, tensor in shapes.items()
        }
        big |= {name: torch.empty(22, 16) for name in ("word_embedding.weight", "lm_head.weight")}
        big |= {"lm_head.bias": torch.empty(22), "output_down_proj.2.weight": torch.empty(16, 768)}
    settings = type(original)(path, original.arguments, big).settings()
    config = read_config([ROOT / "configs" / "e2e-paper.yaml"])
    assert settings == config.model
    convert(checkpoint(tmp_path), tmp_path / "model", heads=HEADS, quiet=True)
    assert saved_sampling(tmp_path / "model") == config.sampling


def test_the_width_of_the_time_features_is_a_hyperparameter_that_old_folders_do_not_have() -> None:
    assert Bert() == build(Bert, {"name": "bert", "time_features": 128})
    network = Bert(layers=1, width=8, heads=1, time_features=20).build(2, 2, 9)
    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    assert (shapes["time.0.weight"], shapes["time.2.weight"]) == ((80, 20), (8, 80))
    with pytest.raises(UserError, match="time_features: expected an even number, sines and cosines, got 7"):
        Bert(time_features=7)


def test_names_of_tensors_are_renamed_both_ways() -> None:
    for name in state_dict(5):
        if name not in ("position_ids", "lm_head.weight"):
            assert original_name(renamed(name)) == name
    assert renamed("encoder.layer.0.weight") == "encoder.layer.0.weight"


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (["ema_0.9999_050000.pt", "ema_0.9999_200000.pt", "model400000.pt"], "ema_0.9999_200000.pt"),
        (["model050000.pt", "model1000000.pt", "opt2000000.pt"], "model1000000.pt"),
    ],
)
def test_the_newest_average_is_chosen_or_else_the_newest_model(names: list[str], chosen: str, tmp_path: Path) -> None:
    for name in names:
        (tmp_path / name).touch()
    assert checkpoint_file(tmp_path).name == chosen
    assert checkpoint_file(tmp_path / names[0]).name == names[0]


def word_pieces(folder: Path) -> Path:
    """Write a vocabulary of BERT; return the file."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *map(str.lower, WORDS), "##s"]
    (folder / "vocab.txt").write_text("\n".join(words))
    return folder / "vocab.txt"


@torch.no_grad()
def test_the_weights_of_diffuseq_are_the_same_network_under_the_same_names(tmp_path: Path) -> None:
    path = word_pieces(tmp_path)
    file = diffuseq_checkpoint(tmp_path / "original", len(path.read_text().splitlines()))
    original = read_original(tmp_path / "original")
    tokenizer = original_tokenizer(original, str(path))
    special = [tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token, tokenizer.unk_token]
    assert special == ["[CLS]", "[SEP]", "[PAD]", "[UNK]"]
    assert tokenizer("The Vaults", add_special_tokens=True)["input_ids"] == [2, 5, 6, 3]
    settings = original.settings(HEADS)
    assert isinstance(settings.backbone, Bert) and settings.prediction == "x0" and original.arguments.variance == "upper"
    model, weights = original_model(original, settings, tokenizer).train(False), torch.load(file, weights_only=True)
    x = torch.randn(len(STEPS), 16, DIMENSION)
    torch.testing.assert_close(model(x, (STEPS + 1).double() / 2000).x0, forward(weights, x, STEPS, 2000), rtol=0, atol=1e-5)


@pytest.mark.parametrize("form", ["folder", "vocab.txt"])
def test_models_of_word_pieces_take_berts_tokenizer_from_its_folder_or_vocabulary(form: str, tmp_path: Path) -> None:
    vocabulary = word_pieces(tmp_path)
    BertTokenizer(vocab=str(vocabulary), do_lower_case=True).save_pretrained(tmp_path / "tokenizer")
    size = len(vocabulary.read_text().splitlines())
    path = checkpoint(tmp_path / "original", modality="book", vocab_size=size)
    torch.save(state_dict(size), path)
    convert(path, tmp_path / "model", str(vocabulary if form == "vocab.txt" else tmp_path / "tokenizer"), HEADS, quiet=True)
    pipe = Pipeline.from_pretrained(tmp_path / "model")
    assert pipe.tokenizer("The pubs", add_special_tokens=False)["input_ids"] == [5, 7, size - 1]
    assert len(pipe(2, steps=3)) == 2


def test_arguments_of_an_earlier_version_have_its_defaults(tmp_path: Path) -> None:
    checkpoint(tmp_path, **dict.fromkeys(("logits_mode", "experiment_mode", "use_bert_tokenizer"), "LEFT OUT"))
    assert read_arguments(tmp_path / "training_args.json") == read_arguments(checkpoint(tmp_path).parent / "training_args.json")
    assert "logits_mode" in json.loads((tmp_path / "training_args.json").read_text())
