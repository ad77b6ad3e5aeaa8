"""Turns the answers of an API server into the approver's view and the effect. Pure.

The view and the effect state what is unknown: a grant for a call that could not be tried out does
not serve the same call once it can be.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final, TypeVar

import attrs

from auth.policy.ask import TRUSTED_DRY_RUN_GROUPS, Ask
from auth.requestinfo import RequestInfo
from proxy.hub.approvals.preview import words
from proxy.hub.approvals.preview.bodies import Body
from proxy.hub.approvals.preview.difference import (
    ABSENT,
    DIFFERENCES_MAX,
    Difference,
    differences,
    is_element,
    left_out_path,
    normal,
    settled,
    unhidden,
    varying,
    without_restart_time,
)
from proxy.hub.approvals.preview.effect import OBJECTS_MAX, Effect
from proxy.hub.approvals.preview.flags import Flag, eviction_flags, flags_of, pod_flags
from proxy.hub.approvals.preview.mask import Mask, hidden_texts, is_index, masked, without_copies
from proxy.hub.approvals.preview.shapes import Preview
from proxy.hub.approvals.preview.values import (
    Named,
    NotReadable,
    Steps,
    Value,
    items_at,
    leaves,
    parse_json,
    path_of,
    safe,
    shown_json,
    text_at,
)
from proxy.hub.approvals.view import VIEW_BYTES_MAX, Change, View

NOT_HONOURED: Final = "not tried out: this API may not honour dryRun"
SENT_BODY: Final = "the whole body is shown, because a part of it differs from one dry run to the next"
NO_OBJECT: Final = "the API server's answer is no JSON object that can be compared"
_NO_DRY_RUN: Final = re.compile(r'admission webhook "([A-Za-z0-9.-]{1,253})" does not support dry run')
# These subresources write the status, which a controller writes elsewhere.
_WITH_STATUS: Final = frozenset({"status", "approval"})
# The API server allocates these. Each dry run has the same dummies instead.
_ALLOCATED: Final = frozenset({"clusterIP", "clusterIPs", "nodePort", "healthCheckNodePort"})


@attrs.frozen
class Findings:
    """Makes the previews of one call."""

    info: RequestInfo
    ask: Ask
    body: Body
    salt: bytes

    @property
    def mask(self) -> Mask:
        """What is hidden of the call's objects."""
        info = self.info
        return Mask.of(info.group, info.resource, info.name, show_env=self.ask.show_env)

    def tried(self, before: Value, first: Value, second: Value) -> Preview:
        """Return the preview of a create, update or patch, of the object and the results of two dry runs.

        `before` is None if there is no such object.
        """
        if not (isinstance(first, dict) and isinstance(second, dict)):
            return self.not_tried(NO_OBJECT)
        if (text_at(first, "kind"), text_at(first, "apiVersion")) == ("Status", "v1"):
            return self.not_tried("the API server's answer does not show what it makes")
        with_status = self._sets_status(before)
        before, first, second = (normal(value, with_status=with_status) for value in (before, first, second))
        earlier, first = without_restart_time(before, first)
        _, second = without_restart_time(before, second)
        differing = varying(first, second)
        if differing is None:
            return self.not_tried("two dry runs have nothing in common that can be compared")
        places = [*differing, *self._allocated(earlier, first)]
        earlier, after = settled(earlier, places), settled(first, places)
        mask = self.mask
        shown_before, shown_after = masked(earlier, mask), masked(after, mask)
        if self.body.copies:
            hidden = hidden_texts([(earlier, shown_before), (after, shown_after)])
            shown_before, shown_after = (without_copies(copy, hidden) for copy in (shown_before, shown_after))
        exists = earlier is not None
        found = differences(
            earlier if exists else ABSENT, after, shown_before if exists else ABSENT, shown_after
        )
        if found is None:
            return self._too_many_differences()
        left_out = sorted(set(map(left_out_path, places)))
        sent = list(self._sent_at(places))
        view = _View(
            words.changes(self.info, after, found) if exists else words.creates(self.info, after),
            flags_of(self.info, (*_written(found), *sent), self.body),
            left_out=left_out,
        )
        if exists:
            view.changes = [difference.change for difference in found]
        else:
            view.body = shown_json(unhidden(shown_after), pretty=True)
        if sent:
            view.notes.append(SENT_BODY)
            self._show_body(view)
        return self._preview(view, ["tried", [difference.compared for difference in found], left_out])

    def _sets_status(self, before: Value) -> bool:
        """Whether the call may set the status. A built-in API takes it from a body for a new object alone."""
        if self.info.subresource in _WITH_STATUS:
            return True
        may_take = before is None or self.info.group not in TRUSTED_DRY_RUN_GROUPS
        return may_take and any(steps[:1] == ("status",) for steps, _ in self.body.written())

    def _too_many_differences(self) -> Preview:
        view = _View(
            f"changes {words.subject_of(self.info)} in more than {DIFFERENCES_MAX} places",
            notes=["the difference is too large to be looked at"],
            too_large=True,
        )
        return self._preview(view, ["too many differences"])

    def _sent_at(self, places: Iterable[Steps]) -> Iterator[tuple[Steps, Value]]:
        """Return the leaves of the body at places that are left out of the difference."""
        # A list's elements have other positions in a patch.
        left_out = {_keys(place) for place in places if not is_element(place)}
        for steps, value in self.body.written() if left_out else ():
            keys = _keys(steps)
            if any(keys[:length] in left_out for length in range(1, len(keys) + 1)):
                yield steps, value

    def _allocated(self, before: Value, after: Value) -> Iterator[Steps]:
        """Return the places of a Service where a dry run has dummies."""
        if (self.info.group, self.info.resource) != ("", "services"):
            return
        given = {step for steps, _ in self.body.written() for step in steps}
        present = {path_of(steps): value for steps, value in leaves(before)}
        for steps, value in leaves(after):
            names = _ALLOCATED.intersection(map(str, steps))
            if names and not names & given and present.get(path_of(steps)) != value:
                yield steps

    def not_tried(self, why: str, *notes: str) -> Preview:
        """Return the preview of a write that was not tried out: its body."""
        view = _View(
            words.written(self.info, self.body),
            flags_of(self.info, self.body.written(), self.body),
            notes=_noted(why, *notes, words.parameters_of(self.info)),
        )
        self._show_body(view)
        return self._preview(view, ["not tried", why])

    def deleted(self, value: Value, listed: Sequence[tuple[str, Value]], *notes: str) -> Preview:
        """Return the preview of the deletion of this object; `listed` has what may belong to it."""
        uid = text_at(value, "metadata", "uid")
        finalizers = sorted(
            text for text in items_at(value, "metadata", "finalizers") if isinstance(text, str)
        )
        view = _View(
            words.deletes(self.info, value, words.dependants(uid, listed)),
            flags_of(self.info, (), self.body),
            notes=self._options(*notes),
            body=shown_json(unhidden(masked(normal(value), self.mask)), pretty=True),
        )
        if finalizers:
            view.notes.append(f"it has finalizers, so it goes later: {safe(', '.join(finalizers))}")
        return self._preview(view, ["deleted", uid, finalizers])

    def deleted_unseen(self, why: str) -> Preview:
        """Return the preview of the deletion of an object or a collection that cannot be read."""
        view = _View(
            words.deletes(self.info, None, {}),
            flags_of(self.info, (), self.body),
            notes=[why, *self._options()],
        )
        return self._preview(view, ["deleted unseen", why])

    def deleted_many(self, listed: Value) -> Preview:
        """Return the preview of a deletecollection of these objects."""
        items = items_at(listed, "items")
        uids = [text_at(item, "metadata", "uid") for item in items]
        more = bool(text_at(listed, "metadata", "continue")) or len(items) > OBJECTS_MAX
        if more or not all(uids):
            return self.too_many()
        names = [_name_of(item) for item in items]
        view = _View(
            words.deletes_many(self.info, len(items)),
            flags_of(self.info, (), self.body),
            notes=self._options(),
            body="\n".join(sorted(names)),
        )
        return self._preview(view, ["deleted many"], uids)

    def too_many(self) -> Preview:
        """Return the preview of a deletecollection of too many objects."""
        why = (
            f"it deletes more objects than can be compared ({OBJECTS_MAX}, in 1 MiB): use a narrower selector"
        )
        view = _View(
            f"deletes many {safe(self.info.resource)}",
            flags_of(self.info, (), self.body),
            notes=[why],
            too_large=True,
        )
        return self._preview(view, ["deleted too many"])

    def reached(self, pod: Value) -> Preview:
        """Return the preview of an exec, an attach, a port-forward or an eviction."""
        images = sorted(
            [text_at(container, "name"), text_at(container, "imageID")]
            for kind in ("containerStatuses", "initContainerStatuses", "ephemeralContainerStatuses")
            for container in items_at(pod, "status", kind)
        )
        view = _View(
            words.reaches(self.info),
            (*self._eviction_flags(), *pod_flags(leaves(normal(pod)))),
            notes=self._eviction_options(),
            body="\n".join(f"{safe(name)}: {safe(image)}" for name, image in images),
        )
        return self._preview(view, ["reached", text_at(pod, "metadata", "uid"), images])

    def reached_unseen(self, why: str) -> Preview:
        """Return the preview of a call to a pod that cannot be read."""
        view = _View(words.reaches(self.info), self._eviction_flags(), notes=[why, *self._eviction_options()])
        return self._preview(view, ["reached unseen", why])

    def read(self) -> Preview:
        """Return the preview of a read."""
        view = _View(words.reads(self.info), notes=_noted(words.parameters_of(self.info)))
        if self.body.size:
            self._show_body(view)
        return self._preview(view, ["read"])

    def _options(self, *notes: str) -> list[str]:
        """Return the options of a deletion as notes, before others."""
        return _noted(words.options_of(self.body), words.parameters_of(self.info), *notes)

    def _eviction_options(self) -> list[str]:
        return self._options() if self.info.subresource == "eviction" else []

    def _eviction_flags(self) -> tuple[Flag, ...]:
        return eviction_flags(self.body) if self.info.subresource == "eviction" else ()

    def _show_body(self, view: _View) -> None:
        body = self.body
        if body.unreadable:
            view.notes.append(f"the body of {body.size} bytes is not shown: {body.unreadable}")
        else:
            view.body = body.shown(self.mask)

    def _preview(self, view: _View, facts: list[object], objects: Iterable[str] | None = None) -> Preview:
        return Preview(str(Effect.of(self.salt, facts, objects)), view.bounded())


@attrs.define
class _View:
    """A view that is being made."""

    summary: str
    flags: tuple[Flag, ...] = ()
    changes: list[Change] = attrs.Factory(list)
    left_out: list[str] = attrs.Factory(list)
    notes: list[str] = attrs.Factory(list)
    body: str = ""
    too_large: bool = False

    def bounded(self) -> View:
        """Return the view; of one that is too large, as much as may be stored."""
        # A relay words some of the notes.
        self.notes = list(map(safe, self.notes))
        left = VIEW_BYTES_MAX
        summary, left = _cut(self.summary, left)
        notes, left = _kept(self.notes, left, _size_of_text)
        left_out, left = _kept(self.left_out, left, _size_of_text)
        changes, left = _kept(self.changes, left, _size_of_change)
        body, left = _cut(self.body, left)
        whole = (summary, notes, left_out, changes, body) == (
            self.summary,
            self.notes,
            self.left_out,
            self.changes,
            self.body,
        )
        if not whole:
            notes.append(
                f"what it changes is longer than {VIEW_BYTES_MAX // 1024} KiB: it cannot be approved"
            )
        return View(
            summary,
            tuple(map(str, self.flags)),
            tuple(changes),
            tuple(left_out),
            tuple(notes),
            body,
            self.too_large or not whole,
        )


def _cut(text: str, left: int) -> tuple[str, int]:
    data = text.encode()
    return data[: max(0, left)].decode("utf-8", "ignore"), left - len(data)


T = TypeVar("T")


def _kept(parts: Sequence[T], left: int, size_of: Callable[[T], int]) -> tuple[list[T], int]:
    """Return the first parts that fit, and the room that is left; it is negative if not all fit."""
    kept = []
    for part in parts:
        left -= size_of(part)
        if left >= 0:
            kept.append(part)
    return kept, left


def _size_of_text(text: str) -> int:
    return len(text.encode())


def _size_of_change(change: Change) -> int:
    return sum(_size_of_text(text or "") for text in (change.path, change.before, change.after))


def _written(found: Iterable[Difference]) -> Iterator[tuple[Steps, Value]]:
    """Return the leaves that differences write. What is removed counts as null."""
    for difference in found:
        if difference.after is ABSENT:
            yield difference.steps, None
        else:
            yield from leaves(difference.after, difference.steps)  # type: ignore[arg-type]  # not ABSENT


def _noted(*notes: str) -> list[str]:
    return [note for note in notes if note]


def _keys(steps: Steps) -> tuple[str, ...]:
    """Return the steps that are keys of objects."""
    return tuple(
        step for step in steps if isinstance(step, str) and not (isinstance(step, Named) or is_index(step))
    )


def _name_of(item: Value) -> str:
    namespace, name = text_at(item, "metadata", "namespace"), text_at(item, "metadata", "name")
    return safe(f"{namespace}/{name}" if namespace else name)


def object_of(body: bytes) -> Value:
    """Return the object in an answer; None if there is none that can be compared."""
    try:
        value = parse_json(body)
    except NotReadable:
        return None
    return value if isinstance(value, dict) else None


def unsupported_webhook(body: bytes) -> str:
    """Return the API server's sentence about a webhook with side effects; "" for any other answer."""
    match = _NO_DRY_RUN.fullmatch(text_at(object_of(body), "message"))
    return match[0] if match is not None else ""
