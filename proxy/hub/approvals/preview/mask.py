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
class Place:
    """The place of a value in an object: as much of the steps to it as decides whether it is hidden."""

    depth: int = 0
    first: Step = ""
    last: Step = ""
    env: Steps | None = None
    """The first three steps below `env`; None if it is not below one."""

    @classmethod
    def of(cls, steps: Steps) -> Place:
        """Return the place at these steps."""
        place = cls()
        for step in steps:
            place = place.below(step)
        return place

    def below(self, step: Step) -> Place:
        """Return the place of an element of the value here."""
        env = self.env
        if env is not None:
            env = (*env, step) if len(env) < 3 else env
        elif isinstance(step, str) and step.lower().rpartition("/")[2] == "env":
            # A strategic merge patch has `$setElementOrder/env` beside it.
            env = ()
        return Place(self.depth + 1, self.first if self.depth else step, step, env)

    @property
    def shows_keys(self) -> bool:
        """Whether the keys of a hidden object are shown: the names of a Secret's values, and of `env`."""
        if self.env is None:
            return self.depth <= 1
        return not self.env or (len(self.env) == 1 and is_index(self.env[0]))


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

    def hides(self, place: Place) -> bool:
        """Whether the value at this place is hidden."""
        return (
            (self.secret and place.first not in _HARMLESS_OF_SECRET)
            or (self.helm and place.first in {"data", "binaryData"})
            or (self.token and place.first == "spec" and (place.depth, place.last) == (2, "token"))
            or place.last == LAST_APPLIED
            or (not self.show_env and place.env is not None and not _is_harmless(place.env))
        )

    def for_inner(self, value: dict[str, Value]) -> Mask:
        """Return the mask of an object within another one. It may be a Secret, in a List or a template."""
        named = value.get("kind") == "Secret" and (
            value.get("apiVersion") == "v1" or "data" in value or "stringData" in value
        )
        return attrs.evolve(self, secret=True) if named else self


def _is_harmless(below_env: Steps) -> bool:
    """Whether a value below `env` is shown: a variable's name, or a reference to its value."""
    listed = len(below_env) > 1 and is_index(below_env[0])
    return listed and (below_env[1:] == ("name",) or below_env[1] == "valueFrom")


def is_index(step: Step) -> bool:
    """Whether a step leads to an element of a list."""
    # A JSON pointer's steps are texts.
    return isinstance(step, int) or _INDEX.fullmatch(step) is not None


def masked(value: Value, mask: Mask, steps: Steps = ()) -> object:
    """Return a copy of a value with HIDDEN at the hidden places. `steps` lead to the value."""
    return _masked(value, mask, Place.of(steps))


def _masked(value: Value, mask: Mask, place: Place) -> object:
    if isinstance(value, dict) and not mask.secret and (inner := mask.for_inner(value)) is not mask:
        mask, place = inner, Place()
    if mask.hides(place) and not (value and isinstance(value, (dict, list)) and place.shows_keys):
        return HIDDEN
    if isinstance(value, dict):
        return {key: _masked(element, mask, place.below(key)) for key, element in value.items()}
    if isinstance(value, list):
        return [_masked(element, mask, place.below(index)) for index, element in enumerate(value)]
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
