"""The lm-evaluation-harness itself, on tasks of local files: its command line and its Python function, without a network."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from diffusionlm.data.tokenizers import WordTokenizer
from diffusionlm.evaluation.harness import HarnessModel
from diffusionlm.models.backbones import Transformer
from diffusionlm.models.masked import MaskedConfig
from diffusionlm.pipelines.base import SamplingConfig
from diffusionlm.pipelines.masked import Ancestral
from diffusionlm.training.run import save_model

pytest.importorskip("lm_eval")
CHOICE = """
task: tiny_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
metric_list: [{{metric: acc}}]
"""
ROLLING = """
task: tiny_texts
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{question}}}}"
metric_list: [{{metric: word_perplexity}}]
"""
DOCUMENTS = [
    {"question": "a b", "choices": ["c", "d e"], "answer": 0}, {"question": "f g", "choices": ["h", "i j"], "answer": 1},
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an untrained model, documents, and two tasks over them."""
    home = tmp_path_factory.mktemp("harness")
    tokenizer = WordTokenizer().make(["a b c d e f g h i j"])
    model = MaskedConfig(backbone=Transformer(layers=1, width=16, heads=2)).make(tokenizer, [[2, 4, 5, 6, 3]], 12)
    model.config.length_counts = [0, 0, 0, 3, 1, 2]
    save_model(model, tokenizer, SamplingConfig(steps=2, sampler=Ancestral()), home / "run" / "model")
    (home / "documents.jsonl").write_text("".join(json.dumps(row) + "\n" for row in DOCUMENTS))
    (home / "tasks").mkdir()
    for name, task in (("choice", CHOICE), ("texts", ROLLING)):
        (home / "tasks" / f"{name}.yaml").write_text(task.format(file=home / "documents.jsonl"))
    return home


def test_the_command_line_of_the_harness_scores_a_model(folder: Path) -> None:
    out = folder / "results"
    command = [
        sys.executable, "-m", "diffusionlm.evaluation.harness", "--model", "diffusionlm", "--model_args",
        f"pretrained={folder / 'run'},strata=4,seed=1", "--tasks", "tiny_choice,tiny_texts", "--include_path",
        str(folder / "tasks"), "--output_path", str(out), "--log_samples",
    ]  # fmt: skip
    places = {"HF_HOME": str(folder / "cache"), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, sys.path[1:])), **places}
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (samples,) = out.rglob("samples_tiny_choice_*.jsonl")
    rows = [json.loads(line) for line in samples.read_text().splitlines()]
    found = [float(response[0][0]) for row in rows for response in row["resps"]]
    model = HarnessModel(str(folder / "run"), strata=4, seed=1)
    requests = [
        SimpleNamespace(args=(row["question"], f" {choice}")) for row in DOCUMENTS for choice in as_list(row["choices"])
    ]
    assert found == pytest.approx([value for value, _ in model.loglikelihood(requests)])
    (results,) = out.rglob("results_*.json")
    assert json.loads(results.read_text())["results"]["tiny_texts"]["word_perplexity,none"] > 1


def as_list(value: Any) -> list[str]:
    return [str(each) for each in value]


def test_a_missing_model_is_one_sentence(folder: Path) -> None:
    command = [
        sys.executable, "-m", "diffusionlm.evaluation.harness", "--model", "diffusionlm", "--model_args", "pretrained=nothing",
        "--tasks", "tiny_choice", "--include_path", str(folder / "tasks"),
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, sys.path[1:])), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith("error: nothing: ")
