"""Class labels of data sets, which are numbers with a name each: ``datasets.ClassLabel``, also in parquet files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import datasets  # type: ignore[import-untyped]

Classes = Mapping[str, Sequence[str]]  # by column, the name of each number


def classes_of(features: Mapping[str, Any]) -> Classes:
    """Return the names of the columns of class labels, or of lists of them, among the ``features`` of a data set."""
    inner = {name: getattr(feature, "feature", feature) for name, feature in features.items()}
    return {name: kind.names for name, kind in inner.items() if isinstance(kind, datasets.ClassLabel) and kind.names}


def classes_in(metadata: Mapping[bytes, bytes] | None) -> Classes:
    """Return the same from the ``metadata`` of a parquet file's schema; none where they are not those of ``datasets``."""
    try:
        plain = json.loads((metadata or {}).get(b"huggingface", b"{}"))
        return classes_of(datasets.Features.from_dict(plain["info"]["features"]))
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}


def label_name(value: Any, names: Sequence[str]) -> Any:
    """Return the name of a class label, of each in a list; None for the -1 that stands for an unknown one."""
    if isinstance(value, list):
        return [label_name(each, names) for each in value]
    return names[value] if isinstance(value, int) and 0 <= value < len(names) else None


def named_labels(rows: datasets.Dataset) -> datasets.Dataset:
    """Return ``rows`` with the names of class labels in place of their numbers, in the same order of columns."""
    order, classes = rows.column_names, classes_of(rows.features)
    for column, names in classes.items():
        kind = datasets.Value("string")
        feature = kind if isinstance(rows.features[column], datasets.ClassLabel) else datasets.List(kind)
        values = [label_name(value, names) for value in rows[column][:]]
        rows = rows.remove_columns(column).add_column(column, values, feature=feature)
    return rows.select_columns(order) if classes else rows
