from pathlib import Path

import pytest
import torch
from tiny_runs import ROOT, restaurant_texts

from diffusionlm.config import build, to_plain
from diffusionlm.data.batches import Example, encode
from diffusionlm.data.tokenizers import WordTokenizer
from diffusionlm.training.run import RunConfig, read_config, train

CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_loads_and_takes_a_step(path: Path) -> None:
    config = read_config([path])
    assert build(RunConfig, to_plain(config)) == config
    if path.stem in ("e2e-paper", "diffuseq"):
        config = read_config([path], [("model.backbone.layers", "1")])
    texts = restaurant_texts(40)
    tokenizer = WordTokenizer().make(texts, config.data.max_length)
    rows = [Example(ids) for ids in encode(texts, tokenizer, config.data.max_length).ids]
    for row in rows:
        row.condition = row[1:-1]
    torch.manual_seed(0)
    objective = config.objective.build(config.model.make(tokenizer, rows, config.data.max_length))
    optimizer = config.training.optimizer.build(objective)
    first = sum(objective(objective.collate(rows[:8])).values())
    assert isinstance(first, torch.Tensor)
    first.backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in objective.parameters() if p.requires_grad)
    optimizer.step()


def test_the_paper_config_is_the_papers() -> None:
    config = read_config([ROOT / "configs" / "e2e-paper.yaml"])
    plain = to_plain(config)
    assert plain["training"]["batch_tokens"] == 64 * 64
    assert plain["training"]["optimizer"] == {
        "name": "adamw",
        "learning_rate": 1e-4,
        "betas": [0.9, 0.999],
        "weight_decay": 0.0,
    }
    assert (config.training.ema, config.training.ema_warmup, config.training.decay) == (0.9999, False, "linear")
    tokenizer = WordTokenizer().make([f"w{i}" for i in range(817)])
    assert len(tokenizer) == 821
    model = config.model.make(tokenizer, [[2, 5, 3]], config.data.max_length)
    assert sum(p.numel() for p in model.parameters()) == 87_129_749


def test_ddpm_variations_are_overrides(tmp_path: Path) -> None:
    corpus = tmp_path / "texts.txt"
    corpus.write_text("\n".join(restaurant_texts(60)))
    small = {
        "data.corpus": str(corpus),
        "data.max_length": "40",
        "training.steps": "2",
        "training.batch_tokens": "400",
        "training.threads": "1",
        "model.backbone.layers": "1",
        "model.backbone.width": "16",
        "sampling.steps": "4",
    }
    variations = [
        {"objective.loss": "l1"},
        {"objective.loss": "huber", "objective.times": "importance"},
        {"objective.loss": "vlb", "model.prediction": "x0"},
        {"model.learned_variance": "true", "objective.variance": "learned", "sampling.sampler.variance": "learned"},
        {"model.prediction": "v", "model.schedule": "cosine"},
    ]
    for number, variation in enumerate(variations):
        config = read_config([ROOT / "configs" / "ddpm.yaml"], list({**small, **variation}.items()))
        assert train(config, tmp_path / f"run-{number}", quiet=True)
        assert (tmp_path / f"run-{number}" / "model" / "model.safetensors").exists()
