"""YAML that somebody else wrote, as plain values: a kubeconfig."""

from __future__ import annotations

import re

import yaml


class YamlError(Exception):
    """It is no YAML; nothing of what stands there is told, since that may be a token."""


# A date or a time, a number of base 60, and a key of old: PyYAML's types, and text to kubectl.
_TEXT = re.compile(r"[0-9]{4}-[0-9]{1,2}-|[-+]?[0-9][0-9_]*:|=\Z")


class _Loader(yaml.SafeLoader):
    """Reads as kubectl does."""


_Loader.yaml_implicit_resolvers = {
    first: [("tag:yaml.org,2002:str", _TEXT), *others]
    for first, others in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def read_yaml(raw: bytes) -> object:
    """The one document in it; raises YamlError."""
    try:
        return yaml.load(raw, _Loader)  # noqa: S506 - of the safe loader
    # Of a number of 5,000 digits, or a tag that does not fit its text, PyYAML lets through whatever Python
    # says of it.
    except (
        yaml.YAMLError,
        ArithmeticError,
        AttributeError,
        LookupError,
        RecursionError,
        TypeError,
        ValueError,
    ):
        # Not chained: the cause quotes the text.
        raise YamlError from None
