"""Draw the tokens of a text from the joint distribution of ``models.joint``, under constraints if there are any.

Shapes: B batch, L positions, V words.
"""

from __future__ import annotations

import torch
from torch import Tensor

from diffusionlm.config import UserError
from diffusionlm.constraints.inference import Lookahead
from diffusionlm.models.joint import JointHead

TEMPERATURES = 1e-30, 1e30  # beyond these, quotients of float32 scores are infinite or no numbers
BELOW_ONE = 1 - 1e-6  # so that rounding leaves a share of a sum below the sum


def draw_tokens(
    head: JointHead, embedding: Tensor, logits: Tensor, mask: Tensor, temperature: float, noise: Tensor,
    ahead: Lookahead | None = None,
) -> Tensor:  # fmt: skip
    """Return tokens (B, L), drawn from left to right with the standard normal values ``noise`` (B, L).

    ``logits`` (B, L, V) are the denoiser's, certain at BOS; ``ahead`` starts behind BOS and is for the logits from there on.

    Raises:
        UserError: a prediction is not finite.
    """
    temperature = min(max(temperature, TEMPERATURES[0]), TEMPERATURES[1])
    features, state = head.features(logits, mask), None
    before = embedding.new_zeros(len(logits), 1, embedding.shape[1])
    chosen = torch.zeros(logits.shape[:2], dtype=torch.long, device=logits.device)
    share = torch.special.ndtr(noise.float())
    for i in range(logits.shape[1]):
        correction, state = head(features[:, i : i + 1], before, state)
        scores = (correction @ embedding.T)[:, 0] + (logits[:, i] if ahead is None or not i else ahead.logits(i - 1))
        chosen[:, i] = quantile((scores / temperature).softmax(-1), share[:, i])
        if ahead is not None and i:
            ahead.take(i - 1, chosen[:, i])
        before = torch.nn.functional.embedding(chosen[:, i : i + 1], embedding)
    return chosen


def quantile(probabilities: Tensor, share: Tensor) -> Tensor:
    """Return the words (B,) at which the sum of ``probabilities`` (B, V) passes the ``share`` (B,); none of probability 0.

    Raises UserError where they are no numbers.
    """
    sums = probabilities.cumsum(-1)
    if not bool(sums[:, -1].isfinite().all()):
        raise UserError(
            "joint head: no token can be drawn, since a prediction is not finite; a weight of the model, or the energy of a "
            "control, is far out of range"
        )
    return torch.searchsorted(sums, (share.clamp(max=BELOW_ONE) * sums[:, -1])[:, None], right=True)[:, 0]
