"""Classifiers from elsewhere: any ``transformers`` sequence classifier steers, by gradient where its vocabulary has our words."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from test_diffusion import SENTENCES, _pipeline
from transformers import DistilBertConfig, DistilBertForSequenceClassification, PreTrainedTokenizerFast

from diffusionlm.config import UserError
from diffusionlm.controls import Binding, Classifier, read_control
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


RAINY = [text for text in SENTENCES if WET in text.split()]


def fitted() -> Any:
    """Fit a classifier of scikit-learn to tell texts that have the word rain."""
    texts = [f"{text} {WET}" for text in SENTENCES] + [text for text in SENTENCES if text not in RAINY]
    labels = ["wet" if WET in text.split() else "dry" for text in texts]
    return make_pipeline(CountVectorizer(), LogisticRegression(C=100)).fit(texts, labels)


def mappings(texts: Sequence[str]) -> list[dict[str, float]]:
    return [{"wet": 0.9, "dry": 0.1} if WET in text.split() else {"wet": 0.0, "dry": 1.0} for text in texts]


def listed(texts: Sequence[str]) -> list[list[dict[str, Any]]]:
    return [[{"label": name, "score": p} for name, p in row.items()] for row in mappings(texts)]


made = fitted()


@pytest.mark.parametrize(
    "classifier",
    [made, "test_foreign_classifiers:made", "test_foreign_classifiers:fitted", mappings, listed],
    ids=["object", "path", "path of a function that makes it", "mappings", "lists"],
)
def test_classifiers_of_other_libraries_are_rewards(classifier: Any, pipeline: Pipeline) -> None:
    control = Classifier("wet", classifier)
    compiled = control.compile(pipeline.binding)
    assert not compiled.energies
    texts = [f"the {WET}", "the sun"]
    expected = made.predict_proba(texts)[:, 1] if classifier not in (mappings, listed) else [0.9, 0.0]
    (reward,) = compiled.rewards
    torch.testing.assert_close(reward(texts).exp(), torch.tensor(expected).clamp_min(1e-9), check_dtype=False)
    scores = control.score(texts, pipeline.binding)
    assert scores[0] == 1 and scores[1] == pytest.approx(expected[1], abs=1e-6)


def test_a_classifier_of_scikit_learn_steers(pipeline: Pipeline) -> None:
    def wet(control: Classifier | tuple[()], **changes: Any) -> int:
        return sum(WET in row.text.split() for row in pipeline(16, control, length=6, steps=8, **changes))

    assert wet(Classifier("wet", made), particles=Particles(count=8, every=2)) > wet(())


def test_classifiers_are_plugged_in_on_the_command_line_by_their_import_path(pipeline: Pipeline) -> None:
    control = read_control('Classifier("wet", "test_foreign_classifiers:made")')
    assert control == Classifier("wet", "test_foreign_classifiers:made")
    assert str(control) == 'Classifier("wet", "test_foreign_classifiers:made")'
    assert str(Classifier("wet", made)) == 'Classifier("wet", Pipeline)'


@pytest.mark.parametrize(
    ("label", "classifier", "message"),
    [
        ("wett", made, "has no label 'wett'; did you mean 'wet'"),
        ("wett", mappings, "has no label 'wett'; did you mean 'wet'"),
        ("wet", "test_foreign_classifiers:mad", "cannot import 'test_foreign_classifiers:mad'"),
        ("wet", "test_foreign_classifiers:WET", "expected a classifier with predict_proba, or a function of texts, got"),
        ("wet", LogisticRegression(), "has no label 'wet'; expected their names in its classes_: is it fitted"),
        ("wet", lambda texts: [0.5] * len(texts), "expected a mapping from labels to probabilities for each text, got 0.5; a"),
        ("wet", lambda texts: [{"wet": -3.0}] * len(texts), "expected probabilities from 0 to 1, got -3"),
        ("wet", lambda texts: [{"wet": None}] * len(texts), "expected a finite score for each of 1 texts, got"),
        ("wet", lambda texts: texts.missing, "the function fails for 1 texts: AttributeError"),
    ],
)
def test_what_gives_no_probability_of_the_label_is_refused(
    label: str, classifier: Any, message: str, pipeline: Pipeline
) -> None:
    with pytest.raises(UserError, match=message):
        Classifier(label, classifier).compile(pipeline.binding).rewards[0](["the sun"])


def test_what_is_no_classifier_is_refused() -> None:
    with pytest.raises(UserError, match="classifier: expected the name or folder of a classifier in quotes, or a classifier"):
        read_control('Classifier("wet", 5)')
    with pytest.raises(UserError, match="field: a classifier of another library has one alone"):
        Classifier("wet", made, "field")
