"""What a training run shows and writes as it goes, and how Ctrl-C stops it."""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, TextIO

from tqdm import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from diffusionlm.training.checkpoints import disk_errors


class Progress(TrainerCallback):
    """The progress bar (on stderr) and ``log.jsonl``."""

    def __init__(self, folder: Path, steps: int, show_texts: bool, quiet: bool) -> None:
        """Nothing is shown or written before training begins."""
        self.path, self.steps, self.show_texts, self.quiet = folder / "log.jsonl", steps, show_texts, quiet
        self.seconds = self.processor_seconds = 0.0  # of earlier sittings, up to the checkpoint that this one goes on from
        self.bar: tqdm[Any] | None = None
        self.file: TextIO | None = None

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Open the bar and the log."""
        if state.is_world_process_zero:
            self.bar = tqdm(total=self.steps, initial=state.global_step, desc="training", unit="step", disable=self.quiet)
            self.file = self.path.open("a")
            self.clock = time.perf_counter()
            self.begun = self.clock - self.seconds
            self.processor_begun = time.process_time() - self.processor_seconds
            self.tokens: int | None = None

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Move the bar."""
        if self.bar is not None:
            self.bar.update()

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **_: Any) -> None:
        """Write a row, and show the loss and the speed."""
        if self.file is None or self.bar is None or "train_runtime" in logs:
            return
        if "tokens" in logs:
            now = time.perf_counter()
            if self.tokens is not None:
                logs["tokens_per_second"] = round((logs["tokens"] - self.tokens) / (now - self.clock))
                self.bar.set_postfix_str(f"loss {logs['loss']:.3f}, {logs['tokens_per_second']:,} tokens/s")
            self.clock, self.tokens = now, logs["tokens"]
            logs |= self.spent()
        with disk_errors(self.path):
            self.file.write(json.dumps({"step": state.global_step, **logs}) + "\n")
            self.file.flush()

    def spent(self) -> dict[str, float]:
        """Return the run's seconds so far, of all its sittings: the clock's, and the processor's of all threads together."""
        clock, processor = time.perf_counter() - self.begun, time.process_time() - self.processor_begun
        return {"seconds": round(clock, 3), "processor_seconds": round(processor, 3)}

    def close(self) -> None:
        """Close both."""
        if self.bar is not None and self.file is not None:
            self.bar.close()
            self.file.close()


@contextmanager
def interruptible(control: TrainerControl) -> Iterator[None]:
    """Turn the first Ctrl-C into a stop after the current step, with a checkpoint; the second ends at once."""

    def stop(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        control.interrupted = True  # type: ignore[attr-defined]
        print("\nstopping after this step; press Ctrl-C again to stop at once", file=sys.stderr)

    try:
        before = signal.signal(signal.SIGINT, stop)
    except ValueError:  # not the main thread: a caller's thread has no signals to give
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
