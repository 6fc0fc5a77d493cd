"""Model cards: what a run writes, what a later call replaces and keeps, and what a card does not tell."""

import json
from pathlib import Path

import pytest
import yaml
from tiny_runs import ROOT, tiny_config

from diffusionlm.data.corpora import Hub
from diffusionlm.files import read_text
from diffusionlm.models.card import CARD, current_card, is_edited, portable, write_card
from diffusionlm.models.io import fingerprint
from diffusionlm.restaurants.corpus import Restaurants
from diffusionlm.training.run import train


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the run of a tiny model."""
    home = tmp_path_factory.mktemp("secret")
    train(tiny_config(home), home / "run", quiet=True)
    return home / "run"


def front(card: str) -> dict[str, object]:
    plain: dict[str, object] = yaml.safe_load(card.split("---\n")[1])
    return plain


def test_a_run_ends_with_a_card_that_tells_the_model_its_data_and_its_training(trained: Path) -> None:
    card = read_text(trained / "model" / CARD)
    assert front(card) == {
        "license": "unknown",
        "library_name": "diffusionlm",
        "pipeline_tag": "text-generation",
        "tags": ["diffusionlm", "text-diffusion"],
    }
    log = [json.loads(line) for line in read_text(trained / "log.jsonl").splitlines()]
    loss = min(row["eval_loss"] for row in log if "eval_loss" in row)
    for fact in (
        "train `texts.txt`",
        "training texts: 189\n",
        "steps: 8\n",
        f"validation loss: {loss:.4f}",
        "model: `diffusion`",
    ):
        assert fact in card
    samples = read_text(trained / "samples" / "step-8.txt").splitlines()
    assert "\n".join(["```text", *samples[:5], "```"]) in card and samples[5] not in card
    assert "secret" not in card and 'Pipeline.from_pretrained("MODEL")' in card and not is_edited(card)


def test_a_card_is_made_again_until_it_is_edited(trained: Path) -> None:
    model = trained / "model"
    card = read_text(model / CARD)
    named = current_card(model, "user/model")
    assert 'Pipeline.from_pretrained("user/model")' in named and "`MODEL`" not in named and "\n# user/model\n" in named
    licensed = card.replace("license: unknown", "license: apache-2.0")
    edited = card.replace("## Limits", "## Known limits")
    try:
        for text, kept in (
            (edited, True),
            ("My own words.\n", True),
            (licensed, False),
            (card[: card.index("## Limits")], True),
        ):
            (model / CARD).write_text(text)
            assert is_edited(text) == kept
            assert (current_card(model, "user/model") == text) == kept
        (model / CARD).write_text(licensed)
        assert current_card(model, "user/model") == named.replace("license: unknown", "license: apache-2.0")
    finally:
        (model / CARD).unlink()
        write_card(model)
    assert read_text(model / CARD) == card


def test_a_card_has_the_newest_figures_of_these_weights(trained: Path) -> None:
    def evaluation(name: str, table: str, model: str) -> None:
        (trained / name).mkdir(exist_ok=True)
        plain = {"systems": {"run": {"fingerprint": model}, "reference text": {}}}
        (trained / name / "evaluation.json").write_text(json.dumps(plain))
        (trained / name / "table.txt").write_text(table)

    own = fingerprint(trained / "model")
    assert "## Evaluation" not in current_card(trained / "model")
    evaluation("first", "judge-ppl 11.1\n", own)
    evaluation("second", "judge LM /home/me/runs/judge, runs/own; 2/3\n", own)
    evaluation("third", "judge-ppl 33.3\n", "another model")
    (trained / "third" / "control.json").write_text("damaged")
    card = current_card(trained / "model")
    assert (
        "## Evaluation\n\n```text\njudge LM judge, runs/own; 2/3\n```\n" in card and "11.1" not in card and "33.3" not in card
    )


def test_a_sample_with_backticks_stays_a_sample(trained: Path) -> None:
    (trained / "samples" / "step-9.txt").write_text("```python\n<script>\n````\n")
    assert "`````text\n```python\n<script>\n````\n`````\n" in current_card(trained / "model")


def test_a_folder_without_a_run_has_a_card_too(tmp_path: Path) -> None:
    card = current_card(ROOT / "tests" / "golden" / "format-1", "user/model")
    assert "# user/model" in card and "## Training" not in card and "## Samples" not in card and not is_edited(card)


def test_corpora_tell_their_language_and_their_name_on_the_hub(tmp_path: Path) -> None:
    assert Restaurants.language == "en" and Hub.language is None
    assert Hub("user/texts").dataset == "user/texts" and Hub(str(tmp_path)).dataset is None and Restaurants().dataset is None


def test_paths_of_this_machine_become_names(tmp_path: Path) -> None:
    plain = {"train": str(tmp_path / "texts.txt"), "labels": ["/r/python", "a/b"], "count": 3, "denoiser": str(tmp_path)}
    assert portable(plain) == {"train": "texts.txt", "labels": ["/r/python", "a/b"], "count": 3, "denoiser": tmp_path.name}
