"""Garbage collection: deletes dependents with their owner, and a namespace with its contents."""

from __future__ import annotations

import trio

from sandbox.kinds import KINDS, NAMESPACES, PODS, Kind
from sandbox.objects import Object, child, items, strings, text
from sandbox.options import Deletion
from sandbox.status import StatusError
from sandbox.storage import Change, Cursor, Item, Store
from sandbox.writing import FOREGROUND, ORPHAN, Writer

Key = tuple[Kind, str, str]


class Collector:
    """Follows every collection, and deletes objects that lost their owner or their namespace."""

    def __init__(self, store: Store, writer: Writer) -> None:
        self._store = store
        self._writer = writer
        self._stored = [kind for kind in KINDS if kind.stored]
        self._owners: set[str] = set()
        self._dependents: dict[str, set[Key]] = {}
        self._leaving: dict[str, Key] = {}

    async def run(self) -> None:
        """Work until cancelled."""
        cursors: list[tuple[Kind, Cursor]] = []
        for kind in self._stored:
            collection = self._store.collection(kind.group, kind.resource)
            cursors.append((kind, collection.cursor(self._store.revision)))
            self._owners.update(text(item.value, "metadata", "uid") for item in collection.items())
        while True:
            changed = self._store.changed
            changes = [(kind, change) for kind, cursor in cursors for change in cursor.take()]
            if not changes:
                await changed.wait()
                continue
            for kind, change in changes:
                self._note(kind, change)
            for kind, change in changes:
                self._act(kind, change)
            self._empty_namespaces()
            await trio.lowlevel.checkpoint()

    def _note(self, kind: Kind, change: Change) -> None:
        """Update the indexes of existing objects, of deletions in progress, and of dependents."""
        metadata = child(change.item.value, "metadata")
        uid, key = text(metadata, "uid"), (kind, text(metadata, "namespace"), text(metadata, "name"))
        references = items(metadata, "ownerReferences")
        if change.type == "DELETED":
            self._owners.discard(uid)
            self._leaving.pop(uid, None)
            for reference in references:
                self._dependents.get(text(reference, "uid"), set()).discard(key)
            return
        self._owners.add(uid)
        if text(metadata, "deletionTimestamp"):
            self._leaving[uid] = key
        for reference in references:
            self._dependents.setdefault(text(reference, "uid"), set()).add(key)

    def _act(self, kind: Kind, change: Change) -> None:
        value = change.item.value
        uid = text(value, "metadata", "uid")
        if change.type == "DELETED":
            for key in list(self._dependents.pop(uid, ())):
                self._collect(key)
        references = items(value, "metadata", "ownerReferences")
        for reference in references:
            self._finish(text(reference, "uid"))
        if change.type != "DELETED":
            if references and not any(text(each, "uid") in self._owners for each in references):
                self._collect((kind, text(value, "metadata", "namespace"), text(value, "metadata", "name")))
            if text(value, "metadata", "deletionTimestamp"):
                self._finish_owner(kind, change.item)

    def _collect(self, key: Key) -> None:
        """Delete an object if all its owners are gone."""
        kind, namespace, name = key
        item = self._store.collection(kind.group, kind.resource).get(namespace, name)
        if item is None:
            return
        owners = [text(reference, "uid") for reference in items(item.value, "metadata", "ownerReferences")]
        if owners and not any(owner in self._owners for owner in owners):
            self._delete(kind, namespace, name, "Background")

    def _delete(self, kind: Kind, namespace: str, name: str, propagation: str) -> None:
        try:
            self._writer.delete(kind, namespace, name, Deletion(propagation=propagation))
        except StatusError:
            return  # already deleted

    def _finish(self, owner_uid: str) -> None:
        """Continue the deletion of an owner that waits for its dependents."""
        if owner_uid not in self._leaving:
            return
        kind, namespace, name = self._leaving[owner_uid]
        item = self._store.collection(kind.group, kind.resource).get(namespace, name)
        if item is not None:
            self._finish_owner(kind, item)

    def _finish_owner(self, kind: Kind, item: Item) -> None:
        """Take the next step of a deletion that handles dependents."""
        finalizers = strings(item.value, "metadata", "finalizers")
        dependents = list(self._dependents.get(text(item.value, "metadata", "uid"), ()))
        if ORPHAN in finalizers:
            for key in dependents:
                self._release(key, text(item.value, "metadata", "uid"))
            self._remove_finalizer(kind, item, ORPHAN)
        elif FOREGROUND in finalizers:
            for each, namespace, name in dependents:
                present = self._store.collection(each.group, each.resource).get(namespace, name)
                if present is not None and not text(present.value, "metadata", "deletionTimestamp"):
                    self._delete(each, namespace, name, "Background" if each is PODS else "Foreground")
            if not any(self._present(key) for key in dependents):
                self._remove_finalizer(kind, item, FOREGROUND)

    def _present(self, key: Key) -> bool:
        kind, namespace, name = key
        return self._store.collection(kind.group, kind.resource).get(namespace, name) is not None

    def _release(self, key: Key, owner_uid: str) -> None:
        """Remove an owner from a dependent, which stays."""
        kind, namespace, name = key

        def change(value: Object) -> Object:
            metadata = child(value, "metadata")
            kept = [each for each in items(metadata, "ownerReferences") if text(each, "uid") != owner_uid]
            metadata["ownerReferences"] = [*kept]
            if not kept:
                del metadata["ownerReferences"]
            return value

        if self._present(key):
            self._writer.update(kind, namespace, name, change)
            self._dependents.get(owner_uid, set()).discard(key)

    def _remove_finalizer(self, kind: Kind, item: Item, finalizer: str) -> None:
        def change(value: Object) -> Object:
            metadata = child(value, "metadata")
            metadata["finalizers"] = [each for each in strings(metadata, "finalizers") if each != finalizer]
            if not metadata["finalizers"]:
                del metadata["finalizers"]
            return value

        namespace, name = text(item.value, "metadata", "namespace"), text(item.value, "metadata", "name")
        if self._present((kind, namespace, name)):
            self._writer.update(kind, namespace, name, change)

    def _empty_namespaces(self) -> None:
        """Delete the contents of terminating namespaces, and the namespaces once they are empty."""
        namespaces = self._store.collection(NAMESPACES.group, NAMESPACES.resource)
        for item in namespaces.items():
            if text(item.value, "status", "phase") != "Terminating":
                continue
            name = text(item.value, "metadata", "name")
            left = 0
            for kind in self._stored:
                if not kind.namespaced:
                    continue
                collection = self._store.collection(kind.group, kind.resource)
                for content in collection.items(name):
                    if not text(content.value, "metadata", "deletionTimestamp"):
                        self._delete(kind, name, text(content.value, "metadata", "name"), "Background")
                left += len(collection.items(name))
            if not left and not strings(item.value, "metadata", "finalizers"):
                self._writer.remove(NAMESPACES, "", name)
