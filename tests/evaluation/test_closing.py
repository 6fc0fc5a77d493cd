"""The end of a run that fits itself to a corpus: what samples are compared with, and what is advised."""

from pathlib import Path

import pytest
from tiny_runs import restaurant_texts, tiny_config, tiny_plain

from diffusionlm.cli import main
from diffusionlm.evaluation import closing
from diffusionlm.evaluation.text_metrics import unigram_entropy
from diffusionlm.pipelines.auto import open_pipeline
from diffusionlm.training.optimizers import has_bf16
from diffusionlm.training.run import flat, train


def closed(folder: Path, texts: list[str], **changes: object) -> None:
    (folder / "texts.txt").write_text("\n".join(texts))
    config = tiny_config(folder, training={"steps": 1, "sample_every": 100}, **changes)
    assert train(config, folder / "run", write_samples=False, quiet=True)
    closing.close(folder / "run", fit_temperature=True)


def test_training_texts_take_the_place_of_too_few_held_out_texts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = restaurant_texts(3)
    closed(tmp_path, texts, data={"corpus": {"validation_share": 0.0}})
    printed = capsys.readouterr().err
    assert "0 texts are held out, too few to compare samples with; training texts take their place" in printed
    assert f"nearest to the entropy of training texts, {unigram_entropy(texts):.2f} nats" in printed
    assert "3 consecutive, unfiltered samples of one seed, beside as many training texts" in printed
    assert "held-out" not in printed.replace("too few", "") and "\n  training " in printed


def test_samples_are_compared_with_as_many_held_out_texts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    held_out = restaurant_texts(6, "validation")
    (tmp_path / "held.txt").write_text("\n".join(held_out))
    closed(tmp_path, restaurant_texts(40, "train"), data={"corpus": {"validation": str(tmp_path / "held.txt")}})
    printed = capsys.readouterr().err
    assert f"nearest to the entropy of held-out texts, {unigram_entropy(held_out):.2f} nats" in printed
    assert "6 consecutive, unfiltered samples of one seed, beside as many held-out texts" in printed


def test_samples_of_a_conditional_model_have_the_conditions_of_the_texts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts, topics = restaurant_texts(30, "train"), [f"topic {n % 3}" for n in range(30)]
    path = tmp_path / "pairs.csv"
    path.write_text("text,topic\n" + "".join(f'"{text}",{topic}\n' for text, topic in zip(texts, topics, strict=True)))
    corpus = {"name": "files", "train": str(path), "validation": str(path)}
    closed(tmp_path, texts, data={"corpus": corpus, "source": "topic"})
    pipeline = open_pipeline(tmp_path / "run", dtype="bf16" if has_bf16() else "fp32")
    expected = [row.text for row in pipeline.stream(1, source=topics)]
    assert capsys.readouterr().out.splitlines() == expected[: closing.SHOWN]


def test_an_interrupted_end_is_made_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = flat(tiny_plain(tmp_path, training={"steps": 1, "sample_every": 100}))
    words = ["train", *(word for name, value in settings.items() for word in (f"--{name}", str(value)))]

    def ended(name: str) -> tuple[int, str, str]:
        status = main([*words, "--out", str(tmp_path / name)])
        return status, capsys.readouterr().out, (tmp_path / name / "model" / "sampling.json").read_text()

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(closing, "_figures", interrupted)
        assert ended("run")[0] == 130
    again, other = ended("run"), ended("other")
    assert again == other and again[0] == 0 and again[1].count("\n") == closing.SHOWN
    assert ended("run") == (0, "", again[2])  # once only


def test_a_causal_model_is_advised_what_it_can_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    closed(tmp_path, restaurant_texts(10), model={"name": "causal"}, objective={"name": "causal"})
    printed = capsys.readouterr().err
    assert "diffusionlm evaluate" in printed and "distill" not in printed and "--control" not in printed
