"""Exact inference: factorised token posteriors conditioned on a constraint automaton.

The denoiser predicts an independent token posterior for each position. Given that an automaton accepts the sequence, the
marginals follow by forward-backward and the most probable sequence by Viterbi (Rabiner 1989), exactly: every sample then
satisfies the constraint by construction.

Shapes: B batch, L positions, V vocabulary, S states, C token classes, K edge labels (sets of classes).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from diffusionlm.constraints.dfa import DFA

NEVER = -1e30  # log of probability 0, finite so that no difference or gradient is NaN
SMALL = 1e-25  # relative to the largest term: below it sums are computed in log space
AT_ONCE = 2**24  # logits that are computed with at once: 64 MiB in float32
DENSE = 2**24  # entries of a matrix of tokens and classes; above it sums are scattered
BARRED = 1e4  # nats of a masked token below the most probable one, where the automaton accepts no other


def condition(automaton: DFA, logits: Tensor, lengths: Tensor) -> Tensor:
    """Return the log posterior marginals (B, L, V), given that the first ``lengths`` (B,) tokens are in ``automaton``.

    ``logits`` may be -inf at masked tokens; they stay impossible unless no accepted sequence is left. Impossible tokens get
    -inf. Positions after the length keep their logits, and so does a row of a length that the automaton does not accept.
    """
    return _by_rows(_condition, automaton, logits, lengths)


def log_probability(automaton: DFA, logits: Tensor, lengths: Tensor) -> Tensor:
    """Return the log-probability (B,) that ``automaton`` accepts a sample of the posteriors ``logits`` (B, L, V)."""
    return _by_rows(_log_probability, automaton, logits, lengths)


def viterbi(automaton: DFA, logits: Tensor, lengths: Tensor) -> Tensor:
    """Return the most probable accepted sequences (B, L), by Viterbi; after the length each position's most probable token.

    ``logits`` and ``lengths`` are as in ``condition``; a row of a length that is not accepted is unconstrained.
    """
    return _by_rows(_viterbi, automaton, logits, lengths)


def _by_rows(function: Callable[[DFA, Tensor, Tensor], Tensor], automaton: DFA, logits: Tensor, lengths: Tensor) -> Tensor:
    """Return ``function`` of a few rows of ``logits`` (B, L, V) at a time, so that what it computes on the way stays small.

    A gradient recomputes it. One call does where the logits are few.
    """
    if logits.numel() <= AT_ONCE or len(logits) == 1:
        return function(automaton, logits, lengths)
    rows, found = max(1, AT_ONCE * len(logits) // logits.numel()), []
    for part, ends in zip(logits.split(rows), lengths.split(rows), strict=True):
        if torch.is_grad_enabled() and part.requires_grad:
            found.append(checkpoint(function, automaton, part, ends, use_reentrant=False, preserve_rng_state=False))
        else:
            found.append(function(automaton, part, ends))
    return torch.cat(found)


def _condition(automaton: DFA, logits: Tensor, lengths: Tensor) -> Tensor:
    log_p, by_label, beta = _messages(automaton, logits, lengths)
    inside = torch.nn.functional.threshold(_gain(automaton, by_label, beta).add_(log_p), NEVER / 2, -math.inf)
    member = _inside(logits, lengths) & (beta[0][0] > NEVER / 2)[:, None]
    return torch.where(member[..., None], inside, logits)


def _gain(automaton: DFA, by_label: Tensor, beta: Sequence[Tensor]) -> Tensor:
    """Return by how much acceptance raises the log-probability of each token (B, L, V); arguments are ``_backward``'s."""
    targets, labels, sets = (table.to(by_label.device) for table in automaton.edges)
    alpha = torch.zeros_like(beta[0])
    alpha[0] = 1
    taken = torch.zeros_like(by_label)
    for part in _parts(by_label, labels):
        after, before = (torch.stack([beta[i + ahead] for i in part]) for ahead in (1, 0))
        # Probability of each edge given its state and acceptance at the end: no product of small numbers.
        score = by_label[part.start : part.stop, labels] + after[:, targets] - before[:, :, None]
        shares, flows = score.clamp_(max=0).exp_(), []
        for share in shares:
            flows.append((alpha[:, None] * share).flatten(0, 1))
            alpha = torch.zeros_like(alpha).index_add_(0, targets.flatten(), flows[-1])
        taken[part.start : part.stop].index_add_(1, labels.flatten(), torch.stack(flows))
    gain = torch.where(taken > 0, taken.log() - by_label, NEVER)[:, :-1].permute(2, 0, 1)
    return _of_tokens(automaton, _log_sums(gain, sets.T).clamp(min=NEVER))


def _log_probability(automaton: DFA, logits: Tensor, lengths: Tensor) -> Tensor:
    log_p = _log_posterior(logits, _inside(logits, lengths))
    start: Tensor = _Acceptance.apply(log_p, automaton, lengths)  # type: ignore[no-untyped-call]
    return torch.where(start > NEVER / 2, start, -math.inf)


class _Acceptance(torch.autograd.Function):
    """The log-probability of acceptance (B,) of log posteriors (B, L, V); its gradient are the conditioned posteriors.

    They come from the forward-backward algorithm in one pass, without a graph of the recursion (Eisner 2016).
    """

    @staticmethod
    def forward(ctx: Any, log_p: Tensor, automaton: DFA, lengths: Tensor) -> Tensor:
        by_label, beta = _backward(automaton, log_p, lengths)
        ctx.automaton, ctx.beta = automaton, beta
        ctx.save_for_backward(log_p, lengths, by_label)
        return beta[0][0].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        log_p, lengths, by_label = ctx.saved_tensors
        possible = _inside(log_p, lengths) & (ctx.beta[0][0] > NEVER / 2)[:, None]
        inside = _gain(ctx.automaton, by_label, ctx.beta).add_(log_p).clamp_(max=0).exp_()  # at most 1 but for rounding
        return inside.mul_((gradient[:, None] * possible)[..., None]), None, None


def _viterbi(automaton: DFA, logits: Tensor, lengths: Tensor) -> Tensor:
    log_p = _messages(automaton, logits, lengths)[0]
    targets, labels, sets = (table.to(logits.device) for table in automaton.edges)
    by_class, tokens = _best(log_p, automaton.members)
    by_label, symbols = _best(by_class, [group.nonzero().flatten() for group in sets.T])
    by_label = torch.nn.functional.pad(by_label, (0, 1), value=NEVER)
    ends = torch.where(automaton.accepting.to(logits.device), 0.0, NEVER).to(log_p).expand(len(logits), -1)
    beta, choices = ends, []
    for i in reversed(range(logits.shape[1])):
        best, choice = (by_label[:, i][:, labels] + beta[:, targets]).max(-1)
        beta = torch.where((i < lengths)[:, None], best, ends)
        choices.append(choice)
    ids, rows, state = logits.argmax(-1), torch.arange(len(logits), device=logits.device), torch.zeros_like(lengths)
    possible = beta[:, 0] > NEVER / 2
    for i, choice in enumerate(reversed(choices)):
        edge = choice[rows, state]
        symbol = symbols[rows, i, labels[state, edge].clamp(max=sets.shape[1] - 1)]
        ids[:, i] = torch.where(possible & (i < lengths), tokens[rows, i, symbol], ids[:, i])
        state = targets[state, edge]
    return ids


def forced_tokens(automaton: DFA, lengths: Tensor, width: int) -> Tensor:
    """Return the ids (B, width) of tokens that all accepted sequences of ``lengths`` (B,) share, -1 elsewhere."""
    step, reached = automaton.step, automaton.reached(width)
    ending = [automaton.accepting]
    for _ in range(width):
        ending.append(ending[-1][step].any(1))
    ids = torch.full((len(lengths), width), -1)
    for length in lengths.unique().tolist():
        for i in range(length):
            possible = (reached[i][:, None] & ending[length - i - 1][step]).any(0)[automaton.classes].nonzero()
            if len(possible) == 1:
                ids[lengths.cpu() == length, i] = possible[0]
    return ids.to(lengths.device)


def allowed_substitutes(automaton: DFA, ids: Tensor, lengths: Tensor) -> Tensor:
    """Return which tokens (B, L, V) are accepted at each position of ``ids`` (B, L), given all other positions.

    All tokens are, after the length.
    """
    step, classes = automaton.step.to(ids.device), automaton.classes.to(ids.device)
    symbols = classes[ids]
    ends = [automaton.accepting.to(ids.device).expand(len(ids), -1)]  # by state, whether the rest is accepted
    for i in reversed(range(ids.shape[1])):
        before = ends[-1].gather(1, step[:, symbols[:, i]].T)
        ends.append(torch.where((i < lengths)[:, None], before, ends[-1]))
    state, possible = torch.zeros_like(lengths), []
    for i, after in enumerate(reversed(ends[:-1])):
        possible.append(after.gather(1, step[state]))
        state = step[state, symbols[:, i]]
    by_symbol = torch.stack(possible, 1) | ~_inside(ids, lengths)[..., None]
    return by_symbol[..., classes]


def accepted(automaton: DFA, ids: Tensor, lengths: Tensor) -> Tensor:
    """Return whether ``automaton`` accepts the first ``lengths`` (B,) tokens of each row of ``ids`` (B, L)."""
    step, symbols = automaton.step.to(ids.device), automaton.classes.to(ids.device)[ids]
    state = torch.zeros_like(lengths)
    for i in range(ids.shape[1]):
        state = torch.where(i < lengths, step[state, symbols[:, i]], state)
    return automaton.accepting.to(ids.device)[state]


class Lookahead:
    """What an automaton leaves possible, for tokens that are drawn from left to right.

    Tokens to come count with the probability that their independent posteriors end in an accepted sequence.
    """

    def __init__(self, automaton: DFA, logits: Tensor, lengths: Tensor) -> None:
        """Start before the first token; ``logits`` (B, L, V) and ``lengths`` (B,) are as in ``condition``."""
        self.given, self.lengths = logits, lengths
        self.log_p, _, self.beta = _messages(automaton, logits, lengths)
        self.step, self.classes = automaton.step.to(logits.device), automaton.classes.to(logits.device)
        self.state, self.possible = torch.zeros_like(lengths), self.beta[0][0] > NEVER / 2

    def logits(self, i: int) -> Tensor:
        """Return the logits (B, V) of token ``i``, which follows the tokens taken so far; -inf where none is accepted."""
        after = self.beta[i + 1].T.gather(1, self.step[self.state])[:, self.classes]
        inside = (self.possible & (i < self.lengths))[:, None]
        scores = self.log_p[:, i] + after
        return torch.where(inside, scores.masked_fill(scores < NEVER / 2, -math.inf), self.given[:, i])

    def take(self, i: int, tokens: Tensor) -> None:
        """Continue behind ``tokens`` (B,) at position ``i``."""
        self.state = torch.where(i < self.lengths, self.step[self.state, self.classes[tokens]], self.state)


def _inside(logits: Tensor, lengths: Tensor) -> Tensor:
    return torch.arange(logits.shape[1], device=logits.device) < lengths[:, None]


def _log_posterior(logits: Tensor, inside: Tensor) -> Tensor:
    """Return finite log-probabilities in float32 or float64, uniform at positions that are not ``inside``."""
    logits = logits if logits.dtype == torch.float64 else logits.float()
    # On a CPU a product with a mask takes an eighth of the time of masked_fill.
    return (logits.clamp(NEVER, -NEVER) * inside[..., None]).log_softmax(-1).clamp(min=NEVER)


def _messages(automaton: DFA, logits: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Return log posteriors and the results of ``_backward``; masked tokens are allowed where no other sequence is accepted."""
    log_p = _log_posterior(logits, _inside(logits, lengths))
    by_label, beta = _backward(automaton, log_p, lengths)
    lost = beta[0][0] < NEVER / 2
    if bool(lost.any()):
        log_p = torch.where(lost[:, None, None], log_p.maximum(log_p.amax(-1, keepdim=True) - BARRED), log_p)
        by_label, beta = _backward(automaton, log_p, lengths)
    return log_p, by_label, beta


def _backward(automaton: DFA, log_p: Tensor, lengths: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Return log-probabilities of each label (L, K + 1, B), and of acceptance from each state (S, B) at positions 0 to L."""
    targets, labels, sets = (table.to(log_p.device) for table in automaton.edges)
    by_label = _log_sums(_class_sums(automaton, log_p), sets)
    by_label = torch.nn.functional.pad(by_label, (0, 1), value=NEVER).permute(1, 2, 0).contiguous()
    ends = torch.where(automaton.accepting.to(log_p.device), 0.0, NEVER).to(log_p)[:, None].expand(-1, len(log_p))
    beta, inside = [ends], torch.arange(len(by_label), device=log_p.device)[:, None] < lengths
    for part in reversed(_parts(by_label, labels)):
        by_edge = by_label[part.start : part.stop, labels]
        for i in reversed(part):
            score = (by_edge[i - part.start] + beta[-1][targets]).logsumexp(1)
            beta.append(torch.where(inside[i], score, ends))
    return by_label, beta[::-1]


def _parts(by_label: Tensor, labels: Tensor) -> list[range]:
    """Return ranges of positions of ``by_label`` (L, K, B) whose values at the edges ``labels`` (S, N) are few enough."""
    width = max(1, AT_ONCE // (labels.numel() * by_label.shape[2] or 1))
    return [range(i, min(i + width, len(by_label))) for i in range(0, len(by_label), width)]


def _class_sums(automaton: DFA, values: Tensor) -> Tensor:
    """Return logsumexp of ``values`` (..., V) in each class of tokens (..., C)."""
    classes, count = automaton.classes.to(values.device), automaton.step.shape[1]
    if len(classes) * count <= DENSE:
        return _log_sums(values, automaton.membership.to(values.device))
    top = values.amax(-1, keepdim=True)
    sums = values.new_zeros(*values.shape[:-1], count).index_add(-1, classes, (values - top).exp_())
    return _exact_logs(values, top, sums, lambda g: classes == g)


def _of_tokens(automaton: DFA, values: Tensor) -> Tensor:
    """Return for each token (..., V) the one of the finite ``values`` (..., C) that belongs to its class."""
    classes, count = automaton.classes.to(values.device), automaton.step.shape[1]
    if values.device.type == "cpu" and len(classes) * count <= DENSE:  # there a product is six times as fast
        return values @ automaton.membership.T.to(values)
    return values[..., classes]


def _log_sums(values: Tensor, groups: Tensor) -> Tensor:
    """Return logsumexp of ``values`` (..., N) in each of ``groups`` (N, G), 1 or 0; accurate for small terms."""
    top = values.amax(-1, keepdim=True)
    sums = (values - top).exp_() @ groups.to(values)
    return _exact_logs(values, top, sums, lambda g: groups[:, g] > 0)


def _exact_logs(values: Tensor, top: Tensor, sums: Tensor, member: Callable[[int], Tensor]) -> Tensor:
    """Return the logarithms of ``sums`` (..., G) of exp(values - top), of small ones computed in log space."""
    logs = sums.clamp(min=SMALL).log() + top
    small = sums.detach() < SMALL
    for g in small.flatten(0, -2).any(0).nonzero().flatten().tolist():
        rows = small[..., g]
        logs[..., g] = logs[..., g].masked_scatter(rows, values[..., member(g)][rows].logsumexp(-1))
    return logs


def _best(values: Tensor, members: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Return the largest of ``values`` (..., N) among the ``members`` of each of G groups, and its index."""
    members = [member.to(values.device) for member in members]
    found = [values[..., member].max(-1) for member in members]
    best = [each.values for each in found], [member[each.indices] for member, each in zip(members, found, strict=True)]
    return torch.stack(best[0], -1), torch.stack(best[1], -1)
