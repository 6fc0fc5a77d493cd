"""Settings that fit a corpus: what is chosen, what is left alone, and that a resumed run keeps its choices."""

from pathlib import Path
from typing import Any

import pytest
from tiny_runs import restaurant_texts

from diffusionlm.config import UserError, to_plain
from diffusionlm.data.tokenizers import BytePairs, WordTokenizer
from diffusionlm.training.automatic import Facts, automatic, given_names
from diffusionlm.training.run import RunConfig, read_config

TINY_NETWORK = [("model.backbone.width", "16"), ("model.backbone.heads", "2"), ("model.dimension", "8")]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "texts.txt"
    path.write_text("\n".join(restaurant_texts(400, "train")))
    return path


def chosen(corpus: Path, *assignments: tuple[str, str], folder: Path | None = None, **more: Any) -> RunConfig:
    given = [("data.corpus", str(corpus)), *assignments]
    return automatic(read_config((), given), given_names((), given), folder=folder, **more)


def backbone(config: RunConfig) -> dict[str, Any]:
    found: dict[str, Any] = to_plain(config)["model"]["backbone"]
    return found


def test_everything_that_is_not_given_is_chosen_and_said(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = chosen(corpus)
    printed = capsys.readouterr().err
    steps = config.training.steps
    assert 9 < steps * config.training.batch_tokens / (400 * 22) < 22  # ten times the corpus, but not below 200 steps
    assert f"training.steps: {steps} (10 times" in printed
    assert isinstance(config.data.tokenizer, WordTokenizer | BytePairs) and "data.tokenizer: " in printed
    assert config.data.max_length % 16 == 0 and "data.max_length: " in printed
    assert config.training.patience == 3 and "training.patience: 3 (each text is seen" in printed


def test_a_narrow_network_has_little_dropout(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = chosen(corpus)
    assert (backbone(config)["width"], backbone(config)["dropout"]) == (128, 0.1)
    assert "by a narrow network)" in capsys.readouterr().err
    wide = chosen(corpus, ("training.steps", "2000"))
    assert (backbone(wide)["width"], backbone(wide)["dropout"]) == (192, 0.3)


def test_what_is_given_stays(corpus: Path) -> None:
    given = {"data.max_length": "50", "training.steps": "7", "training.patience": "0", "data.tokenizer.name": "words"}
    config = chosen(corpus, *given.items(), *TINY_NETWORK)
    assert (config.data.max_length, config.training.steps, config.training.patience) == (50, 7, 0)
    assert config.data.tokenizer == WordTokenizer()
    assert backbone(config)["width"] == 16


def test_a_config_file_pins_what_it_sets(corpus: Path, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("training: {batch_tokens: 512}\nmodel: {backbone: {name: transformer, width: 16, heads: 2}}\n")
    given = [("data.corpus", str(corpus))]
    config = automatic(read_config([path], given), given_names([path], given))
    assert config.training.batch_tokens == 512 and backbone(config)["name"] == "transformer"
    assert config.training.evaluate_every != RunConfig().training.evaluate_every


def test_minutes_are_measured(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = chosen(corpus, *TINY_NETWORK, ("training.threads", "1"), minutes=1e-6)
    assert config.training.steps == 20
    printed = capsys.readouterr().err
    assert (
        "training.steps: 20 (the fewest of a run, which takes longer: 1e-06 minutes at" in printed and "are 0 steps)" in printed
    )


def test_a_run_that_is_there_keeps_its_choices(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("training: {steps: 123, patience: 5}\ndata: {max_length: 77}\n")
    config = chosen(corpus, ("training.patience", "2"), folder=tmp_path, minutes=30)
    assert (config.training.steps, config.training.patience, config.data.max_length) == (123, 2, 77)


def test_steps_and_minutes_contradict(corpus: Path) -> None:
    with pytest.raises(UserError, match="--minutes: training.steps is set too; give one of the two"):
        chosen(corpus, ("training.steps", "3"), minutes=1)
    with pytest.raises(UserError, match="--minutes: expected a positive number, got 0"):
        chosen(corpus, minutes=0)


def test_without_held_out_texts_nothing_is_said_of_their_words(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chosen(corpus, ("data.corpus.validation_share", "0"))
    printed = capsys.readouterr().err
    assert "different words; no text is held out)" in printed and "words of held-out texts" not in printed


def test_a_place_that_is_none_for_a_run_is_refused_before_the_speed_is_measured(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.py").touch()
    with pytest.raises(UserError, match="expected a new or empty folder, or a run folder, but it holds other files"):
        chosen(corpus, minutes=1e6, folder=tmp_path)
    with pytest.raises(UserError, match=r"notes.py: expected a folder, or a place for a new one, got a file"):
        chosen(corpus, minutes=1e6, folder=tmp_path / "notes.py" / "run")


def test_facts_of_a_sample_are_those_of_the_corpus() -> None:
    facts = Facts.of(["a b c", "a d"], ["a e", "b"], total=20)
    assert facts == Facts(texts=20, words=50, distinct=4, unknown=1 / 3)


def test_many_different_words_become_byte_pairs(tmp_path: Path) -> None:
    path = tmp_path / "texts.txt"
    path.write_text("".join(f"the word{n} is between word{n - 1} and word{n + 1} .\n" for n in range(5000)))
    assert isinstance(chosen(path).data.tokenizer, BytePairs)
