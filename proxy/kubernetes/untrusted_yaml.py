"""Reads YAML from an untrusted source, such as a kubeconfig, as plain values."""

from __future__ import annotations

import re

import yaml


class YamlError(Exception):
    """The text is not valid YAML; the message quotes none of it, since it may hold a token."""


# Dates, times, base-60 numbers and the old `=` key: PyYAML has types for them, kubectl reads text.
_TEXT = re.compile(r"[0-9]{4}-[0-9]{1,2}-|[-+]?[0-9][0-9_]*:|=\Z")


class _Loader(yaml.SafeLoader):
    """Resolves types as kubectl does."""


_Loader.yaml_implicit_resolvers = {
    first: [("tag:yaml.org,2002:str", _TEXT), *others]
    for first, others in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def read_yaml(raw: bytes) -> object:
    """Return the only document; raises YamlError."""
    try:
        return yaml.load(raw, _Loader)  # noqa: S506 - a subclass of the safe loader
    # For a number of 5,000 digits, or a tag that does not fit its text, PyYAML does not catch Python's own
    # exception.
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
