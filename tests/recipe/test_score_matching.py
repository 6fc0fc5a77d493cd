"""Score matching: identities between the objectives, densities of known score, and training through the library."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from exact_scores import TILTED, TWO_MODES, Mixture
from tiny_runs import ROOT, restaurant_texts
from torch import Tensor, nn

from diffusionlm.config import UserError, build, merge
from diffusionlm.core.process import VariancePreserving
from diffusionlm.data.tokenizers import WordTokenizer
from diffusionlm.models.diffusion import DiffusionLM, ModelConfig
from diffusionlm.pipelines.cost import metered
from diffusionlm.pipelines.diffusion import Pipeline
from diffusionlm.recipe.regression import Regression
from diffusionlm.recipe.score import score
from diffusionlm.recipe.score_matching import SlicedScoreMatching, sliced
from diffusionlm.training.run import read_config, train

FROZEN: dict[str, Any] = {
    "dimension": 8, "embedding": "frozen", "self_conditioning": False, "evidence": 0, "schedule": "geometric",
    "prediction": "x0", "process": "variance-exploding", "backbone": {"name": "transformer", "layers": 1, "width": 16, "heads": 2},
}  # fmt: skip


def made(**changes: Any) -> tuple[DiffusionLM, list[list[int]]]:
    texts = restaurant_texts(6)
    tokenizer = WordTokenizer().make(texts)
    rows = [tokenizer(text)["input_ids"] for text in texts]
    return build(ModelConfig, merge(FROZEN, changes)).make(tokenizer, rows, 48), rows


@pytest.mark.parametrize("truth", [TILTED, TWO_MODES], ids=["gaussian", "mixture"])
def test_the_exact_score_has_the_least_loss_minus_half_its_square(truth: Mixture) -> None:
    """sigma^2 E[div s + |s|^2 / 2] = sigma^2 (E|s - s*|^2 - E|s*|^2) / 2, per coordinate."""
    sigma = 0.5
    x = truth.draw(20_000) + sigma * torch.randn(20_000, 2, dtype=torch.float64)

    def exact(x: Tensor) -> Tensor:
        return (truth.noisy(x, sigma)[1] - x) / sigma**2

    def worse(x: Tensor) -> Tensor:
        return 0.8 * exact(x) + 0.1

    least = -(sigma**2) / 2 * float(exact(x).square().mean())
    apart = sigma**2 / 2 * float((worse(x) - exact(x)).square().mean())
    with torch.no_grad():
        found = [float(sliced(each, x, sigma, probes=1)) for each in (exact, worse)]
    assert found == pytest.approx([least, least + apart], abs=0.01)


def test_sliced_and_denoising_score_matching_differ_by_a_constant() -> None:
    """1/2 E|sigma s + eps|^2 per coordinate is the sliced loss plus 1/2, for any s."""
    sigma, count = 0.7, 100_000
    x0, eps = TWO_MODES.draw(count), torch.randn(count, 2, dtype=torch.float64)
    matrix = torch.tensor([[-0.5, 0.3], [0.1, -0.2]], dtype=torch.float64)

    def any_score(x: Tensor) -> Tensor:
        return torch.tanh(x @ matrix)

    x = x0 + sigma * eps
    denoising = (sigma * any_score(x) + eps).square().mean() / 2
    with torch.no_grad():
        assert float(sliced(any_score, x, sigma, probes=2)) + 0.5 == pytest.approx(float(denoising), abs=0.01)


def test_a_linear_score_is_fitted_to_a_gaussian() -> None:
    """The score of N(m, C) with noise is -(C + sigma^2)^-1 (x - m)."""
    sigma, network = 0.5, nn.Linear(2, 2).double()
    optimizer = torch.optim.Adam(network.parameters(), lr=0.05)
    for step in range(300):
        optimizer.param_groups[0]["lr"] = 0.05 * (1 - step / 300)
        x = TILTED.draw(2000) + sigma * torch.randn(2000, 2, dtype=torch.float64)
        optimizer.zero_grad()
        sliced(network, x, sigma, probes=1).backward()
        optimizer.step()
    truth = -torch.linalg.inv(TILTED.covariances[0] + sigma**2 * torch.eye(2, dtype=torch.float64))
    torch.testing.assert_close(network.weight.detach(), truth, rtol=0, atol=0.1)
    torch.testing.assert_close(network.bias.detach(), -truth @ TILTED.means[0], rtol=0, atol=0.15)


def test_regression_of_the_noise_is_ncsns_objective() -> None:
    """sigma^2 |s(x_0 + sigma eps) + eps / sigma|^2 = |eps - eps(x, t)|^2, of the variance-exploding process."""
    model, rows = made(prediction="eps", embedding="free")
    objective = Regression().build(model)
    batch = objective.collate(rows)
    process, words = model.process, model.encode(batch.ids)
    t, eps = torch.linspace(0.1, 0.9, len(rows), dtype=torch.float64), torch.randn_like(words)
    xt = process.noise(words, t, eps)
    with torch.no_grad():
        denoised = model(xt, t, batch.attend)
        found = objective.regression(denoised, words, words, xt, t)
        sigma = process.alpha_sigma(process.schedule.gamma(t))[1].float()[:, None, None]
        truth = (sigma * score(process, denoised.x0, xt, t) + eps).square().mean(-1)
    torch.testing.assert_close(found, truth, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("changes", [{}, {"prediction": "logits", "evidence": 50.0}, {"explicit_length": False}])
def test_the_objective_is_the_loss_of_the_models_score(changes: dict[str, Any]) -> None:
    """The gradients reach the network, not the vectors; the process does not matter; evaluation has the value of training."""
    model, rows = made(**changes)
    objective = SlicedScoreMatching(sigma=0.8, probes=2).build(model)
    batch, values = objective.collate(rows), []
    for process in (model.process, VariancePreserving(model.process.schedule)):
        model.process = process
        torch.manual_seed(1)
        terms = objective(batch)
        torch.manual_seed(1)
        with torch.no_grad():
            assert float(objective(batch)["score"]) == pytest.approx(terms["score"].item(), rel=1e-6)
        values.append(terms["score"].item())
    assert values[1] == pytest.approx(values[0], rel=1e-4)
    assert ("rounding" in terms) == (not model.has_logits)
    sum(terms.values(), torch.zeros(())).backward()
    assert model.embedding.weight.grad is None
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in objective.parameters() if p.requires_grad)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"embedding": "free"}, "needs model.embedding 'frozen', data that stay, got 'free'"),
        ({"self_conditioning": True}, "trains no self_conditioning; set model.self_conditioning false"),
        (
            {"schedule": {"name": "geometric", "sigma_min": 1}},
            r"objective.sigma: expected 0.996 to 50, the levels of the schedule, got 0.5",
        ),
    ],
)
def test_models_that_it_does_not_train(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        SlicedScoreMatching().check(build(ModelConfig, merge(FROZEN, change)))


def test_ncsn_trains_and_samples_by_annealed_langevin(tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("\n".join(restaurant_texts(60)))
    small = {
        "data.corpus": str(tmp_path / "texts.txt"), "data.max_length": "40", "training.steps": "2", "training.batch_tokens": "400",
        "training.threads": "1", "model.backbone.layers": "1", "model.backbone.width": "16", "sampling.steps": "3",
    }  # fmt: skip
    config = read_config([ROOT / "configs" / "ncsn.yaml"], list(small.items()))
    assert train(config, tmp_path / "run", quiet=True)
    pipe = Pipeline.from_pretrained(tmp_path / "run")
    assert pipe.sampling.sampler.name == "annealed-langevin"
    with metered(pipe) as meter:
        assert len(pipe(2)) == 2
    assert meter.cost(2, 1).evaluations == (3 * 5 + 1) * pipe.sampling.passes


def test_sliced_score_matching_is_an_objective_of_runs(tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("\n".join(restaurant_texts(60)))
    small = {
        "data.corpus": str(tmp_path / "texts.txt"), "data.max_length": "40", "training.steps": "1", "training.batch_tokens": "200",
        "training.threads": "1", "training.evaluation_texts": "2", "model.backbone.layers": "1", "model.backbone.width": "16",
        "model.embedding": "frozen", "objective.name": "sliced-score-matching", "objective.sigma": "1", "sampling.steps": "1",
    }  # fmt: skip
    config = read_config([ROOT / "configs" / "ncsn.yaml"], list(small.items()))
    assert train(config, tmp_path / "run", write_samples=False, quiet=True)
    assert "score" in (tmp_path / "run" / "log.jsonl").read_text()
