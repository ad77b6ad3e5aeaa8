"""Create, update, patch and delete: the steps that all writes share."""

from __future__ import annotations

import secrets
import uuid
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta

from sandbox import defaults
from sandbox.admission import Admission, Attributes
from sandbox.allocation import allocate
from sandbox.kinds import APPS, BATCH, NAMESPACES, PODS, SERVICES, Kind
from sandbox.objects import (
    Json,
    Object,
    child,
    clone,
    encode,
    integer,
    mapping,
    now,
    strings,
    text,
)
from sandbox.options import DEFAULT_DELETION, DEFAULT_OPTIONS, Deletion, WriteOptions
from sandbox.status import (
    StatusError,
    already_exists,
    bad_request,
    conflict,
    forbidden,
    invalid,
    invalid_field,
    modified,
    not_found,
)
from sandbox.storage import Collection, Item, Store

# The suffix that the real server appends to generateName, and to the names of controllers' objects.
SUFFIX_ALPHABET = "bcdfghjklmnpqrstvwxz2456789"
SUFFIX_CHARS = 5
NAME_CHARS_MAX = 63
FOREGROUND = "foregroundDeletion"
ORPHAN = "orphan"
# Maximum total size of an object's annotations.
ANNOTATIONS_BYTES_MAX = 256 * 1024

Change = Callable[[Object], Object]


def suffix() -> str:
    """Return the random suffix of a generated name."""
    return "".join(secrets.choice(SUFFIX_ALPHABET) for _ in range(SUFFIX_CHARS))


class Writer:
    """Writes objects of any stored kind."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.admission = Admission(store)

    def _collection(self, kind: Kind) -> Collection:
        return self._store.collection(kind.group, kind.resource)

    def found(self, kind: Kind, namespace: str, name: str) -> Item:
        """Return an object; raises StatusError 404."""
        item = self._collection(kind).get(namespace, name)
        if item is None:
            raise not_found(kind.group_resource, name)
        return item

    def create(
        self, kind: Kind, namespace: str, value: Object, options: WriteOptions = DEFAULT_OPTIONS
    ) -> Item:
        """Store a new object; the storage owns `value` from now on. Raises StatusError."""
        value.pop("kind", None)
        value.pop("apiVersion", None)
        metadata = child(value, "metadata")
        self._place(kind, namespace, metadata)
        if not text(metadata, "name") and text(metadata, "generateName"):
            room = NAME_CHARS_MAX - SUFFIX_CHARS
            metadata["name"] = text(metadata, "generateName")[:room] + suffix()
        if kind.subresource("status") is not None:
            value.pop("status", None)
        for field in (
            "deletionTimestamp",
            "deletionGracePeriodSeconds",
            "resourceVersion",
            "selfLink",
            "managedFields",
        ):
            metadata.pop(field, None)
        metadata["uid"] = str(uuid.uuid4())
        metadata["creationTimestamp"] = now()
        if kind.generation:
            metadata["generation"] = 1
        defaults.fill(kind, value)
        name = text(metadata, "name")
        attributes = Attributes(kind, "CREATE", namespace, name, value, dry_run=options.dry_run)
        if options.requested:
            self.admission.mutate(attributes)
            defaults.fill(kind, value)
        _check_size(kind, value)
        defaults.check(kind, value, None)
        if self._collection(kind).get(namespace, name) is not None:
            raise already_exists(kind.group_resource, name)
        if kind is SERVICES:
            allocate(self._store, value, dry_run=options.dry_run)
        if options.requested:
            self.admission.validate(attributes)
        _note_manager(kind, value, options)
        return self._put(kind, value, options)

    def _place(self, kind: Kind, namespace: str, metadata: Object) -> None:
        """Check that the object fits its namespace, and that the namespace exists."""
        given = text(metadata, "namespace")
        if given and given != namespace:
            raise bad_request(
                "the namespace of the provided object does not match the namespace sent on the request"
                if kind.namespaced
                else "namespace must not be set for this object"
            )
        if not kind.namespaced:
            return
        metadata["namespace"] = namespace
        where = self._collection(NAMESPACES).get("", namespace)
        if where is None:
            raise not_found(NAMESPACES.group_resource, namespace)
        if text(where.value, "status", "phase") == "Terminating":
            why = f"unable to create new content in namespace {namespace} because it is being terminated"
            error = forbidden(kind.group_resource, text(metadata, "name"), why)
            cause: Object = {
                "reason": "NamespaceTerminating",
                "message": f"namespace {namespace} is being terminated",
                "field": "metadata.namespace",
            }
            raise StatusError(
                error.code, error.reason, error.message, {**(error.details or {}), "causes": [cause]}
            )

    def update(
        self, kind: Kind, namespace: str, name: str, change: Change, options: WriteOptions = DEFAULT_OPTIONS
    ) -> Item:
        """Store a new version, made by `change` from a copy of the current one. Raises StatusError."""
        present = self.found(kind, namespace, name)
        value = change(clone(present.value))
        value.pop("kind", None)
        value.pop("apiVersion", None)
        metadata = child(value, "metadata")
        given, where = text(metadata, "name"), text(metadata, "namespace")
        if given != name:
            raise bad_request(f"the name of the object ({given}) does not match the name on the URL ({name})")
        if where and where != namespace:
            raise bad_request(
                f"the namespace of the object ({where}) does not match the namespace on the URL ({namespace})"
            )
        if kind.namespaced:
            metadata["namespace"] = namespace
        revision, uid = text(metadata, "resourceVersion"), text(metadata, "uid")
        if revision and revision != str(present.revision):
            raise modified(kind.group_resource, name)
        if uid and uid != text(present.value, "metadata", "uid"):
            was = text(present.value, "metadata", "uid")
            raise conflict(
                kind.group_resource,
                name,
                f"Precondition failed: UID in precondition: {uid}, UID in object meta: {was}",
            )
        value = _with_fixed_parts(kind, value, present.value, options.subresource)
        attributes = Attributes(
            kind, "UPDATE", namespace, name, value, present.value, options.subresource, options.dry_run
        )
        if options.requested:
            self.admission.mutate(attributes)
        if not options.subresource:
            defaults.fill(kind, value)
            _check_size(kind, value)
            defaults.check(kind, value, present.value)
            if kind is SERVICES:
                allocate(self._store, value, dry_run=options.dry_run)
        if options.requested:
            self.admission.validate(attributes)
        if kind.generation and value.get("spec") != present.value.get("spec"):
            child(value, "metadata")["generation"] = integer(present.value, "metadata", "generation") + 1
        if value == present.value:
            return present
        if _ready_to_go(kind, value):
            return present if options.dry_run else self.remove(kind, namespace, name) or present
        _note_manager(kind, value, options)
        return self._put(kind, value, options)

    def _put(self, kind: Kind, value: Object, options: WriteOptions) -> Item:
        if options.dry_run:
            return Item(value, self._store.revision)
        return self._collection(kind).put(value)

    def remove(self, kind: Kind, namespace: str, name: str) -> Item | None:
        """Remove an object from the storage unconditionally."""
        return self._collection(kind).remove(namespace, name)

    def delete(
        self, kind: Kind, namespace: str, name: str, deletion: Deletion = DEFAULT_DELETION
    ) -> tuple[Item, bool]:
        """Delete an object, or begin to; returns its last version and whether it is gone.

        Raises StatusError.
        """
        present = self.found(kind, namespace, name)
        self._check_preconditions(kind, present, deletion)
        if kind is NAMESPACES and name in ("default", "kube-system", "kube-public"):
            raise forbidden(kind.group_resource, name, "this namespace may not be deleted")
        if deletion.requested:
            attributes = Attributes(
                kind, "DELETE", namespace, name, None, present.value, dry_run=deletion.dry_run
            )
            self.admission.mutate(attributes)
            self.admission.validate(attributes)
        value = clone(present.value)
        metadata = child(value, "metadata")
        finalizers = _deletion_finalizers(kind, strings(metadata, "finalizers"), deletion)
        grace_s = _grace(kind, value, deletion)
        if not finalizers and not grace_s and kind is not NAMESPACES:
            if deletion.dry_run:
                return present, True
            return self.remove(kind, namespace, name) or present, True
        began = text(metadata, "deletionTimestamp")
        if finalizers:
            metadata["finalizers"] = [*finalizers]
        if not began or (kind is PODS and grace_s < integer(metadata, "deletionGracePeriodSeconds")):
            until = datetime.now(UTC) + timedelta(seconds=grace_s)
            metadata["deletionTimestamp"] = until.strftime("%Y-%m-%dT%H:%M:%SZ")
            metadata["deletionGracePeriodSeconds"] = grace_s
            if kind.generation:
                metadata["generation"] = integer(metadata, "generation") + 1
        if kind is NAMESPACES:
            child(value, "status")["phase"] = "Terminating"
        if value == present.value or deletion.dry_run:
            return Item(value, present.revision), False
        return self._collection(kind).put(value), False

    def _check_preconditions(self, kind: Kind, present: Item, deletion: Deletion) -> None:
        metadata = mapping(present.value, "metadata")
        name, uid = text(metadata, "name"), text(metadata, "uid")
        if deletion.uid and deletion.uid != uid:
            why = f"Precondition failed: UID in precondition: {deletion.uid}, UID in object meta: {uid}"
            raise conflict(kind.group_resource, name, why)
        revision = str(present.revision)
        if deletion.revision and deletion.revision != revision:
            why = (
                f"Precondition failed: ResourceVersion in precondition: {deletion.revision}, "
                f"ResourceVersion in object meta: {revision}"
            )
            raise conflict(kind.group_resource, name, why)


def _grace(kind: Kind, value: Object, deletion: Deletion) -> int:
    """Return an object's grace period: only pods have one, and only once they are on a node."""
    if kind is not PODS:
        return 0
    if text(value, "status", "phase") in ("Succeeded", "Failed") or not text(value, "spec", "nodeName"):
        return 0
    if deletion.grace_s is not None:
        return max(deletion.grace_s, 0)
    return integer(value, "spec", "terminationGracePeriodSeconds", default=30)


def _deletion_finalizers(kind: Kind, present: Sequence[str], deletion: Deletion) -> list[str]:
    finalizers = [each for each in present if each not in (FOREGROUND, ORPHAN)]
    if deletion.propagation == "Foreground":
        finalizers.append(FOREGROUND)
    elif (deletion.propagation or kind.propagation) == "Orphan" and kind.group in (APPS, BATCH):
        finalizers.append(ORPHAN)
    elif not deletion.propagation:
        return list(present)
    return finalizers


def _with_fixed_parts(kind: Kind, value: Object, present: Object, subresource: str) -> Object:
    """Return the new version, with the parts that this write may not change as they were."""
    if subresource == "status":
        metadata: Json = {**mapping(present, "metadata"), **_free_metadata(mapping(value, "metadata"))}
        return {**present, "metadata": metadata, "status": value.get("status")}
    if kind.subresource("status") is not None:
        if "status" in present:
            value["status"] = present["status"]
        else:
            value.pop("status", None)
    metadata = child(value, "metadata")
    fixed = mapping(present, "metadata")
    for field in (
        "uid",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "generation",
        "managedFields",
    ):
        if field in fixed:
            metadata[field] = fixed[field]
        else:
            metadata.pop(field, None)
    metadata["resourceVersion"] = fixed.get("resourceVersion")
    if kind is SERVICES:
        for field in ("clusterIP", "clusterIPs"):
            if field in mapping(present, "spec"):
                child(value, "spec").setdefault(field, mapping(present, "spec")[field])
    if kind is PODS and not text(value, "spec", "nodeName") and text(present, "spec", "nodeName"):
        child(value, "spec")["nodeName"] = text(present, "spec", "nodeName")
    return value


def _free_metadata(metadata: Object) -> Object:
    return {key: metadata[key] for key in ("labels", "annotations") if key in metadata}


def _ready_to_go(kind: Kind, value: Object) -> bool:
    """True if the last finalizer of a deleted object is gone; a pod still waits for its processes."""
    if not text(value, "metadata", "deletionTimestamp") or strings(value, "metadata", "finalizers"):
        return False
    return kind is not PODS and not (kind is NAMESPACES and strings(value, "spec", "finalizers"))


def _check_size(kind: Kind, value: Object) -> None:
    annotations = mapping(value, "metadata", "annotations")
    if len(encode(annotations)) > ANNOTATIONS_BYTES_MAX:
        fault = invalid_field(
            "metadata.annotations", "", f"Too long: may not be more than {ANNOTATIONS_BYTES_MAX} bytes"
        )
        raise invalid(kind.group, kind.kind, text(value, "metadata", "name"), [fault])


def _note_manager(kind: Kind, value: Object, options: WriteOptions) -> None:
    """Record in managedFields the last writer and its operation; the individual fields are not tracked."""
    metadata = child(value, "metadata")
    entry: Object = {
        "manager": options.manager,
        "operation": options.operation,
        "apiVersion": kind.api_version,
        "time": now(),
        "fieldsType": "FieldsV1",
        "fieldsV1": {},
    }
    if options.subresource:
        entry["subresource"] = options.subresource
    same = ("manager", "operation", "subresource")
    present = metadata.get("managedFields")
    others = [
        other
        for other in (present if isinstance(present, list) else [])
        if isinstance(other, dict) and any(other.get(key) != entry.get(key) for key in same)
    ]
    metadata["managedFields"] = [*others, entry]
