"""Imported by ``--import`` in a test: the second of several processes is killed when it samples a target after the first few."""

import os
import signal

from diffusionlm.evaluation.control.jobs import Samples, TargetSamples

if os.environ.get("RANK") == "1":
    original = Samples.sample

    def sample(self: Samples, number: int) -> TargetSamples:
        if number > 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(self, number)

    Samples.sample = sample  # type: ignore[method-assign]
