"""Score matching, denoising and sliced: a network in the plane, then a model of texts. Read it as a notebook, cell by cell.

python examples/score_matching.py [STEPS]
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import tiny
import torch
from mixture import draw, exact_score
from torch import Tensor, nn

from diffusionlm.core.objective import Batch
from diffusionlm.data.batches import encode
from diffusionlm.recipe.score_matching import SlicedObjective, SlicedScoreMatching, sliced

SIGMA = 0.5


# %% Two objectives for a network s(x) of 64 hidden units. Denoising score matching knows the noise that was added; sliced score
# matching sees the noisy points alone. At one sigma their expectations differ by a constant, so both have the same minimum.
def fitted(objective: str, steps: int) -> nn.Module:
    """Return a network trained by one of the two objectives."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(2, 64), nn.Softplus(), nn.Linear(64, 64), nn.Softplus(), nn.Linear(64, 2))
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-3)
    for _ in range(steps):
        x0, eps = draw(256), torch.randn(256, 2)
        x = x0 + SIGMA * eps
        loss = (SIGMA * network(x) + eps).square().mean() / 2 if objective == "denoising" else sliced(network, x, SIGMA, 1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network


def compare(steps: int) -> None:
    """Print each network's distance from the exact score, where the data are and between the modes, where there are none."""
    torch.manual_seed(1)
    places = {"at the data": draw(2000) + SIGMA * torch.randn(2000, 2), "between the modes": torch.randn(2000, 2)}
    print(f"mean of |s - exact score|^2 after {steps} steps")
    for objective in ("denoising", "sliced"):
        network = fitted(objective, steps)
        with torch.no_grad():
            errors = {where: (network(x) - exact_score(x, SIGMA)).square().sum(1).mean() for where, x in places.items()}
        print(f"{objective:10} {', '.join(f'{error:.3f} {where}' for where, error in errors.items())}")


# %% Texts. Word vectors are points, whose density has no score; x_0 + sigma eps has one. The same small model is trained by
# each objective on the same batches, and measured on held-out texts by what the denoising one minimises, |sigma s + eps|^2 per
# coordinate: 1 for a score of 0. The words nearest to the predicted x_0 = x + sigma^2 s (Tweedie) show what that is worth.
TEXT_SIGMA = 1.5
MODEL: dict[str, Any] = {
    "dimension": 16, "embedding": "frozen", "cooccurrence": 0, "prediction": "x0", "self_conditioning": False, "evidence": 0,
    "process": "variance-exploding", "schedule": "geometric", "backbone": {"name": "transformer", "layers": 2, "width": 64},
}  # fmt: skip


def denoising(objective: SlicedObjective, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return |sigma s + eps|^2 per coordinate, and the share of words that the predicted x_0 is nearest to."""
    model, free = objective.model, objective.model.free_positions(batch)
    words, eps = model.encode(batch.ids), torch.randn(*batch.ids.shape, MODEL["dimension"])
    x = words + TEXT_SIGMA * eps
    s = objective.score_of(batch, None)(x)
    nearest = torch.cdist((x + TEXT_SIGMA**2 * s).detach(), model.word_vectors()).argmin(-1)
    return (TEXT_SIGMA * s + eps)[free].square().mean(), (nearest == batch.ids)[free].float().mean()


def trained(model: nn.Module, rows: Sequence[list[int]], name: str, steps: int) -> SlicedObjective:
    """Train ``model`` on ``rows`` of token ids by one of the two objectives."""
    objective, optimizer = SlicedScoreMatching(TEXT_SIGMA).build(model), torch.optim.AdamW(model.parameters(), lr=2e-3)
    for step in range(steps):
        batch = objective.collate([rows[(16 * step + i) % len(rows)] for i in range(16)])
        loss = denoising(objective, batch)[0] if name == "denoising" else objective(batch)["score"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return objective


def compare_on_texts(steps: int) -> None:
    """Print what each objective reaches on 50 held-out texts, beside the untrained model."""
    settings, corpus = tiny.config(model=MODEL), tiny.config().data.corpus.load()
    tokenizer = settings.data.tokenizer.make(corpus["train"]["text"][:3000], 48)
    splits = (("train", 3000), ("validation", 50))
    rows, held_out = (encode(corpus[split]["text"][:count], tokenizer, 48).ids for split, count in splits)
    print(f"\ntexts with noise {TEXT_SIGMA} after {steps} steps: |sigma s + eps|^2 per coordinate, words recovered")
    for name, count in (("untrained", 0), ("denoising", steps), ("sliced", steps)):
        torch.manual_seed(0)
        objective = trained(settings.model.make(tokenizer, rows, 48), rows, name, count)
        with torch.no_grad():
            loss, recovered = denoising(objective, objective.collate(held_out))
        print(f"{name:10} {loss:.3f}  {100 * recovered:.0f} %")


def main(steps: str = "600") -> None:
    """Run all cells."""
    torch.set_num_threads(1)
    compare(int(steps))
    compare_on_texts(int(steps) // 4)


if __name__ == "__main__":
    main(*sys.argv[1:])
