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


def blockwise_icm(
    words: Tensor,
    free: Tensor,
    posterior: Callable[[Tensor, Tensor], Tensor],
    *,
    sweeps: int,
    odds: float,
    apart: int = 11,
    allowed: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Ask again for the ``free`` words of ``words`` (B, L), a few far ``apart`` at a time, given all the others.

    A word gives way where ``posterior`` (words, hidden (B, L) -> logits (B, L, V)) holds another ``odds`` times likelier: the
    iterated conditional modes of Besag (1986) with a margin, which leaves free choices as they were drawn. ``allowed`` tells
    (B,) which texts may be; a text stays as it is where it would not be one.
    """
    place = torch.arange(words.shape[1], device=words.device)
    for first in list(range(apart)) * sweeps:
        hidden = free & (place % apart == first)
        logits = posterior(words, hidden)
        best, viterbi = logits.max(-1)
        held = logits.gather(-1, words[..., None])[..., 0]
        better = torch.where(hidden & (best - held > math.log(odds)), viterbi, words)
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
    """Change the ``free`` words of ``words`` (B, L) that the others contradict most, until none is left or ``rounds`` are over.

    ``cloze`` (words -> logits (B, L, V)) tells each word from all the others. A word gives way as in ``blockwise_icm``,
    where no word within ``near`` positions has more to gain: what is wrong there may be the other. Each
    round looks twice as far as the
    last, or two that contradict each other from afar would both give way, and again both. Where all that give way would
    not be ``allowed`` together, the one with the most to gain does alone.
    """
    for turn in range(rounds):
        logits = cloze(words)
        best, viterbi = logits.max(-1)
        gain = torch.where(free & best.isfinite(), best - logits.gather(-1, words[..., None])[..., 0], 0)
        reach = min(near * 2**turn, words.shape[1])
        most = torch.nn.functional.max_pool1d(gain[:, None], 2 * reach + 1, 1, reach)[:, 0]
        wrong = (gain > math.log(odds)) & (gain == most)
        if not wrong.any():
            break
        changed = torch.where(wrong, viterbi, words)
        if allowed is not None:
            first = torch.nn.functional.one_hot(gain.argmax(-1), words.shape[1]).bool() & wrong
            changed = torch.where(allowed(changed)[:, None], changed, torch.where(first, viterbi, words))
        words = changed
    return words
