"""Write the restaurant corpus: three files of descriptions drawn from the grammar, the same bytes on every run."""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import random
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from diffusionlm.restaurants.grammar import Description, generate  # noqa: E402

SEED = 2022
SIZES = {"train": 20_000, "validation": 1_000, "test": 1_000}
OPEN_VALUED = ("name", "near")
TEST_SHARE = 20
# Of the first 300 salts, this one gives a test split whose lengths and fields are among the closest to those of train.
SALT = "40"


def combination(description: Description) -> str:
    """Return the closed-valued attributes of a description as one string, whatever their order in the text."""
    pairs = sorted(description.attributes.items())
    return ";".join(f"{field}={value}" for field, value in pairs if field not in OPEN_VALUED)


def is_for_test(description: Description) -> bool:
    """Say whether the combination of a description belongs to the test split, by a hash that never changes."""
    digest = hashlib.sha256(f"{SALT}:{combination(description)}".encode()).digest()
    return int.from_bytes(digest[:8], "big") % TEST_SHARE == 0


def draw_splits(seed: int = SEED) -> dict[str, list[Description]]:
    """Draw the three splits: no text twice, and no combination of test in another split."""
    random_source = random.Random(seed)
    splits: dict[str, list[Description]] = {name: [] for name in SIZES}
    seen: set[str] = set()
    while any(len(splits[name]) < size for name, size in SIZES.items()):
        description = generate(random_source)
        if description.text in seen:
            continue
        seen.add(description.text)
        if is_for_test(description):
            split = "test"
        else:
            split = "validation" if len(splits["validation"]) < SIZES["validation"] else "train"
        if len(splits[split]) < SIZES[split]:
            splits[split].append(description)
    return splits


def write(directory: Path, seed: int = SEED) -> None:
    """Write the splits to a directory; raises OSError where it cannot be written."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, descriptions in draw_splits(seed).items():
        lines = (json.dumps(each.to_dict(), ensure_ascii=False, separators=(",", ":")) for each in descriptions)
        content = "".join(f"{line}\n" for line in lines).encode()
        # A fixed time in the header keeps the bytes the same from run to run.
        (directory / f"{name}.jsonl.gz").write_bytes(gzip.compress(content, compresslevel=9, mtime=0))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--directory", type=Path, default=HERE / "restaurants", help="where to write the three files")
    parser.add_argument("--seed", type=int, default=SEED, help="seed of the random source")
    arguments = parser.parse_args()
    write(arguments.directory, arguments.seed)
