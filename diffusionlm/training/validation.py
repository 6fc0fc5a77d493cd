"""The validation figures of a run: an objective's terms over held-out rows."""

from __future__ import annotations

from collections import defaultdict

import torch
from accelerate.utils import send_to_device

from diffusionlm.core.objective import Objective
from diffusionlm.models.spec import Rows


@torch.no_grad()
def evaluate_terms(objective: Objective, rows: Rows, batch_tokens: int, device: torch.device, bf16: bool) -> dict[str, float]:
    """Return an objective's mean validation terms over ``rows``, weighted by tokens, but for those that are given.

    The random state is restored.
    """
    was_training = objective.training
    objective.eval()
    sums: dict[str, float] = defaultdict(float)
    tokens = 0
    ordered = sorted(rows, key=len)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        while ordered:
            count = max(1, batch_tokens // len(ordered[-1]))
            batch = send_to_device(objective.collate(ordered[-count:]), device)
            del ordered[-count:]
            size = int(batch.free.sum())
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                terms = objective.validation_terms(batch)
            for name, term in terms.items():
                sums[name] += float(term) * size
            tokens += size
    objective.train(was_training)
    return {name: total / max(tokens, 1) for name, total in sums.items()}
