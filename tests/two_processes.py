"""Run by the tests under torchrun, and alone: the same updates by two processes, or by one that accumulates two batches.

Once with all weights trained ("full"), and once with an adapter ("lora").
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from tiny_runs import tiny_config
from torch import Tensor, nn

from diffusionlm.core.objective import Batch, Objective
from diffusionlm.data.batches import encode
from diffusionlm.models.diffusion import DiffusionLM
from diffusionlm.models.lora import Lora
from diffusionlm.training.optimizers import OptimizerConfig
from diffusionlm.training.trainer import DiffusionTrainer


@dataclass(frozen=True)
class SGD(OptimizerConfig, name="test-sgd"):
    """Plain gradient descent, so that weights show gradients."""

    def build(self, module: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD(module.parameters(), 1.0)


class FixedNoise(Objective):
    """A text's noise depends on the text alone, so that it is the same on whichever process it lands."""

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        ids, mask = batch.ids, batch.mask
        drawn = [torch.randn(len(row), 8, generator=torch.Generator().manual_seed(int(row.sum()))) for row in ids]
        t = torch.full((len(ids),), 0.5)
        xt = self.model.process.noise(self.model.encode(ids), t, torch.stack(drawn))
        losses = nn.functional.cross_entropy(self.model.token_logits(xt, t, mask).transpose(1, 2), ids, reduction="none")
        return {"cross_entropy": (losses * mask).sum() / mask.sum()}


def main(folder: Path, adapter: str) -> None:
    import os

    world = int(os.environ.get("WORLD_SIZE", "1"))
    changes = {
        "steps": 3,
        "save_every": 3,
        "accumulation": 2 // world,
        "warmup": 0,
        "decay": "constant",
        "optimizer": "test-sgd",
        "clip": 0,
    }
    config = tiny_config(folder, training=changes)
    texts = config.data.corpus.load()["train"]["text"][:]
    tokenizer = config.data.tokenizer.make(texts, config.data.max_length)
    rows = encode(texts, tokenizer, config.data.max_length).ids
    torch.manual_seed(0)
    model = config.model.make(tokenizer, rows, config.data.max_length)
    assert isinstance(model, DiffusionLM)
    model = Lora(rank=2).wrap(model) if adapter == "lora" else model
    objective, run = FixedNoise(model, model.config.special_ids["pad"]), folder / f"{adapter}-run-of-{world}"
    trainer = DiffusionTrainer(objective, config.training, run, rows, [], quiet=True)
    assert trainer.accelerator.num_processes == world
    trainer.run()
    rank = trainer.accelerator.process_index
    weights = {name: value.detach().clone() for name, value in model.state_dict().items()}
    torch.save({"weights": weights, "noise": torch.randn(8)}, folder / f"{adapter}-rank-{rank}-of-{world}.pt")


if __name__ == "__main__":
    for each in ("full", "lora"):
        main(Path(sys.argv[1]), each)
