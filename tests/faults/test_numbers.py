"""Numbers that are none end a run in one sentence: they reach no weight, no checkpoint and no exported model."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from tiny_runs import ROOT, tiny_config, tiny_plain
from torch import Tensor, nn

from diffusionlm import Pipeline, UserError
from diffusionlm.cli import main
from diffusionlm.core.objective import Batch
from diffusionlm.recipe.cross_entropy import CrossEntropy, CrossEntropyObjective
from diffusionlm.training.checkpoints import check_finite, newest_checkpoint
from diffusionlm.training.optimizers import MuonAdamW
from diffusionlm.training.run import save_model, train

QUICK = {"sample_every": 8, "evaluate_every": 8, "save_every": 2}


@dataclass(frozen=True)
class Breaking(CrossEntropy):
    """Cross-entropy that is ``loss`` times itself from batch 4 on, or whose gradient is."""

    loss: float = 1.0
    gradient: float = 1.0

    def build(self, model: Any) -> BreakingObjective:
        return BreakingObjective(self, model)


class BreakingObjective(CrossEntropyObjective):
    batches = 0

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        terms, spec = super().forward(batch), self.spec
        assert isinstance(spec, Breaking)
        self.batches += self.training
        if self.batches >= 4:
            loss = terms["cross_entropy"]
            terms["cross_entropy"] = (loss * spec.gradient + (loss - loss * spec.gradient).detach()) * spec.loss
        return terms


@pytest.mark.parametrize(
    ("breaks", "clip", "sentence"),
    [
        ({"loss": math.nan}, 1.0, r"at step 4 the loss \(cross_entropy\) is not finite"),
        ({"loss": math.inf}, 0.0, r"at step 4 the loss \(cross_entropy\) is not finite"),
        ({"gradient": 1e37}, 1.0, "at step 4 the norm of the gradient is not finite"),
        ({"gradient": 1e37}, 0.0, "at step 4 the norm of the gradient is not finite"),
    ],
)
def test_a_run_stops_before_an_update_that_is_not_finite(
    tmp_path: Path, breaks: dict[str, float], clip: float, sentence: str
) -> None:
    config = replace(tiny_config(tmp_path, training={**QUICK, "clip": clip}), objective=Breaking(**breaks))
    run = tmp_path / "run"
    with pytest.raises(
        UserError, match=rf"diverged: {sentence}; the last good checkpoint is .*checkpoint-2; .* lower learning"
    ):
        train(config, run, quiet=True)
    assert newest_checkpoint(run) == run / "checkpoints" / "checkpoint-2"
    assert all(torch.isfinite(weight).all() for weight in load_file(run / "model" / "model.safetensors").values())
    assert not (run / "model" / "finished").exists()
    assert [json.loads(line)["step"] for line in (run / "log.jsonl").read_text().splitlines()] == [1, 2, 3]


def test_weights_out_of_range_end_a_run_with_status_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    optimizer = {"name": "adamw", "learning_rate": 1e6}
    plain = tiny_plain(tmp_path, training={**QUICK, "clip": 0, "warmup": 0, "save_every": 8, "optimizer": optimizer})
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(plain))
    assert main(["train", "--config", str(tmp_path / "config.yaml"), "--out", str(tmp_path / "run")]) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("diffusionlm: training has diverged: ") and "there is no checkpoint before it" in message
    assert not (tmp_path / "run" / "model").exists()


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_not_exported(tmp_path: Path, number: float) -> None:
    pipe = Pipeline.from_pretrained(ROOT / "tests" / "golden" / "format-1")
    next(pipe.model.parameters()).data.view(-1)[-1] = number
    with pytest.raises(UserError, match=r"model: not written: training has diverged, and the weights .* are not finite"):
        save_model(pipe.model, pipe.tokenizer, pipe.sampling, tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_every_weight_is_looked_at() -> None:
    last = nn.Linear(2, 2)
    layers = nn.Sequential(nn.Linear(2, 2), last)
    check_finite(layers, Path("run"))
    last.bias.data[1] = math.inf
    with pytest.raises(UserError, match="run: not written: .* the weights 1.bias are not finite"):
        check_finite(layers, Path("run"))


class Layers(nn.Module):
    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)


@pytest.mark.parametrize("layer", [nn.LayerNorm(4), nn.Conv1d(4, 4, 3), nn.Linear(4, 4, bias=False)])
def test_muon_trains_any_layers(layer: nn.Module) -> None:
    module = Layers(layer)
    before = [weight.clone() for weight in module.parameters()]
    optimizer = MuonAdamW().build(module)
    sum((weight * torch.randn_like(weight)).sum() for weight in module.parameters()).backward()  # type: ignore[union-attr]
    optimizer.step()
    assert all(not torch.equal(old, new) for old, new in zip(before, module.parameters(), strict=True))
