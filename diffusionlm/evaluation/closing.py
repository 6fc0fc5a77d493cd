"""The end of a training run: a temperature that fits the corpus, samples, figures beside held-out text, what to try next.

The temperature is that at which samples have the unigram entropy of as many held-out texts, or the highest that is tried: below
it they are too alike, above it less fluent than they could be at the variety of the corpus.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from diffusionlm.data.copies import KnownTexts
from diffusionlm.data.reading import collected_reports
from diffusionlm.evaluation.judge import perplexity
from diffusionlm.evaluation.ngrams import NGrams
from diffusionlm.evaluation.text_metrics import interpolated, self_bleu, unigram_entropy
from diffusionlm.models.io import model_folder
from diffusionlm.pipelines.auto import open_pipeline
from diffusionlm.pipelines.base import BasePipeline
from diffusionlm.progress import say
from diffusionlm.training.optimizers import has_bf16
from diffusionlm.training.run import read_config, save_sampling

TEXTS, EVALUATIONS = 100, 2400  # at most so many samples, and evaluations of the network for all of them
COUNTED = 200_000  # training texts of which the n-grams are counted
SHOWN = 5
TEMPERATURES = (
    0.5,
    0.75,
    1.0,
    1.15,
    1.3,
)  # that are tried; above, the errors of a short training show
FIGURES = ("perplexity", "entropy", "self-BLEU", "distinct", "copied")


def close(folder: str | Path, fit_temperature: bool) -> None:
    """Sample from the model of a finished run; print samples on stdout and figures on stderr.

    ``fit_temperature`` first chooses the sampling temperature, and saves it in the model's folder.
    """
    config = read_config([Path(folder) / "config.yaml"])
    with collected_reports():  # on the texts, which the run itself has printed
        splits = config.data.corpus.load()
    training = splits["train"]["text"][:COUNTED]
    held_out = splits.get("validation", splits["train"])["text"][:TEXTS]
    pipeline = open_pipeline(folder, dtype="bf16" if has_bf16() else "fp32")
    evaluations = pipeline.sampling.steps * pipeline.sampling.passes + pipeline.sampling.sweeps
    count = max(SHOWN, min(TEXTS, len(held_out), EVALUATIONS // evaluations))
    held_out = held_out[:count]
    texts = _sampled(pipeline, pipeline.sampling.temperature, count)
    if fit_temperature:
        texts = _fit_temperature(pipeline, model_folder(folder), texts, unigram_entropy(held_out))
    print("\n".join(texts[:SHOWN]), flush=True)
    reference, known = NGrams(training, least=1), KnownTexts(training)
    lines = [_line(name, _figures(each, reference, known)) for name, each in (("samples", texts), ("held-out", held_out))]
    say(f"""
{count} consecutive, unfiltered samples of one seed, beside as many held-out texts
{_line("", {name: name for name in FIGURES})}
{lines[0]}
{lines[1]}
perplexity: under a word-trigram model of the training texts; compare it at equal entropy (of words, nats)
self-BLEU: 0 to 100, lower is more diverse; copied: training texts, word for word

Try next
  diffusionlm generate {folder} --count 5 --watch      see noise become words
  diffusionlm generate {folder} --count 5 --control 'Length(8, 12)'      exact lengths, words, patterns
  diffusionlm distill {folder} --out {folder}-few      the same in a few evaluations of the network per text
  diffusionlm evaluate {folder} --judge JUDGE      JUDGE: train --model.name causal --objective.name causal""")


def _sampled(pipeline: BasePipeline[Any], temperature: float, count: int) -> list[str]:
    say(f"Sampling {count} texts, temperature {temperature} ...")
    sampling = replace(pipeline.sampling, candidates=1, temperature=temperature)
    return [row.text for row in pipeline.stream(count, sampling)]


def _fit_temperature(pipeline: BasePipeline[Any], folder: Path, texts: list[str], entropy: float) -> list[str]:
    """Save the temperature at which samples have an ``entropy``; return its samples. ``texts`` are those at the present one."""
    count, first = len(texts), pipeline.sampling.temperature
    found = {first: (unigram_entropy(texts), texts)}
    upwards = found[first][0] < entropy
    for tried in [t for t in TEMPERATURES if t > first] if upwards else [t for t in TEMPERATURES[::-1] if t < first]:
        texts = _sampled(pipeline, tried, count)
        found[tried] = unigram_entropy(texts), texts
        if (found[tried][0] < entropy) != upwards:
            break
    nearest = min(found, key=lambda t: abs(found[t][0] - entropy))
    between = interpolated([(found[t][0], t) for t in list(found)[-2:]], entropy)
    chosen = round(nearest if between is None else between, 2)
    pipeline.sampling = replace(pipeline.sampling, temperature=chosen)
    save_sampling(pipeline.sampling, folder)
    say(f"sampling.temperature: {chosen} (nearest to the entropy of held-out texts, {entropy:.2f} nats)")
    return found[chosen][1] if chosen in found else _sampled(pipeline, chosen, count)


def _figures(texts: list[str], reference: NGrams, known: KnownTexts) -> dict[str, str]:
    values = (
        f"{perplexity(reference.score(texts)):.1f}", f"{unigram_entropy(texts):.3f}", f"{self_bleu(texts):.1f}",
        f"{len({*texts}) / len(texts):.1%}", f"{known.copied(texts):.1%}",
    )  # fmt: skip
    return dict(zip(FIGURES, values, strict=True))


def _line(name: str, figures: dict[str, str]) -> str:
    return f"  {name:<10}" + "".join(f"{value:>12}" for value in figures.values())
