"""DiffusionLM: word vectors, the evidence as Bayes' rule, conversions of what is predicted, saving and loading."""

from __future__ import annotations

import json
import math
import pickle
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModel

from diffusionlm.config import FORMAT_VERSION, UserError, build, merge, to_plain
from diffusionlm.core.model import MAX_GAMMA
from diffusionlm.core.process import alpha, sigma
from diffusionlm.core.schedule import Sqrt
from diffusionlm.data.batches import encode
from diffusionlm.data.tokenizers import WordTokenizer
from diffusionlm.models.diffusion import DiffusionLM, DiffusionLMConfig, ModelConfig
from diffusionlm.recipe.gumbel import Gumbel
from diffusionlm.recipe.schedules import Linear

VOCABULARY, LONGEST = 11, 8
SMALL: dict[str, Any] = {
    "dimension": 6,
    "backbone": {"name": "transformer", "layers": 1, "width": 16, "heads": 2},
}
VECTORS: dict[str, Any] = {"schedule": {"name": "sqrt", "T": 20}, "self_conditioning": False, "embedding": "free"}
BERT: dict[str, Any] = {"name": "bert", "layers": 1, "width": 16, "heads": 2, "feedforward": 32, "T": 20}
# Every kind of model: what is different in its weights or its arithmetic.
KINDS: list[dict[str, Any]] = [
    {},
    {"embedding": "frozen", "evidence": 0, "self_conditioning": False},
    {**VECTORS, "prediction": "x0", "backbone": BERT, "explicit_length": False},
    {**VECTORS, "prediction": "eps", "learned_variance": True},
    {**VECTORS, "prediction": "v", "schedule": {"name": "linear", "T": 30}},
]


def _model(**settings: Any) -> DiffusionLM:
    config = build(ModelConfig, merge(SMALL, settings))
    model = DiffusionLM(DiffusionLMConfig(settings=to_plain(config), vocabulary=VOCABULARY, max_tokens=LONGEST))
    if model.rounding_bias is not None:
        nn.init.normal_(model.rounding_bias)
    model.train(False)
    return model.requires_grad_(False)


def _silent(model: DiffusionLM) -> DiffusionLM:
    """Let the network put out zeros."""
    for weight in model.network.parameters():
        nn.init.zeros_(weight)
    return model


def _same_beliefs(first: DiffusionLM, second: DiffusionLM) -> bool:
    x, t = torch.randn(2, LONGEST, first.settings.dimension), torch.tensor([0.35, 0.9])
    one, other = first(x, t), second(x, t)
    return torch.equal(one.x0, other.x0) and torch.equal(one.logits, other.logits)


# Word vectors


@pytest.mark.parametrize("embedding", ["normalised", "frozen"])
def test_normalised_vectors_have_norm_sqrt_dimension(embedding: str) -> None:
    model = _model(embedding=embedding)
    nn.init.normal_(model.embedding.weight, std=7)
    torch.testing.assert_close(model.word_vectors().norm(dim=-1), torch.full((VOCABULARY,), math.sqrt(6)))


def test_free_vectors_are_the_weights() -> None:
    model = _model(embedding="free", initial_deviation=0.01, dimension=2000)
    assert torch.equal(model.word_vectors(), model.embedding.weight)
    assert float(model.embedding.weight.std()) == pytest.approx(0.01, rel=0.05)


@pytest.mark.parametrize("embedding", ["normalised", "free", "frozen"])
def test_only_frozen_vectors_are_not_learned(embedding: str) -> None:
    plain = to_plain(build(ModelConfig, merge(SMALL, {"embedding": embedding})))
    model = DiffusionLM(DiffusionLMConfig(settings=plain, vocabulary=VOCABULARY, max_tokens=LONGEST))
    ids = torch.randint(VOCABULARY, (2, LONGEST))
    denoised = model(model.encode(ids), torch.tensor([0.2, 0.7]))
    denoised.logits.square().mean().backward()
    gradient = model.embedding.weight.grad
    if embedding == "frozen":
        assert gradient is None
        assert not model.embedding.weight.requires_grad
    else:
        assert gradient is not None
        assert float(gradient.abs().sum()) > 0
    assert all(p.grad is not None for p in model.network.parameters())


def test_embedding_and_rounding_are_tied() -> None:
    model = _model(**VECTORS, prediction="x0")
    ids = torch.randint(VOCABULARY, (2, 5))
    E = model.word_vectors()
    assert torch.equal(model.encode(ids), E[ids])
    assert model.rounding_bias is not None
    x = torch.randn(2, 5, 6)
    torch.testing.assert_close(model.decode(x), x @ E.T + model.rounding_bias)
    assert _model().rounding_bias is None


# The evidence


@pytest.mark.parametrize("t", [0.5, 0.7, 1.0])
@pytest.mark.parametrize("embedding", ["normalised", "frozen"])
def test_evidence_is_the_exact_posterior_of_one_position(t: float, embedding: str) -> None:
    model = _silent(_model(embedding=embedding, dimension=16))
    E, gamma = model.word_vectors().double(), model.settings.schedule.gamma(torch.tensor(t))
    assert float(alpha(gamma) / sigma(gamma) ** 2) < model.settings.evidence
    ids = torch.randint(VOCABULARY, (3, LONGEST))
    xt = model.process.noise(model.encode(ids), torch.full((3,), t))
    distances = (xt.double()[:, :, None] - alpha(gamma) * E).square().sum(-1)
    likelihood = torch.exp(-distances / (2 * sigma(gamma) ** 2))
    posterior = likelihood / likelihood.sum(-1, keepdim=True)
    denoised = model(xt, torch.full((3,), t))
    torch.testing.assert_close(denoised.logits.softmax(-1).double(), posterior, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(denoised.x0.double(), posterior @ E, rtol=1e-3, atol=1e-4)


def test_evidence_is_clipped_at_low_noise() -> None:
    model = _silent(_model(evidence=50.0))
    gamma = model.settings.schedule.gamma(torch.tensor(0.1))
    assert float(alpha(gamma) / sigma(gamma) ** 2) > 50
    xt = torch.randn(2, 3, 6)
    torch.testing.assert_close(model(xt, torch.full((2,), 0.1)).logits, 50 * xt @ model.word_vectors().T)


def test_evidence_can_be_left_out() -> None:
    denoised = _silent(_model(evidence=0.0))(torch.randn(2, 3, 6), torch.full((2,), 0.5))
    assert float(denoised.logits.abs().max()) == 0


def test_evidence_is_each_positions_own() -> None:
    model = _silent(_model())
    xt, t = torch.randn(2, 3, 6), torch.rand(2, 3)
    wide = model(xt, t).logits
    for row in range(2):
        for position in range(3):
            alone = model(xt[row : row + 1, position : position + 1], t[row, position].view(1)).logits
            torch.testing.assert_close(wide[row : row + 1, position : position + 1], alone)


def test_evidence_can_be_left_out_at_some_positions() -> None:
    model = _model(backbone={"name": "leave-one-out", "query_layers": 1})
    x, t = torch.randn(2, 5, 6), torch.tensor([0.3, 0.6])
    evidence_mask = torch.tensor([True, False, True, True, False])
    alone = model.token_logits(x, t, evidence_mask=torch.zeros(2, 5, dtype=torch.bool))
    some = model.token_logits(x, t, evidence_mask=evidence_mask.expand(2, 5))
    torch.testing.assert_close(some[:, ~evidence_mask], alone[:, ~evidence_mask])
    torch.testing.assert_close(some[:, evidence_mask], model.token_logits(x, t)[:, evidence_mask])
    x[:, 1] += 1  # its context does not hear of it, and so the posterior is this prior times its own likelihood
    assert torch.equal(model.token_logits(x, t, evidence_mask=torch.zeros(2, 5, dtype=torch.bool))[:, 1], alone[:, 1])


@pytest.mark.parametrize("settings", [{"evidence": 0.0}, {"prediction": "x0"}])
def test_a_word_that_is_left_out_must_count_as_evidence(settings: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"^backbone: 'leave-one-out' does not read a word's own vector, which then must count"):
        _model(backbone={"name": "leave-one-out"}, **settings)


# What is predicted


@pytest.mark.parametrize("settings", KINDS)
def test_predictions_have_their_shapes_and_agree(settings: dict[str, Any]) -> None:
    model = _model(**settings)
    x, t = torch.randn(2, 5, 6), torch.tensor([0.3, 1.0])
    denoised = model(x, t)
    assert (denoised.x0.shape, denoised.logits.shape) == ((2, 5, 6), (2, 5, VOCABULARY))
    if model.settings.prediction == "logits":
        torch.testing.assert_close(denoised.x0, denoised.logits.softmax(-1) @ model.word_vectors())
        assert torch.equal(model.token_logits(x, t), denoised.logits)
    else:
        torch.testing.assert_close(denoised.logits, model.decode(denoised.x0))
    assert (denoised.variance_share is not None) == model.settings.learned_variance
    if denoised.variance_share is not None:
        assert denoised.variance_share.shape == x.shape
        assert bool(((denoised.variance_share > 0) & (denoised.variance_share < 1)).all())


class _Says(nn.Module):
    """A network with a constant output that stores its inputs."""

    def __init__(self, output: Tensor) -> None:
        super().__init__()
        self.output = output
        self.told: list[tuple[Tensor, Tensor, Tensor]] = []

    def forward(self, latents: Tensor, t: Tensor, gamma: Tensor, mask: Tensor | None) -> Tensor:
        self.told.append((latents, t, gamma))
        return self.output


@pytest.mark.parametrize("prediction", ["x0", "eps", "v"])
def test_a_right_prediction_gives_back_the_clean_vectors(prediction: str) -> None:
    model = _model(**VECTORS, prediction=prediction)
    x0, eps, t = torch.randn(2, 5, 6), torch.randn(2, 5, 6), torch.tensor([0.25, 0.8])
    gamma = model.process.schedule.gamma(t)[:, None, None].float()
    outputs = {"x0": x0, "eps": eps, "v": alpha(gamma) * eps - sigma(gamma) * x0}
    model.network = _Says(outputs[prediction])
    torch.testing.assert_close(model(model.process.noise(x0, t, eps), t).x0, x0, rtol=1e-4, atol=1e-5)


def test_the_inputs_of_the_network() -> None:
    model = _model(schedule={"name": "sqrt"}, evidence_input=False)
    network = model.network = _Says(torch.zeros(2, 5, VOCABULARY))
    x, previous, t = torch.randn(2, 5, 6), torch.randn(2, 5, 6), torch.tensor([0.0, 1.0])
    model(x, t)
    model(x, t, None, previous)
    assert torch.equal(network.told[0][0], torch.cat([x, torch.zeros_like(x)], -1))
    assert torch.equal(network.told[1][0], torch.cat([x, previous], -1))
    assert network.told[0][2].tolist() == [-MAX_GAMMA, MAX_GAMMA]


def test_the_network_receives_the_token_posterior_of_each_vector() -> None:
    model = _model(schedule={"name": "sqrt"}, self_conditioning=False)
    network = model.network = _Says(torch.zeros(2, 5, VOCABULARY))
    x, t = torch.randn(2, 5, 6), torch.tensor([0.9, 1.0])
    denoised = model(x, t)
    scale = alpha(model.process.schedule.gamma(t)).float()[:, None, None]
    torch.testing.assert_close(network.told[0][0][..., :6], scale * x)
    torch.testing.assert_close(network.told[0][0][..., 6:], denoised.logits.softmax(-1))


def test_settings_that_contradict_each_other() -> None:
    with pytest.raises(UserError, match=r"^learned_variance: expected false with prediction 'logits'"):
        ModelConfig(learned_variance=True)
    with pytest.raises(UserError, match=r"^dimension: expected 1 to 100000, got 0$"):
        ModelConfig(dimension=0)


# Saving and loading

LEARNED = Gumbel(location=1.2345678901234567, scale=0.7654321098765432, entropy=4.321098765432109, end=0.1)


@pytest.mark.parametrize("settings", KINDS)
def test_a_model_is_saved_and_loaded_to_the_bit(settings: dict[str, Any], tmp_path: Path) -> None:
    model = _model(**settings)
    model.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    loaded = DiffusionLM.load(tmp_path)
    assert loaded.settings == model.settings
    assert loaded.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(loaded.state_dict()[name], weight) for name, weight in model.state_dict().items())
    assert loaded.embedding.weight.requires_grad == (model.settings.embedding != "frozen")
    assert _same_beliefs(loaded.train(False), model)


def test_what_was_learned_beside_the_weights_is_saved(tmp_path: Path) -> None:
    model = _model()
    model.set_schedule(LEARNED)
    model.config.length_counts, model.config.special_ids = [0, 0, 3, 4], {"pad": 3, "unk": 2, "start": 1, "end": 0}
    model.save_pretrained(tmp_path)
    loaded = DiffusionLM.load(tmp_path)
    assert loaded.settings.schedule == loaded.process.schedule == LEARNED
    for name in ("length_counts", "special_ids", "vocabulary", "max_tokens"):
        assert getattr(loaded.config, name) == getattr(model.config, name)
    assert _same_beliefs(loaded.train(False), model)


def test_transformers_loads_it_too(tmp_path: Path) -> None:
    model = _model()
    model.set_schedule(LEARNED)
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert type(loaded) is DiffusionLM
    assert _same_beliefs(loaded.train(False), model)


def test_halved_weights_keep_the_schedule_exact(tmp_path: Path) -> None:
    model = _model()
    model.set_schedule(LEARNED)
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert loaded.embedding.weight.dtype == torch.bfloat16
    assert loaded.settings.schedule == LEARNED
    t = torch.linspace(0, 1, 9)
    assert torch.equal(loaded.process.schedule.gamma(t), LEARNED.gamma(t))
    assert loaded.word_vectors().dtype == torch.float32


def _saved(folder: Path, **changes: Any) -> Path:
    """Save a model whose config.json has ``changes`` laid over it."""
    _model().save_pretrained(folder)
    plain = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(merge(plain, changes)))
    return folder


def _sentence(folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        DiffusionLM.load(folder)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    assert _sentence(missing).startswith(f"{missing}: expected a model folder, but there is none")


@pytest.mark.parametrize("text", ["{", "", "[1, 2]", '"text"', "null"])
def test_a_config_that_is_no_mapping(text: str, tmp_path: Path) -> None:
    _saved(tmp_path)
    (tmp_path / "config.json").write_text(text)
    sentence = _sentence(tmp_path)
    assert "expected JSON, but the file is damaged" in sentence or "expected a JSON object" in sentence


def test_another_kind_of_model(tmp_path: Path) -> None:
    sentence = _sentence(_saved(tmp_path, model_type="gpt2"))
    assert "expected model_type 'diffusionlm', got 'gpt2'; this is another model family" in sentence


def test_a_newer_format(tmp_path: Path) -> None:
    sentence = _sentence(_saved(tmp_path, format_version=FORMAT_VERSION + 1))
    assert f"format {FORMAT_VERSION + 1} is newer than this library reads ({FORMAT_VERSION})" in sentence


@pytest.mark.parametrize("kept", [0, 5, 200, -1])
def test_damaged_weights(kept: int, tmp_path: Path) -> None:
    path = _saved(tmp_path) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    assert "the model is damaged or incomplete" in _sentence(tmp_path)


def test_missing_weights(tmp_path: Path) -> None:
    (_saved(tmp_path) / "model.safetensors").unlink()
    assert "the model is damaged or incomplete" in _sentence(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"settings": {"backbone": {"layers": 2}}},
        {"settings": {"backbone": {"width": 32}}},
        {"settings": {"prediction": "x0", "schedule": "sqrt"}},
        {"vocabulary": VOCABULARY + 1},
        {"max_tokens": LONGEST - 1},
    ],
)
def test_weights_of_another_model(changes: dict[str, Any], tmp_path: Path) -> None:
    sentence = _sentence(_saved(tmp_path, **changes))
    assert "the weights do not fit the config" in sentence or "damaged or incomplete" in sentence


@pytest.mark.parametrize(
    ("changes", "end"),
    [
        (
            {"schedule": {"name": "gumbell"}},
            "settings.schedule: no noise schedule is called 'gumbell'; did you mean 'gumbel'?",
        ),
        (
            {"backbone": {"name": "transfomer"}},
            "settings.backbone: no backbone is called 'transfomer'; did you mean 'transformer'?",
        ),
        ({"dimensions": 3}, "settings.dimensions: there is no such setting; did you mean 'dimension'?"),
        ({"backbone": {"heads": 3}}, "settings.backbone.heads: expected a divisor of the width 16, got 3"),
    ],
)
def test_settings_this_library_does_not_know(changes: dict[str, Any], end: str, tmp_path: Path) -> None:
    assert _sentence(_saved(tmp_path, settings=changes)).endswith(end)


@pytest.mark.parametrize("load", [DiffusionLM.load, DiffusionLM.from_pretrained, AutoModel.from_pretrained])
def test_a_saved_model_imports_no_code(load: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flag = tmp_path / "imported"
    (tmp_path / "trap.py").write_text(f"import pathlib\npathlib.Path({str(flag)!r}).touch()\nclass Thing: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    folder = _saved(tmp_path / "model", settings={"schedule": {"name": "trap:Thing"}})
    with pytest.raises(UserError, match=r"'trap:Thing' is code from outside the library: import trap first \(--import trap\)"):
        load(folder)
    assert not flag.exists()
    assert "trap" not in sys.modules


class _Bomb:
    """What a pickle can do: write a file when it is read."""

    def __init__(self, flag: Path) -> None:
        self.flag = flag

    def __reduce__(self) -> tuple[Any, tuple[Path]]:
        return Path.touch, (self.flag,)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors"])
def test_pickles_are_never_read(name: str, tmp_path: Path) -> None:
    flag = tmp_path / "read"
    pickle.loads(pickle.dumps(_Bomb(flag)))
    assert flag.exists()  # the pickle does what it says
    flag.unlink()
    folder = _saved(tmp_path / "model")
    (folder / "model.safetensors").unlink()
    with open(folder / name, "wb") as file:
        pickle.dump(_Bomb(flag), file)
    assert "damaged or incomplete" in _sentence(folder)
    assert not flag.exists()


@pytest.mark.parametrize("schedule", [Sqrt(T=7), Linear(T=9), LEARNED])
def test_a_schedule_can_be_replaced(schedule: Sqrt | Linear | Gumbel) -> None:
    model = _model()
    model.set_schedule(schedule)
    assert model.settings.schedule == model.process.schedule == schedule
    assert build(ModelConfig, model.config.settings) == model.settings


def test_a_schedule_whose_curve_is_left_alone_starts_from_the_words() -> None:
    texts = ["the soup is warm and the bread is fresh", "the bread is warm"]
    tokenizer = WordTokenizer().make(texts, 16)
    rows = encode(texts, tokenizer, 16, "drop").ids
    default = ModelConfig(dimension=8).make(tokenizer, rows, 16).settings.schedule
    unshifted = ModelConfig(dimension=8, schedule=Gumbel(training_shift=0)).make(tokenizer, rows, 16).settings.schedule
    assert isinstance(default, Gumbel)
    assert default.fit != Gumbel().fit
    assert unshifted == replace(default, training_shift=0)
    chosen = ModelConfig(dimension=8, schedule=LEARNED).make(tokenizer, rows, 16).settings.schedule
    assert chosen == LEARNED
