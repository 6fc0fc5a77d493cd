"""An adapter is evaluated on its own corpus, as one model of the report, whose base is the model that was named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_adapters import base_and_tuned

from diffusionlm.cli import main


def test_an_adapter_is_evaluated_over_its_base(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, tuned = base_and_tuned(tmp_path, "causal", training={"steps": 2})
    small = ["--count", "3", "--temperatures", "1", "--bound-texts", "2", "--json"]
    command = ["evaluate", str(base), "--adapter", str(tuned), "--judge", str(base)]
    assert main([*command, *small]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert (tuned / "evaluation" / "evaluation.json").exists()
    assert printed["systems"]["tuned"]["folder"] == str(tuned)
    assert main(["evaluate", str(base), str(tuned), "--judge", str(base), "--out", str(tmp_path / "both"), *small]) == 0
    both = json.loads(capsys.readouterr().out)
    assert both["systems"]["tuned"]["fingerprint"] == printed["systems"]["tuned"]["fingerprint"]
    rows = [[row for row in report["rows"] if row["system"] == "tuned"] for report in (printed, both)]
    assert rows[0][0]["judge_perplexity"] == rows[1][0]["judge_perplexity"]
    assert main(["evaluate", str(base), str(tuned), *command[2:], *small]) == 2
    assert "adapter: expected one model, its base, got 2" in capsys.readouterr().err
