"""Lists and watches: list options, chunked lists, and event streams."""

from __future__ import annotations

import base64
import binascii
import json
import secrets
from collections.abc import Callable

import attrs
import trio

from sandbox import codec, table
from sandbox.kinds import Kind
from sandbox.objects import Object, encode, integer, text
from sandbox.selectors import field_matcher, labels_match, parse_fields, parse_labels
from sandbox.server import Answer, Request, Response, Send, Streamed
from sandbox.status import Fault, StatusError, bad_request, expired, invalid
from sandbox.storage import Change, Collection, Cursor, Item, RevisionTooOld, Store

# A bookmark tells a watch without events which revision it has reached.
BOOKMARK_S = 60.0
# The duration of a watch without timeoutSeconds: the real server chooses one within these limits.
WATCH_MIN_S, WATCH_MAX_S = 1800.0, 3600.0

Test = Callable[[Object], bool]


@attrs.frozen
class Options:
    """The ListOptions of a request, parsed and checked."""

    matches: Test
    selective: bool
    limit: int
    token: str
    revision: str
    revision_match: str
    send_initial: bool
    bookmarks: bool
    timeout_s: float

    @classmethod
    def of_request(cls, request: Request, kind: Kind, name: str = "") -> Options:
        """Read the query; raises StatusError."""
        labels = parse_labels(request.option("labelSelector"))
        fields = parse_fields(request.option("fieldSelector"))
        field_test = field_matcher(fields, kind.fields)

        def matches(value: Object) -> bool:
            named = not name or text(value, "metadata", "name") == name
            return named and field_test(value) and labels_match(labels, value)

        revision = request.option("resourceVersion")
        if revision and not revision.isdecimal():
            raise bad_request(
                f'Invalid value: "{revision}": strconv.ParseUint: parsing "{revision}": invalid syntax'
            )
        return cls(
            matches=matches,
            selective=bool(labels or fields or name),
            limit=_number(request, "limit"),
            token=request.option("continue"),
            revision=revision,
            revision_match=request.option("resourceVersionMatch"),
            send_initial=request.flag("sendInitialEvents"),
            bookmarks=request.flag("allowWatchBookmarks"),
            timeout_s=_number(request, "timeoutSeconds")
            or secrets.SystemRandom().uniform(WATCH_MIN_S, WATCH_MAX_S),
        )


def _number(request: Request, name: str) -> int:
    value = request.option(name)
    if not value:
        return 0
    try:
        return max(int(value), 0)
    except ValueError:
        raise bad_request(f'strconv.ParseInt: parsing "{value}": invalid syntax') from None


def answer_list(request: Request, store: Store, kind: Kind, namespace: str) -> Response:
    """Answer a list, whole or in chunks; raises StatusError."""
    options = Options.of_request(request, kind)
    answer_form = codec.answer_form(request)
    collection = store.collection(kind.group, kind.resource)
    items, metadata = _chunk(store, collection, namespace, options)
    if answer_form.table:
        include = request.option("includeObject") or "Metadata"
        body = encode(table.render(kind, items, metadata, version=answer_form.version, include=include))
    elif answer_form.form:
        body = encode(
            {
                "kind": "PartialObjectMetadataList",
                "apiVersion": f"meta.k8s.io/{answer_form.version}",
                "metadata": metadata,
                "items": [table.partial(item.value, answer_form.version) for item in items],
            }
        )
    else:
        body = codec.list_body(kind, encode(metadata), items)
    return Response(200, body)


def _chunk(
    store: Store, collection: Collection, namespace: str, options: Options
) -> tuple[list[Item], Object]:
    """Return the objects of this chunk, and the list's metadata."""
    revision, start = store.revision, ""
    try:
        if options.token:
            revision, start = _read_token(options.token)
            items = collection.items_at(revision, namespace)
        elif options.revision_match == "Exact":
            revision = int(options.revision or 0)
            items = collection.items_at(revision, namespace)
        else:
            _check_reached(store, options.revision)
            items = collection.items(namespace)
    except RevisionTooOld as exc:
        raise expired(_EXPIRED_CONTINUE if options.token else str(exc)) from exc
    metadata: Object = {"resourceVersion": str(revision)}
    items = [item for item in items if item.key > start]
    matching = [number for number, item in enumerate(items) if options.matches(item.value)]
    if options.limit and len(matching) >= options.limit:
        matching = matching[: options.limit]
        # The rest may have no match: the last chunk can be empty, as on the real server.
        if rest := len(items) - 1 - matching[-1]:
            metadata["continue"] = _write_token(revision, items[matching[-1]].key)
            if not options.selective:
                metadata["remainingItemCount"] = rest
    return [items[number] for number in matching], metadata


_EXPIRED_CONTINUE = (
    "The provided continue parameter is too old to display a consistent list result. You can start a new "
    "list without the continue parameter, or use the continue token in this response to retrieve the "
    "remainder of the results. Continuing with the provided token results in an inconsistent list - objects "
    "that were created, modified, or deleted between the time the first chunk was returned and now may show "
    "up in the list."
)


def _write_token(revision: int, last: str) -> str:
    body = json.dumps({"v": "meta.k8s.io/v1", "rv": revision, "start": last})
    return base64.urlsafe_b64encode(body.encode()).decode().rstrip("=")


def _read_token(token: str) -> tuple[int, str]:
    try:
        value = json.loads(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))
    except (ValueError, binascii.Error):
        value = None
    if not isinstance(value, dict) or not text(value, "start"):
        raise bad_request("continue key is not valid: encoded value is not a token")
    return integer(value, "rv"), text(value, "start")


def _check_reached(store: Store, revision: str) -> None:
    """Refuse a revision in the future."""
    if revision and int(revision) > store.revision:
        why = f"Too large resource version: {revision}, current: {store.revision}"
        cause: Object = {"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}
        raise StatusError(504, "Timeout", f"Timeout: {why}", {"causes": [cause], "retryAfterSeconds": 1})


def answer_watch(request: Request, store: Store, kind: Kind, namespace: str, name: str) -> Answer:
    """Answer a watch; raises StatusError."""
    options = Options.of_request(request, kind, name)
    answer_form = codec.answer_form(request)
    if options.send_initial and options.revision_match != "NotOlderThan":
        fault = "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan"
        raise invalid("meta.k8s.io", "ListOptions", "", [_forbidden_option(fault)])
    if options.revision_match and "sendInitialEvents" not in request.query:
        fault = "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided"
        raise invalid("meta.k8s.io", "ListOptions", "", [_forbidden_option(fault)])
    _check_reached(store, options.revision)
    collection = store.collection(kind.group, kind.resource)
    include = request.option("includeObject") or "Metadata"
    watch = _Watch(store, collection, kind, namespace, options, answer_form, include)
    return Streamed(watch.run)


def _forbidden_option(why: str) -> Fault:
    return Fault("FieldValueForbidden", "resourceVersionMatch", f"Forbidden: {why}")


class _Watch:
    """One watch, from its first event to its end."""

    def __init__(
        self,
        store: Store,
        collection: Collection,
        kind: Kind,
        namespace: str,
        options: Options,
        answer_form: codec.AnswerForm,
        include: str,
    ) -> None:
        self._store = store
        self._collection = collection
        self._kind = kind
        self._namespace = namespace
        self._options = options
        self._answer_form = answer_form
        self._include = include
        self._header = True

    async def run(self, send: Send) -> None:
        """Write events until the deadline."""
        try:
            await self._follow(send, trio.current_time() + self._options.timeout_s)
        except RevisionTooOld as exc:
            await send(self._event("ERROR", encode(expired(str(exc)).to_json())))

    async def _follow(self, send: Send, deadline: float) -> None:
        options = self._options
        from_state = options.send_initial or options.revision in ("", "0")
        revision = self._store.revision if from_state else int(options.revision)
        cursor = self._collection.cursor(revision)
        if from_state:
            items = self._collection.items(self._namespace)
            await send(
                b"".join(self._object_event("ADDED", item) for item in items if options.matches(item.value))
            )
        if options.send_initial and options.bookmarks:
            await send(self._bookmark({"annotations": {"k8s.io/initial-events-end": "true"}}))
        quiet_s = BOOKMARK_S if options.bookmarks else float("inf")
        while trio.current_time() < deadline:
            await self._send_changes(send, cursor)
            # The deadline cancels only the wait: a half-written event would corrupt the connection.
            with trio.move_on_at(min(deadline, trio.current_time() + quiet_s)) as quiet:
                await cursor.wait()
            if quiet.cancelled_caught and options.bookmarks:
                await send(self._bookmark({}))

    async def _send_changes(self, send: Send, cursor: Cursor) -> None:
        while changes := cursor.take():
            await send(b"".join(filter(None, (self._change_event(change) for change in changes))))

    def _change_event(self, change: Change) -> bytes:
        """Return a change as this watch sees it: an object that starts to match is added, one that stops is
        deleted.
        """
        if self._namespace and text(change.item.value, "metadata", "namespace") != self._namespace:
            return b""
        before = change.previous is not None and self._options.matches(change.previous.value)
        after = change.type != "DELETED" and self._options.matches(change.item.value)
        if after:
            return self._object_event("MODIFIED" if before else "ADDED", change.item)
        return self._object_event("DELETED", change.item) if before else b""

    def _object_event(self, type_: str, item: Item) -> bytes:
        if self._answer_form.table:
            revision: Object = {"resourceVersion": str(item.revision)}
            rendered = table.render(
                self._kind,
                [item],
                revision,
                version=self._answer_form.version,
                include=self._include,
                header=self._header,
            )
            # A client keeps the columns of the first event.
            self._header = False
            return self._event(type_, encode(rendered))
        if self._answer_form.form:
            return self._event(type_, encode(table.partial(item.value, self._answer_form.version)))
        return self._event(type_, codec.with_type(self._kind, item))

    def _bookmark(self, metadata: Object) -> bytes:
        body: Object = {
            "kind": self._kind.kind,
            "apiVersion": self._kind.api_version,
            "metadata": {"resourceVersion": str(self._store.revision), "creationTimestamp": None, **metadata},
        }
        return self._event("BOOKMARK", encode(body))

    def _event(self, type_: str, body: bytes) -> bytes:
        return b'{"type":"' + type_.encode() + b'","object":' + body + b"}\n"
