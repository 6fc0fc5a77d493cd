"""The arguments of ``transformers.Trainer``, from the settings of a run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import TrainingArguments

from diffusionlm.processes import count
from diffusionlm.training.optimizers import has_bf16

if TYPE_CHECKING:
    from diffusionlm.training.trainer import TrainingConfig


def arguments_of(config: TrainingConfig, folder: Path, evaluates: bool, streams: bool = False) -> TrainingArguments:
    """Return the arguments of a run in ``folder``, which ``evaluates`` where it has validation texts.

    The batches of a run that ``streams`` its texts begin where a checkpoint ends: the Trainer skips none.
    """
    cpu = not torch.cuda.is_available()
    return TrainingArguments(
        output_dir=str(folder / "checkpoints"),
        max_steps=config.steps,
        gradient_accumulation_steps=config.accumulation,
        max_grad_norm=config.clip,
        lr_scheduler_type={"cosine": "cosine", "linear": "linear", "constant": "constant_with_warmup"}[config.decay],
        warmup_steps=min(config.warmup, config.steps // 2),
        bf16=config.precision == "bf16" or (config.precision == "auto" and has_bf16()),
        use_cpu=cpu,
        ddp_backend="gloo" if cpu and count() > 1 else None,
        ddp_find_unused_parameters=False,
        logging_steps=config.log_every,
        eval_strategy="steps" if evaluates else "no",
        eval_steps=config.evaluate_every,
        logging_nan_inf_filter=False,  # a loss that is not finite ends the run
        save_strategy="steps",
        save_steps=config.save_every,
        metric_for_best_model="eval_loss" if evaluates else None,
        greater_is_better=False,
        seed=config.seed,
        ignore_data_skip=streams,
        remove_unused_columns=False,
        disable_tqdm=True,
        report_to="none",
    )
