"""Seam: a control. At least ``count`` words that begin with ``letter``, exactly, with metrics and targets of its own.

Which texts satisfy it is a regular language over tokens; its automaton counts the words with the letter, up to n = count:

    state k  --a word with the letter-->  state min(k + 1, n)        state k  --any other token-->  state k

Texts that end in state n are accepted. Sampling conditions the token posterior on the automaton by forward-backward and decodes
with Viterbi, so every sample satisfies the control, whatever the model. Four methods:

    compile(binding)            what acts during sampling: automata, energies (with a gradient), rewards (without)
    score(texts, binding)       the check: from 0 to 1, where 1 passes
    metrics(texts, scores, ..)  what an evaluation reports
    target_from(row, draw, ..)  a control that a corpus's text satisfies, to draw evaluation targets from

    python examples/alliteration.py [RUN]
    PYTHONPATH=examples python -m diffusionlm generate RUN --control 'alliteration:Alliteration("b", 4)'
    PYTHONPATH=examples python -m diffusionlm evaluate RUN --judge JUDGE --controls TASK.yaml
        where TASK.yaml is "task: {name: control, control: alliteration:Alliteration}"
"""

from __future__ import annotations

import random
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Self

import tiny
import torch

from diffusionlm.config import UserError
from diffusionlm.constraints.dfa import DFA
from diffusionlm.constraints.spelling import spelled_tokens
from diffusionlm.controls import Binding, Control
from diffusionlm.controls.control import CompiledControl, Scores
from diffusionlm.data.annotators import Reader
from diffusionlm.evaluation.control.metrics import target_metrics
from diffusionlm.evaluation.control.tasks import ControlTargets


@dataclass(frozen=True)
class Alliteration(Control):
    """At least ``count`` words begin with ``letter``, capital or not."""

    letter: str
    count: int = 3

    def __post_init__(self) -> None:
        """Check the letter and the count."""
        if len(self.letter) != 1 or not self.letter.isalpha() or self.count < 1:
            raise UserError(f"alliteration: expected a letter and a count of 1 or more, got {self.letter!r}, {self.count}")

    def compile(self, binding: Binding) -> CompiledControl:
        """Return the automaton over tokens; a token that begins a word is spelled with a blank before it."""
        starts = [token.lower().startswith(f" {self.letter.lower()}") for token in spelled_tokens(binding.tokenizer)]
        states = torch.arange(self.count + 1)
        step = torch.stack([states, (states + 1).clamp(max=self.count)], 1)  # by class of token: any other, with the letter
        return CompiledControl(automata=(DFA(torch.tensor(starts).long(), step, states == self.count),))

    def words(self, text: str) -> int:
        """Return how many words of ``text`` begin with the letter."""
        return sum(word.lower().startswith(self.letter.lower()) for word in text.split())

    def score(self, texts: Sequence[str], binding: Binding) -> Scores:
        """Return the share of the words that are there."""
        return [min(self.words(text) / self.count, 1.0) for text in texts]

    def metrics(self, texts: Sequence[str], scores: Scores, binding: Binding) -> dict[str, Scores]:
        """Return the check, and the share of all words that begin with the letter."""
        shares: Scores = [self.words(text) / max(len(text.split()), 1) for text in texts]
        return {**super().metrics(texts, scores, binding), "alliteration, share of words": shares}

    @classmethod
    def target_from(cls, row: Mapping[str, Any], draw: random.Random, reader: Reader) -> Self | None:
        """Return the most frequent first letter of the text, if it has it three times."""
        counts = Counter(word[0].lower() for word in row["text"].split() if word[0].isalpha())
        letter, count = counts.most_common(1)[0]
        return cls(letter, count) if count >= 3 else None


def main(folder: str | None = None) -> None:
    """Print samples with the control, alone and with another, and the metrics of targets drawn from held-out texts."""
    pipe = tiny.model(folder)
    for control in ('alliteration:Alliteration("p", 4)', 'alliteration:Alliteration("t", 6) & Length(12, 16)'):
        print(control)
        for row in pipe(3, controls=[control]):
            print(f"  {row.text}")
    rows = tiny.config().data.corpus.load()["test"].select(range(100))
    task = ControlTargets("alliteration:Alliteration")
    for target in task.targets(rows, Reader(pipe.tokenizer, pipe.binding.annotator), seed=0, count=2):
        texts = [row.text for row in pipe(4, controls=target.controls)]
        print(f"{target.controls[0]}, drawn from: {target.reference}")
        for name, scores in target_metrics(target, texts, pipe.binding).items():
            print(f"  {name}: {fmean(score for score in scores if score is not None):.2f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
