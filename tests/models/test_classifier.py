"""Classifiers: what they learn, what is saved, where gradients go, how their accuracy is counted."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from test_labels import records
from tiny_runs import ROOT, TINY
from torch import Tensor
from torch.nn.functional import one_hot
from transformers import AutoModel

from diffusionlm import LatentClassifier
from diffusionlm.cli import main
from diffusionlm.config import UserError, build, merge, to_plain
from diffusionlm.constraints.inference import viterbi
from diffusionlm.controls import Attribute, Binding, PartsOfSpeech, Span
from diffusionlm.data.labels import Labelled
from diffusionlm.data.tokenizers import load_tokenizer
from diffusionlm.data.trees import spans_of
from diffusionlm.models.classifier import ClassifierConfig, find_classifier
from diffusionlm.models.classifier.accuracy import Accuracy, span_measures, value_measures
from diffusionlm.models.classifier.heads import (
    SENSES,
    LatentSequenceClassifier,
    LatentSpanClassifier,
    LatentTokenClassifier,
)
from diffusionlm.models.classifier.objective import Classification, ClassificationObjective
from diffusionlm.models.classifier.templates import list_templates
from diffusionlm.models.diffusion import DiffusionLM
from diffusionlm.pipelines.auto import open_pipeline
from diffusionlm.pipelines.lengths import length_prior
from diffusionlm.recipe.cross_entropy import CrossEntropy
from diffusionlm.training.checkpoints import newest_checkpoint
from diffusionlm.training.run import RunConfig, read_config, train

TINY_CLASSIFIER = {
    "model": {"features": 24, "backbone": {"name": "transformer", "layers": 1, "width": 24, "heads": 2}},
    "training": {"evaluate_every": 60, "save_every": 4, "warmup": 10},
}
HEADS: dict[str, dict[str, Any]] = {
    "sequence": {"labels": ["begins", "sentences"], "min_count": 30},
    "token": {"labels": ["tags"], "head": "token", "min_count": 5},
    "span": {"labels": ["tree"], "head": "span", "min_count": 5},
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a corpus of 300 texts and a diffusion model trained on it for a few steps."""
    folder = tmp_path_factory.mktemp("classifiers")
    (folder / "texts.jsonl").write_text(
        "".join(
            json.dumps(record | {"begins": begins, "label": f"{begins}", "sentences": record["words"].count(".")}) + "\n"
            for record in records(300)
            for begins in (record["words"][0] == "The",)
        )
    )
    changes = {"data": {"corpus": str(folder / "texts.jsonl")}, "training": {"steps": 4}}
    assert train(build(RunConfig, merge(TINY, changes)), folder / "denoiser", write_samples=False, quiet=True)
    return folder


def classifier_config(home: Path, head: str = "sequence", steps: int = 8, **changes: Any) -> RunConfig:
    plain: dict[str, Any] = {
        "data": {"max_length": 48, "corpus": str(home / "texts.jsonl")},
        "model": {"name": "classifier", "denoiser": str(home / "denoiser"), **HEADS[head]},
        "objective": {"name": "classification"},
        "training": {"steps": steps, "batch_tokens": 512},
    }
    plain = merge({"training": TINY["training"]}, plain)
    return build(RunConfig, merge(merge(plain, TINY_CLASSIFIER), changes))


def run_of(home: Path, head: str) -> Path:
    """Return the run of a small classifier, trained by the first test that needs it."""
    assert train(classifier_config(home, head, steps=140, training={"save_every": 140}), home / head, quiet=True)
    return home / head


def test_a_classifier_that_is_trained_for_minutes_ends_without_samples(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = to_plain(classifier_config(home))
    del plain["training"]["steps"]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(plain))
    words = ["train", "--config", str(tmp_path / "config.yaml"), "--minutes", "1e-6", "--out", str(tmp_path / "run")]
    assert main(words) == 0 and capsys.readouterr().out == ""


@pytest.fixture(scope="module", params=list(HEADS))
def trained(request: pytest.FixtureRequest, home: Path) -> Path:
    """Return the run of a small classifier of each head."""
    return run_of(home, request.param)


@pytest.fixture(scope="module")
def untrained(home: Path) -> Path:
    folder = home / "untrained"
    assert train(classifier_config(home), folder, quiet=True)
    return folder


def labelled(config: RunConfig) -> tuple[ClassificationObjective, list[Labelled]]:
    """Return a new classifier's objective, and its training rows."""
    from diffusionlm.data.batches import encode

    assert isinstance(config.model, ClassifierConfig) and isinstance(config.objective, Classification)
    splits = {"train": config.data.corpus.load()["train"]}
    texts = splits["train"]["text"][:]
    tokenizer = config.model.tokenizer(config.data, texts)
    rows = config.model.rows({"train": encode(texts, tokenizer, 48)}, splits, tokenizer)["train"]
    objective = config.objective.build(config.model.make(tokenizer, rows, 48))
    return objective, [row for row in rows if isinstance(row, Labelled)]


# What a run leaves


def test_a_few_steps_beat_the_commonest_value(trained: Path) -> None:
    found = json.loads((trained / "model" / "accuracy.json").read_text())
    assert found["log_snr"] == [None, 2.0, 0.0, -1.0, -2.0, -3.0, -4.0]
    assert found["texts"] > 5
    assert (trained / "figures" / "accuracy.png").read_bytes().startswith(b"\x89PNG")
    shown = "f1" if found["head"] == "span" else "accuracy"
    assert all(len(scores[shown]) == 7 for scores in found["scores"].values())
    if found["head"] != "span":
        scores = found["scores"]["begins" if found["head"] == "sequence" else "tags"]
        assert scores["accuracy"][0] > scores["majority"][0] + 0.2, scores


def test_a_few_steps_tell_constituents_from_other_spans(home: Path) -> None:
    objective, rows = labelled(classifier_config(home, "span"))
    model = LatentClassifier.load(run_of(home, "span"))
    batch = objective.collate(rows[:30])
    with torch.no_grad():
        latents = objective.denoiser.encode(batch["ids"])
        chances = 1 - model(latents, torch.zeros(30), batch["mask"])["tree"][..., 0].exp()
    true, false = chances[batch["targets"] > 0].mean(), chances[batch["targets"] == 0].mean()
    share = float((batch["targets"] > 0).sum() / (batch["targets"] >= 0).sum())
    assert float(true) > 2 * float(false)
    assert share / 1.5 < float(chances[batch["targets"] >= 0].mean()) < share * 1.5, "calibrated, whatever none_weight"


def test_a_run_has_no_texts_and_no_sampling(trained: Path) -> None:
    assert not (trained / "samples").exists()
    assert not (trained / "model" / "sampling.json").exists()
    rows = [json.loads(line) for line in (trained / "log.jsonl").read_text().splitlines()]
    losses = [row["eval_cross_entropy"] for row in rows if "eval_loss" in row]
    assert losses[-1] < losses[0]
    assert "length_counts" not in json.loads((trained / "model" / "config.json").read_text())


def test_the_denoiser_is_not_saved(trained: Path) -> None:
    checkpoint = newest_checkpoint(trained)
    assert checkpoint is not None
    denoiser = DiffusionLM.load(trained.parent / "denoiser" / "model")
    sizes = {tensor.shape for name, tensor in denoiser.state_dict().items() if "embedding" in name or "down" in name}
    for file in (trained / "model" / "model.safetensors", checkpoint / "model.safetensors", checkpoint / "ema.safetensors"):
        saved = load_file(file)
        assert not [name for name in saved if "embedding" in name or "denoiser" in name or "frozen" in name]
        assert not sizes & {tensor.shape for name, tensor in saved.items() if not name.endswith("stated.weight")}
        # What words state has by chance the shape of this denoiser's word vectors: it must not be them.
        assert not any(torch.equal(tensor, denoiser.embedding.weight) for tensor in saved.values())


def test_a_saved_classifier_is_the_same(trained: Path, tmp_path: Path) -> None:
    model = LatentClassifier.load(trained)
    assert not model.training
    model.save_pretrained(tmp_path / "saved")
    again = LatentClassifier.load(tmp_path / "saved")
    latents, t = torch.randn(2, 9, 8), torch.tensor([0.3, 0.9])
    mask = torch.arange(9) < torch.tensor([[9], [6]])
    words = torch.randn(2, 9, model.config.vocabulary).softmax(-1)
    first, second = model(latents, t, mask, words), again(latents, t, mask, words)
    assert list(first) == list(second) == list(model.labels)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert again.labels == model.labels == json.loads((trained / "model" / "config.json").read_text())["labels"]
    assert isinstance(AutoModel.from_pretrained(trained / "model"), LatentClassifier)
    with pytest.raises(UserError, match=r"expected model_type 'diffusionlm-classifier', got 'diffusionlm'"):
        LatentClassifier.load(trained.parent / "denoiser")
    newer = json.loads((tmp_path / "saved" / "config.json").read_text()) | {"format_version": 99}
    (tmp_path / "saved" / "config.json").write_text(json.dumps(newer))
    with pytest.raises(UserError, match=r"format 99 is newer than this library reads"):
        LatentClassifier.load(tmp_path / "saved")


def test_stopped_and_started_again_it_ends_with_the_same_bits(untrained: Path, home: Path, tmp_path: Path) -> None:
    shutil.copytree(untrained, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "checkpoint-8")
    shutil.rmtree(tmp_path / "run" / "model")
    assert train(classifier_config(home), tmp_path / "run", quiet=True)
    one, other = (load_file(run / "model" / "model.safetensors") for run in (untrained, tmp_path / "run"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    accuracies = [(run / "model" / "accuracy.json").read_text() for run in (untrained, tmp_path / "run")]
    assert accuracies[0] == accuracies[1]


def test_fine_tuning_a_classifier(untrained: Path, home: Path, tmp_path: Path) -> None:
    config = classifier_config(home, steps=2, init_from=str(untrained / "model"))
    assert train(config, tmp_path / "more", quiet=True)
    other = classifier_config(home, steps=2, init_from=str(untrained / "model"), model={"features": 8})
    with pytest.raises(UserError, match=r"^model: expected the settings of"):
        train(other, tmp_path / "other", quiet=True)


# The model


def test_log_probabilities_gradients_and_shapes(trained: Path) -> None:
    model = LatentClassifier.load(trained)
    latents = torch.randn(2, 9, 8, requires_grad=True)
    mask = torch.arange(9) < torch.tensor([[9], [6]])
    words = torch.randn(2, 9, model.config.vocabulary).softmax(-1)
    found = model(latents, torch.tensor([0.2, 0.7]), mask, words)
    places = {"sequence": (2,), "token": (2, 9), "span": (2, 9, 9)}[model.settings.head]
    for name, log_probs in found.items():
        assert log_probs.shape == (*places, len(model.labels[name]))
        torch.testing.assert_close(log_probs.exp().sum(-1), torch.ones(places))
    sum(log_probs[0].select(-1, 0).sum() for log_probs in found.values()).backward()
    assert latents.grad is not None
    assert bool((latents.grad[0].abs().sum(-1) > 0).all())
    assert bool((latents.grad[1] == 0).all())


def test_padding_is_not_seen(trained: Path) -> None:
    model = LatentClassifier.load(trained)
    latents, t = torch.randn(1, 12, 8), torch.tensor([0.4])
    words = torch.randn(1, 12, model.config.vocabulary).softmax(-1)
    alone = model(latents[:, :7], t, None, words[:, :7])
    padded = model(latents, t, torch.arange(12)[None] < 7, words)
    for name, log_probs in alone.items():
        other = padded[name] if model.settings.head == "sequence" else padded[name][:, :7]
        other = other[:, :, :7] if model.settings.head == "span" else other
        torch.testing.assert_close(log_probs, other, rtol=1e-4, atol=1e-4)


def test_the_classifier_receives_the_noise_level_unless_it_reads_clean_words(home: Path) -> None:
    latents, t = torch.randn(1, 5, 8), torch.tensor([0.1])
    for reads in ("prediction", "clean"):
        objective, _ = labelled(classifier_config(home, model={"reads": reads}))
        words = torch.randn(1, 5, objective.model.config.vocabulary).softmax(-1)
        low, high = (objective.model(latents, time, None, words)["begins"] for time in (t, t + 0.8))
        assert torch.equal(low, high) == (reads == "clean")


def test_an_annotator_labels_a_corpus_that_has_no_labels(home: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in (home / "texts.jsonl").read_text().splitlines()]
    (tmp_path / "bare.jsonl").write_text("".join(json.dumps({"text": row["text"]}) + "\n" for row in rows))
    bare: dict[str, Any] = {"data": {"corpus": str(tmp_path / "bare.jsonl")}, "model": {"annotator": "grammar"}}
    for head in ("token", "span"):
        (_, found), (_, known) = labelled(classifier_config(home, head, **bare)), labelled(classifier_config(home, head))
        assert [(list(row), row.labels) for row in found] == [(list(row), row.labels) for row in known]


def test_the_lexicon_is_what_the_corpus_counts(home: Path) -> None:
    objective, rows = labelled(classifier_config(home, "token"))
    model = objective.model
    assert isinstance(model, LatentTokenClassifier)
    counts: Counter[tuple[int, str]] = Counter()
    for row in rows:
        counts.update(zip(row[1:-1], row.labels["tags"][1:-1], strict=True))
    tags = model.labels["tags"]
    assert int(model.lexicon_counts.sum()) == sum(counts.values())
    assert all(
        int(model.lexicon_counts[i, tags.index(tag) if tag in tags else tags.index("other")]) >= n
        for (i, tag), n in counts.items()
    )
    lexicon = model.lexicon()
    seen = {i for row in rows for i in row[1:-1]}
    expected = torch.tensor([float(i in seen) for i in range(len(lexicon))])
    torch.testing.assert_close(lexicon.sum(1), expected)


def test_a_span_is_placed_in_a_template_of_texts_of_that_length(home: Path) -> None:
    spans, tags = (str(run_of(home, head)) for head in ("span", "token"))
    binding = Binding(DiffusionLM.load(home / "denoiser" / "model"), load_tokenizer(home / "denoiser" / "model"))
    trained, (field,) = binding.classifier(spans, LatentSpanClassifier), binding.classifier(tags, LatentTokenClassifier).labels
    likely, names = (
        binding.classifier(tags, LatentTokenClassifier).lexicon(),
        binding.classifier(tags, LatentTokenClassifier).labels[field],
    )
    fewer = 0
    for first, last, label in ((0, 2, "NP"), (3, 5, "PP"), (4, 6, "NP")):
        language = Span(first, last, label, spans, tags).compile(binding).automaton
        assert language is not None
        chains = torch.tensor([i for i, chain in enumerate(trained.labels["tree"]) if label in chain.split("::")])
        there = trained.template_lengths(first + 1, last + 1, chains)
        generator = torch.Generator().manual_seed(first)
        for length in (8, 12, 40):
            logits = 3 * torch.randn(20, length, len(likely), generator=generator)
            words = viterbi(language, logits, torch.full((20,), length))
            everywhere = {text for text in trained.config.templates[label] if text.count(" ") == last - first + 2}
            known = {text for text, lengths in there.items() if length + 2 in lengths} or everywhere
            fewer += len(known) < len(everywhere)
            for text in words.tolist():
                possible = [
                    {tag for tag, share in zip(names, likely[i].tolist(), strict=True) if share >= 0.3}
                    for i in text[max(first - 1, 0) : last + 2]
                ]
                assert any(
                    len(wanted) == len(possible) and all(tag in place for tag, place in zip(wanted, possible, strict=True))
                    for wanted in (each.split()[first == 0 :] for each in known)
                )
        assert not any(42 in lengths for lengths in there.values()), "of so long a text no frame is known"
    assert fewer
    free = Span(4, 6, "NP", spans, "no-such-classifier").compile(binding).automaton
    assert free is not None and free.lengths(9) == [7, 8, 9]


def test_a_span_has_the_lengths_of_texts_that_contain_it(home: Path) -> None:
    folder = run_of(home, "span")
    model, (_, rows) = LatentSpanClassifier.load(folder), labelled(classifier_config(home, "span"))
    places = model.span_places.tolist()
    assert sum(n for first, last, label, number, _, n in places if not (first or last or label or number)) == len(rows)
    chains = torch.tensor([i for i, chain in enumerate(model.labels["tree"]) if "NP" in chain.split("::")])
    chances = model.length_probabilities(1, 3, chains)
    lengths = Counter(len(row) for row in rows)
    there = [(number, length, n) for i, j, label, number, length, n in places if (i, j) == (1, 3) and label in chains]
    having = Counter(length for _, length, n in there for _ in range(n))
    share = sum(having.values()) / len(rows)
    assert 0 < share < 1
    assert chances == pytest.approx([(having[n] + share) / (lengths[n] + 1) for n in range(len(chances))])
    assert model.length_probabilities(1, 3, torch.tensor([len(model.labels["tree"])])) == []
    found = {(frame, length) for frame, seen in model.template_lengths(1, 3, chains).items() for length in seen}
    assert found == {(list_templates(model.config.templates)[number - 1], length) for number, length, _ in there if number}
    assert found
    binding = Binding(DiffusionLM.load(home / "denoiser" / "model"), load_tokenizer(home / "denoiser" / "model"))
    compiled = (2 * Span(0, 2, "NP", str(folder))).compile(binding)
    assert compiled.length_probabilities == (chances,)
    prior, possible = binding.model.config.length_counts, [n + 2 for n in range(3, binding.model.config.max_tokens - 1)]
    weights = length_prior(binding.model, compiled.automaton, known=compiled.length_probabilities)
    assert weights[: len(prior)] == pytest.approx([w * chances[n] * (n in possible) for n, w in enumerate(prior)])
    both = compiled & compiled
    squared = length_prior(binding.model, both.automaton, known=both.length_probabilities)
    assert squared[: len(prior)] == pytest.approx([w * chances[n] ** 2 * (n in possible) for n, w in enumerate(prior)])


# The objective


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("reads", ["prediction", "noisy", "clean"])
def test_only_the_classifier_learns(home: Path, head: str, reads: str) -> None:
    objective, rows = labelled(classifier_config(home, head, model={"reads": reads}))
    copied = deepcopy(objective)
    assert copied.denoiser is objective.denoiser
    assert copied.model is not objective.model
    sum(objective(objective.collate(rows[:6])).values()).backward()
    missing = {name for name, weight in objective.named_parameters() if weight.grad is None}
    assert not missing
    assert all(weight.grad is None and not weight.requires_grad for weight in objective.denoiser.parameters())
    objective.train()
    assert not objective.denoiser.training


def test_targets_stand_where_the_labels_are(home: Path) -> None:
    objective, rows = labelled(classifier_config(home, "span"))
    batch = objective.collate(rows[:5])
    values, stored = objective.model.labels["tree"], {record["text"]: record for record in records(300)}
    texts = build(RunConfig, {"data": {"corpus": str(home / "texts.jsonl")}}).data.corpus.load()["train"]["text"][:5]
    for text, row, target in zip(texts, rows, batch["targets"], strict=False):
        words = len(row) - 2
        assert int((target >= 0).sum()) == words * (words + 1) // 2
        spans = spans_of(stored[text]["tree"])
        assert int((target > 0).sum()) == len(spans)
        for i, j, label in spans:
            assert values[int(target[i + 1, j + 1])] == (label if label in values else "other")


def test_classifiers_read_the_prediction_of_the_second_pass(home: Path) -> None:
    objective, rows = labelled(classifier_config(home))
    batch = objective.collate(rows[:4])
    ids, mask, denoiser = batch["ids"], batch["mask"], objective.denoiser
    t = torch.tensor([0.0, 0.3, 0.5, 0.8], dtype=torch.float64)
    torch.manual_seed(3)
    read, words = objective.latents_at(batch, t)
    assert words is not None
    assert torch.equal(words[0].argmax(-1), ids[0])
    torch.testing.assert_close(words @ denoiser.word_vectors(), read, rtol=1e-4, atol=1e-4)
    x0 = denoiser.encode(ids)
    assert torch.equal(read[0], x0[0])
    torch.manual_seed(3)
    noisy = denoiser.process.noise(x0, t)
    free = mask & (ids > 3)
    xt, levels = torch.where(free[..., None], noisy, x0), torch.where(free, t[:, None], 0)
    with torch.no_grad():
        second = denoiser(xt, levels, mask, denoiser(xt, levels, mask).x0).x0
    expected = torch.where(free[..., None], second, x0)
    torch.testing.assert_close(read[1:][mask[1:]], expected[1:][mask[1:]], rtol=1e-4, atol=1e-4)


def test_a_pointer_reads_the_smallest_probabilities_with_their_weights(home: Path) -> None:
    objective, rows = labelled(classifier_config(home))
    model, name = objective.model.train(False), "begins"
    assert isinstance(model, LatentSequenceClassifier)
    field, index = list(model.labels).index(name), model.labels[name].index("True")
    ids, word = torch.tensor([rows[0]]), next(i for i in range(4, model.config.vocabulary) if i not in rows[0])
    with torch.no_grad():
        # All fields look at all positions alike, for words in each sense; in its first, one word states "True".
        model.point.weight.zero_()
        model.stated.weight.zero_()
        sizes = [SENSES * size for size in model.sizes]
        model.stated.weight.split(sizes, -1)[field].view(-1, SENSES, len(model.labels[name]))[word, 0, index] = 40.0
    words = one_hot(ids, model.config.vocabulary).float()
    latents = objective.denoiser.encode(ids)
    other = words.clone()
    for chance in (0.5, 1e-3, 1e-9):
        other[0, 2] = words[0, 2] * (1 - chance)
        other[0, 2, word] = chance
        p = other.clone().requires_grad_()
        read, pointed = model.experts(latents, torch.zeros(1), None, p)
        both = (read[name] + pointed[name]) / 2
        torch.testing.assert_close(model(latents, torch.zeros(1), None, p)[name], both.log_softmax(-1))
        log_p = pointed[name][0, index]
        places, even = SENSES * ids.shape[1], 1 / len(model.labels[name])
        expected = (chance + (places - chance) * even) / places
        assert log_p.exp().item() == pytest.approx(expected, rel=1e-4)
        log_p.backward()
        assert p.grad is not None
        assert float(p.grad[0, 2, word]) == pytest.approx((1 + even) / places / expected, rel=1e-4)  # one a sense
    with pytest.raises(UserError, match="needs the probabilities of the words"):
        model(latents, torch.zeros(1))


def test_accuracy_is_counted_as_by_hand(home: Path) -> None:
    model = LatentClassifier.load(run_of(home, "sequence"))
    objective = Classification().build(model)
    _, rows = labelled(classifier_config(home))
    state = torch.get_rng_state()
    found = objective.accuracy(rows[:40])
    assert torch.equal(torch.get_rng_state(), state)
    assert objective.accuracy(rows[:40]) == found
    values, right = model.labels["sentences"], 0
    for row in rows[:40]:
        ids = torch.tensor([row])
        words = one_hot(ids, model.config.vocabulary).float()
        guess: Tensor = model(objective.denoiser.encode(ids), torch.zeros(1), None, words)["sentences"].argmax(-1)
        wanted = row.labels["sentences"]
        right += values[int(guess)] == (wanted if wanted in values else "other")
    assert found.scores["sentences"]["accuracy"][0] == right / 40
    table = found.table().splitlines()
    assert len(table) == 2 + 2 + 1
    assert table[-1].split()[0] == "mean"


def test_scores_of_a_confusion_matrix() -> None:
    counts = torch.tensor([[6, 2, 0], [1, 1, 0], [0, 0, 0]])
    assert value_measures(counts) == pytest.approx({"accuracy": 0.7, "balanced": (6 / 8 + 1 / 2) / 2, "majority": 0.8})
    spans = torch.tensor([[90, 2, 0], [1, 5, 1], [2, 0, 3]])
    assert span_measures(spans) == pytest.approx({"f1": 16 / 23, "precision": 8 / 11, "recall": 8 / 12, "majority": 0.0})
    several = Accuracy("token", "noisy", 3, {"a": scores_of(0.5), "b": scores_of(1.0)})
    assert several.shown()["mean"]["accuracy"] == [0.75] * 7


def scores_of(share: float) -> dict[str, list[float]]:
    return {"accuracy": [share] * 7, "majority": [0.1] * 7}


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "classifiers").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_config_takes_a_step(path: Path, home: Path) -> None:
    corpus, denoiser = str(home / "texts.jsonl"), str(home / "denoiser")
    config = read_config([path], [("model.denoiser", denoiser), ("data.corpus", corpus), ("data.max_length", "48")])
    objective, rows = labelled(config)
    first = objective(objective.collate(rows[:4]))["cross_entropy"]
    first.backward()
    config.training.optimizer.build(objective).step()
    with torch.no_grad():
        assert all(bool(weight.isfinite().all()) for weight in objective.parameters())


# Sentences


def refused(config: RunConfig, folder: Path, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        train(config, folder, quiet=True)
    assert not folder.exists()


def test_what_does_not_go_together_is_refused_before_anything_is_written(home: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    refused(
        classifier_config(home, model={"labels": ["tag"]}),
        out,
        r"^labels: the corpus has no column 'tag'; did you mean 'tags'\?",
    )
    other = classifier_config(home, data={"tokenizer": {"name": "words", "min_count": 3}})
    refused(other, out, r"^data\.tokenizer: a classifier has the vocabulary of .*denoiser; leave the tokenizer out")
    refused(classifier_config(home, data={"max_length": 64}), out, r"^data\.max_length: .* reads up to 48 tokens, got 64")
    refused(
        classifier_config(home, model={"denoiser": str(tmp_path)}), out, r"expected a model folder, but it has no config\.json"
    )
    refused(classifier_config(home, objective="cross-entropy"), out, r"^objective: 'cross-entropy' trains a 'diffusion' model")
    (tmp_path / "other.jsonl").write_text(json.dumps({"text": "Il cibo è buono", "attributes": {"type": "pub"}}) + "\n")
    changes = {"corpus": {"name": "files", "train": str(tmp_path / "other.jsonl"), "validation_share": 0}}
    refused(
        classifier_config(home, data=changes, model={"labels": ["attributes.type"]}),
        out,
        r"^data\.corpus: 100% of its words are unknown",
    )
    refused(
        classifier_config(home, model={"min_count": 1000}),
        out,
        r"^labels: expected two values of 'begins' or more .*min_count is 1000",
    )


def test_impossible_settings() -> None:
    with pytest.raises(UserError, match=r"^labels: expected a column"):
        ClassifierConfig("x", ())
    with pytest.raises(UserError, match=r"^labels: head 'token' takes one column, got a, b"):
        ClassifierConfig("x", ("a", "b"), "token")
    with pytest.raises(UserError, match=r"^min_count: expected at least 1, got 0"):
        ClassifierConfig("x", ("a",), min_count=0)
    with pytest.raises(UserError, match=r"^clean_share: expected a share between 0 and 1, got 2"):
        Classification(clean_share=2)
    with pytest.raises(UserError, match=r"^objective: 'cross-entropy' trains a 'diffusion' model, and model is 'classifier'"):
        CrossEntropy().check(ClassifierConfig("x", ("a",)))


def test_a_classifier_of_other_word_vectors_is_refused(untrained: Path, home: Path) -> None:
    model, denoiser = LatentClassifier.load(untrained), DiffusionLM.load(home / "denoiser" / "model")
    model.check_fits(denoiser)
    model.check_fits(torch.nn.Module.to(denoiser, torch.bfloat16))
    with torch.no_grad():
        denoiser.embedding.weight[5] += 1
    with pytest.raises(UserError, match=r"^classifier: it was trained on other word vectors"):
        model.check_fits(denoiser)


def test_a_classifier_generates_no_text(untrained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match=r"expected a model that generates text, but this is a classifier"):
        open_pipeline(untrained)
    assert main(["generate", str(untrained)]) == 2
    out, err = capsys.readouterr()
    assert (out, len(err.strip().splitlines())) == ("", 1)


def test_finding_a_models_classifiers(home: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(home / "denoiser", run)
    expected = r"'food' \(there is none yet\), and there is no folder of this name; train it, on texts with its labels"
    with pytest.raises(UserError, match=rf"{expected} \(data.corpus\): diffusionlm train --config"):
        find_classifier(run, "food")
    out = run / "model" / "classifiers" / "food"
    config = classifier_config(home, steps=2, model={"denoiser": str(run)})
    assert train(config, out, quiet=True)
    assert find_classifier(run, "food") == find_classifier(run / "model", "food") == out
    assert LatentClassifier.load(find_classifier(run, "food")).labels.keys() == {"begins", "sentences"}
    with pytest.raises(UserError, match=r"no classifier is called 'fod' \(there are food\)"):
        find_classifier(run, "fod")


def test_a_classifier_of_another_head_is_refused(home: Path) -> None:
    folders = {head: str(run_of(home, head)) for head in HEADS}
    binding = Binding(DiffusionLM.load(home / "denoiser" / "model"), load_tokenizer(home / "denoiser" / "model"))
    wrong = {
        "sequence": Attribute("begins", "True", folders["token"]),
        "token": PartsOfSpeech("DET NOUN", classifier=folders["span"]),
        "span": Span(0, 2, "NP", folders["sequence"]),
    }
    for head, control in wrong.items():
        with pytest.raises(UserError, match=f"^classifier: expected one with head '{head}', and '"):
            control.compile(binding)
