"""Hides the values that a view must not have: of Secrets, of containers' `env`, and copies of them. Pure.

A value is hidden by the keys that lead to it, so that an object, a merge patch, an applied configuration and
the value of a JSON patch are one case. In a Secret everything is hidden that is not known to be harmless, so
an unknown field is hidden too. A JSON patch can copy a hidden value to a place that is shown. So a value that
equals a hidden one is hidden wherever it is.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable
from typing import Final

import attrs

from proxy.hub.approvals.preview.values import Step, Steps, Value, leaves

LAST_APPLIED: Final = "kubectl.kubernetes.io/last-applied-configuration"
# The names of Helm's releases, which it keeps in Secrets or in ConfigMaps.
_HELM_RELEASE = "sh.helm.release.v1."
# Shorter values (`true`, `web-1`) occur at many places, and reveal nothing by that.
COPIED_CHARACTERS_MIN: Final = 8

_HARMLESS_OF_SECRET: Final = frozenset({"apiVersion", "kind", "metadata", "type", "immutable"})
_INDEX = re.compile(r"[0-9]+|-")


class Hidden:
    """Stands for a hidden value in a masked copy."""

    def __repr__(self) -> str:
        return "HIDDEN"


HIDDEN: Final = Hidden()


@attrs.frozen
class Mask:
    """What is hidden in the objects of one request."""

    secret: bool = False
    """They are Secrets, or hold nothing but secrets."""
    helm: bool = False
    """They are releases of Helm in ConfigMaps."""
    token: bool = False
    """They are TokenReviews, which have a token to be checked."""
    show_env: bool = False

    @classmethod
    def of(cls, group: str, resource: str, name: str, *, show_env: bool) -> Mask:
        """Return the mask for the objects of a resource."""
        return cls(
            secret=(group, resource) == ("", "secrets"),
            helm=(group, resource) == ("", "configmaps") and name.startswith(_HELM_RELEASE),
            token=(group, resource) == ("authentication.k8s.io", "tokenreviews"),
            show_env=show_env,
        )

    def hides(self, steps: Steps) -> bool:
        """Whether the value at these steps is hidden."""
        first = steps[0] if steps else ""
        return (
            (self.secret and first not in _HARMLESS_OF_SECRET)
            or (self.helm and first in {"data", "binaryData"})
            or (self.token and steps[:2] == ("spec", "token"))
            or LAST_APPLIED in steps
            or (not self.show_env and _is_env_value(steps))
        )

    def shows_keys(self, steps: Steps) -> bool:
        """Whether the keys of a hidden object are shown: the names of a Secret's values, and of `env`."""
        below_env = _below_env(steps)
        if below_env is not None:
            return not below_env or (len(below_env) == 1 and _is_index(below_env[0]))
        return len(steps) <= 1

    def for_inner(self, value: dict[str, Value]) -> Mask:
        """Return the mask of an object within another one. It may be a Secret, in a List or a template."""
        named = value.get("kind") == "Secret" and (
            value.get("apiVersion") == "v1" or "data" in value or "stringData" in value
        )
        return attrs.evolve(self, secret=True) if named else self


def _is_env_value(steps: Steps) -> bool:
    """Whether the steps lead into environment variables, but for names and references."""
    rest = _below_env(steps)
    if rest is None:
        return False
    listed = len(rest) > 1 and _is_index(rest[0])
    return not (listed and (rest[1:] == ("name",) or rest[1] == "valueFrom"))


def _below_env(steps: Steps) -> Steps | None:
    """Return the steps below the first `env`; None without one."""
    for number, step in enumerate(steps):
        # A strategic merge patch has `$setElementOrder/env` beside it.
        if isinstance(step, str) and (step == "env" or step.endswith("/env")):
            return steps[number + 1 :]
    return None


def _is_index(step: Step) -> bool:
    # A JSON pointer's steps are texts.
    return isinstance(step, int) or _INDEX.fullmatch(step) is not None


def masked(value: Value, mask: Mask, steps: Steps = ()) -> object:
    """Return a copy of a value with HIDDEN at the hidden places. `steps` lead to the value."""
    if isinstance(value, dict) and (inner := mask.for_inner(value)) is not mask and not mask.secret:
        mask, steps = inner, ()
    if mask.hides(steps) and not (value and isinstance(value, (dict, list)) and mask.shows_keys(steps)):
        return HIDDEN
    if isinstance(value, dict):
        return {key: masked(inner_value, mask, (*steps, key)) for key, inner_value in value.items()}
    if isinstance(value, list):
        return [masked(inner_value, mask, (*steps, index)) for index, inner_value in enumerate(value)]
    return value


def hidden_texts(pairs: Iterable[tuple[Value, object]]) -> frozenset[str]:
    """Return the hidden texts of values and their masked copies, plain and decoded, without short ones."""
    found: set[str] = set()
    stack: list[tuple[Value, object]] = list(pairs)
    while stack:
        value, copy = stack.pop()
        if copy is HIDDEN:
            found.update(text for _, text in leaves(value) if isinstance(text, str))
        elif isinstance(value, dict) and isinstance(copy, dict):
            stack.extend((inner, copy[key]) for key, inner in value.items())
        elif isinstance(value, list) and isinstance(copy, list):
            stack.extend(zip(value, copy, strict=True))
    found |= {decoded for text in found if (decoded := _decoded(text)) is not None}
    return frozenset(text for text in found if len(text) >= COPIED_CHARACTERS_MIN)


def _decoded(text: str) -> str | None:
    """Return the text of a base64 text, as in a Secret's `data`."""
    try:
        return base64.b64decode(text, validate=True).decode("utf-8")
    except (binascii.Error, ValueError):
        return None


def without_copies(copy: object, hidden: frozenset[str]) -> object:
    """Return a masked copy in which texts that equal a hidden one are HIDDEN as well."""
    if isinstance(copy, dict):
        return {key: without_copies(inner, hidden) for key, inner in copy.items()}
    if isinstance(copy, list):
        return [without_copies(inner, hidden) for inner in copy]
    return HIDDEN if isinstance(copy, str) and copy in hidden else copy
