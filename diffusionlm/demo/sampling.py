"""Sampling for the demo: the texts of a request, and before them what each sampling step shows."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from diffusionlm.config import UserError, plain_name
from diffusionlm.demo.models import DemoModel
from diffusionlm.demo.requests import DemoRequest, read_safely
from diffusionlm.pipelines.base import Watch
from diffusionlm.pipelines.cost import metered
from diffusionlm.pipelines.diffusion import Pipeline
from diffusionlm.pipelines.effect import given_settings
from diffusionlm.pipelines.request import from_level
from diffusionlm.pipelines.rows import Controlled, Generated

CERTAIN = 3
LEVELS = (0.35, 0.6, 0.85)  # predicted probabilities that separate the certainties 0 to 3
Piece = tuple[str, int]  # a part of a text, and its certainty


@dataclass(frozen=True)
class Frame:
    """The state after a sampling step: the time ``t``, which falls from 1 to 0, and the pieces of each text."""

    t: float
    texts: tuple[tuple[Piece, ...], ...]


@dataclass(frozen=True)
class Check:
    """A check of a text; ``passed`` is None where it cannot be checked."""

    name: str
    passed: bool | None


@dataclass(frozen=True)
class Sampled:
    """The texts of a request, the checks of each, and the mean number of network evaluations."""

    rows: tuple[Generated, ...]
    checks: tuple[tuple[Check, ...], ...]
    evaluations: float


class Stopped(Exception):
    """Nobody waits for the texts any more."""


def sampled(model: DemoModel, request: DemoRequest, watch: Watch | None = None) -> Sampled:
    """Return the texts of ``request``, those of ``generate`` or ``edit`` with the same settings.

    Raises:
        UserError: the model cannot do what is requested; a setting without effect.
    """
    with metered(model.pipeline) as meter:
        rows = tuple(_rows(model, request, watch))
    return Sampled(rows, tuple(checks_of(model, row) for row in rows), meter.evaluations / len(rows))


def _rows(model: DemoModel, request: DemoRequest, watch: Watch | None) -> Iterator[Generated]:
    pipeline, controls = model.pipeline, read_safely(request.controls)
    sampling = pipeline.changed(request.settings)
    given = given_settings({name: value for name, value in request.settings.items() if name != "evaluations"})
    condition = pipeline.read_condition(request.conditions)
    if request.text is None:
        pipeline.check_given(given, sampling, [controls])
        asked = {"controls": controls, "tries": request.tries, "condition": condition, "source": request.source or None}
        yield from pipeline.stream(request.count, sampling, watch, **asked)
        return
    if not isinstance(pipeline, Pipeline):
        raise UserError(f"text: a {pipeline.model.config.model_type} model edits no texts; diffusion models do")
    left = from_level(sampling, request.level) if 0 < request.level < 1 else sampling
    pipeline.check_given(given, left, [controls])
    yield from pipeline.edit(
        request.text, request.level, controls, request.count, sampling, watch, request.tries, condition
    )  # fmt: skip


def checks_of(model: DemoModel, row: Generated) -> tuple[Check, ...]:
    """Return the checks of a sample: each control, and whether the corpus's annotator accepts the text."""
    controls = row.controls if isinstance(row, Controlled) else ()
    found = [Check(each.control, each.passed) for each in controls]
    if model.annotator.reads:
        accepted = model.annotator.annotate(row.text) is not None
        found.append(Check(f"accepted by the annotator ({plain_name(type(model.annotator))})", accepted))
    return tuple(found)


def steps(model: DemoModel, request: DemoRequest) -> Iterator[Frame | Sampled]:
    """Yield a frame after every sampling step, and at the end the texts.

    Closing the iterator ends the sampling at its next step.

    Raises:
        UserError: as ``sampled``.
    """
    found: queue.SimpleQueue[Frame | Sampled | BaseException] = queue.SimpleQueue()
    closed = threading.Event()
    candidates = model.pipeline.changed(request.settings).candidates

    def watch(state: Any, texts: list[str]) -> None:
        if closed.is_set():
            raise Stopped
        found.put(frame(model, state, texts, candidates))

    def work() -> None:
        try:
            found.put(sampled(model, request, watch))
        except BaseException as error:
            found.put(error)

    worker = threading.Thread(target=work, daemon=True)
    worker.start()
    try:
        while not isinstance(each := found.get(), Sampled):
            if isinstance(each, BaseException):
                raise each
            yield each
        yield each
    finally:
        closed.set()
        worker.join()


def frame(model: DemoModel, state: Any, texts: Sequence[str], candidates: int = 1) -> Frame:
    """Return what a step shows; of several ``candidates`` the first of each text."""
    rows = range(0, len(texts), candidates)
    return Frame(state.t, tuple(tuple(pieces(model.pipeline.tokenizer, texts[row], state, row)) for row in rows))


def pieces(tokenizer: Any, text: str, state: Any, row: int) -> list[Piece]:
    """Return the tokens of a ``text`` with their certainties: 3 where the state at the end, or no model's, has none."""
    encoding = tokenizer(text, return_offsets_mapping=True, add_special_tokens=False)
    ids, later = encoding["input_ids"], [start for start, _ in encoding["offset_mapping"]][1:]
    spans = zip([0, *later], [*later, len(text)], _certainties(state, row, ids) or [CERTAIN], strict=True)
    return [(text[start:end], level) for start, end, level in spans]


def _certainties(state: Any, row: int, ids: Sequence[int]) -> list[int]:
    """Return the certainty of each token: by its predicted probability, or 0 where a masked model draws it again."""
    everywhere = [CERTAIN] * len(ids)
    if (hidden := getattr(state, "hidden", None)) is not None:
        again = hidden[row, 1 : 1 + len(ids)].tolist()
        return [0 if each else CERTAIN for each in again] if len(again) == len(ids) else everywhere
    logits = getattr(getattr(state, "denoised", None), "logits", None)
    if logits is None or len(ids) > logits.shape[1] - 1:
        return everywhere
    predicted = logits[row, 1 : 1 + len(ids)].softmax(-1)[range(len(ids)), ids].tolist()
    return [sum(p > level for level in LEVELS) for p in predicted]
