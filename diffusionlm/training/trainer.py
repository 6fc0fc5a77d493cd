"""The trainer, for every objective: a ``transformers.Trainer`` with an EMA, token-budget batches and exact resumption.

A run folder holds ``log.jsonl`` (one row per logged step) and TensorBoard events, ``samples/`` (texts at intervals),
``figures/``, ``checkpoints/`` (complete only with their marker, which is written last) and ``model/`` (the EMA's weights).
The trainer is independent of the kind of model: the objective computes the terms of the loss, the validation figures and
the report; two callables sample texts and export the model.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.torch import load_model, save_model
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader
from torch.utils.tensorboard import SummaryWriter
from transformers import PreTrainedModel, Trainer, TrainerCallback
from transformers.integrations.integration_utils import TensorBoardCallback
from transformers.trainer_callback import PrinterCallback, ProgressCallback, TrainerState

from diffusionlm import plots
from diffusionlm.config import Settings, UserError
from diffusionlm.core.objective import Objective
from diffusionlm.data.batches import TokenBudgetBatches
from diffusionlm.data.rows import TokenRows, lengths_of
from diffusionlm.data.streamed_batches import POSITION, StreamedBatches
from diffusionlm.files import disk_errors, open_permissions, read_json, write_text
from diffusionlm.models.spec import Rows
from diffusionlm.processes import check_whole
from diffusionlm.training import checkpoints
from diffusionlm.training.arguments import arguments_of
from diffusionlm.training.best import BestWeights
from diffusionlm.training.callbacks import Overfitting, Patience, Progress, Samples, interruptible
from diffusionlm.training.optimizers import MuonAdamW, OptimizerConfig
from diffusionlm.training.tracking import Tracking, tracked
from diffusionlm.training.validation import evaluate_terms


@dataclass(frozen=True)
class TrainingConfig(Settings):
    """How a model is trained.

    Args:
        steps: updates of the weights, fixed before the run starts.
        batch_tokens: tokens per batch (padding included), on each process and for each accumulated gradient.
        accumulation: batches per update, whose gradients are averaged.
        optimizer: how the gradient changes the weights, with its learning rate.
        warmup: steps of linear learning-rate warm-up.
        decay: shape of the learning-rate decay after the warm-up.
        clip: maximum norm of the gradient; 0 disables clipping.
        ema: decay of the exponential moving average of the weights, which is evaluated and saved.
        ema_warmup: whether to bound the decay by (1 + n) / (10 + n) at step n, so that the initial weights fade quickly.
        precision: ``auto`` is bf16 where the hardware supports it.
        compile: whether to run ``torch.compile`` on the network (pays off on a GPU).
        threads: CPU threads; runs are bit-exact for the same number. Empty is PyTorch's default.
        log_every: steps between rows of the log; likewise ``evaluate_every``, ``sample_every`` and ``save_every``.
        evaluation_texts: maximum number of validation texts.
        keep: number of checkpoints to keep.
        patience: evaluations without a lower loss after which training stops early; 0 disables it.
        select: which weights the run's model has: ``best`` are those with the lowest validation loss, if the objective's
            validation loss ranks models and there are validation texts, else the ``last``.
        report_to: where the rows of the log go beside ``log.jsonl``: ``tensorboard``, ``wandb``, ``trackio``.
        seed: random seed of weights, batches and noise.
    """

    steps: int = 3000
    batch_tokens: int = 768
    accumulation: int = 1
    optimizer: OptimizerConfig = field(default_factory=MuonAdamW)
    warmup: int = 200
    decay: Literal["cosine", "linear", "constant"] = "cosine"
    clip: float = 1.0
    ema: float = 0.999
    ema_warmup: bool = True
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    compile: bool = False
    threads: int | None = None
    log_every: int = 50
    evaluate_every: int = 500
    evaluation_texts: int = 500
    sample_every: int = 500
    save_every: int = 500
    keep: int = 2
    patience: int = 0
    select: Literal["best", "last"] = "best"
    report_to: tuple[Tracking, ...] = ("tensorboard",)
    seed: int = 0

    def __post_init__(self) -> None:
        every = ("log_every", "evaluate_every", "evaluation_texts", "sample_every", "save_every", "keep")
        self.expect("at least 1", "steps", "accumulation", *every)
        self.expect("1 to 10000000", "batch_tokens")
        self.expect("1 to 1024", "threads")
        self.expect("0 or more", "warmup", "clip", "patience", "seed")
        if not 0 <= self.ema < 1:
            raise UserError(f"ema: expected a decay of at least 0 and below 1, got {self.ema}")

    def check(self, train: Rows, validation: Rows, width: int | None) -> None:
        """Raise UserError where a text, padded to ``width`` tokens if it is given, does not fit into a batch.

        So does ``patience`` without a validation set.
        """
        if self.patience and not validation:
            raise UserError(f"training.patience: expected 0, since there is no validation set, got {self.patience}")
        TokenBudgetBatches(padded_lengths(train, width), self.batch_tokens, self.steps, self.seed)


class DiffusionTrainer(Trainer):
    """Trains an objective on encoded texts, rows of token ids.

    ``sample_texts`` receives the EMA's model and returns a few texts, which ``judge`` may answer with a warning ("" for none);
    ``export`` receives the model and saves it. The batches of a ``stream`` take the place of those of ``train``.
    """

    def __init__(
        self, objective: Objective, config: TrainingConfig, folder: Path, train: Rows, validation: Rows, *,
        sample_texts: Callable[[PreTrainedModel], list[str]] | None = None, judge: Callable[[list[str]], str] | None = None,
        export: Callable[[PreTrainedModel], None] | None = None, show_texts: bool = False, quiet: bool = False,
        stream: StreamedBatches | None = None,
    ) -> None:  # fmt: skip
        check_whole()
        self.stream = stream
        self.config, self.folder, self.export = config, folder, export
        self.sample_texts, self.judge = sample_texts, judge
        self.objective: Objective = objective
        self.rows: Any = train if isinstance(train, TokenRows) else list(train)
        self.validation = list(validation[: config.evaluation_texts])
        self.writer: SummaryWriter | None = None
        self.term_sums: dict[str, Tensor] = defaultdict(lambda: torch.zeros(()))
        self.tokens_seen, self.micro_steps = 0, 0
        self.progress = Progress(folder, config.steps, show_texts, quiet)
        callbacks: list[TrainerCallback] = [self.progress, Samples(self), Overfitting(lambda: self.best.step)]
        callbacks += [Patience(config.patience)] if config.patience else []
        arguments = arguments_of(config, folder, bool(self.validation), stream is not None)
        super().__init__(objective, arguments, train_dataset=self.rows, eval_dataset=self.validation, callbacks=callbacks)
        self.remove_callback(PrinterCallback)
        self.remove_callback(ProgressCallback)
        self.model_accepts_loss_kwargs = False
        self.ema = AveragedModel(objective, multi_avg_fn=_average_with(config.ema, config.ema_warmup))
        self.ema.update_parameters(objective)
        self.best = BestWeights(self.ema)
        if config.compile:
            # The network alone, for all shapes at once: the objective around it branches on computed numbers, and would be
            # recompiled for each of them.
            getattr(objective.model, "network", objective.model).compile(dynamic=True)

    def run(self) -> bool:
        """Train from the newest complete checkpoint; return whether the run is finished (Ctrl-C stops after a step).

        Raises:
            UserError: a checkpoint or the log cannot be read or written; the loss is not finite.
        """
        checkpoint = checkpoints.newest_checkpoint(self.folder)
        start = 0 if checkpoint is None else checkpoints.checkpoint_step(checkpoint) or 0
        if self.is_world_process_zero():
            checkpoints.clear_places(self.folder, range(start + 1, self.config.steps + 1))
            checkpoints.trim_log(self.folder / "log.jsonl", start)
            if "tensorboard" in self.config.report_to:
                # Built here and not by the Trainer: events of steps after the checkpoint must be dropped.
                self.writer = SummaryWriter(str(self.folder / "tensorboard"), purge_step=start + 1 if start else None)
                self.add_callback(TensorBoardCallback(self.writer))
        if checkpoint is None:
            torch.manual_seed(self.config.seed + 1_000_003 * (1 + self.args.process_index))
        names = self.config.report_to if self.is_world_process_zero() else ()
        try:
            with tracked(names, self.folder) as trackers, interruptible(self.control):
                for tracker in trackers:
                    self.add_callback(tracker)
                self.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        except OverflowError as error:  # finite weights, far out of their range
            raise self._diverged(f"after step {self.state.global_step} the weights are out of range ({error})") from None
        finally:
            self.progress.close()
        return self.state.global_step >= self.config.steps or not self.was_interrupted

    @property
    def was_interrupted(self) -> bool:
        """True after Ctrl-C."""
        return bool(getattr(self.control, "interrupted", False))

    @property
    def keeps_best(self) -> bool:
        """Whether the model is that of the evaluation with the lowest validation loss."""
        return self.config.select == "best" and self.objective.ranks and bool(self.validation)

    def stops(self) -> bool:
        """Return whether Ctrl-C stops the run after this step: in all processes, where it has reached one of them."""
        if self.args.world_size > 1:
            reached = torch.tensor(float(self.was_interrupted), device=self.args.device)
            self.control.interrupted = bool(self.accelerator.reduce(reached) > 0)  # type: ignore[attr-defined]
        return self.was_interrupted

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Return the batches of the run as one pass, so that batch i depends only on the seed and i."""
        config, rank, world = self.config, self.args.process_index, self.args.world_size
        width, count = self.objective.width, config.steps * config.accumulation
        # A separate generator: making an iterator must not draw from the one that draws the noise.
        common: dict[str, Any] = {"collate_fn": self.objective.collate, "generator": torch.Generator()}
        common["pin_memory"] = torch.cuda.is_available()
        if self.stream is not None:
            self.stream.set(config.batch_tokens, count, config.seed, width, rank, world)
            return DataLoader(self.stream, batch_size=None, **common)
        lengths = padded_lengths(self.rows, width)
        batches = TokenBudgetBatches(lengths, config.batch_tokens, count, config.seed, rank, world)
        return DataLoader(self.rows, batch_sampler=batches, **common)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            assert self.model is not None
            self.optimizer = self.config.optimizer.build(self.model)
        return self.optimizer

    def compute_loss(self, model: nn.Module, inputs: dict[str, Tensor], *args: Any, **kwargs: Any) -> Tensor:
        terms: dict[str, Tensor] = model(inputs)
        for name, term in terms.items():
            self.term_sums[name] = self.term_sums[name].to(term.device) + term.detach()
        self.micro_steps += 1
        self.tokens_seen += int(inputs["mask"].sum()) * self.args.world_size
        return torch.stack(list(terms.values())).sum()

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """Return the norm of the gradient before clipping. Raises UserError where it or the loss is not finite."""
        norm = super()._get_grad_norm(model, grad_norm)  # type: ignore[no-untyped-call]
        if not torch.isfinite(torch.as_tensor(norm) + sum(self.term_sums.values())):
            infinite = [name for name, total in self.term_sums.items() if not torch.isfinite(total)]
            what = f"the loss ({', '.join(infinite)})" if infinite else "the norm of the gradient"
            raise self._diverged(f"at step {self.state.global_step + 1} {what} is not finite")
        return norm

    def _diverged(self, what: str) -> UserError:
        newest = checkpoints.newest_checkpoint(self.folder)
        last = "there is no checkpoint before it" if newest is None else f"the last good checkpoint is {newest}"
        return UserError(f"training has diverged: {what}; {last}; {checkpoints.REMEDY}")

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log a row, with the terms' means since the last row and the tokens seen."""
        if "loss" in logs:
            logs |= {name: float(total) / self.micro_steps for name, total in self.term_sums.items()}
            logs["tokens"] = self.tokens_seen
            self.term_sums.clear()
            self.micro_steps = 0
        if self.stream is not None:
            logs |= self.stream.figures() if "loss" in logs else {}
            self.state.epoch = self.state.global_step / self.config.steps  # which the Trainer counts from the resumption
        super().log(logs, start_time)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Return the EMA's mean terms on the validation set, with the same noise at every evaluation."""
        device, bf16 = self.args.device, self.args.bf16
        terms = evaluate_terms(self.averaged, self.validation, self.config.batch_tokens, device, bf16)
        metrics = {f"eval_{name}": value for name, value in terms.items()}
        metrics["eval_loss"] = sum(metrics.values())
        if not math.isfinite(metrics["eval_loss"]):
            raise self._diverged(f"after step {self.state.global_step} the validation loss is not finite")
        self.log(metrics)
        if self.keeps_best and (self.state.best_metric is None or metrics["eval_loss"] < self.state.best_metric):
            self.best.keep(self.state.global_step)
        self._draw()
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        self.control.should_save |= self.control.should_training_stop  # an early stop keeps its last model too
        return metrics

    def _draw(self) -> None:
        """Save the objective's figures in ``figures/``, and their history in TensorBoard."""
        if not self.is_world_process_zero() or not plots.available():
            return
        for name, figure in self.averaged.figures(self.validation).items():
            path = self.folder / "figures" / f"{name}.png"
            plots.save(figure, path)  # drawn once: TensorBoard's add_figure would draw it again
            if self.writer is not None:
                self.writer.add_image(name, plots.pixels(path), self.state.global_step, dataformats="HWC")

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Save a checkpoint, its marker last; then delete the oldest ones and export the model."""
        path = self.folder / "checkpoints" / f"checkpoint-{self.state.global_step}"
        checkpoints.check_finite(self.objective, path)
        checkpoints.check_finite(self.ema, path)
        with disk_errors(path):
            try:
                super()._save_checkpoint(model, trial)
                if self.is_world_process_zero():
                    save_model(self.ema, str(path / checkpoints.EMA))
                    self.best.save(path)
                    if teachers := checkpoints.copied_teachers(self.objective):
                        save_model(teachers, str(path / checkpoints.TEACHERS))
                    if self.stream is not None:
                        write_text(path / checkpoints.STREAM, json.dumps(self.stream.position))
                    open_permissions(path)
                self.accelerator.wait_for_everyone()
                if self.is_world_process_zero():
                    done = {"step": self.state.global_step, "tokens": self.tokens_seen, **self.progress.spent()}
                    write_text(path / checkpoints.MARKER, json.dumps(done))
            except (OSError, RuntimeError, SafetensorError, UserError):
                checkpoints.remove_checkpoint(path)
                raise
        if self.is_world_process_zero():
            for old in checkpoints.complete_checkpoints(self.folder)[: -self.config.keep]:
                checkpoints.remove_checkpoint(old)
            if self.export is not None:
                with self.best.used():
                    self.export(self.averaged_model())

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        """Save the weights, without the pickled arguments that the base class adds."""
        assert output_dir is not None and self.model is not None
        Path(output_dir).mkdir(parents=True, exist_ok=True)
        save_model(self.model, str(Path(output_dir) / checkpoints.WEIGHTS))  # modules may share weights

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Load the weights, the EMA and copied teachers.

        Raises:
            UserError: a file is missing or damaged; the checkpoint is of another number of processes.
        """
        path = Path(resume_from_checkpoint)
        checkpoints.check_processes(path, self.args.world_size)
        parts: dict[str, nn.Module] = {checkpoints.WEIGHTS: self.objective, checkpoints.EMA: self.ema}
        if teachers := checkpoints.copied_teachers(self.objective):
            parts[checkpoints.TEACHERS] = teachers
        for name, part in parts.items():
            with checkpoints.damage(path / name):
                load_model(part, path / name)
        with checkpoints.damage(path / checkpoints.MARKER):
            done = read_json(path / checkpoints.MARKER)
            self.tokens_seen = int(done["tokens"])
            self.progress.seconds = float(done.get("seconds", 0))
            self.progress.processor_seconds = float(done.get("processor_seconds", 0))
        with checkpoints.damage(path / checkpoints.STATE):
            state = TrainerState.load_from_json(str(path / checkpoints.STATE))
            if state.global_step != done["step"]:
                raise ValueError("it is of another step")
        self.best.load(path, state.best_global_step or 0)
        if self.stream is not None:
            with checkpoints.damage(path / checkpoints.STREAM):
                position = {name: value for name, value in read_json(path / checkpoints.STREAM).items() if name in POSITION}
                if len(position) < len(POSITION):
                    raise ValueError("it is incomplete")
            self.stream.load(position, state.global_step * self.config.accumulation)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Load both, from tensors and plain values only. Raises UserError where a file is missing or damaged."""
        if checkpoint is None:
            return
        parts: dict[str, Any] = {"optimizer.pt": self.optimizer, "scheduler.pt": self.lr_scheduler}
        for name, part in parts.items():
            file = Path(checkpoint) / name
            with checkpoints.damage(file):
                part.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Restore the random states. Raises UserError where the file of this process is missing or damaged."""
        if checkpoint is None:
            return
        file = Path(checkpoint) / checkpoints.random_state(self.args.process_index, self.args.world_size)
        with checkpoints.damage(file):
            if not file.is_file():  # which the base class would ignore
                raise FileNotFoundError("it is missing")
            super()._load_rng_state(checkpoint)

    @property
    def averaged(self) -> Objective:
        """The EMA's objective."""
        return cast(Objective, self.ema.module)

    def averaged_model(self) -> PreTrainedModel:
        """Return the EMA's model; its config holds what the objective learned in addition, such as the schedule."""
        objective = self.averaged
        objective.finish()
        objective.model.train(False)
        return objective.model


def padded_lengths(rows: Rows, width: int | None) -> npt.NDArray[Any]:
    """Return the number of tokens of each row, which is ``width`` for all if it is given."""
    return lengths_of(rows) if width is None else np.full(len(rows), width)


def _average_with(decay: float, warmup: bool) -> Callable[[Any, Any, Any], None]:
    """Return the function that updates the averaged weights by the current ones."""

    @torch.no_grad()
    def update(averaged: list[Tensor], current: list[Tensor], count: Tensor | int) -> None:
        ceiling = (1 + float(count)) / (10 + float(count)) if warmup else 1.0
        torch._foreach_lerp_(averaged, current, 1 - min(decay, ceiling))

    return update
