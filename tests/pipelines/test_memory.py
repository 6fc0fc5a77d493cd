"""Samples that are drawn a few at a time, because memory is short, are those of one batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from diffusionlm.data.batches import encode
from diffusionlm.evaluation.likelihood import bound
from diffusionlm.pipelines import memory
from diffusionlm.pipelines.conditioning import say_once
from diffusionlm.pipelines.diffusion import Pipeline

MODEL = Path(__file__).parent.parent / "golden" / "format-1"


@pytest.mark.parametrize("controls", [(), 'Words("pub")'])
def test_the_samples_are_those_of_one_batch(
    controls: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pipe = Pipeline.from_pretrained(MODEL)
    settings: dict[str, Any] = {"steps": 2, "passes": 1, "sweeps": 1}
    expected = [row.text for row in pipe(4, controls, **settings)]
    assert "batch_size" not in capsys.readouterr().err
    size = 24 * 4 * pipe.model.config.max_tokens * pipe.model.config.vocabulary
    monkeypatch.setattr(memory, "MOST", size)
    say_once.cache_clear()
    assert [row.text for row in pipe(4, controls, **settings)] == expected
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("batch_size: ")
    assert "drawn at once, not 128, to keep tensors of" in line


def test_a_sample_is_drawn_however_little_memory_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Pipeline.from_pretrained(MODEL).model
    monkeypatch.setattr(memory, "free_memory", lambda device: 0.0)
    assert memory.rows_at_once(64, model, guided=True) == 1


def test_the_memory_that_is_free_is_part_of_that_of_the_machine() -> None:
    assert 2**20 < memory.free_memory(torch.device("cpu")) < 2**50


@pytest.mark.parametrize("orders", [0, 2])
def test_likelihoods_are_those_of_one_batch(orders: int, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = Pipeline.from_pretrained(MODEL)
    ids = encode(["The Eagle is a pub .", "It is a cheap place in the city centre ."], pipe.tokenizer).ids
    expected = [one.nats for one in bound(pipe.model, ids, strata=6, orders=orders)]
    sizes: list[int] = []
    pipe.model.network.register_forward_hook(lambda module, inputs, output: sizes.append(len(inputs[0])))
    monkeypatch.setattr(memory, "MOST", 2 * 12 * 4 * 8 * pipe.model.config.vocabulary)  # two rows of 8 tokens
    assert [one.nats for one in bound(pipe.model, ids, strata=6, orders=orders)] == pytest.approx(expected, rel=1e-5)
    assert {*sizes} == {1, 2}
