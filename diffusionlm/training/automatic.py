"""Settings that fit a corpus: what neither a command nor a config file sets, from the corpus and the speed of this machine.

The rules, and where their numbers come from: ``TOKENIZERS``, ``SIZES`` and ``DROPOUTS`` below. All choices have a reason, and
are printed and written to the run's config.yaml; a resumed run keeps those that are there.
"""

from __future__ import annotations

import io
import json
import math
import random
import tempfile
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import datasets  # type: ignore[import-untyped]
import numpy as np
import torch
from transformers import PreTrainedModel

from diffusionlm.config import UserError, build, override, to_plain
from diffusionlm.data.batches import encodings
from diffusionlm.data.reading import collected_reports
from diffusionlm.data.rows import Texts
from diffusionlm.data.tokenizers import BytePairs, TokenizerRecipe, WordTokenizer, split_words
from diffusionlm.files import read_text
from diffusionlm.models.diffusion import ModelConfig
from diffusionlm.models.spec import Rows
from diffusionlm.processes import count, is_first, of_first
from diffusionlm.progress import say
from diffusionlm.training.run import RunConfig, flat, prepare, read_config, read_plain, refuse_another
from diffusionlm.training.trainer import DiffusionTrainer

SETTINGS = (  # that are chosen, in this order
    "data.tokenizer", "data.max_length", "model.backbone", "training.batch_tokens", "training.threads", "training.steps",
    "training.warmup", "training.patience", "training.evaluate_every", "training.sample_every",
    "training.save_every", "training.log_every",
)  # fmt: skip
READ = 50_000  # texts of a large corpus that are looked at
MOST_WORDS = 4_000  # different words, up to which each is a token
UNKNOWN = 0.01  # of the words of held-out texts: with a larger share, words are split
TOKENIZERS = ((100_000, 4_000), (3_000_000, 8_000), (30_000_000, 16_000), (math.inf, 32_000))  # words of a corpus, byte pairs
LENGTHS = (32, 256)  # between which a maximum length is chosen
LONGER = 0.005  # of the texts may be longer
SIZES = (  # tokens that the smallest network sees in the time given, layers, query layers, width, heads, tokens per batch
    (1e6, 2, 2, 128, 4, 768), (40e6, 3, 2, 192, 6, 1024), (400e6, 4, 2, 256, 8, 1536), (4e9, 6, 3, 512, 8, 8192),
    (math.inf, 10, 4, 768, 12, 32768),
)  # fmt: skip
DROPOUTS = ((2, 0.0), (4, 0.1), (7, 0.2), (math.inf, 0.3))  # how often a run sees a text at most, and its dropout
NARROW, NARROW_DROPOUT = 128, 0.1  # a network of this width has at most this dropout
EPOCHS = 10  # of a run of which neither the steps nor the minutes are given
LEAST_STEPS = 200
EVALUATIONS = 12  # in a run
SEEN_OFTEN = 4  # epochs from which training stops early
PATIENCE = 3
RESERVE = 0.95  # of the minutes is for steps: the rest is for evaluations, sample texts and checkpoints
TIMED_STEPS = 45


@dataclass(frozen=True)
class Choice:
    """The value of a setting, plain, and why it was chosen."""

    setting: str
    value: Any
    reason: str

    def __str__(self) -> str:
        return f"{self.setting}: {json.dumps(self.value)} ({self.reason})"


def automatic(
    config: RunConfig, given: Collection[str], minutes: float | None = None, folder: str | Path | None = None
) -> RunConfig:
    """Return ``config`` with the settings chosen that are not among the ``given`` ones, dotted, and print the choices.

    ``minutes`` is the training time on this machine. A run in ``folder`` keeps the choices in its config.yaml.

    Raises:
        UserError: minutes beside given steps, or not positive; ``folder`` is no place for a run; the corpus cannot be read.
        KeyboardInterrupt: Ctrl-C while the speed was measured.
    """
    if minutes is not None:
        check_minutes(minutes)
    if minutes is not None and "training.steps" in given:
        raise UserError("--minutes: training.steps is set too; give one of the two")
    if config.data.corpus.streams:
        if minutes is not None:
            raise UserError("--minutes: the number of tokens of a streamed corpus is not known; give --training.steps")
        say("data.corpus.streaming: the number of texts is not known, so no settings are chosen to fit them")
        return config
    free = [name for name in SETTINGS if not _is_given(name, given)]
    if folder is not None and (recorded := Path(folder) / "config.yaml").exists():
        say(f"{folder}: resuming with the settings that were chosen for this run")
        return _with(config, _picked(read_config([recorded]), free))
    if folder is not None:
        refuse_another(config, Path(folder))  # before the speed is measured
    return _Chooser(config, free, minutes).chosen()


def given_names(paths: Sequence[str | Path], assignments: Iterable[tuple[str, str]]) -> set[str]:
    """Return the dotted names of the settings that the YAML files ``paths`` and ``assignments`` set."""
    return {name for name, _ in assignments} | {name for path in paths for name in flat(read_plain(Path(path)))}


def _is_given(name: str, given: Collection[str]) -> bool:
    """Return whether a setting, a part of it, or the whole that it is a part of, is among the ``given`` ones."""
    return any(other == name or other.startswith(f"{name}.") or name.startswith(f"{other}.") for other in given)


def _picked(config: RunConfig, names: Iterable[str]) -> dict[str, Any]:
    """Return the plain values of the settings ``names``, those that the config has."""
    plain, found = to_plain(config), dict[str, Any]()
    for name in names:
        value: Any = plain
        for part in name.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        if value is not None:
            found[name] = value
    return found


def _with(config: RunConfig, values: Mapping[str, Any]) -> RunConfig:
    """Return ``config`` with the plain ``values`` of dotted settings."""
    changes = [(name, value if isinstance(value, str) else json.dumps(value)) for name, value in values.items()]
    return build(RunConfig, override(to_plain(config), changes, RunConfig))


@dataclass(frozen=True)
class Facts:
    """What the training texts are like: their number, that of their words, and of different words.

    ``unknown`` is the share of the words of held-out texts that are not among these, None without held-out texts.
    """

    texts: int
    words: int
    distinct: int
    unknown: float | None

    @classmethod
    def of(cls, texts: Sequence[str], held_out: Sequence[str], total: int) -> Facts:
        """Look at ``texts``, of a corpus of ``total`` texts."""
        known, others = _counted(texts), _counted(held_out)
        new = sum(number for word, number in others.items() if word not in known)
        return cls(total, round(known.total() * total / len(texts)), len(known), new / others.total() if others else None)


def _counted(texts: Sequence[str]) -> Counter[str]:
    """Return how often each word occurs in ``texts``; what is between blanks is split into words once."""
    found: Counter[str] = Counter()
    for part, number in Counter(part for text in texts for part in text.split(" ")).items():
        for word in split_words(part):
            found[word] += number
    return found


class _Chooser:
    """Chooses the ``free`` settings, one after the other: each may depend on those before it."""

    def __init__(self, config: RunConfig, free: list[str], minutes: float | None) -> None:
        self.config, self.free, self.minutes = config, free, minutes
        with collected_reports():  # on the texts, which the run itself will print
            splits = config.data.corpus.load()
        spec = config.model.fitted(splits)
        rows = splits["train"]
        places = sorted(random.Random(0).sample(range(len(rows)), min(READ, len(rows))))
        few: datasets.Dataset = rows.select(places)
        self.texts = list(spec.tokenizer_texts(few))
        every = spec.tokenizer_texts(rows)
        self.source = every if isinstance(every, Texts) else self.texts  # of a large corpus it is made once, and cached
        self.share = len(few) / len(rows)
        held_out = splits["validation"]["text"][:2000] if "validation" in splits else []
        self.held_out = bool(held_out)
        self.facts = Facts.of(self.texts, held_out, len(rows))
        self.tokens = 0  # of the corpus

    def chosen(self) -> RunConfig:
        """Choose all of them, and print the choices."""
        say(
            f"train: {self.facts.texts:,} texts of {self.facts.words:,} words, {self.facts.distinct:,} different ones; "
            "chosen to fit them, each can be given:"
        )
        for choices in (self._tokenizer, self._length, self._size, self._time, self._dropout, self._intervals):
            for choice in choices():
                say(f"  {choice}")
        return self.config

    def _take(self, name: str, value: Any, reason: str) -> Iterable[Choice]:
        if name in self.free:
            self.config = _with(self.config, {name: value})
            yield Choice(name, value, reason)

    def _tokenizer(self) -> Iterable[Choice]:
        if self.config.init_from is not None:
            return
        found, facts = _tokenizer_for(self.facts)
        yield from self._take("data.tokenizer", to_plain(found), facts)

    def _length(self) -> Iterable[Choice]:
        """Choose the maximum length, and count the tokens of the corpus."""
        tokenizer = self.config.data.tokenizer.make(self.source, LENGTHS[1])
        lengths = np.array([len(each.ids) + 2 for each in encodings(self.texts, tokenizer)])
        self.tokens = round(lengths.sum() / self.share)
        if self.config.init_from is None:
            quantile = float(np.quantile(lengths, 1 - LONGER))
            longest = min(max(LENGTHS[0], 16 * math.ceil(quantile / 16)), LENGTHS[1])
            longer = float(np.mean(lengths > longest))
            yield from self._take("data.max_length", longest, f"{longer:.1%} of the texts are longer, in tokens")

    def _size(self) -> Iterable[Choice]:
        if not isinstance(self.config.model, ModelConfig) or self.config.init_from is not None:
            return
        steps = self.config.training.steps if "training.steps" not in self.free else None
        seen = float(self.tokens * EPOCHS if steps is None else steps * _tokens_of_step(self.config))
        if self.minutes is not None:
            smallest = _with(self.config, {"model.backbone": self._sized(SIZES[0][1:5], 0.0)})
            seen = self.minutes * 60 * _tokens_of_step(smallest) / fastest(smallest)[0]
        _, *size, batch = next(row for row in SIZES if seen <= row[0])
        reason = f"the smallest network sees {seen:,.0f} tokens in this {'run' if self.minutes is None else 'time'}"
        yield from self._take("model.backbone", self._sized(size, 0.0), reason)
        yield from self._take("training.batch_tokens", max(int(batch), self.config.data.max_length), "for this size")

    def _dropout(self) -> Iterable[Choice]:
        """Choose the dropout of the network that was chosen."""
        if "model.backbone" not in self.free or self.config.init_from is not None:
            return
        if isinstance(self.config.model, ModelConfig):
            dropout = next(value for most, value in DROPOUTS if self._epochs() <= most)
            reason = f"each text is seen {self._epochs():.1f} times"
            if getattr(self.config.model.backbone, "width", NARROW + 1) <= NARROW and dropout > NARROW_DROPOUT:
                dropout, reason = NARROW_DROPOUT, f"{reason}, by a narrow network"
            self.config = _with(self.config, {"model.backbone.dropout": dropout})
            yield Choice("model.backbone.dropout", dropout, reason)

    def _epochs(self) -> float:
        return self.config.training.steps * _tokens_of_step(self.config) / self.tokens

    def _sized(self, size: Sequence[float], dropout: float) -> dict[str, Any]:
        names = ("layers", "query_layers", "width", "heads")
        return {"name": "leave-one-out", **dict(zip(names, size, strict=True)), "dropout": dropout}

    def _time(self) -> Iterable[Choice]:
        batch = _tokens_of_step(self.config)
        if self.minutes is None:
            steps = max(LEAST_STEPS, round(EPOCHS * self.tokens / batch))
            yield from self._take("training.steps", steps, f"{EPOCHS} times {self.tokens:,} tokens, {batch:,} in a step")
            return
        seconds, threads = fastest(self.config)
        fitting, least = int(self.minutes * 60 * RESERVE / seconds), LEAST_STEPS // 10
        reason = f"{self.minutes:g} minutes at {batch / seconds:,.0f} tokens per second"
        if fitting < least:
            reason = f"the fewest of a run, which takes longer: {reason} are {fitting} steps"
        yield from self._take("training.threads", threads, "the fastest number of CPU threads")
        yield from self._take("training.steps", max(least, fitting), reason)

    def _intervals(self) -> Iterable[Choice]:
        training = self.config.training
        steps, every = training.steps, max(LEAST_STEPS // 8, round(training.steps / EVALUATIONS))
        yield from self._take("training.warmup", min(200, max(1, steps // 10)), "at most a tenth of the steps")
        if self.held_out and self._epochs() > SEEN_OFTEN:
            yield from self._take("training.patience", PATIENCE, f"each text is seen {self._epochs():.1f} times")
        yield from self._take("training.evaluate_every", every, f"at most {EVALUATIONS} evaluations in {steps:,} steps")
        yield from self._take("training.sample_every", max(1, steps // 4), "four times in the run")
        yield from self._take("training.save_every", every, "as often as it is evaluated")
        yield from self._take("training.log_every", max(1, min(50, steps // 20)), "at most 50 steps")


def _tokenizer_for(facts: Facts) -> tuple[TokenizerRecipe, str]:
    """Return the tokenizer for texts, and the reason."""
    share = "no text is held out"
    if facts.unknown is not None:
        share = f"{facts.unknown:.1%} of the words of held-out texts are not in the training texts"
    if facts.distinct <= MOST_WORDS and (facts.unknown or 0) <= UNKNOWN:
        return WordTokenizer(), f"{facts.distinct:,} different words; {share}"
    size = next(size for words, size in TOKENIZERS if facts.words <= words)
    return BytePairs(size), f"{facts.distinct:,} different words; {share}"


def _tokens_of_step(config: RunConfig) -> int:
    """Return the tokens of an update of the weights, padding counted, in all processes together."""
    return config.training.batch_tokens * config.training.accumulation * count()


def check_minutes(minutes: float) -> None:
    """Raise UserError unless a number of ``minutes`` is positive and finite."""
    if not (math.isfinite(minutes) and minutes > 0):
        raise UserError(f"--minutes: expected a positive number, got {minutes}")


def fastest(config: RunConfig) -> tuple[float, int]:
    """Time a few steps of training; return the seconds of one on the best number of threads, and that number.

    Raises KeyboardInterrupt on Ctrl-C.
    """
    most = config.training.threads or min(8, torch.get_num_threads())
    with redirect_stderr(io.StringIO()):  # the run itself will say what there is to say of the corpus
        model, _, rows, _ = prepare(config)
        tried = {most} if config.training.threads else {1, most}
        seconds = {threads: _seconds_per_step(config, model, rows, threads) for threads in sorted(tried)}
    threads = min(seconds, key=seconds.__getitem__)
    return seconds[threads], threads


def _seconds_per_step(config: RunConfig, model: PreTrainedModel, rows: Rows, threads: int) -> float:
    training = replace(
        config.training, steps=TIMED_STEPS, threads=threads, log_every=TIMED_STEPS // 3, evaluate_every=10**9,
        sample_every=10**9, save_every=10**9, patience=0,
    )  # fmt: skip
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder:
        if not DiffusionTrainer(config.objective.build(model), training, Path(folder), rows, [], quiet=True).run():
            raise KeyboardInterrupt
        logged = [json.loads(line) for line in read_text(Path(folder) / "log.jsonl").splitlines()] if is_first() else []
    times = [row["seconds"] for row in logged if "tokens" in row]
    spent = times[-1] - times[0] if is_first() else 0.0
    return of_first(spent) / (TIMED_STEPS - TIMED_STEPS // 3)
