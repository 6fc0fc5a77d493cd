"""Refinement of finished samples: change the tokens that the model, given all the others, finds much less probable.

Both functions are iterated conditional modes (Besag 1986) with a margin. ``blockwise_icm`` hides tokens a block at a time, for
networks that read each position's own input; ``parallel_icm`` changes tokens all over the text at once, for networks that
exclude it.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

APART = 11  # positions between two tokens that are predicted at once: the evaluations of a sweep in blocks


def blockwise_icm(
    words: Tensor,
    free: Tensor,
    posterior: Callable[[Tensor, Tensor], Tensor],
    *,
    sweeps: int,
    odds: float,
    apart: int = APART,
    allowed: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Predict the ``free`` tokens of ``words`` (B, L) again, every ``apart``-th at a time, given all the others.

    A token is replaced where ``posterior`` (words, hidden (B, L) -> logits (B, L, V)) gives another one ``odds`` times its
    probability; the margin keeps tokens that were free choices as they were drawn. A text keeps its tokens where ``allowed``
    (words -> (B,)) is False for the changed text.
    """
    place = torch.arange(words.shape[1], device=words.device)
    for first in list(range(apart)) * sweeps:
        hidden = free & (place % apart == first)
        logits = posterior(words, hidden)
        best, mode = logits.max(-1)
        held = logits.gather(-1, words[..., None])[..., 0]
        better = torch.where(hidden & (best - held > math.log(odds)), mode, words)
        words = better if allowed is None else torch.where(allowed(better)[:, None], better, words)
    return words


def parallel_icm(
    words: Tensor,
    free: Tensor,
    cloze: Callable[[Tensor], Tensor],
    *,
    rounds: int,
    odds: float,
    near: int = 5,
    allowed: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Replace the ``free`` tokens of ``words`` (B, L) with the largest gain in log-probability, for at most ``rounds`` rounds.

    ``cloze`` (words -> logits (B, L, V)) predicts each token from all the others. A token is replaced as in ``blockwise_icm``
    if no token within ``near`` positions gains more, since one of two contradicting tokens must stay. The distance doubles
    every round: otherwise two tokens that contradict each other from afar would be replaced together again and again. Where
    the changed text is not ``allowed``, only the token with the largest gain is replaced.
    """
    for turn in range(rounds):
        logits = cloze(words)
        best, mode = logits.max(-1)
        gain = torch.where(free & best.isfinite(), best - logits.gather(-1, words[..., None])[..., 0], 0)
        reach = min(near * 2**turn, words.shape[1])
        most = torch.nn.functional.max_pool1d(gain[:, None], 2 * reach + 1, 1, reach)[:, 0]
        wrong = (gain > math.log(odds)) & (gain == most)
        if not wrong.any():
            break
        changed = torch.where(wrong, mode, words)
        if allowed is not None:
            first = torch.nn.functional.one_hot(gain.argmax(-1), words.shape[1]).bool() & wrong
            changed = torch.where(allowed(changed)[:, None], changed, torch.where(first, mode, words))
        words = changed
    return words
