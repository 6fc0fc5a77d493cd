"""Callbacks of a training run: progress bar and log, EMA and samples, early stopping; and how Ctrl-C stops a run."""

from __future__ import annotations

import json
import math
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, TextIO

import torch
from tqdm import tqdm
from transformers import EarlyStoppingCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from diffusionlm.files import disk_errors, write_text
from diffusionlm.processes import speaks
from diffusionlm.progress import intervals

if TYPE_CHECKING:
    from diffusionlm.training.trainer import DiffusionTrainer


class Progress(TrainerCallback):
    """The progress bar (on stderr) and ``log.jsonl``."""

    def __init__(self, folder: Path, steps: int, show_texts: bool, quiet: bool) -> None:
        self.path, self.steps, self.show_texts, self.quiet = folder / "log.jsonl", steps, show_texts, quiet
        self.seconds = self.processor_seconds = 0.0  # of previous sessions, up to the checkpoint of this resumption
        self.bar: tqdm[Any] | None = None
        self.file: TextIO | None = None

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.is_world_process_zero:
            with disk_errors(self.path):
                self.file = self.path.open("a", encoding="utf-8")
            self.bar = tqdm(
                total=self.steps, initial=state.global_step, desc="training", unit="step", disable=self.quiet, **intervals()
            )  # fmt: skip
            self.clock = time.perf_counter()
            self.begun = self.clock - self.seconds
            self.processor_begun = time.process_time() - self.processor_seconds
            self.tokens: int | None = None

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self.bar is not None:
            self.bar.update()

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **_: Any) -> None:
        """Append a row to the log, and show the loss and the speed."""
        if self.file is None or self.bar is None or "train_runtime" in logs:
            return
        if "tokens" in logs:
            now = time.perf_counter()
            if self.tokens is not None:
                logs["tokens_per_second"] = round((logs["tokens"] - self.tokens) / (now - self.clock))
                shown = f"loss {logs['loss']:.3f}, {logs['tokens_per_second']:,} tokens/s"
                self.bar.set_postfix_str(shown, refresh=sys.stderr.isatty())
            self.clock, self.tokens = now, logs["tokens"]
            logs |= self.spent()
        with disk_errors(self.path):
            self.file.write(json.dumps({"step": state.global_step, **logs}) + "\n")
            self.file.flush()

    def spent(self) -> dict[str, float]:
        """Return the run's seconds in all its sessions: elapsed, and CPU time of all threads together."""
        elapsed, processor = time.perf_counter() - self.begun, time.process_time() - self.processor_begun
        return {"seconds": round(elapsed, 3), "processor_seconds": round(processor, 3)}

    def close(self) -> None:
        """Close the bar and the log."""
        if self.bar is not None and self.file is not None:
            self.bar.close()
            self.file.close()


class Patience(EarlyStoppingCallback):
    """Stop training once the validation loss has not improved for some evaluations; a resumed run continues the count."""

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **named: Any) -> None:
        """Take the count from the checkpoint: transformers would restore it together with a control of its own."""
        super().on_train_begin(args, state, control, **named)  # type: ignore[no-untyped-call]
        callbacks: Any = state.stateful_callbacks  # by name, once the state has been made
        kept = callbacks.get(type(self).__name__)
        self.early_stopping_patience_counter = kept["attributes"]["early_stopping_patience_counter"] if kept else 0


class Overfitting(TrainerCallback):
    """Warn once the validation loss has risen above its lowest value, and at the end of training if it is still above it."""

    RISE = 0.02  # of the lowest loss: smaller rises come and go

    def __init__(self, best_step: Callable[[], int]) -> None:
        """``best_step`` returns the step whose weights the model will have, 0 where these are the last ones."""
        self.best_step, self.warned, self.loss = best_step, False, -math.inf

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, metrics: Any = None, **_: Any
    ) -> None:
        """Compare with the lowest loss of the evaluations before, which checkpoints keep."""
        self.loss = metrics["eval_loss"]
        if not self.warned and self._risen(state):
            self.warned = True
            rest = "if it rises on, the model overfits: train for fewer steps, on more texts, or with training.patience"
            self._warn(state, f"at step {state.global_step} the validation loss has risen to {self.loss:.3f}", rest)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self._risen(state):
            saved = "the model that was saved is the last one"
            if step := self.best_step():
                saved = f"the model that was saved is that of step {step}"
            self._warn(state, f"the validation loss ended at {self.loss:.3f}", saved)

    def _risen(self, state: TrainerState) -> bool:
        lowest = state.best_metric
        return lowest is not None and math.isfinite(lowest) and self.loss > lowest + self.RISE * abs(lowest)

    def _warn(self, state: TrainerState, what: str, rest: str) -> None:
        if state.is_world_process_zero:
            lowest = f"it was lowest, {state.best_metric:.3f}, at step {state.best_global_step}"
            tqdm.write(f"{what}; {lowest}; {rest}", file=sys.stderr)


class Samples(TrainerCallback):
    """Update the teachers and the EMA after each step, save and judge sample texts, stop with a checkpoint on Ctrl-C."""

    def __init__(self, trainer: DiffusionTrainer) -> None:
        self.trainer, self.warned = trainer, False

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        trainer, step = self.trainer, state.global_step
        assert trainer.model is not None
        trainer.objective.after_step()
        trainer.ema.update_parameters(trainer.model)
        last, interrupted = step >= state.max_steps, trainer.stops()
        if trainer.sample_texts and state.is_world_process_zero and (last or self._due(state, trainer.config.sample_every)):
            self._save(step)
        control.should_training_stop |= interrupted
        control.should_evaluate |= last and args.eval_strategy != "no"
        control.should_save = last or interrupted or self._due(state, trainer.config.save_every)

    def _due(self, state: TrainerState, every: int) -> bool:
        """Return whether it is time again, unless the last step, which is always due, is as near as a tenth of ``every``."""
        return state.global_step % every == 0 and (state.max_steps - state.global_step) * 10 > every

    def _save(self, step: int) -> None:
        """Write ``samples/step-N.txt``, warn of copies the first time and at the end, and show the texts above the bar."""
        trainer = self.trainer
        assert trainer.sample_texts is not None
        was_training = trainer.averaged.training
        with torch.random.fork_rng():
            texts = trainer.sample_texts(trainer.averaged_model())
        trainer.averaged.train(was_training)
        write_text(trainer.folder / "samples" / f"step-{step}.txt", "".join(f"{text}\n" for text in texts))
        warning = "" if trainer.judge is None else trainer.judge(texts)
        if warning and (not self.warned or step >= trainer.config.steps):
            self.warned = True
            tqdm.write(f"after {step} steps {warning}", file=sys.stderr)
        if trainer.progress.show_texts:
            tqdm.write(f"\nafter {step} steps:\n" + "".join(f"  {text}\n" for text in texts[:3]), file=sys.stderr)


@contextmanager
def interruptible(control: TrainerControl) -> Iterator[None]:
    """Make the first Ctrl-C stop training after the current step, with a checkpoint; the second one raises at once."""

    def stop(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        control.interrupted = True  # type: ignore[attr-defined]
        if speaks():
            print("\nstopping after this step; press Ctrl-C again to stop at once", file=sys.stderr)

    try:
        before = signal.signal(signal.SIGINT, stop)
    except ValueError:  # not the main thread, which alone receives signals
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
