"""Speed and memory on one GPU in at most eight minutes: training, sampling, and two minutes of each recipe; writes JSON.

    python benchmarks/gpu.py --out gpu.json [--folder E2E] [--minutes 2]

1. Training of leave-one-out networks of about 87 and 350 million parameters, bf16, ``torch.compile``: real tokens per second,
   model FLOP utilisation (6 operations per parameter and token, and 2 for the first estimate of self-conditioning, against
   the peak of bf16 given by --peak, else that of the card where it is known), recompilations over buckets of several lengths,
   peak memory.
2. Sampling with the smaller network: texts per second for 8, 32 and 128 evaluations, batches of 512.
3. ``--minutes`` of each recipe at the paper's size (the BERT encoder, 87 M): configs/e2e-small.yaml and configs/e2e-paper.yaml
   where E2E's ``--folder`` is given, else on the restaurants corpus: steps, tokens, validation figures, and the time that the
   paper's 200,000 steps would take, marked as an extrapolation.

Parts that would end after ``--limit`` seconds are skipped and named. Without a GPU it stops, unless ``--device cpu`` asks for a
trial of the script with tiny networks.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from measure import ROOT, exit_status

from diffusionlm.config import UserError
from diffusionlm.evaluation.provenance import machine
from diffusionlm.files import write_text
from diffusionlm.models.backbones import Bert
from diffusionlm.models.diffusion import ModelConfig
from diffusionlm.models.leave_one_out import LeaveOneOut
from diffusionlm.pipelines.auto import pipeline_of
from diffusionlm.training.run import RunConfig, prepare, read_config, train
from diffusionlm.training.trainer import DiffusionTrainer

PEAKS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "4090": 165e12}  # dense bf16, from the data sheets
SIZES = {  # layers, query layers, width, heads
    "87 M": (8, 3, 768, 12),
    "350 M": (18, 6, 1024, 16),
}
TRIAL = {"tiny": (1, 1, 32, 2)}
EVALUATIONS = (8, 32, 128)


def corpus_changes(folder: str | None) -> list[tuple[str, str]]:
    """Return the settings of the corpus: E2E, or that of the library."""
    if folder is None:
        return [("data.corpus", "restaurants"), ("data.tokenizer", '{"name": "words"}')]
    return [("data.corpus.folder", folder)]


def sized(config: RunConfig, size: tuple[int, ...], trial: bool) -> RunConfig:
    """Return ``config`` with a leave-one-out network of a size, compiled, without evaluations."""
    layers, query_layers, width, heads = size
    assert isinstance(config.model, ModelConfig)
    model = replace(config.model, backbone=LeaveOneOut(layers=layers, query_layers=query_layers, width=width, heads=heads))
    never = 10**9
    training = replace(
        config.training, compile=not trial, batch_tokens=512 if trial else 65536, evaluate_every=never, sample_every=never,
        save_every=never, log_every=2 if trial else 10, warmup=0, threads=None,
    )  # fmt: skip
    return replace(config, model=model, training=training)


def utilisation(parameters: int, tokens_per_second: float, peak: float | None) -> float | None:
    """Return the share of the card's operations that the multiplications of training take; None where the peak is unknown."""
    return None if peak is None else (6 + 2 * 0.9) * parameters * tokens_per_second / peak


def training_speed(config: RunConfig, steps: int, peak: float | None) -> tuple[dict[str, Any], Any]:
    """Train some steps; return their figures and the model."""
    model, tokenizer, rows, _ = prepare(config)
    torch._dynamo.utils.counters.clear()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with tempfile.TemporaryDirectory() as folder:
        training = replace(config.training, steps=steps)
        if not DiffusionTrainer(config.objective.build(model), training, Path(folder), rows, [], quiet=True).run():
            raise KeyboardInterrupt
        logged = [json.loads(line) for line in (Path(folder) / "log.jsonl").read_text().splitlines()]
    timed = [row for row in logged if "tokens" in row]
    first, last = timed[len(timed) // 2], timed[-1]
    speed = (last["tokens"] - first["tokens"]) / (last["seconds"] - first["seconds"])
    parameters = sum(p.numel() for name, p in model.named_parameters() if p.ndim == 2 and "embedding" not in name)
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "tokens_per_second": round(speed),
        "model_flop_utilisation": utilisation(parameters, speed, peak),
        "graphs": torch._dynamo.utils.counters["stats"].get("unique_graphs", 0),
        "lengths": len({len(row) for row in rows}),
        "peak_memory_bytes": torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None,
    }, pipeline_of(model)(model, tokenizer, config.sampling)


def sampling_speed(pipeline: Any, count: int) -> dict[str, float]:
    """Return the texts per second for several numbers of evaluations, after a warm-up."""
    found = {}
    pipeline.dtype = torch.bfloat16
    for evaluations in EVALUATIONS:
        sampling = replace(pipeline.spent_on(pipeline.sampling, evaluations), batch_size=512)
        list(pipeline.stream(min(count, 64), sampling))
        begun = time.perf_counter()
        list(pipeline.stream(count, sampling))
        found[str(evaluations)] = round(count / (time.perf_counter() - begun), 2)
    return found


def recipe(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Train a recipe at the paper's size for some minutes; return its figures, and an extrapolation to 200,000 steps."""
    config = read_config([ROOT / "configs" / f"{name}.yaml"], corpus_changes(options.folder))
    assert isinstance(config.model, ModelConfig)
    trial = options.device == "cpu"
    backbone = Bert(layers=1, width=32, heads=2, feedforward=64) if trial else Bert()
    config = replace(config, model=replace(config.model, backbone=backbone))
    timed, _ = training_speed(replace(config, training=replace(config.training, log_every=2, save_every=10**9)), 12, None)
    seconds = config.training.batch_tokens / max(1, timed["tokens_per_second"])
    steps = max(4, int(60 * options.minutes / seconds))
    every = max(1, steps // 4)
    training = replace(
        config.training, steps=steps, log_every=every, evaluate_every=every, save_every=steps, sample_every=steps
    )
    with tempfile.TemporaryDirectory() as folder:
        begun = time.perf_counter()
        if not train(replace(config, training=training), Path(folder) / "run", quiet=True):
            raise KeyboardInterrupt
        spent = time.perf_counter() - begun
        logged = [json.loads(line) for line in (Path(folder) / "run" / "log.jsonl").read_text().splitlines()]
        samples = sorted((Path(folder) / "run" / "samples").iterdir())[-1].read_text().splitlines()[:3]
    return {
        "steps": steps,
        "seconds": round(spent, 1),
        "tokens": max(row.get("tokens", 0) for row in logged),
        "validation_losses": [row["eval_loss"] for row in logged if "eval_loss" in row],
        "samples": samples,
        "extrapolated_hours_of_200000_steps": round(200_000 * spent / steps / 3600, 1),
    }


def measured(options: argparse.Namespace) -> dict[str, Any]:
    """Measure one part after the other; parts after the limit are skipped."""
    begun, found, skipped = time.perf_counter(), {"machine": machine()}, []
    trial = options.device == "cpu"
    base = read_config([ROOT / "configs" / "e2e-small.yaml"], corpus_changes(options.folder))
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    peak = options.peak or next((value for card, value in PEAKS.items() if card in name), None)
    pipeline = None

    def part(title: str, run: Any) -> Any:
        if time.perf_counter() - begun > options.limit:
            skipped.append(title)
            return None
        print(title, file=sys.stderr, flush=True)
        return run()

    for size, shape in (TRIAL if trial else SIZES).items():
        config = sized(base, shape, trial)
        if figures := part(f"training, {size}", lambda config=config: training_speed(config, 8 if trial else 60, peak)):
            found[f"training, {size}"] = figures[0]
            pipeline = pipeline or figures[1]
    if pipeline is not None:
        found["sampling, texts per second"] = part("sampling", lambda: sampling_speed(pipeline, 4 if trial else 2048))
    for name in ("e2e-small", "e2e-paper"):
        found[f"recipe, {name}"] = part(f"recipe, {name}", lambda name=name: recipe(name, options))
    return {**found, "skipped": skipped, "seconds": round(time.perf_counter() - begun, 1)}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, help="JSON file of the figures")
    parser.add_argument("--folder", help="folder with E2E's CSV files (default: the restaurants corpus)")
    parser.add_argument("--minutes", type=float, default=2, help="training time of each recipe (%(default)s)")
    parser.add_argument("--limit", type=float, default=300, help="seconds after which no other part is begun (%(default)s)")
    parser.add_argument("--peak", type=float, help="dense bf16 operations per second of the card, such as 989e12")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: a trial with tiny networks")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device: there is no CUDA device here; --device cpu tries the script with tiny networks")
    write_text(Path(options.out), json.dumps(measured(options), indent=2) + "\n")
    print(f"wrote {options.out}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(exit_status(main))
