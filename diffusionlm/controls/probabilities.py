"""Classifiers of other libraries: whatever gives the probabilities of labels for texts."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from torch import Tensor

from diffusionlm.config import UserError, nearest
from diffusionlm.controls.functions import attribute_at, scores_of

PATH = re.compile(r"[^\W\d][\w.]*:[^\W\d][\w.]*")  # module:attribute
LEAST = 1e-9  # probability; the logarithm of a lower one is that of this one, so that particles can be compared


def is_classifier(value: object) -> bool:
    """Return whether ``value`` gives the probabilities of labels: it has ``predict_proba``, or can be called."""
    return hasattr(value, "predict_proba") or callable(value)


@lru_cache(maxsize=8)
def classifier_at(path: str, where: str) -> Any:
    """Return the classifier at the import path ``module:attribute``, or what the function without parameters there returns.

    Raises:
        UserError: it cannot be imported or made, or is no classifier; the message begins with ``where``.
    """
    found = attribute_at(path, where)
    try:
        if callable(found) and not hasattr(found, "predict_proba") and not inspect.signature(found).parameters:
            found = found()
    except Exception as error:  # of any kind: the function is the user's
        reason = " ".join(str(error).split())
        raise UserError(f"{where}: {path!r} makes no classifier: {type(error).__name__}: {reason}") from None
    if not is_classifier(found):
        raise UserError(f"{where}: expected a classifier with predict_proba, or a function of texts, got {path!r}")
    return found


def column_of(classifier: Any, label: str, where: str) -> int | None:
    """Return the column of ``label`` in what ``predict_proba`` returns; None of a function, which names the labels itself.

    Raises UserError where the classifier has no label of that name.
    """
    if not hasattr(classifier, "predict_proba"):
        return None
    labels = [str(each) for each in getattr(classifier, "classes_", ())]
    if label not in labels:
        hint = nearest(label, labels) if labels else "; expected their names in its classes_: is it fitted?"
        raise UserError(f"{where}: the classifier has no label {label!r}{hint}")
    return labels.index(label)


def log_probabilities(classifier: Any, label: str, texts: Sequence[str], where: str) -> Tensor:
    """Return log p(label) (N,) of N ``texts``.

    The classifier has ``predict_proba(texts)``, rows of probabilities in the order of ``classes_``, as in scikit-learn; or it
    is a function of texts that returns for each a mapping from labels to probabilities, or a list of mappings with ``label``
    and ``score``, as a text-classification pipeline of ``transformers`` does with ``top_k=None``.

    Raises:
        UserError: it fails, has no such label, or returns something else; the message begins with ``where``.
    """
    column = column_of(classifier, label, where)

    def of_label(texts: list[str]) -> list[Any]:
        if column is None:
            return [_probability(row, label, where) for row in classifier(texts)]
        return [row[column] for row in classifier.predict_proba(texts)]

    found = scores_of(of_label, texts, where)
    if wrong := [p for p in found.tolist() if not 0 <= p <= 1 + 1e-6]:
        raise UserError(f"{where}: expected probabilities from 0 to 1, got {wrong[0]:g}")
    return found.clamp(LEAST, 1).log()


def _probability(row: Any, label: str, where: str) -> Any:
    """Return the probability of ``label`` in what a function returned for a text."""
    if isinstance(row, list) and all(isinstance(each, Mapping) and each.keys() >= {"label", "score"} for each in row):
        row = {each["label"]: each["score"] for each in row}
    if not isinstance(row, Mapping):
        shown = " ".join(str(row).split())[:60]
        hint = "a function of one number for each text is a Reward"
        raise UserError(f"{where}: expected a mapping from labels to probabilities for each text, got {shown}; {hint}")
    by_name = {str(name): p for name, p in row.items()}
    if label not in by_name:
        raise UserError(f"{where}: the classifier has no label {label!r}{nearest(label, by_name)}")
    return by_name[label]
