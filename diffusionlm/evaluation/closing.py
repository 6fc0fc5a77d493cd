"""The end of a training run: a temperature that fits the corpus, samples, figures beside held-out text, what to try next.

The temperature is that at which samples have the unigram entropy of as many held-out texts, but at most 1: below it they are
too alike, above it less fluent than they could be at the variety of the corpus. Above 1, models of a short training make up
words and sentences, before they have that entropy (benchmarks/README.md, "Your own corpus"). Where fewer than ``SHOWN`` texts
are held out, training texts take their place: the entropy of one or two texts is not that of the corpus.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import datasets  # type: ignore[import-untyped]

from diffusionlm.config import UserError
from diffusionlm.data.copies import KnownTexts
from diffusionlm.data.reading import collected_reports
from diffusionlm.evaluation.judge import perplexity
from diffusionlm.evaluation.ngrams import NGrams
from diffusionlm.evaluation.text_metrics import interpolated, self_bleu, unigram_entropy
from diffusionlm.files import write_text
from diffusionlm.models.io import model_folder
from diffusionlm.models.pieces import context_of, is_packed
from diffusionlm.pipelines.auto import open_pipeline
from diffusionlm.pipelines.base import BasePipeline
from diffusionlm.pipelines.conditioning import Requested, conditions_of
from diffusionlm.pipelines.diffusion import Pipeline
from diffusionlm.progress import say
from diffusionlm.training.optimizers import has_bf16
from diffusionlm.training.run import read_config, save_sampling

TEXTS, EVALUATIONS = 100, 2400  # at most so many samples, and evaluations of the network for all of them
COUNTED = 200_000  # training texts of which the n-grams are counted
SHOWN = 5
TEMPERATURES = (0.5, 0.75, 1.0)  # that are tried
PENDING = "closing"  # in a run folder while this goes on
FIGURES = ("perplexity", "entropy", "self-BLEU", "distinct", "copied")


def close(folder: str | Path, fit_temperature: bool) -> None:
    """Sample from the model of a finished run; print samples on stdout and figures on stderr.

    ``fit_temperature`` first chooses the sampling temperature, and saves it in the model's folder. After an interruption this
    ``is_pending``.
    """
    pending = Path(folder) / PENDING
    write_text(pending, "")
    _report(folder, fit_temperature)
    pending.unlink()


def is_pending(folder: str | Path) -> bool:
    """Return whether the end of the run in ``folder`` was interrupted, so that its temperature may not have been chosen."""
    return (Path(folder) / PENDING).exists()


def _report(folder: str | Path, fit_temperature: bool) -> None:
    config = read_config([Path(folder) / "config.yaml"])
    with collected_reports():  # on the texts, which the run itself has printed
        splits = config.data.corpus.load()
    training = splits["train"]["text"][:COUNTED]
    beside, rows = _reference(splits)
    pipeline = open_pipeline(folder, dtype="bf16" if has_bf16() else "fp32")
    # Not the temperature that an interrupted call has chosen: the choice depends on where it begins.
    pipeline.sampling = replace(pipeline.sampling, temperature=config.sampling.temperature)
    evaluations = pipeline.sampling.steps * pipeline.sampling.passes + pipeline.sampling.sweeps
    rows = rows.select(range(min(TEXTS, len(rows), max(SHOWN, EVALUATIONS // evaluations))))
    reference = rows["text"][:]
    sample = partial(_sampled, pipeline, max(SHOWN, len(rows)), _conditions(pipeline, rows))
    texts = sample(pipeline.sampling.temperature)
    if fit_temperature:
        texts = _fit_temperature(pipeline, model_folder(folder), sample, texts, reference, beside)
    print("\n".join(texts[:SHOWN]), flush=True)
    texts = texts[: len(reference)]
    grams, known = NGrams(training, least=1), KnownTexts(training)
    lines = [_line(name, _figures(each, grams, known)) for name, each in (("samples", texts), (beside, reference))]
    say(f"""
{len(texts)} consecutive, unfiltered samples of one seed, beside as many {beside} texts
{_line("", {name: name for name in FIGURES})}
{lines[0]}
{lines[1]}
perplexity: under a word-trigram model of the training texts; compare it at equal entropy (of words, nats)
self-BLEU: 0 to 100, lower is more diverse; copied: training texts, word for word

Try next
{_next_commands(folder, pipeline)}""")


def _next_commands(folder: str | Path, pipeline: BasePipeline[Any]) -> str:
    """Return commands that this model has, with what they do."""
    found = {f"generate {folder} --count 5 --watch": "see noise become words"}
    if isinstance(pipeline, Pipeline) and not is_packed(pipeline.model):
        found[f"generate {folder} --count 5 --control 'Length(8, 12)'"] = "exact lengths, words, patterns"
        if not context_of(pipeline.model):
            found[f"distill {folder} --out {folder}-few"] = "the same in a few evaluations of the network per text"
    if not is_packed(pipeline.model):
        judge = "JUDGE: train --model.name causal --objective.name causal"
        found[f"evaluate {folder} --judge JUDGE"] = judge
    return "\n".join(f"  diffusionlm {command}      {what}" for command, what in found.items())


def _reference(splits: Mapping[str, datasets.Dataset]) -> tuple[str, datasets.Dataset]:
    """Return the rows whose texts samples are compared with, and what they are."""
    held_out = len(splits.get("validation", ()))
    if held_out >= SHOWN:
        return "held-out", splits["validation"]
    say(f"{held_out} texts are held out, too few to compare samples with; training texts take their place")
    return "training", splits["train"]


def _conditions(pipeline: BasePipeline[Any], rows: datasets.Dataset) -> list[Requested] | None:
    """Return the conditions of the ``rows``; None for a model without one, or where a row has none that the model knows."""
    try:
        return conditions_of(pipeline.model, pipeline.tokenizer, rows, "samples are without a condition")
    except UserError as error:
        say(str(error))
        return None


def _sampled(pipeline: BasePipeline[Any], count: int, given: list[Requested] | None, temperature: float) -> list[str]:
    """Return ``count`` samples, of a model with a condition one for each that is ``given``."""
    say(f"Sampling {count if given is None else len(given)} texts, temperature {temperature} ...")
    sampling = replace(pipeline.sampling, candidates=1, temperature=temperature)
    sampling = sampling if given is not None else replace(sampling, cfg=1.0)
    rows = pipeline.stream(count if given is None else 1, sampling, condition=given)
    return [text for row in rows for text in row.texts or [row.text]][: count if given is None else None]


def _fit_temperature(
    pipeline: BasePipeline[Any], folder: Path, sample: Callable[[float], list[str]], texts: list[str],
    reference: Sequence[str], beside: str,
) -> list[str]:  # fmt: skip
    """Save the temperature at which samples have the entropy of as many ``reference`` texts; return its samples.

    ``texts`` are those at the present temperature.
    """
    first, entropy = pipeline.sampling.temperature, unigram_entropy(reference)
    found = {first: (unigram_entropy(texts[: len(reference)]), texts)}
    upwards = found[first][0] < entropy
    for tried in [t for t in TEMPERATURES if t > first] if upwards else [t for t in TEMPERATURES[::-1] if t < first]:
        texts = sample(tried)
        found[tried] = unigram_entropy(texts[: len(reference)]), texts
        if (found[tried][0] < entropy) != upwards:
            break
    nearest = min(found, key=lambda t: abs(found[t][0] - entropy))
    between = interpolated([(found[t][0], t) for t in list(found)[-2:]], entropy)
    chosen = round(nearest if between is None else between, 2)
    pipeline.sampling = replace(pipeline.sampling, temperature=chosen)
    save_sampling(pipeline.sampling, folder)
    say(f"sampling.temperature: {chosen} (nearest to the entropy of {beside} texts, {entropy:.2f} nats; at most 1)")
    return found[chosen][1] if chosen in found else sample(chosen)


def _figures(texts: Sequence[str], grams: NGrams, known: KnownTexts) -> dict[str, str]:
    values = (
        f"{perplexity(grams.score(texts)):.1f}", f"{unigram_entropy(texts):.3f}", f"{self_bleu(texts):.1f}",
        f"{len({*texts}) / len(texts):.1%}", f"{known.copied(texts):.1%}",
    )  # fmt: skip
    return dict(zip(FIGURES, values, strict=True))


def _line(name: str, figures: dict[str, str]) -> str:
    return f"  {name:<10}" + "".join(f"{value:>12}" for value in figures.values())
