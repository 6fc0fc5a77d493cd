"""The annotator ``spacy``: universal parts of speech, named entities and dependencies by spaCy (Honnibal et al. 2020)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import entry_points
from typing import Any, ClassVar

from diffusionlm.config import UserError, nearest
from diffusionlm.data.annotators import Annotation, Annotator
from diffusionlm.data.tokenizers import split_words


@dataclass(frozen=True)
class SpaCy(Annotator, name="spacy"):
    """The pipeline ``model`` of spaCy, which is installed as a package, such as ``en_core_web_sm``; nothing is downloaded.

    Folders are refused: the settings in one name functions of installed packages, which are called when it is opened.
    """

    reads: ClassVar[frozenset[str]] = frozenset({"tags", "entities", "heads", "relations"})
    model: str = "en_core_web_sm"

    def annotate(self, text: str) -> Annotation | None:
        """Annotate the text, with our pre-tokenisation; parts that the pipeline has no component for are None."""
        words = tuple(split_words(text))
        if not words:
            return Annotation(words, (), entities=(), heads=(), relations=())
        doc = _pipeline(self.model)(list(words))
        tagged, parsed = doc.has_annotation("POS"), doc.has_annotation("DEP")
        return Annotation(
            words,
            tags=tuple(word.pos_ for word in doc) if tagged else None,
            entities=tuple(_entity(word) for word in doc) if doc.has_annotation("ENT_IOB") else None,
            heads=tuple(word.head.i for word in doc) if parsed else None,
            relations=tuple(word.dep_ for word in doc) if parsed else None,
        )


def _entity(word: Any) -> str:
    return f"{word.ent_iob_}-{word.ent_type_}" if word.ent_type_ else "O"


@lru_cache(maxsize=2)
def _pipeline(name: str) -> Any:
    """Return the function from words to an annotated document. Raises UserError where the package is missing or fails."""
    try:
        from spacy.tokens import Doc
    except ImportError:
        raise UserError("annotator: 'spacy' needs spaCy: pip install 'diffusion-lm[spacy]', and a model") from None
    installed = {entry.name: entry for entry in entry_points(group="spacy_models")}
    if name not in installed:
        hint = nearest(name, installed) if installed else "; none is (to install one: python -m spacy download en_core_web_sm)"
        raise UserError(f"annotator.model: expected a spaCy model that is installed as a package, got {name!r}{hint}")
    try:
        pipeline = installed[name].load().load()
    except Exception as error:  # spaCy raises its own kinds, and those of what it loads
        reason = str(error).strip().partition("\n")[0]
        raise UserError(f"annotator.model: {name} cannot be opened: {reason}") from None
    return lambda words: pipeline(Doc(pipeline.vocab, words=words))
