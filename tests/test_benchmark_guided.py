"""benchmarks/guided.py: what is counted, and ratios of paired rounds; the measurements run elsewhere."""

from argparse import Namespace
from pathlib import Path

import guided
import pytest

from diffusionlm import Pipeline
from diffusionlm.controls import read_controls

GOLDEN = Path(__file__).parent / "golden" / "format-1"


def test_every_expression_is_a_control() -> None:
    for expressions in guided.CONTROLS.values():
        for expression in filter(None, expressions):
            assert len(read_controls([expression])) == 1


def test_ratios_are_paired_by_round_and_compared_at_equal_length() -> None:
    plain = guided.Row("none", 8, seconds=[1.0, 2.0, 4.0], positions=[20.0, 20.0, 20.0])
    row = guided.Row("length", 8, seconds=[2.0, 2.0, 12.0], positions=[10.0, 10.0, 10.0])
    assert guided.ratios(row, plain) == (2.0, 4.0)
    assert guided.share([True, False, True, True]) == "75.0 ± 21.7"


def test_a_call_with_controls_has_the_evaluations_of_one_without(monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = Pipeline.from_pretrained(GOLDEN)
    monkeypatch.setitem(guided.CONTROLS, "attribute", ('Attribute("food", "Japanese")',))
    rows = [guided.Row("none", 8), guided.Row("attribute", 8), guided.Row("length", 8)]
    guided.measured(pipeline, rows, Namespace(texts=2, rounds=1))
    none, attribute, length = rows
    assert none.counts == {"evaluations": 8, "backwards": 0, "classifications": 0}
    assert attribute.counts["evaluations"] >= 8 and attribute.counts["classifications"] >= 8  # and the length prior's
    assert length.success == [True, True] and length.positions == [22]
    assert len(guided.table(rows).splitlines()) == 5 and len(none.digests) == 1
