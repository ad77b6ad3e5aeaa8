"""The difference between an object before and after a call. Pure.

Two trees are walked, each beside its masked copy. Real values decide what differs, and masked ones are shown.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Final, TypeAlias

import attrs

from proxy.hub.approvals.preview.mask import HIDDEN
from proxy.hub.approvals.preview.values import (
    Named,
    Step,
    Steps,
    Value,
    at,
    path_of,
    same,
    shown_json,
)
from proxy.hub.approvals.view import CHANGED, MASKED, Change

# The API server sets these in each write, or they are no part of what a write asks for.
_LEFT_METADATA: Final = frozenset(
    {"uid", "resourceVersion", "generation", "creationTimestamp", "managedFields", "selfLink"}
)
RESTARTED_AT: Final = "kubectl.kubernetes.io/restartedAt"
_TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:.]{8,18}(?:Z|[+-][0-9]{2}:[0-9]{2})")
# Instead of the value of `restartedAt`, which `kubectl rollout restart` takes from its clock.
_EARLIER, _NOW = "(an earlier time)", "(the time of the call)"


# More differences than a person reads, and more places than an API server fills in by itself.
DIFFERENCES_MAX: Final = 2000
VARYING_MAX: Final = 200
# The last step of a difference in the order of named elements. Below a list it is no element's.
ORDER: Final = "(order)"
# Instead of a value that differs between two dry runs.
_VARIES = "(differs in each dry run)"


class Absent:
    """Stands for a value that is not there."""

    def __repr__(self) -> str:
        return "ABSENT"


ABSENT: Final = Absent()
# A Value or ABSENT; in a masked copy, HIDDEN too.
Found: TypeAlias = object


@attrs.frozen
class Difference:
    """One difference, with the real values."""

    steps: Steps
    before: Found
    after: Found
    shown_before: Found
    shown_after: Found

    @property
    def change(self) -> Change:
        """The difference as an approver sees it."""
        before, after = _shown(self.shown_before), _shown(self.shown_after)
        both_hidden = self.shown_before is HIDDEN and self.shown_after is HIDDEN
        return Change(path_of(self.steps), before, CHANGED if both_hidden else after)

    @property
    def compared(self) -> list[object]:
        """The real values in a form that has one text."""
        steps = [[type(step).__name__, step] for step in self.steps]
        return [steps, *([] if value is ABSENT else [value] for value in (self.before, self.after))]


def normal(value: Value, *, with_status: bool = False) -> Value:
    """Return an object without the fields that do not count."""
    if not isinstance(value, dict):
        return value
    kept = {key: inner for key, inner in value.items() if with_status or key != "status"}
    metadata = kept.get("metadata")
    if isinstance(metadata, dict):
        kept["metadata"] = {key: inner for key, inner in metadata.items() if key not in _LEFT_METADATA}
    return kept


def without_restart_time(before: Value, after: Value) -> tuple[Value, Value]:
    """Return both objects with fixed texts instead of `restartedAt`'s value, if it changes."""
    keys = ("spec", "template", "metadata", "annotations", RESTARTED_AT)
    earlier, later = at(before, *keys), at(after, *keys)
    if not (isinstance(later, str) and _TIME.fullmatch(later)) or earlier == later:
        return before, after
    if isinstance(earlier, str) and _TIME.fullmatch(earlier):
        before = _with(before, keys, _EARLIER)
    return before, _with(after, keys, _NOW)


def _with(value: Value, keys: tuple[str, ...], leaf: str) -> Value:
    if not keys:
        return leaf
    assert isinstance(value, dict), "the keys lead to a value"
    return {**value, keys[0]: _with(value[keys[0]], keys[1:], leaf)}


def varying(first: Value, second: Value) -> list[Steps] | None:
    """Return the places where the results of two dry runs differ: generated names, allocated ports.

    None if there are too many, or if the results differ as a whole.
    """
    if first is second:
        return []
    places: dict[Steps, None] = {}
    for found in _walk((), first, second, first, second):
        steps = found.steps
        if steps[-1:] == (ORDER,) and isinstance(found.before, list) and isinstance(found.after, list):
            if _in_one_order(found.before, found.after):
                continue
            steps = steps[:-1]
        elif ABSENT in (found.before, found.after) and isinstance(steps[-1], int):
            # A list with another number of elements differs as a whole, unless they have names.
            steps = steps[:-1]
        places[steps] = None
        if len(places) > VARYING_MAX or () in places:
            return None
    return list(places)


def _in_one_order(first: list[Value], second: list[Value]) -> bool:
    """Whether the names that two lists have in common have one order."""
    return [name for name in first if name in second] == [name for name in second if name in first]


def is_element(place: Steps) -> bool:
    """Whether a place that varies is an element that one result of a dry run has: its name is generated."""
    return isinstance(place[-1], Named)


def left_out_path(place: Steps) -> str:
    """Return the path of a place that varies: the same for all generated names."""
    return path_of((*place[:-1], Named("*")) if is_element(place) else place)


def settled(value: Value, places: Iterable[Steps]) -> Value:
    """Return a value without the fields and the named elements at places that vary.

    An element without a name becomes a fixed text.
    """
    tree: _Places = {}
    for steps in places:
        inner = tree
        for step in steps:
            inner = inner.setdefault(step, {})
        # A place within this one is settled with it.
        inner[_WHOLE] = {}
    return _settle(value, tree) if tree else value


# By step; the places below it. _WHOLE marks a place itself.
_Places: TypeAlias = "dict[Step, _Places]"
_WHOLE: Final = -1


def _settle(value: Value, places: _Places) -> Value:
    if _WHOLE in places:
        return _VARIES
    if isinstance(value, dict):
        return {
            key: _settle(inner, places[key]) if key in places else inner
            for key, inner in value.items()
            if _WHOLE not in places.get(key, ())
        }
    if isinstance(value, list):
        return [
            _settle(inner, places.get(number, {}) | named)
            for number, inner in enumerate(value)
            if _WHOLE not in (named := _by_name(inner, places))
        ]
    return value


def _by_name(value: Value, places: _Places) -> _Places:
    """Return the places below an element of a list that has its name as a step."""
    name = value.get("name") if isinstance(value, dict) else None
    return places.get(Named(name), {}) if isinstance(name, str) else {}


def differences(
    before: Found, after: Found, shown_before: Found, shown_after: Found
) -> list[Difference] | None:
    """Return the differences of two values; None if there are too many. Each comes with its masked copy."""
    found = list(islice(_walk((), before, after, shown_before, shown_after), DIFFERENCES_MAX + 1))
    return found if len(found) <= DIFFERENCES_MAX else None


def _walk(
    steps: Steps, before: Found, after: Found, shown_before: Found, shown_after: Found
) -> Iterator[Difference]:
    opaque = HIDDEN in (shown_before, shown_after)
    if not opaque and isinstance(before, dict) and isinstance(after, dict):
        assert isinstance(shown_before, dict), "a masked copy has the shape of its value"
        assert isinstance(shown_after, dict), "a masked copy has the shape of its value"
        for key in sorted(before.keys() | after.keys()):
            yield from _walk(
                (*steps, key),
                *(tree.get(key, ABSENT) for tree in (before, after, shown_before, shown_after)),
            )
    elif not opaque and isinstance(before, list) and isinstance(after, list):
        assert isinstance(shown_before, list), "a masked copy has the shape of its value"
        assert isinstance(shown_after, list), "a masked copy has the shape of its value"
        yield from _walk_lists(steps, before, after, shown_before, shown_after)
    elif not _same(before, after):
        yield Difference(steps, before, after, shown_before, shown_after)


def _walk_lists(
    steps: Steps,
    before: list[Value],
    after: list[Value],
    shown_before: list[object],
    shown_after: list[object],
) -> Iterator[Difference]:
    if not any(isinstance(value, (dict, list)) for value in (*before, *after)):
        # The arguments of a command are read together.
        if not _same(before, after):
            yield Difference(steps, before, after, shown_before, shown_after)
        return
    # Of the masked copies: a hidden name must not become a part of a path.
    names_before, names_after = _names(shown_before), _names(shown_after)
    if names_before is None or names_after is None:
        numbers_before, numbers_after = _numbers(before), _numbers(after)
    else:
        numbers_before, numbers_after = names_before, names_after
        earlier, later = list(names_before), list(names_after)
        if _reordered(earlier, later):
            yield Difference((*steps, ORDER), earlier, later, earlier, later)
    for step in dict.fromkeys((*numbers_before, *numbers_after)):
        first, second = numbers_before.get(step), numbers_after.get(step)
        yield from _walk(
            (*steps, step),
            ABSENT if first is None else before[first],
            ABSENT if second is None else after[second],
            ABSENT if first is None else shown_before[first],
            ABSENT if second is None else shown_after[second],
        )


def _numbers(values: list[Value]) -> dict[Step, int]:
    return {number: number for number in range(len(values))}


def _names(copies: list[object]) -> dict[Step, int] | None:
    """Return the positions of named elements; None if a name is missing, hidden or not unique."""
    names: dict[Step, int] = {}
    for number, copy in enumerate(copies):
        name = copy.get("name") if isinstance(copy, dict) else None
        if not isinstance(name, str) or name in names:
            return None
        names[Named(name)] = number
    return names


def _reordered(before: list[Step], after: list[Step]) -> bool:
    """Whether the elements have another order, beyond additions at the end and removals."""
    common = set(after)
    kept = [name for name in before if name in common]
    return after[: len(kept)] != kept


def _same(one: Found, other: Found) -> bool:
    if one is ABSENT or other is ABSENT:
        return one is other
    return same(one, other)  # type: ignore[arg-type]  # the real trees have values or ABSENT


def _shown(value: Found) -> str | None:
    if value is ABSENT:
        return None
    return MASKED if value is HIDDEN else shown_json(unhidden(value))


def unhidden(copy: Found) -> Value:
    """Return a masked copy with the word of a view at the hidden places."""
    if copy is HIDDEN:
        return MASKED
    if isinstance(copy, dict):
        return {key: unhidden(inner) for key, inner in copy.items()}
    if isinstance(copy, list):
        return [unhidden(inner) for inner in copy]
    return copy  # type: ignore[return-value]  # a leaf of a value
