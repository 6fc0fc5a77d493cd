"""Classifiers from elsewhere: any ``transformers`` sequence classifier steers, by gradient where its vocabulary has our words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from test_diffusion import SENTENCES, _pipeline
from transformers import DistilBertConfig, DistilBertForSequenceClassification, PreTrainedTokenizerFast

from diffusionlm.config import UserError
from diffusionlm.controls import Binding, Classifier
from diffusionlm.core.guidance import GuidanceState
from diffusionlm.core.sampler import Denoised
from diffusionlm.data.tokenizers import BytePairs, WordTokenizer
from diffusionlm.pipelines.diffusion import Pipeline
from diffusionlm.pipelines.gradient import Gradient
from diffusionlm.pipelines.particles import Particles

WET = "rain"


def _wetness(folder: Path, tokenizer: PreTrainedTokenizerFast) -> Path:
    """Train a small network to tell texts that have the word rain, and save it with a tokenizer of its own."""
    labels = {"dry": 0, "wet": 1}
    config = DistilBertConfig(
        vocab_size=len(tokenizer), dim=16, n_layers=1, n_heads=2, hidden_dim=32, max_position_embeddings=64, dropout=0.0,
        attention_dropout=0.0, seq_classif_dropout=0.0, label2id=labels, id2label={i: name for name, i in labels.items()},
    )  # fmt: skip
    torch.manual_seed(0)
    model = DistilBertForSequenceClassification(config)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    words = sorted({word for text in SENTENCES for word in text.split()})
    for _ in range(150):
        texts = [[words[i] for i in torch.randint(len(words), (8,)).tolist()] for _ in range(16)]
        texts = [
            [WET if i == n % 8 else word for i, word in enumerate(text)] if n % 2 else text for n, text in enumerate(texts)
        ]
        batch = tokenizer([" ".join(text) for text in texts], return_tensors="pt", padding=True)
        wet = torch.tensor([int(WET in text) for text in texts])
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        # Smooth labels: the gradient of a classifier that is sure of everything leads nowhere.
        loss = torch.nn.functional.cross_entropy(logits, wet, label_smoothing=0.2)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return _pipeline()


@pytest.fixture(scope="module")
def aligned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a classifier that knows our words, and others, under numbers of its own."""
    return _wetness(tmp_path_factory.mktemp("aligned"), WordTokenizer().make(["zebras sleep", *reversed(SENTENCES), "zebras"]))


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a classifier that reads pieces of words."""
    return _wetness(tmp_path_factory.mktemp("other"), BytePairs(60).make(SENTENCES))


def _share(pipeline: Pipeline, folder: Path, control: Classifier | None, **changes: Any) -> float:
    rows = pipeline(16, control or (), length=6, steps=8, **changes)
    foreign = pipeline.binding.sequence_classifier(str(folder))
    assert foreign is not None
    return foreign.log_probabilities([row.text for row in rows])[:, 1].exp().mean().item()


def test_words_of_ours_are_found_in_its_vocabulary(pipeline: Pipeline, aligned: Path, other: Path) -> None:
    found = Binding(pipeline.model, pipeline.tokenizer).sequence_classifier(str(aligned))
    assert found is not None and found.aligned is not None
    ours = pipeline.tokenizer.convert_ids_to_tokens(list(range(len(pipeline.tokenizer))))
    assert found.tokenizer.convert_ids_to_tokens(found.aligned.tolist()) == ours
    pieces = Binding(pipeline.model, pipeline.tokenizer).sequence_classifier(str(other))
    assert pieces is not None and pieces.aligned is None


def test_a_certain_posterior_has_the_energy_of_its_text(pipeline: Pipeline, aligned: Path) -> None:
    foreign = Binding(pipeline.model, pipeline.tokenizer).sequence_classifier(str(aligned))
    assert foreign is not None
    batch = pipeline.tokenizer(SENTENCES, return_tensors="pt", padding=True)
    ids, mask = batch["input_ids"], batch["attention_mask"].bool()
    certain = torch.full((*ids.shape, len(pipeline.tokenizer)), -torch.inf).scatter(-1, ids[..., None], 0.0)
    belief = GuidanceState(torch.zeros(*ids.shape, 8), torch.zeros(len(ids)), mask, lambda: Denoised(torch.zeros(()), certain))
    for index in range(2):
        torch.testing.assert_close(-foreign.energy(index)(belief), foreign.log_probabilities(SENTENCES)[:, index])


def test_its_gradient_steers_where_vocabularies_align(pipeline: Pipeline, aligned: Path) -> None:
    control = Classifier("wet", str(aligned))
    compiled = control.compile(pipeline.binding)
    assert compiled.energies and not compiled.rewards
    before = _share(pipeline, aligned, None)
    far = Gradient(strength=100)  # the small network is sure of everything, so that its gradient is faint
    assert _share(pipeline, aligned, control, guidance=far) > before + 0.4
    assert _share(pipeline, aligned, Classifier("dry", str(aligned)), guidance=far) < before


def test_particles_follow_it_where_they_do_not(pipeline: Pipeline, other: Path) -> None:
    control = Classifier("wet", str(other))
    compiled = control.compile(pipeline.binding)
    assert compiled.rewards and not compiled.energies
    before = _share(pipeline, other, None)
    assert _share(pipeline, other, control, particles=Particles(count=8, every=2)) > before + 0.1


def _untrained(folder: Path, tokenizer: PreTrainedTokenizerFast, **changes: Any) -> str:
    config = DistilBertConfig(
        vocab_size=len(tokenizer), dim=16, n_layers=1, n_heads=2, hidden_dim=32, max_position_embeddings=8, **changes
    )
    DistilBertForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def test_one_number_is_no_label(pipeline: Pipeline, tmp_path: Path) -> None:
    folder = _untrained(tmp_path, BytePairs(60).make(SENTENCES), num_labels=1)
    with pytest.raises(UserError, match="gives one number, not labels; a Reward can follow it"):
        Binding(pipeline.model, pipeline.tokenizer).sequence_classifier(folder)


def test_labels_that_are_not_exclusive_have_separate_probabilities_and_long_texts_are_cut(
    pipeline: Pipeline, tmp_path: Path
) -> None:
    tokenizer = BytePairs(60).make(SENTENCES)
    tokenizer.model_max_length = int(1e30)
    folder = _untrained(tmp_path, tokenizer, num_labels=3, problem_type="multi_label_classification")
    foreign = Binding(pipeline.model, pipeline.tokenizer).sequence_classifier(folder)
    assert foreign is not None
    long = " ".join(SENTENCES)
    assert len(tokenizer(long)["input_ids"]) > 8
    ids = torch.tensor([tokenizer(long, truncation=True, max_length=8)["input_ids"]])
    logits = foreign.model(input_ids=ids).logits[0]
    torch.testing.assert_close(foreign.log_probabilities([long])[0].exp(), logits.sigmoid())
