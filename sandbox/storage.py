"""The objects and their history, in memory: the counterpart of a real API server's etcd and watch cache.

One revision counter covers all collections, as in etcd; an object's resourceVersion is the revision of its
last change. Each collection keeps its latest changes. They feed watches and rebuild past states: a list that
continues by `continue` shows the state of its first page.

Stored objects are shared by all readers and never changed in place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import attrs
import trio

from sandbox.objects import Object, child, encode, text

# Changes that a collection keeps; older watches and lists get 410 and must restart.
HISTORY_MAX = 4096
# The initial value is arbitrary, except that a real cluster's counter is never 0.
FIRST_REVISION = 1

ChangeType = Literal["ADDED", "MODIFIED", "DELETED"]


class Item:
    """One version of an object, without `kind` and `apiVersion`, and its JSON once it has been needed."""

    __slots__ = ("_encoded", "revision", "value")

    def __init__(self, value: Object, revision: int) -> None:
        self.value = value
        self.revision = revision
        self._encoded: bytes | None = None

    @property
    def encoded(self) -> bytes:
        """Return the object as JSON."""
        if self._encoded is None:
            self._encoded = encode(self.value)
        return self._encoded

    @property
    def key(self) -> str:
        """Return the object's key in its collection; lists are sorted by it."""
        return key_of(text(self.value, "metadata", "namespace"), text(self.value, "metadata", "name"))


@attrs.frozen
class Change:
    """One change: `item` is the new version, or for DELETED the last one with the deletion's revision."""

    type: ChangeType
    item: Item
    previous: Item | None

    @property
    def revision(self) -> int:
        """Return the revision of the change."""
        return self.item.revision


class RevisionTooOld(Exception):
    """The requested state is no longer kept; `oldest` is the first revision that is."""

    def __init__(self, requested: int, oldest: int) -> None:
        super().__init__(f"too old resource version: {requested} ({oldest})")
        self.requested = requested
        self.oldest = oldest


def key_of(namespace: str, name: str) -> str:
    """Return an object's key; neither part can contain a slash."""
    return f"{namespace}/{name}" if namespace else name


class Store:
    """All collections with one revision counter."""

    def __init__(self) -> None:
        self.revision = FIRST_REVISION
        self._collections: dict[tuple[str, str], Collection] = {}
        # Set and replaced at every change; the controllers wait for it.
        self.changed = trio.Event()

    def collection(self, group: str, resource: str) -> Collection:
        """Return the collection of a resource, which may be empty."""
        key = (group, resource)
        found = self._collections.get(key)
        if found is None:
            found = self._collections[key] = Collection(self)
        return found

    def advance(self) -> int:
        """Return the revision for a change that is made now."""
        self.revision += 1
        self.changed.set()
        self.changed = trio.Event()
        return self.revision


class Collection:
    """The objects of one resource, and their latest changes."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._items: dict[str, Item] = {}
        self._changes: list[Change] = []
        # The number of dropped changes, and the revision of the last of them.
        self._forgotten = 0
        self._forgotten_revision = store.revision
        self.changed = trio.Event()

    def get(self, namespace: str, name: str) -> Item | None:
        """Return one object."""
        return self._items.get(key_of(namespace, name))

    def items(self, namespace: str = "") -> list[Item]:
        """Return the objects of a namespace, or of all, in the order of their keys."""
        return _sorted(self._items, namespace)

    def items_at(self, revision: int, namespace: str = "") -> list[Item]:
        """Return the objects as they were at a revision; raises RevisionTooOld."""
        self._check(revision)
        items = dict(self._items)
        for change in reversed(self._changes):
            if change.revision <= revision:
                break
            if change.previous is None:
                items.pop(change.item.key, None)
            else:
                items[change.item.key] = change.previous
        return _sorted(items, namespace)

    def put(self, value: Object) -> Item:
        """Store a new object or version; the storage owns `value` from now on."""
        revision = self._store.advance()
        child(value, "metadata")["resourceVersion"] = str(revision)
        item = Item(value, revision)
        previous = self._items.get(item.key)
        self._items[item.key] = item
        self._record(Change("MODIFIED" if previous else "ADDED", item, previous))
        return item

    def remove(self, namespace: str, name: str) -> Item | None:
        """Remove an object and return its last version, as a watch shows it."""
        previous = self._items.pop(key_of(namespace, name), None)
        if previous is None:
            return None
        revision = self._store.advance()
        metadata: Object = {**child(previous.value, "metadata"), "resourceVersion": str(revision)}
        item = Item({**previous.value, "metadata": metadata}, revision)
        self._record(Change("DELETED", item, previous))
        return item

    def _record(self, change: Change) -> None:
        self._changes.append(change)
        if len(self._changes) > 2 * HISTORY_MAX:
            self._forgotten_revision = self._changes[HISTORY_MAX - 1].revision
            del self._changes[:HISTORY_MAX]
            self._forgotten += HISTORY_MAX
        self.changed.set()
        self.changed = trio.Event()

    def _check(self, revision: int) -> None:
        if revision < self._forgotten_revision:
            raise RevisionTooOld(revision, self._forgotten_revision)

    def cursor(self, revision: int) -> Cursor:
        """Return a reader of the changes after a revision; raises RevisionTooOld."""
        self._check(revision)
        position = len(self._changes)
        while position and self._changes[position - 1].revision > revision:
            position -= 1
        return Cursor(self, self._forgotten + position)

    def changes_from(self, position: int) -> tuple[int, list[Change]]:
        """Return the changes from a position on, and the next position; raises RevisionTooOld."""
        if position < self._forgotten:
            raise RevisionTooOld(0, self._forgotten_revision)
        return self._forgotten + len(self._changes), self._changes[position - self._forgotten :]


class Cursor:
    """Reads a collection's changes in order."""

    def __init__(self, collection: Collection, position: int) -> None:
        self._collection = collection
        self._position = position

    def take(self) -> list[Change]:
        """Return the changes since the last call; raises RevisionTooOld if the reader is too far behind."""
        self._position, changes = self._collection.changes_from(self._position)
        return changes

    async def wait(self) -> None:
        """Wait until the collection changes again; call it only after `take` returned nothing."""
        await self._collection.changed.wait()


async def follow(store: Store, collections: Sequence[Collection], reconcile: Callable[[], None]) -> None:
    """Call `reconcile` after changes of these collections, until cancelled."""
    cursors = [collection.cursor(store.revision) for collection in collections]
    while True:
        changed = store.changed
        # Each of them is read each time: one that falls too far behind is no longer served.
        taken = [cursor.take() for cursor in cursors]
        if any(taken):
            reconcile()
        else:
            await changed.wait()


def _sorted(items: dict[str, Item], namespace: str) -> list[Item]:
    prefix = f"{namespace}/" if namespace else ""
    keys: Iterator[str] = (key for key in items if key.startswith(prefix))
    return [items[key] for key in sorted(keys)]
