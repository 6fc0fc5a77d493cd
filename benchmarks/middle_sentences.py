"""Infilling of a story's middle sentence, for benchmarks/stories.py: the two sentences on each side are given.

Ours follows the control ``Infill`` with a gap of any length. Masked diffusion starts from the given tokens and a gap whose
length is drawn from those of the training stories' middle sentences. The autoregressive model receives the left side alone and
samples until a sentence ends; of several such sentences, its other row takes the one that makes the right side most probable.
The published recipe takes no constraints: it has neither logits nor a length of its own.
"""

from __future__ import annotations

import json
import random
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from measure import ROOT, file_name, load_or_measure
from tabulate import tabulate
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from diffusionlm.config import UserError
from diffusionlm.controls import Infill
from diffusionlm.data.batches import text_mask
from diffusionlm.data.tokenizers import BLANK, decode_texts
from diffusionlm.evaluation.control.metrics import Estimate, filling, gap_metrics, over_targets, perplexity_over_targets
from diffusionlm.evaluation.control.tasks import Gap, read_tasks
from diffusionlm.evaluation.judge import Judge, perplexity
from diffusionlm.evaluation.ngrams import NGrams
from diffusionlm.files import write_text
from diffusionlm.models.causal import reach
from diffusionlm.models.io import fingerprint
from diffusionlm.pipelines.auto import open_pipeline
from diffusionlm.pipelines.causal import CachedLogits, CausalPipeline, draw_ids
from diffusionlm.pipelines.diffusion import Pipeline
from diffusionlm.pipelines.masked import MaskedPipeline, Unmasking, unmask
from diffusionlm.pipelines.noise import RowNoise

SENTENCES, MIDDLE = 5, 2
ROOM = 90  # tokens of a story at most, so that longer fillings fit into the models
RANKED = 8  # sentences of which the autoregressive model's right side chooses one
BOUNDARY = re.compile(r"""(?:(?<=[.!?])|(?<=[.!?]["']))\s+(?=["'A-Z0-9])""")
REFERENCE, OTHER = "the reference sentence", "another story's middle sentence"
Fill = Callable[[Gap, int, int], list[str]]
"""A gap, the number of its fillings and a seed to that many complete texts."""


def gap_of(story: str) -> Gap | None:
    """Return a story with its middle sentence hidden; None where it has not five sentences, or braces."""
    sentences = BOUNDARY.split(story.strip())
    if len(sentences) != SENTENCES or "{" in story or "}" in story:
        return None
    return Gap(" ".join(sentences[:MIDDLE]), sentences[MIDDLE], " ".join(sentences[MIDDLE + 1 :]))


def gaps_of(stories: Sequence[str], tokenizer: PreTrainedTokenizerFast, count: int) -> list[Gap]:
    """Return the gaps of the first ``count`` stories that have one, without unknown characters and not too long.

    Raises UserError where there are fewer.
    """
    found: list[Gap] = []
    for story in stories:
        ids = encoded(tokenizer, story)
        if len(found) < count and len(ids) <= ROOM and tokenizer.unk_token_id not in ids and (gap := gap_of(story)):
            found.append(gap)
    if len(found) < count:
        which = f"held-out stories of {SENTENCES} sentences and at most {ROOM} tokens"
        raise UserError(f"--gaps: expected at most {len(found)}, as many as there are {which}, got {count}")
    return found


def encoded(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    """Return the ids of a text, without BOS and EOS."""
    ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return ids


def fill_by_control(pipe: Pipeline) -> Fill:
    """Return the fillings of the control ``Infill``, with the sampling settings of configs/control/e2e-infilling.yaml."""
    (task,) = read_tasks(ROOT / "configs" / "control" / "e2e-infilling.yaml")
    sampling = pipe.changed(task.sampling)

    def fill(gap: Gap, count: int, seed: int) -> list[str]:
        control = Infill(gap.filled("{}"))
        return [row.text for row in pipe.stream(count, replace(sampling, seed=seed, batch_size=count), None, control)]

    return fill


def fill_by_unmasking(pipe: MaskedPipeline, lengths: Sequence[int]) -> Fill:
    """Return the fillings of a masked model; ``lengths`` are those of training sentences in tokens, of which one is drawn."""
    tokenizer, config = pipe.tokenizer, pipe.model.config
    sampling = pipe.changed({"temperature": 1.0})
    pieces = tokenizer.convert_ids_to_tokens(list(range(config.vocabulary)))
    inside = torch.tensor([not (piece or "").startswith(BLANK) for piece in pieces])  # a word

    @torch.no_grad()
    def fill(gap: Gap, count: int, seed: int) -> list[str]:
        assert isinstance(sampling.sampler, Unmasking)
        draw, padding = random.Random(seed), tokenizer.pad_token_id
        left = [tokenizer.bos_token_id, *encoded(tokenizer, gap.left)]
        right = [*encoded(tokenizer, gap.right), tokenizer.eos_token_id]
        room = config.max_tokens - len(left) - len(right)
        sizes = [min(room, draw.choice(lengths)) for _ in range(count)]
        totals = [len(left) + size + len(right) for size in sizes]
        mask = text_mask(totals, pipe.model.device)
        ids = torch.full_like(mask, padding, dtype=torch.long)
        hidden = torch.zeros_like(mask)
        for row, size in enumerate(sizes):
            ids[row, : totals[row]] = torch.tensor([*left, *[padding] * size, *right])
            hidden[row, len(left) : len(left) + size] = True
        model = pipe._predict(mask, None, sampling)

        def predict(ids: Tensor, hidden: Tensor) -> Tensor:
            logits = model(ids, hidden)
            logits[:, len(left)] = logits[:, len(left)].masked_fill(inside, -torch.inf)  # the filling begins with a word
            return logits

        noise = RowNoise([[seed, index, 0, 0] for index in range(count)], totals)
        for state in unmask(
            predict, ids, hidden, decoder=sampling.sampler, steps=sampling.steps, temperature=1.0, noise=noise
        ):  # fmt: skip
            ids = state.ids
        return decode_texts(tokenizer, [row[1 : n - 1] for row, n in zip(ids.tolist(), totals, strict=True)])

    return fill


def sentences_after(pipe: CausalPipeline, begun: Sequence[int], seeds: Sequence[Sequence[int]]) -> list[list[int]]:
    """Continue the ids ``begun`` by a sentence for each seed, token after token; return the ids of both.

    The text can only end behind a sentence, and does so behind the first.
    """
    tokenizer, last = pipe.tokenizer, pipe.tokenizer.eos_token_id
    ends = torch.zeros(max(len(tokenizer), int(last) + 1), dtype=torch.bool)
    ends[[i for token, i in tokenizer.get_vocab().items() if re.search(r"""[.!?]["']?$""", token)]] = True
    cached = CachedLogits(pipe.model, "input_ids", pipe.dtype)

    def next_logits(ids: Tensor) -> Tensor:
        logits = cached(ids).clone()
        ended = ends[ids[:, -1]] & (ids.shape[1] > len(begun) + 1)
        logits[~ended, last] = -torch.inf
        logits[ended] = torch.where(torch.arange(logits.shape[1]) == last, 0.0, -torch.inf)
        return logits

    start = torch.tensor([[tokenizer.bos_token_id, *begun]] * len(seeds))
    longest = min(reach(pipe.model) - 2, len(begun) + ROOM // 2)
    return draw_ids(next_logits, tokenizer, start, seeds, 1.0, longest)


def fill_from_left(pipe: CausalPipeline, ranked: int = 1) -> Fill:
    """Return the sentences that an autoregressive model continues the left side by.

    Of each ``ranked`` the one is kept that makes the right side most probable.
    """
    tokenizer, judge = pipe.tokenizer, Judge(pipe.model, pipe.tokenizer, pipe.dtype)

    def fill(gap: Gap, count: int, seed: int) -> list[str]:
        begun = encoded(tokenizer, gap.left)
        seeds = [(seed, index, c) for index in range(count) for c in range(ranked)]
        rows = sentences_after(pipe, begun, seeds)
        texts = [gap.filled(text) for text in decode_texts(tokenizer, [row[len(begun) :] for row in rows])]
        if ranked == 1:
            return texts
        end = [*encoded(tokenizer, gap.right), tokenizer.eos_token_id]
        before = judge.score(texts, rows=[[tokenizer.bos_token_id, *row] for row in rows])
        whole = judge.score(texts, rows=[[tokenizer.bos_token_id, *row, *end] for row in rows])
        right = [one.nats - other.nats for one, other in zip(whole, before, strict=True)]
        return [texts[min(range(i, i + ranked), key=right.__getitem__)] for i in range(0, len(texts), ranked)]

    return fill


def fills_of(row: str, run: Path, stories: Sequence[str]) -> dict[str, Fill]:
    """Return how the model of a run fills gaps, by the name of the table's row; none where it takes no given words."""
    pipe = open_pipeline(run)
    if isinstance(pipe, MaskedPipeline):
        gaps = [gap for story in stories if (gap := gap_of(story))]
        return {row: fill_by_unmasking(pipe, [len(encoded(pipe.tokenizer, gap.hidden)) for gap in gaps])}
    if isinstance(pipe, CausalPipeline):
        best = f"{row}, best of {RANKED} by the right side"
        return {f"{row}, left side alone": fill_from_left(pipe), best: fill_from_left(pipe, RANKED)}
    return {row: fill_by_control(pipe)} if isinstance(pipe, Pipeline) and pipe.has_logits else {}


def filled(fill: Fill, gaps: Sequence[Gap], count: int) -> dict[str, Any]:
    """Return ``count`` texts for each gap with the CPU seconds of a filling.

    Raises RuntimeError where given words were changed.
    """
    begun = time.process_time()
    texts = [fill(gap, count, number) for number, gap in enumerate(gaps)]
    seconds = (time.process_time() - begun) / (len(gaps) * count)
    for gap, each in zip(gaps, texts, strict=True):
        if changed := [text for text in each if filling(gap, text) is None]:
            raise RuntimeError(f"given words were changed: {changed[0]!r} of {gap}")
    return {"texts": texts, "cpu_seconds": seconds}


@dataclass(frozen=True)
class Filled:
    """The figures of a row: scores against the reference sentence from 0 to 1, perplexities of the complete stories."""

    row: str
    bleu: Estimate
    rouge: Estimate
    words: float
    distinct: float
    judge: Estimate
    others: Mapping[str, float]
    cpu_seconds: float | None


def figures(
    row: str, gaps: Sequence[Gap], texts: Sequence[Sequence[str]], seconds: float | None, judge: Judge,
    others: Mapping[str, NGrams],
) -> Filled:  # fmt: skip
    """Measure the texts of each gap."""
    scores = [gap_metrics(gap, each) for gap, each in zip(gaps, texts, strict=True)]
    bleu, rouge = (over_targets([list(one.values())[place] for one in scores]) for place in (0, 1))
    sizes = [len(filling(gap, text) or ()) for gap, each in zip(gaps, texts, strict=True) for text in each]
    flat = [text for each in texts for text in each]
    return Filled(
        row=row, bleu=bleu, rouge=rouge, words=sum(sizes) / len(sizes),
        distinct=sum(len({*each}) / len(each) for each in texts) / len(texts), judge=perplexity_over_targets(judge, texts),
        others={name: perplexity(model.score(flat)) for name, model in others.items()}, cpu_seconds=seconds,
    )  # fmt: skip


def infilling(
    runs: Mapping[str, Path], stories: Mapping[str, Sequence[str]], judge: Judge, others: Mapping[str, NGrams], gaps: int,
    count: int, out: Path,
) -> str:  # fmt: skip
    """Fill ``gaps`` held-out stories ``count`` times with each run, measure, save, and return the table.

    ``stories`` are those of train and test. Fillings that were saved with the same weights are not sampled again.
    """
    hidden = gaps_of(stories["test"], open_pipeline(next(iter(runs.values()))).tokenizer, gaps)
    shifted = [*hidden[1:], hidden[0]]
    rows = [
        figures(REFERENCE, hidden, [[gap.filled(gap.hidden)] for gap in hidden], None, judge, others),
        figures(OTHER, hidden, [[gap.filled(o.hidden)] for gap, o in zip(hidden, shifted, strict=True)], None, judge, others),
    ]
    refused = []
    for row, run in runs.items():
        fills = fills_of(row, run, stories["train"])
        refused += [] if fills else [row]
        for name, fill in fills.items():
            path = out / f"{file_name(name)}-{len(hidden)}-{count}-{fingerprint(run)[:8]}.json"
            found = load_or_measure(path, partial(filled, fill, hidden, count))
            rows.append(figures(name, hidden, found["texts"], found["cpu_seconds"], judge, others))
    result = {"gaps": [asdict(gap) for gap in hidden], "rows": [asdict(row) for row in rows], "refused": refused}
    write_text(out / "infilling.json", json.dumps(result, indent=2, ensure_ascii=False) + "\n")
    lines = [f"{row}: takes no given words (no logits, or no explicit length)" for row in refused]
    text = "\n".join([table(rows, len(hidden), count), *lines]) + "\n"
    write_text(out / "table.txt", text)
    return text


def table(rows: Sequence[Filled], gaps: int, count: int) -> str:
    """Return the table: a row for each way to fill the gaps."""
    cells = [
        [
            row.row, percent(row.bleu), percent(row.rouge), f"{row.words:.1f}", f"{100 * row.distinct:.0f}", plain(row.judge),
            *(f"{each:.1f}" for each in row.others.values()), "-" if row.cpu_seconds is None else f"{row.cpu_seconds:.2f}",
        ]
        for row in rows
    ]  # fmt: skip
    measures = ["BLEU-4 (%)", "ROUGE-L (%)", "words", f"distinct of {count} (%)", "judge perplexity"]
    header = [f"middle sentence of {gaps} stories", *measures, *(f"{name} perplexity" for name in rows[0].others), "CPU s"]
    return tabulate(cells, header, tablefmt="github", disable_numparse=True)


def percent(estimate: Estimate) -> str:
    """Return a share in percent with its standard error."""
    return plain(Estimate(100 * estimate.mean, None if estimate.error is None else 100 * estimate.error))


def plain(estimate: Estimate) -> str:
    """Return a mean with its standard error."""
    return f"{estimate.mean:.1f}" + ("" if estimate.error is None else f" ± {estimate.error:.1f}")
