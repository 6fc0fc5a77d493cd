"""The cost of outputs: evaluations of the network as they are made, for every model family."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_conditions import trained

from diffusionlm.evaluation.reference_report import ReferenceReport, evaluate_references, reference_table
from diffusionlm.evaluation.references import Figure
from diffusionlm.models.seq2seq import Seq2SeqConfig
from diffusionlm.models.source import Source
from diffusionlm.pipelines.auto import open_pipeline
from diffusionlm.pipelines.base import BasePipeline
from diffusionlm.pipelines.cost import Cost, metered
from diffusionlm.pipelines.seq2seq import Seq2SeqPipeline


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for name in ("source", "masked"):
        trained(folder, name)
    rows = [{"source": "ant bee", "target": ["bee ant", "a bee"]}, {"source": "cat", "target": "cat"}]
    (folder / "r.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "o.txt").write_text("bee ant\ncat\n")
    return folder


def spent(pipe: BasePipeline[Any], count: int, **changes: Any) -> Cost:
    with metered(pipe) as meter:
        texts = [*pipe.stream(count, replace(pipe.sampling, **changes), source=["ant bee", "cat dog"])]
    return meter.cost(len(texts), changes.get("candidates", 1))


def test_evaluations_of_diffusion_are_steps_times_passes_and_sweeps_for_each_candidate(folder: Path) -> None:
    pipe = open_pipeline(folder / "source")
    plain: dict[str, Any] = {"steps": 3, "passes": 2}
    assert spent(pipe, 1, **plain).evaluations == 3 * 2
    assert spent(pipe, 2, **plain, sweeps=2).evaluations == 3 * 2 + 2 * 11  # a sweep hides every eleventh token in turn
    assert spent(pipe, 1, **plain, cfg=2.0).evaluations == 2 * 3 * 2
    assert spent(pipe, 1, **plain, sweeps=1, cfg=2.0, batch_size=1).evaluations == 2 * (3 * 2 + 11)
    first = spent(pipe, 1, steps=4, passes=1, self_cfg=2.0).evaluations
    assert first == 4 + 3  # in the first step there is no estimate yet
    cost = spent(pipe, 2, **plain, candidates=3, cfg=2.0)
    assert (cost.evaluations, cost.per_candidate) == (3 * 2 * 3 * 2, 3 * 2 * 2)
    assert cost.threads == torch.get_num_threads() and 0 < cost.cpu_seconds < 60


def test_evaluations_of_masked_diffusion_end_when_no_word_is_hidden(folder: Path) -> None:
    pipe = open_pipeline(folder / "masked")
    assert spent(pipe, 1, steps=1).evaluations == 1 and spent(pipe, 1, steps=1, cfg=2.0, candidates=3).evaluations == 6
    assert spent(pipe, 1, steps=50, batch_size=1).evaluations < 50


def test_evaluations_of_an_encoder_decoder_are_the_tokens_of_its_decoder(folder: Path) -> None:
    source = open_pipeline(folder / "source")
    config = Seq2SeqConfig(layers=1, width=16, heads=2, condition=Source(max_length=6, layers=1))
    pipe = Seq2SeqPipeline(config.make(source.tokenizer, [[2, 5, 3]], 8), source.tokenizer)
    with metered(pipe) as meter:
        rows = [*pipe.stream(4, replace(pipe.sampling, batch_size=1), source=["ant", "bee"])]
    longest = 8 - 2
    assert meter.evaluations == sum(min(row.length + 1, longest) for row in rows)  # the words and EOS, up to the maximum
    with metered(pipe) as meter:
        [*pipe.stream(4, replace(pipe.sampling, batch_size=1, cfg=3.0), source=["ant", "bee"])]
    assert meter.evaluations % 2 == 0 and meter.evaluations > 0


def test_counting_changes_no_sample_and_leaves_no_hook(folder: Path) -> None:
    pipe = open_pipeline(folder / "source")
    before = pipe(3, source="ant bee")
    with metered(pipe):
        assert pipe(3, source="ant bee") == before
    assert not pipe.network._forward_pre_hooks


def test_a_models_column_has_its_cost_and_a_files_has_none(folder: Path, tmp_path: Path) -> None:
    changes = [("steps", "3"), ("candidates", "3")]
    report = evaluate_references(
        folder / "r.jsonl", [folder / "o.txt"], models=[folder / "source"], sampling=changes, out=tmp_path / "out", ter=False,
        quiet=True,
    )  # fmt: skip
    human, file, model = report.rows
    assert human.cost is None and file.cost is None and model.cost is not None
    assert (model.cost.evaluations, model.cost.per_candidate, model.cost.candidates) == (9, 3, 3)
    lines = {line.split("  ")[0]: line.split() for line in (tmp_path / "out" / "table.txt").read_text().splitlines()}
    assert lines["evaluations per candidate"][3:] == ["-", "-", "3"]
    assert lines["evaluations per output"][3:] == ["-", "-", "9"] and lines["threads"][1:] == ["-", "-", "1"]
    assert lines["CPU seconds per output"][4:6] == ["-", "-"]


def test_a_report_without_costs_opens_and_keeps_its_rows(folder: Path, tmp_path: Path) -> None:
    given: dict[str, Any] = {"models": [folder / "source"], "out": tmp_path / "out", "ter": False, "quiet": True}
    evaluate_references(folder / "r.jsonl", **given)
    path = tmp_path / "out" / "references.json"
    plain = json.loads(path.read_text())
    for row in plain["rows"]:
        del row["cost"]
        del row["figures"]["distinct outputs of all sources"]
    path.write_text(json.dumps(plain))
    report = evaluate_references(folder / "r.jsonl", [folder / "o.txt"], **given, cfg=[1, 2])
    old, *rest = [row for row in report.rows if "sampling" in row.settings]
    assert old.system == "source" and old.cost is None and [row.cost is None for row in rest] == [False, False]
    assert (tmp_path / "out" / "frontier.svg").exists()
    lines = [line.split() for line in reference_table(report).splitlines() if line.startswith("evaluations per output")]
    assert lines[0][3:] == ["-", "-", "-", "4", "8"]


def test_a_report_of_files_has_no_lines_of_costs(folder: Path) -> None:
    report = evaluate_references(folder / "r.jsonl", [folder / "o.txt"], ter=False, quiet=True)
    assert "evaluations" not in reference_table(report).lower()
    assert isinstance(report, ReferenceReport) and isinstance(report.rows[0].figures["BLEU"], Figure)
