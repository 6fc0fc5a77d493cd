"""Mutations of model folders, corpora, configs and control requests, drawn by ``hypothesis``, for ``faults.py``."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import yaml
from hypothesis import strategies as st
from measure import ROOT

MODEL = ROOT / "tests" / "golden" / "format-1"
VALUES: list[Any] = [
    None, True, [], {}, "", "null", "evil.Evil", "evil:Evil", "../../x", "/etc/passwd", "\x00", "\ud83d", "é" * 3000, 0, -1, 1,
    2, 3.5, 10**9, 10**30, 1e400, float("nan"), [1, 2], {"a": 1}, {"name": "evil:Evil"}, {"name": "ddim", "eta": 5}, [[[]]],
]  # fmt: skip
BYTES = [b"\x00", b"\xef\xbb\xbf", b"\xff", b"\n", b"\r", b'"', b"{", b",", b"\xe2\x80\xa8"]
ENCODINGS = ["utf-8", "utf-8", "utf-16", "utf-16-le", "latin-1", "utf-8-sig"]
EVIL = "import pathlib\nclass Evil:\n    def __init__(self, *a, **k): pass\npathlib.Path('{}').touch()\n"
TINY: dict[str, Any] = {
    "data": {"max_length": 32},
    "model": {"dimension": 8, "backbone": {"name": "transformer", "layers": 1, "width": 16, "heads": 2}},
    "training": {
        "steps": 1, "batch_tokens": 256, "threads": 1, "precision": "fp32", "log_every": 1, "evaluate_every": 1,
        "evaluation_texts": 2, "sample_every": 1, "save_every": 1,
    },
    "sampling": {"steps": 2, "passes": 1, "sweeps": 0},
}  # fmt: skip
TEXTS = ["The food is good .", "A cheap pub near the bridge .", "The staff are friendly , and the soup is warm ."] * 20


def mutated_bytes(draw: Any, content: bytes) -> bytes:
    """Return ``content`` with bits flipped, cut, repeated, or with bytes put in."""
    kind = draw(st.sampled_from(["flip", "cut", "insert", "repeat", "replace", "empty"]))
    place = draw(st.integers(0, max(len(content) - 1, 0)))
    match kind:
        case "flip":
            found = bytearray(content)
            for _ in range(draw(st.integers(1, 8)) if content else 0):
                found[draw(st.integers(0, len(content) - 1))] ^= 1 << draw(st.integers(0, 7))
            return bytes(found)
        case "cut":
            return content[:place]
        case "insert":
            return (
                content[:place]
                + draw(st.sampled_from([b"\x00", b"\xef\xbb\xbf", b"\xff", b"\n", b'"', b"{", b",", b"\xe2\x80\xa8"]))
                + content[place:]
            )
        case "repeat":
            return content + content[place:]
        case "replace":
            return draw(st.binary(max_size=64))
    return b""


def mutated_plain(draw: Any, plain: Any) -> Any:
    """Return plain data with a value replaced, removed or added at a random place."""
    if isinstance(plain, dict) and plain and draw(st.booleans() if len(plain) < 3 else st.integers(0, 4)):
        key = draw(st.sampled_from(sorted(plain)))
        if draw(st.integers(0, 5)) == 0:
            return {k: v for k, v in plain.items() if k != key}
        return {**plain, key: mutated_plain(draw, plain[key])}
    if isinstance(plain, list) and plain and draw(st.booleans()):
        place = draw(st.integers(0, min(len(plain), 50) - 1))
        return [*plain[:place], mutated_plain(draw, plain[place]), *plain[place + 1 :]]
    if isinstance(plain, dict) and draw(st.booleans()):
        names = ["auto_map", "tokenizer_class", "_attn_implementation", "quantization_config", "torch_dtype", "added", "name"]
        return {**plain, draw(st.sampled_from(names)): draw(st.sampled_from(VALUES))}
    return draw(st.sampled_from(VALUES))


def mutate_file(draw: Any, path: Path) -> None:
    """Mutate a file in place: its bytes, or if it is JSON, its values."""
    if path.suffix == ".json" and draw(st.integers(0, 3)):
        path.write_text(json.dumps(mutated_plain(draw, json.loads(path.read_text(encoding="utf-8")))), encoding="utf-8")
    else:
        path.write_bytes(mutated_bytes(draw, path.read_bytes()))


def folders(draw: Any, folder: Path) -> list[str]:
    """Return the arguments of a trial: a sample from a mutated model folder."""
    model = folder / "model"
    shutil.copytree(MODEL, model)
    for name in ("evil.py", "modeling_evil.py"):
        (model / name).write_text(EVIL.format(folder / "evil-was-run"), encoding="utf-8")
    files = sorted(path for path in model.rglob("*") if path.is_file() and path.suffix != ".py")
    for path in draw(st.lists(st.sampled_from(files), min_size=1, max_size=2, unique=True)):
        if draw(st.integers(0, 15)) == 0:
            path.unlink()
        else:
            mutate_file(draw, path)
    asked = draw(st.sampled_from([[], ["--control", "food=Thai"], ["--control", "Length(8)"], ["--candidates", "2"]]))
    return ["generate", str(model), "--count", "1", "--steps", "2", *asked]


def corpora(draw: Any, folder: Path) -> list[str]:
    """Return the arguments of a trial: a training step on a mutated file of texts."""
    kind = draw(st.sampled_from(["txt", "jsonl", "csv", "CSV", "tsv", "json", "txt.gz", "parquet"]))
    rows = [{"text": text, "label": str(i % 2)} for i, text in enumerate(TEXTS)]
    content = {
        "jsonl": "".join(json.dumps(row) + "\n" for row in rows),
        "json": "".join(json.dumps(row) + "\n" for row in rows),
        "csv": "text,label\n" + "".join(f'"{row["text"]}",{row["label"]}\n' for row in rows),
        "tsv": "text\tlabel\n" + "".join(f"{row['text']}\t{row['label']}\n" for row in rows),
    }.get(kind.lower(), "\n".join(TEXTS))
    encoded = content.encode(
        draw(st.sampled_from(["utf-8", "utf-8", "utf-16", "utf-16-le", "latin-1", "utf-8-sig"])), "replace"
    )
    for _ in range(draw(st.integers(0, 3))):
        encoded = mutated_bytes(draw, encoded)
    (folder / f"texts.{kind}").write_bytes(encoded)
    (folder / "tiny.yaml").write_text(yaml.safe_dump(TINY), encoding="utf-8")
    return ["train", "--config", str(folder / "tiny.yaml"), "--out", str(folder / "run"),
            "--data.corpus", str(folder / f"texts.{kind}")]  # fmt: skip


def configs(draw: Any, folder: Path) -> list[str]:
    """Return the arguments of a trial: a training step with a mutated config."""
    (folder / "texts.txt").write_text("\n".join(TEXTS), encoding="utf-8")
    plain: Any = {**TINY, "data": {**TINY["data"], "corpus": str(folder / "texts.txt")}}
    for _ in range(draw(st.integers(1, 2))):
        plain = mutated_plain(draw, plain)
    text = yaml.safe_dump(plain, allow_unicode=True, sort_keys=False).encode("utf-8", "surrogatepass")
    if draw(st.integers(0, 3)) == 0:
        text = mutated_bytes(draw, text)
    (folder / "config.yaml").write_bytes(text)
    sizes = ["--training.steps", "1", "--data.corpus", str(folder / "texts.txt")]  # the defaults would take minutes
    return ["train", "--config", str(folder / "config.yaml"), "--out", str(folder / "run"), *sizes]


REQUESTS = [
    "food=Thai", "length=8", "Length(8, 12)", 'Words("cheap") & ~Words("pub")', 'Infill("The {} is {2} .")', "2 * Length(3)",
    'Pattern("The . (a|an)? .{2,5} pub .*")', 'PartsOfSpeech("DET NOUN ... PUNCT")', 'Attribute("food", "Thai") | Length(9)',
    'Span(0, 2, "NP")', 'Tree("(S (NP (DET The) (NOUN pub)) (VP (AUX is) (ADJ cheap)) (PUNCT .))")', 'Reward("os:system")',
    'Classifier("positive", "no-such-folder")', 'Prefix("The pub")',
]  # fmt: skip
PIECES = [
    "(", ")", "{", "}", "|", "&", "~", "*", '"', "\\", ",", "=", "1000000000", "-1", "lambda: 0", "__import__('os')", "é",
    "\x00", "...",
]  # fmt: skip


def requests(draw: Any, folder: Path) -> list[str]:
    """Return the arguments of a trial: a sample with a mutated control, and another setting."""
    text = draw(st.sampled_from(REQUESTS))
    for _ in range(draw(st.integers(0, 3))):
        place, end = sorted(draw(st.tuples(st.integers(0, len(text)), st.integers(0, len(text)))))
        kind = draw(st.sampled_from(["insert", "remove", "repeat", "join"]))
        text = {
            "insert": text[:place] + draw(st.sampled_from(PIECES)) + text[place:],
            "remove": text[:place] + text[end:],
            "repeat": text[:end] + text[place:],
            "join": text + draw(st.sampled_from([" & ", " | ", " & ~"])) + draw(st.sampled_from(REQUESTS)),
        }[kind]
    more = draw(st.sampled_from([[], ["--length", "9"], ["--particles", "2"], ["--ensure", "2"], ["--temperature", "nan"],
                                 ["--sampler.eta", "1e400"], ["--guidance.draft", "null"]]))  # fmt: skip
    return ["generate", str(MODEL), "--count", "1", "--steps", "2", "--control", text, *more]


MUTATIONS = {"folders": folders, "corpora": corpora, "configs": configs, "requests": requests}
