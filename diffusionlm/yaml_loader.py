"""The YAML of settings: only what is unmistakable is a number, and no key is given twice.

YAML 1.1, which PyYAML reads, takes 010 for 8, 1:30 for 90, no for false and 2024-01-01 for a date. Here these are text, which
the type of a setting turns into a decimal number or a truth value. What ``yaml.safe_dump`` writes is read back as it was.
"""

from __future__ import annotations

import re
from typing import Any, ClassVar

import yaml

MERGE = "<<"


class Loader(yaml.SafeLoader):
    """PyYAML's safe loader with the resolution of YAML 1.2, decimal numbers alone."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}  # type: ignore[misc]

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Return the mapping. Raises YAMLError where a key is given twice; PyYAML would drop the first."""
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.value == MERGE:
                continue
            if key.value in lines:
                line = key.start_mark.line + 1
                raise yaml.YAMLError(f"line {line}: {key.value!r} is given twice, first on line {lines[key.value]}")
            lines[key.value] = key.start_mark.line + 1
        return super().construct_mapping(node, deep)


for _tag, _pattern, _first in (
    ("null", "~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", "true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", "[-+]?(0|[1-9][0-9]*)", list("-+0123456789")),
    ("float", r"[-+]?([0-9]+\.[0-9]*|\.[0-9]+)([eE][-+][0-9]+)?|[-+]?\.inf|\.nan", list("-+.0123456789")),
    ("merge", MERGE, ["<"]),
):
    Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), _first)
