"""Labels of systems in tables: a function in the settings has its name alone, where that keeps the labels distinct."""

from __future__ import annotations

from diffusionlm.evaluation.jobs import named_functions
from diffusionlm.evaluation.reference_report import ReferenceReport


def test_a_function_is_named_without_its_module() -> None:
    label = "run (candidates 4, ranking function, ranking.function my.package.module:best, cfg 2)"
    assert named_functions(label) == "run (candidates 4, ranking function, ranking.function best, cfg 2)"
    assert named_functions("run (ranking.then.function a:Scores.of)") == "run (ranking.then.function Scores.of)"
    plain = "function: run (sampler my.module:Thing, ranking function)"
    assert named_functions(plain) == plain


def test_labels_that_differ_in_the_module_alone_stay_complete() -> None:
    labels = [f"run (ranking.function {path})" for path in ("a.b:best", "c:best", "c:worst")]
    systems = {label: {"family": "texts", "folder": label} for label in labels}
    lines = ReferenceReport({}, systems).table("title", [dict.fromkeys(labels, "1")], [], [f"  {labels[2]}: 3"]).splitlines()
    assert lines[2].split("  ") == [labels[0], labels[1], "run (ranking.function worst)"]
    assert "  run (ranking.function worst): 3" in lines
    assert [f"  {label} ({label}): texts" for label in labels] == lines[-3:]
