"""Tables as datasets in the form of a corpus: a column "text", one of "attributes", and the others as they are."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import datasets  # type: ignore[import-untyped]

from diffusionlm.config import UserError
from diffusionlm.data.reading import Table, is_nan, nfc


def to_dataset(rows: Sequence[Mapping[str, Any]], place: str = "texts") -> datasets.Dataset:
    """Return the columns of ``rows``; a value that a row lacks is None. Raises UserError for what is not Unicode."""
    return _dataset(
        {name: [row.get(name) for row in rows] for name in dict.fromkeys(key for row in rows for key in row)}, place
    )


def _dataset(columns: Mapping[str, Sequence[Any]], place: str, features: datasets.Features | None = None) -> datasets.Dataset:
    features = Columns().with_rows(columns).features() if features is None else features
    mixed = [name for name, feature in features.items() if isinstance(feature, datasets.Json)]
    columns = {**columns, **{name: [*map(_kept, columns[name])] for name in mixed}}
    try:
        return datasets.Dataset.from_dict(columns, features=features)
    except UnicodeEncodeError as error:
        raise UserError(f"{place}: half a surrogate pair, which is not a character, in {error.object[:60]!r}") from None


def _kept(value: Any) -> Any:
    """Return infinity as text, since ``datasets.Json`` would make it None, a missing value; other values as they are."""
    return str(value) if isinstance(value, float) and math.isinf(value) else value


class Columns:
    """The columns of a table that is seen in parts, and the types of their values."""

    def __init__(self) -> None:
        self.rows, self.texts, self.lists = 0, dict[str, bool](), dict[str, bool]()

    def with_rows(self, columns: Mapping[str, Sequence[Any]]) -> Columns:
        """Include further rows; a column that they lack, or that is new, is None where it is missing."""
        for name in dict.fromkeys((*self.texts, *columns)):
            values = columns.get(name, (None,))
            missing = self.rows > 0 and name not in self.texts
            self.texts[name] = self.texts.get(name, True) and all(value is None or isinstance(value, str) for value in values)
            self.lists[name] = self.lists.get(name, not missing) and all(map(_is_list_of_texts, values))
        self.rows += max(map(len, columns.values()), default=0)
        return self

    def features(self) -> datasets.Features:
        """Return the types of the columns, in the order in which they were seen."""
        return datasets.Features({name: self._feature(name) for name in self.texts})

    def _feature(self, name: str) -> Any:
        if self.texts[name]:  # as JSON, "007" would be the number 7
            return datasets.Value("string")
        return datasets.List(datasets.Value("string")) if self.lists[name] else datasets.Json()  # any value


def _is_list_of_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def tidy(
    table: Table, rows: datasets.Dataset | None = None, text: str = "text", attributes: Sequence[str] = ()
) -> datasets.Dataset:
    """Return ``table`` (or ``rows``, of which it has the texts and places) in the form of a corpus.

    The text column becomes "text", the columns ``attributes`` are gathered in one, rows without text are dropped.
    """
    kept = table.texts(text)
    for column in attributes:
        table.column(column)
    return _arranged(table, _dataset(table.columns, table.name) if rows is None else rows, kept, text, attributes)


def tidy_part(
    part: Table, head: Table, features: datasets.Features, kept: Sequence[int], text: str, attributes: Sequence[str]
) -> datasets.Dataset:
    """Return what ``tidy`` returns for the rows ``part`` of a table of these ``features``, of which those ``kept`` have a text.

    ``head`` has the table's name and columns, and no rows.
    """
    for column in attributes:
        head.column(column)
    return _arranged(part, _dataset(part.columns, head.name, features), kept, text, attributes)


def _arranged(
    table: Table, rows: datasets.Dataset, kept: Sequence[int], text: str, attributes: Sequence[str]
) -> datasets.Dataset:
    """Return the ``rows`` of ``table``, those ``kept``, with their columns in the form of a corpus; see ``tidy``."""
    names = {nfc(name): name for name in rows.column_names}
    text = names[nfc(text)]
    if attributes:
        gathered = [{"attributes": _attributes(table, row, attributes)} for row in range(len(rows))]
        rows = rows.remove_columns(({*(names[nfc(each)] for each in attributes), "attributes"} - {text}) & {*rows.column_names})
        rows = datasets.concatenate_datasets([rows, to_dataset(gathered)], axis=1)
    if text != "text":
        rows = rows.remove_columns({"text"} & {*rows.column_names}).rename_column(text, "text")
    return rows if len(kept) == len(rows) else rows.select(kept)


def _attributes(table: Table, row: int, names: Sequence[str]) -> dict[str, str]:
    """Return the values that a row has in the columns ``names``. Raises UserError for one that is no word and no number."""
    found = {nfc(name): table.column(name)[row] for name in names}
    for name, value in found.items():
        if isinstance(value, bytes | list | tuple | Mapping):
            raise UserError(f"{table.place(row)}: column {name!r} should hold a word or a number, got {str(value)[:60]}")
    return {name: nfc(str(value)) for name, value in found.items() if value not in (None, "") and not is_nan(value)}
