"""Writes objects as YAML that every parser reads alike: each string that is not plain is quoted."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import yaml


class _Dumper(yaml.SafeDumper):
    """Writes strings so that every YAML parser reads them as strings."""

    def ignore_aliases(self, data: object) -> bool:
        """Write repeated labels out: readers of manifests expect no anchors."""
        return True


# PyYAML quotes strings that YAML 1.1 reads as other types, except `y` and `n`, which are booleans to kubectl.
# Other parsers disagree about `1e3`, `0o7`, `1_0` or `=`. So a string stays plain only if it begins with a
# letter, is longer than one character and holds nothing but these characters.
_PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9./-]+")


def _represent_text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    style = None if _PLAIN.fullmatch(value) else "|" if "\n" in value else '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


_Dumper.add_representer(str, _represent_text)


def to_yaml(objects: Sequence[Mapping[str, object]]) -> str:
    """Write the objects as one YAML stream, in their order and with their keys in the given order."""
    return yaml.dump_all(
        [dict(item) for item in objects],
        Dumper=_Dumper,
        sort_keys=False,
        explicit_start=True,
        allow_unicode=False,
        width=10_000,
    )
