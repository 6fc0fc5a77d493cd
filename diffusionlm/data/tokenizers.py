"""Tokenizers: lossless conversion of text to token ids, as ``transformers`` tokenizers.

Our recipes share one pre-tokenisation. White space is normalised (NFC, single blanks, none at the ends), and a blank becomes
the mark ``▁`` at the start of the next token: ``It's £20-25.`` is ``▁It 's ▁£20-25 .``. Decoding joins the tokens and replaces
the marks by blanks, which is exact.

A word is a maximal run of letters, digits and ``£ $ €`` with inner ``-`` and ``&`` (``5-star``, ``B&B``) and with points and
commas between digits (``1,000.50``). Clitics (``'s``, ``n't``) and punctuation marks are separate words.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, cast

import pyarrow  # type: ignore[import-untyped]
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from tqdm import tqdm
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from diffusionlm.config import Component, UserError, to_plain
from diffusionlm.data.folders import damage_errors, is_folder, load_folder
from diffusionlm.data.rows import Texts, word_counts
from diffusionlm.data.store import stored
from diffusionlm.progress import intervals

PAD, UNKNOWN, START, END = "[PAD]", "[UNK]", "[START]", "[END]"
SPECIAL_TOKENS = [PAD, UNKNOWN, START, END]
BLANK = "▁"
TOKENIZER = "tokenizer.json"
SOURCES = "source_tokenizer"  # of a tokenizer and of a model folder: where the tokenizer of its sources is
LONG_WORD = re.compile(r"\w{4000}(?=\w)")  # cut where byte pairs are learned: the time grows with the square of a word's length
RARE = "☃ꙮ𒀀"  # characters that hardly a vocabulary has

_LETTER = r"[\p{L}\p{M}\p{N}£$€]"
_NEGATION = rf"(?i:n[’']t)(?!{_LETTER})"
_CLITIC = rf"[’'](?i:s|m|d|re|ve|ll)(?!{_LETTER})"
_WORD = rf"(?:(?!{_NEGATION}){_LETTER}|(?<={_LETTER})[-&](?={_LETTER})|(?<=\p{{N}})[.,](?=\p{{N}}))+"
_TOKEN = rf"{BLANK}?(?:{_WORD}|{_NEGATION}|{_CLITIC}|[^{BLANK}])"


class TokenizerRecipe(Component, family="tokenizer"):
    """Base of the tokenizer recipes."""

    def make(self, texts: Iterable[str], max_length: int = 64) -> PreTrainedTokenizerFast:
        """Return a tokenizer that adds BOS and EOS and stores ``max_length``. Raises UserError where that is not possible."""
        raise NotImplementedError


@dataclass(frozen=True)
class WordTokenizer(TokenizerRecipe, name="words"):
    """Word-level: each word that occurs ``min_count`` times in the training texts is a token, others are ``[UNK]``."""

    min_count: int = 1

    def __post_init__(self) -> None:
        if self.min_count < 1:
            raise UserError(f"min_count: expected 1 or more, got {self.min_count}")

    def make(self, texts: Iterable[str], max_length: int = 64) -> PreTrainedTokenizerFast:
        """Count the words of ``texts``; ids are sorted by count, then by text. Raises UserError where none is left."""
        trainer = trainers.WordLevelTrainer(
            vocab_size=2**31, min_frequency=self.min_count, special_tokens=SPECIAL_TOKENS, show_progress=False
        )
        nothing = f"tokenizer.min_count: the training texts hold no word {self.min_count} times or more"
        return _trained(self, models.WordLevel(unk_token=UNKNOWN), trainer, texts, max_length, nothing)


@dataclass(frozen=True)
class BytePairs(TokenizerRecipe, name="bpe"):
    """Byte-pair encoding inside words (Sennrich et al. 2016), merged until there are ``vocab_size`` tokens.

    The alphabet is that of the training texts, even if it is larger than ``vocab_size``; other characters are [UNK]. Merges are
    learned from words of at most 4,000 characters, into which longer ones are cut.
    """

    vocab_size: int = 8000

    def __post_init__(self) -> None:
        if self.vocab_size < 1:
            raise UserError(f"vocab_size: expected 1 or more, got {self.vocab_size}")

    def make(self, texts: Iterable[str], max_length: int = 64) -> PreTrainedTokenizerFast:
        """Learn the merges from ``texts``. Raises UserError where they hold no character."""
        trainer = trainers.BpeTrainer(vocab_size=self.vocab_size, special_tokens=SPECIAL_TOKENS, show_progress=False)
        nothing = "tokenizer: there is no training text to learn byte pairs from"
        return _trained(self, models.BPE(unk_token=UNKNOWN), trainer, texts, max_length, nothing)


@dataclass(frozen=True)
class Pretrained(TokenizerRecipe, name="pretrained"):
    """The tokenizer saved in the folder or hub repository ``path``.

    A missing BOS, EOS or pad token is replaced by the classifier or separator token, or added; so is one that is another one,
    such as an EOS that is the BOS too: a text would end where it begins.
    """

    path: str

    def make(self, texts: Iterable[str], max_length: int = 64) -> PreTrainedTokenizerFast:
        """Load it; ``texts`` are not read. Raises UserError where that fails or it has no ``tokenizers`` form."""
        loaded = load_tokenizer(Path(self.path)) if is_folder(self.path) else _download(self.path)
        check_ids(loaded, self.path)
        start, end = loaded.bos_token or loaded.cls_token or START, loaded.eos_token or loaded.sep_token or END
        pad, unknown = loaded.pad_token or PAD, loaded.unk_token
        pad, end = PAD if pad in (start, end, unknown) else pad, END if end == start else end  # a token for each
        if unknown in (start, loaded.eos_token, loaded.sep_token):
            rare = {i for character in RARE for i in loaded(character, add_special_tokens=False)["input_ids"]}
            if loaded.unk_token_id in rare:
                raise UserError(f"{self.path}: {unknown!r} stands for unknown characters and for the end; give each a token")
            unknown = None
        return finish(loaded.backend_tokenizer, max_length, pad, unknown, start, end)


def _download(name: str) -> PreTrainedTokenizerFast:
    """Return the tokenizer of a repository that the user named, from the hub or its cache."""
    if not re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", name):  # as repositories are called
        raise UserError(f"tokenizer.path: there is no folder {name!r}")
    with damage_errors(name, "there is no such folder, and no tokenizer of this name can be downloaded"):
        loaded = AutoTokenizer.from_pretrained(name, local_files_only=False, trust_remote_code=False)
    return _checked(loaded, name)


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """Read a tokenizer from a local folder. Raises UserError where it is missing or damaged, or loses characters."""
    damaged = "the tokenizer is missing or damaged"
    loaded = load_folder(AutoTokenizer, folder, damaged)
    kinds = {kind: name for kind, name in getattr(loaded, "vocab_files_names", {}).items() if kind != "tokenizer_file"}
    if not (folder / "tokenizer.json").is_file():  # transformers takes an empty vocabulary for a file that is not there
        for name in kinds.values() or ["tokenizer.json"]:
            if not (folder / name).is_file():
                raise UserError(f"{folder}: {damaged}: expected tokenizer.json, or {name}")
    return _checked(loaded, folder)


def _checked(tokenizer: Any, where: str | Path) -> PreTrainedTokenizerFast:
    """Return ``tokenizer``. Raises UserError where it has no ``tokenizers`` form, no tokens, or loses characters."""
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise UserError(f"{where}: expected a fast tokenizer with a tokenizer.json, got a {type(tokenizer).__name__}")
    if not {*tokenizer.get_vocab()} - {*tokenizer.all_special_tokens}:
        raise UserError(f"{where}: the tokenizer has no tokens but the special ones")
    with damage_errors(where, "the special tokens are damaged"):
        special = [tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id]
    if not all(isinstance(i, int | None) for i in special):
        raise UserError(f"{where}: expected an id for each special token, got {special}")
    longest = tokenizer.model_max_length
    if not isinstance(longest, int | float) or longest < 1:
        raise UserError(f"{where}: model_max_length: expected a number of tokens, got {longest!r}")
    for character in RARE:
        with damage_errors(where, f"the tokenizer fails at characters it does not know, such as {character!r}"):
            ids = tokenizer(character, add_special_tokens=False)["input_ids"]
        if not ids:
            raise UserError(
                f"{where}: the tokenizer drops characters that it does not know, such as {character!r}, and likelihoods would "
                "not count them; it needs an unknown token, or all bytes"
            )
    return tokenizer


def check_ids(tokenizer: PreTrainedTokenizerFast, where: str | Path) -> None:
    """Raise UserError where the ids of the tokens are not 0, 1, 2, ... without a hole: a model has a vector for each."""
    ids = sorted(tokenizer.get_vocab().values())
    if ids != list(range(len(ids))):
        wrong = next((i for i, found in enumerate(ids) if i != found), len(ids))
        raise UserError(f"{where}: expected the ids 0 to {len(ids) - 1}, each of one token, but {wrong} is of none or several")


def join_sources(tokenizer: PreTrainedTokenizerFast, sources: PreTrainedTokenizerFast) -> None:
    """Give the ``tokenizer`` of a model's texts that of its ``sources``, which are read by another.

    One object then has the words of both sides, as transformers' MarianTokenizer has for two languages, and whatever receives
    the tokenizer of a model reads its sources, too. Saved folders are of one tokenizer each.
    """
    setattr(cast(Any, tokenizer), SOURCES, sources)


def of_sources(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast | None:
    """Return the tokenizer that ``join_sources`` gave a ``tokenizer``; None where sources are read by the same as texts."""
    return cast("PreTrainedTokenizerFast | None", getattr(tokenizer, SOURCES, None))


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write a tokenizer's files, and in the folder ``SOURCES`` those of the tokenizer of its sources if they have their own."""
    tokenizer.save_pretrained(folder)
    if (sources := of_sources(tokenizer)) is not None:
        sources.save_pretrained(folder / SOURCES)


def tokenizer_digest(tokenizer: PreTrainedTokenizerFast) -> str:
    """Return the SHA-256 of what decides which ids a text becomes."""
    return hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest()


def split_words(text: str) -> list[str]:
    """Return the words of ``text`` in the pre-tokenisation of our recipes."""
    pieces = _OURS.pre_tokenizer.pre_tokenize_str(_OURS.normalizer.normalize_str(text))
    return [word for piece, _ in pieces if (word := piece.replace(BLANK, " ").strip())]


def decode_texts(tokenizer: PreTrainedTokenizerFast, ids: Iterable[Sequence[int]]) -> list[str]:
    """Return the text of each row of token ids, up to its first EOS; unknown words are [UNK]."""
    backend = tokenizer.backend_tokenizer
    # Most unknown words of a word-level tokenizer followed a blank; their token has no mark.
    whole_words = isinstance(backend.model, models.WordLevel) and isinstance(backend.decoder, decoders.Metaspace)
    frame = {tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id}
    hidden = set(tokenizer.all_special_ids) - ({tokenizer.unk_token_id} - frame)
    texts = []
    for row in ids:
        kept = [int(i) for i in row]
        if tokenizer.eos_token_id in kept[1:]:  # the first may be a BOS equal to EOS
            kept = kept[: kept.index(tokenizer.eos_token_id, 1)]
        tokens = tokenizer.convert_ids_to_tokens([i for i in kept if i not in hidden])
        if whole_words:
            tokens = [BLANK + token if token == tokenizer.unk_token else token for token in tokens]
        texts.append(backend.decoder.decode(tokens) if backend.decoder is not None else " ".join(tokens))
    return texts


def _untrained(model: models.Model) -> Tokenizer:
    backend = Tokenizer(model)
    backend.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(rf"[\s{BLANK}]+"), " "), normalizers.Strip()]
    )
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Metaspace(replacement=BLANK, prepend_scheme="always", split=False),
            pre_tokenizers.Split(Regex(_TOKEN), behavior="isolated"),
        ]
    )
    backend.decoder = decoders.Metaspace(replacement=BLANK, prepend_scheme="always")
    return backend


def _trained(
    recipe: TokenizerRecipe, model: models.Model, trainer: Any, texts: Iterable[str], length: int, nothing: str
) -> PreTrainedTokenizerFast:
    """Train a tokenizer on ``texts``. Raises a UserError that says ``nothing`` where no token was found in them."""
    backend = _untrained(model)
    if isinstance(texts, Texts):
        key = {"texts": texts.digest, "recipe": to_plain(recipe)}
        entry = stored("tokenizer", key, partial(_train_on_many, backend, trainer, texts))
        backend = Tokenizer.from_file(str(entry.folder / TOKENIZER))
    else:
        backend.train_from_iterator(_with_cut_words(texts) if isinstance(trainer, trainers.BpeTrainer) else texts, trainer)
    if backend.get_vocab_size() == len(SPECIAL_TOKENS):
        raise UserError(nothing)
    return finish(backend, length, *SPECIAL_TOKENS)


def _with_cut_words(texts: Iterable[str]) -> Iterator[str]:
    return (LONG_WORD.sub(r"\g<0> ", text) for text in texts)


def _train_on_many(backend: Tokenizer, trainer: Any, texts: Texts, folder: Path) -> dict[str, Any]:
    """Train on the texts of a large corpus and save the result; words are counted by blocks, in a fraction of the time."""
    with tqdm(desc="making the tokenizer", total=len(texts), unit=" texts", unit_scale=True, leave=False, **intervals()) as bar:
        if isinstance(trainer, trainers.WordLevelTrainer):
            counts = piece_counts(word_counts(texts.blocks(bar.update)), backend)
            known = [piece for piece, number in counts.items() if number >= trainer.min_frequency]
            words = [*SPECIAL_TOKENS, *sorted(known, key=lambda piece: (-counts[piece], piece))]
            backend.model = models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=UNKNOWN)
            backend.add_special_tokens(SPECIAL_TOKENS)
        else:
            blocks = map(pyarrow.Array.to_pylist, texts.blocks(bar.update))
            backend.train_from_iterator(_with_cut_words(chain.from_iterable(blocks)), trainer)
    backend.save(str(folder / TOKENIZER))
    return {}


def piece_counts(words: Mapping[str, int], backend: Tokenizer) -> Counter[str]:
    """Return how often each piece of the pre-tokenisation occurs in ``words`` (or texts) that occur so often."""
    counts: Counter[str] = Counter()
    for word, number in words.items():
        normalised = word if backend.normalizer is None else backend.normalizer.normalize_str(word)
        for piece, _ in backend.pre_tokenizer.pre_tokenize_str(normalised):
            counts[piece] += number
    return counts


def splits_at_blanks(tokenizer: PreTrainedTokenizerFast) -> bool:
    """Return whether the ids of a text are those of what is between its blanks, one after the other, as of our recipes."""
    found, ours = (json.loads(backend.to_str()) for backend in (tokenizer.backend_tokenizer, _OURS))
    same = all(found[part] == ours[part] for part in ("normalizer", "pre_tokenizer", "truncation", "padding"))
    return same and all(token["special"] and " " not in token["content"] for token in found["added_tokens"])


def finish(backend: Tokenizer, max_length: int, pad: str, unknown: str | None, start: str, end: str) -> PreTrainedTokenizerFast:
    """Return ``backend`` as a tokenizer of ``transformers`` that adds ``start`` and ``end``; ids stay what they are."""
    # The plain class: classes made for one model rebuild their post-processor on loading.
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token=pad, unk_token=unknown, bos_token=start, eos_token=end,
        model_max_length=max_length, clean_up_tokenization_spaces=False,
        split_special_tokens=True,  # "[END]" in a text is ordinary text
    )  # fmt: skip
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{start} $A {end}",
        special_tokens=[(start, tokenizer.bos_token_id), (end, tokenizer.eos_token_id)],
    )
    return tokenizer


_OURS = _untrained(models.WordLevel(unk_token=UNKNOWN))
