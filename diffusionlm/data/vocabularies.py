"""Tokenizers of a given vocabulary of words: those of models that were trained with the original Diffusion-LM.

Its texts are split by spaCy's rules for English, which are code. The regular expression here approximates them, and is part
of ``tokenizer.json``: a word is a maximal run of letters and digits; clitics (``'s``, ``n't``), hyphens and punctuation marks
are words of their own. Words of the vocabulary that these rules would split, such as ``Mr.`` or ``p.m.``, are exceptions of
spaCy's, and stay whole. A text whose words are separated by blanks already is read as it stands.

Texts are decoded as the original prints them: the words, joined by blanks.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import BertTokenizer, PreTrainedTokenizerFast

from diffusionlm.config import UserError
from diffusionlm.data.folders import damage_errors, read_object
from diffusionlm.data.tokenizers import END, PAD, START, UNKNOWN, Pretrained, finish

SPECIAL = {"START": START, "END": END, "UNK": UNKNOWN, "PAD": PAD}  # in vocab.json -> in the tokenizer
LINE_END = "\n"

_CHARACTER = r"[\p{L}\p{M}\p{N}]"
_NOTHING = "\0"  # a prefix that no word has: the decoder joins words with it without a blank
_NEGATION = rf"(?i:n[’']t)(?!{_CHARACTER})"
_CLITIC = rf"[’'](?i:s|m|d|re|ve|ll)(?!{_CHARACTER})"
_INNER = (
    r"(?<=\p{N})[.,:/](?=\p{N})|(?<=\p{N}):(?=\p{L})|(?!(?<=\p{Ll})\.(?=\p{Lu}))(?<=\p{L})\.(?=\p{L})"
    rf"|(?!{_CLITIC})(?<={_CHARACTER})[&_@’'](?={_CHARACTER})"
)
_RULES = rf"(?:(?!{_NEGATION}){_CHARACTER}|{_INNER})+|{_NEGATION}|{_CLITIC}|\.{{2,}}|-{{2,}}|."


def read_vocabulary(path: Path) -> dict[str, int]:
    """Return the words and ids of ``vocab.json``, special tokens under their names here.

    Raises:
        UserError: it cannot be read, lacks a special token, or its ids are not 0, 1, 2, ...
    """
    plain = read_object(path)
    for word, number in plain.items():
        if not isinstance(number, int) or isinstance(number, bool):
            raise UserError(f"{path}: expected the id of each word, got {number!r} for {word!r}")
    if missing := [word for word in SPECIAL if word not in plain]:
        raise UserError(f"{path}: expected the words {', '.join(SPECIAL)}, but there is no {missing[0]}")
    if taken := [word for word in SPECIAL.values() if word in plain]:
        raise UserError(f"{path}: expected only one of {taken[0]!r} and {taken[0].strip('[]')!r}, got both")
    words = {SPECIAL.get(word, word): number for word, number in plain.items()}
    if sorted(words.values()) != list(range(len(words))):
        raise UserError(f"{path}: expected the ids 0 to {len(words) - 1}, each of one word")
    if len(words) == len(SPECIAL):
        raise UserError(f"{path}: expected words beside the special ones, got none")
    return words


def vocabulary_tokenizer(words: Mapping[str, int], max_length: int, line_end: bool = False) -> PreTrainedTokenizerFast:
    """Return a tokenizer of the ``words``, which include the special tokens of ``SPECIAL``.

    ``line_end`` adds the word ``\\n`` to each text that it encodes, and leaves it out of those that it decodes.
    """
    backend = Tokenizer(models.WordLevel(dict(words), unk_token=UNKNOWN))
    steps = [normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()]
    backend.normalizer = normalizers.Sequence([*steps, *([normalizers.Replace(Regex(r"(?<=\S)\z"), LINE_END)] * line_end)])
    backend.pre_tokenizer = _splitter(_RULES)
    if exceptions := [word for word in words if _is_split(backend, word)]:
        # At the position of an exception the longest one wins; inside of longer words there are none.
        whole = "|".join(re.escape(word) for word in sorted(exceptions, key=len, reverse=True))
        backend.pre_tokenizer = _splitter(rf"(?<!{_CHARACTER})(?:{whole})(?!{_CHARACTER})|{_RULES}")
    backend.decoder = decoders.Sequence(
        [decoders.WordPiece(_NOTHING, cleanup=False), decoders.Fuse(), decoders.Replace(Regex(r"\s+\z"), "")]
    )
    return finish(backend, max_length, PAD, UNKNOWN, START, END)


def word_piece_tokenizer(path: str, max_length: int, lower_case: bool) -> PreTrainedTokenizerFast:
    """Return BERT's tokenizer of the word pieces in the file ``path``, ``vocab.txt``; BOS and EOS are [CLS] and [SEP].

    Raises:
        UserError: the file is no such vocabulary.
    """
    with tempfile.TemporaryDirectory() as folder:
        with damage_errors(path, "this is no vocabulary of BERT"):
            BertTokenizer(vocab=path, do_lower_case=lower_case).save_pretrained(folder)
        try:
            return Pretrained(folder).make([], max_length)
        except UserError as error:
            raise UserError(str(error).replace(folder, path)) from None


def unreadable_words(tokenizer: PreTrainedTokenizerFast, words: Iterable[str]) -> list[str]:
    """Return the ``words`` with white space, but for the line end: no text is read as them."""
    backend = tokenizer.backend_tokenizer
    read = {word: backend.normalizer.normalize_str(word).removesuffix(LINE_END) for word in words if word != LINE_END}
    return [word for word, text in read.items() if text != word or _is_split(backend, word)]


def _splitter(pattern: str) -> pre_tokenizers.PreTokenizer:
    blanks = pre_tokenizers.Split(Regex(" "), "removed")
    return pre_tokenizers.Sequence([blanks, pre_tokenizers.Split(Regex(pattern), "isolated")])


def _is_split(backend: Tokenizer, word: str) -> bool:
    """Return whether ``backend`` splits a word; special tokens are no words of a text."""
    pieces = [piece for piece, _ in backend.pre_tokenizer.pre_tokenize_str(word)]
    return pieces != [word] and word not in SPECIAL.values()
