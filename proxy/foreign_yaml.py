"""YAML that somebody else wrote, as plain values: a kubeconfig."""

from __future__ import annotations

import yaml


class YamlError(Exception):
    """It is no YAML; nothing of what stands there is told, since that may be a token."""


def read_yaml(raw: bytes) -> object:
    """The one document in it; raises YamlError."""
    try:
        return yaml.safe_load(raw)
    # Of a date with a thirteenth month, a number of 5,000 digits, or a tag that does not fit its text, PyYAML
    # lets through whatever Python says of it.
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
