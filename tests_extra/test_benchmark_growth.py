"""benchmarks/growth.py: power laws with known exponents, walls, refusals, and a small measurement that is not repeated."""

from __future__ import annotations

import json
import math
from pathlib import Path

import growth
import growth_report as laws
import pytest

from diffusionlm.config import UserError


def test_the_exponent_of_an_exact_power_law_is_found_above_its_floor() -> None:
    sizes = [10.0, 20.0, 40.0, 80.0, 160.0]
    law = laws.power_law([(n, 3 * n**1.5) for n in sizes])
    assert law is not None and law.exponent == pytest.approx(1.5) and law.error == pytest.approx(0, abs=1e-6)
    assert law.at(1000) == pytest.approx(3 * 1000**1.5) and law.reaches(law.at(777)) == pytest.approx(777)
    above = laws.power_law([(1.0, 9.0), *((n, 9 + 2 * n) for n in sizes)], above=True)
    assert above is not None and above.exponent == pytest.approx(1) and above.at(50) == pytest.approx(109)
    assert above.reaches(8) is None  # it is above that at every size


def test_only_the_upper_part_is_fitted() -> None:
    points = [(n, 100.0) for n in (1.0, 2.0, 4.0)] + [(n, n**2) for n in (10.0, 100.0, 1000.0)]
    law = laws.power_law(points)
    assert law is not None and law.exponent == pytest.approx(2)
    assert laws.power_law(points, least=100.0).exponent == pytest.approx(2)  # type: ignore[union-attr]
    assert laws.power_law(points, least=1000.0) is None
    assert laws.power_law([(1.0, 5.0)]) is None and laws.power_law([(1.0, 5.0), (2.0, 5.0)], above=True) is None


def test_the_error_of_the_exponent_is_that_of_least_squares() -> None:
    law = laws.power_law([(1.0, 1.0), (2.718281828459045, 4.0), (7.38905609893065, 1.0)])  # slope 0, residuals in logarithms
    assert law is not None and law.exponent == pytest.approx(0, abs=1e-9)
    left = ((2 / 3) ** 2 * 6) * math.log(2) ** 2  # squares of y - mean: 2 (2/3)^2 + (4/3)^2, in logarithms of 2
    assert law.error == pytest.approx(math.sqrt(left / 1 / 2))  # one degree of freedom; squares of x - mean: 2
    assert laws.exponent_of(laws.PowerLaw(1, 0.5, None)) == "0.50" and laws.exponent_of(None) == "-"


def test_a_wall_is_interpolated_where_it_was_passed_and_else_extrapolated() -> None:
    points = [(n, 0.01 * n) for n in (10.0, 20.0, 40.0, 200.0)]
    law = laws.power_law(points)
    passed = laws.wall(laws.STEP, "a step", points, 1.0, law)
    assert passed.size == pytest.approx(100) and passed.measured
    assert laws.wall(laws.STEP, "a step", points, 20.0, law).size == pytest.approx(2000)
    assert not laws.wall(laws.STEP, "a step", points, 20.0, law).measured
    assert laws.wall(laws.STEP, "a step", points, 1e6, law).size is None  # farther than a thousand times the largest size
    assert laws.wall(laws.STEP, "a step", [(10.0, 5.0)], 1.0, None).size == 10
    assert laws.described(laws.Wall(laws.MEMORY, "peak memory", 23.5, 2048.0)) == (
        "peak memory above 23.5 GB, from 2,048 on (extrapolated)"
    )


def test_an_extrapolated_wall_has_the_sizes_within_a_standard_error() -> None:
    points = [(10.0, 1.0), (100.0, 12.0), (1000.0, 100.0)]
    law = laws.power_law(points)
    assert law is not None and law.error
    centre = 100.0  # the geometric mean of the sizes, where all of them agree
    for change in (-0.1, 0.3):
        assert law.turned(change).at(centre) == pytest.approx(law.at(centre))
        assert law.turned(change).exponent == pytest.approx(law.exponent + change)
    found = laws.wall(laws.MEMORY, "peak memory", points, 1e4, law)
    assert found.size and found.error and found.error[0] and found.error[1]
    assert found.error[0] < found.size < found.error[1]
    assert "within one standard error of the exponent" in laws.described(found)


def measurement(panel: str, size: int) -> laws.Point:
    train = {"parameters": size, "per token": 1e-4 * size, "per second": 1e4 / size, "step": 0.1 * size, "peak": 1 + size / 10}
    start = {f"{name} {key}": 1.0 + size / 1e4 for name in ("first", "second") for key in ("cpu", "resident")}
    sample = {"per evaluation": 1e-3 * size, "peak": 1 + size / 20}
    return laws.Point(size, {"train": train, "sample": sample, "start": start, "generate": {"per text": 1, "cpu per text": 2}})


def test_a_report_names_the_first_wall_and_extrapolates_the_corpus_alone() -> None:
    points = {panel: [measurement(panel, size) for size in each.sizes] for panel, each in laws.PANELS.items()}
    points["length"] = [measurement("length", size) for size in (2, 4, 8, 16)]
    report = json.loads(json.dumps(laws.report_of(points, laws.Limits(memory=10.0))))
    first, *_ = laws.sentences(report)
    assert first.startswith(
        "length: the first wall is a training step longer than 1 s, from 10 on (measured). Then: peak memory"
    )
    series = {panel: each["series"] for panel, each in report["panels"].items()}
    assert [one["size"] for one in series["corpus"]["first start"]["extrapolated"]] == [10**8, 10**9]
    assert all(not one["extrapolated"] for panel in ("length", "processes") for one in series[panel].values())
    assert "1G (extrapolated)" in laws.table(points)
    points["corpus"].pop()
    assert "extrapolated" not in laws.table(points)  # the largest corpus was not measured


def test_a_measurement_is_made_once_and_continued(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["--only", "parameters", "--largest", "parameters=1000000", "--results", str(tmp_path)]
    assert growth.main(command) == 0
    path = tmp_path / "growth" / "points" / "parameters-train-1000000.json"
    found, before = json.loads(path.read_text()), path.stat().st_mtime_ns
    assert found["per token"] > 0 and found["peak"] > 0.1 and found["tokens"] > 500 and found["steps"] >= 2
    assert (tmp_path / "growth" / "growth.png").read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert growth.main(command) == 0
    assert path.stat().st_mtime_ns == before and capsys.readouterr().out == printed
    report = json.loads((tmp_path / "growth" / "growth.json").read_text())
    (point,) = report["panels"]["parameters"]["measurements"]
    assert point["train"]["per token"] == found["per token"] and report["machine"]["processor"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--only", "lenght"], "--only, --largest: there is no panel 'lenght'; did you mean 'length'?"),
        (
            ["--only", "length", "--largest", "corpus=10"],
            "--largest: corpus is not measured, so its largest size has no effect",
        ),
        (["--largest", "length=16"], "--largest: expected length=32 or more, got 16"),
        (["--largest", "length:16"], "--largest: expected a panel and its largest size such as length=256, got 'length:16'"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    more: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert growth.main([*more, "--results", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err and list(tmp_path.iterdir()) == []


def test_a_measurement_that_fails_is_named() -> None:
    with pytest.raises(UserError, match="parameters, train at 2: KeyError: 2"):
        growth.in_child("parameters", "train", 2)
