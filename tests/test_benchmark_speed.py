"""benchmarks/speed.py and gpu.py: the published arrangement, ratios, and what is refused; the measurements run elsewhere."""

from pathlib import Path

import gpu
import pytest
import speed
import torch


def test_the_published_arrangement_trains() -> None:
    rows = [[2, 5, 6, 3], [2, *range(4, 9), 3]] * 40
    steps = speed.published(rows, words=10, layers=1, width=32)
    assert sum(next(steps) for _ in range(2)) > 2 * 64 * 3  # real tokens, without padding


def test_the_published_loss_falls_on_a_batch() -> None:
    torch.manual_seed(0)
    model = speed.Published(12, layers=1, width=32)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    ids = torch.randint(12, (8, 16))
    losses = []
    for _ in range(30):
        loss = model(ids)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]


def test_ratios_are_paired_by_round() -> None:
    rows = (
        "published",
        *(f"{kind}, {net} network" for kind in ("ours", "bare", "matrix product") for net in ("own", "published")),
    )
    found = {row: [1.0, 2.0, 4.0] for row in rows} | {"ours, own network": [6.0, 10.0, 28.0]}
    assert speed.ratios(found)["ours / published, own network"] == 6.0
    assert speed.ratios(found)["loop / bare, published network"] == 1.0


def test_utilisation_counts_the_first_estimate() -> None:
    assert gpu.utilisation(10, 100, 7800.0) == pytest.approx(1)
    assert gpu.utilisation(10, 100, None) is None


def test_without_a_gpu_it_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(Exception, match="no CUDA device here"):
        gpu.main(["--out", str(tmp_path / "gpu.json")])
    assert not (tmp_path / "gpu.json").exists()
