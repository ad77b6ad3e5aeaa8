"""The steps that all writes share; test_resources tests the verbs."""

from __future__ import annotations

import functools

import pytest

from sandbox.kinds import CONFIG_MAPS, NAMESPACES
from sandbox.objects import Object, child, items, text
from sandbox.options import Deletion, WriteOptions
from sandbox.status import StatusError
from sandbox.storage import Store
from sandbox.writing import SUFFIX_ALPHABET, Writer, suffix


@pytest.fixture
def store() -> Store:
    store = Store()
    store.collection("", "namespaces").put({"metadata": {"name": "a"}, "status": {"phase": "Active"}})
    return store


def make(store: Store, how: WriteOptions | None = None, **metadata: str) -> Object:
    value: Object = {"metadata": {"name": "x", **metadata}}
    return Writer(store).create(CONFIG_MAPS, "a", value, how or WriteOptions()).value


def test_the_system_sets_what_is_the_systems(store: Store) -> None:
    made = make(
        store,
        uid="mine",
        creationTimestamp="1999-01-01T00:00:00Z",
        resourceVersion="7",
        deletionTimestamp="x",
    )
    metadata = child(made, "metadata")
    assert metadata["uid"] != "mine"
    assert metadata["resourceVersion"] == str(store.revision)
    assert not text(metadata, "creationTimestamp").startswith("1999")
    assert "deletionTimestamp" not in metadata


def test_an_update_cannot_touch_it_either(store: Store) -> None:
    made = make(store)

    def change(value: Object) -> Object:
        child(value, "metadata").update({"creationTimestamp": "1999-01-01T00:00:00Z", "managedFields": []})
        return {**value, "data": {"a": "b"}}

    changed = Writer(store).update(CONFIG_MAPS, "a", "x", change).value
    for field in ("uid", "creationTimestamp"):
        assert text(changed, "metadata", field) == text(made, "metadata", field)
    assert len(items(changed, "metadata", "managedFields")) == 1


def test_another_uid_is_another_object(store: Store) -> None:
    make(store)

    def change(value: Object) -> Object:
        child(value, "metadata")["uid"] = "other"
        return value

    with pytest.raises(StatusError, match="Precondition failed: UID in precondition: other"):
        Writer(store).update(CONFIG_MAPS, "a", "x", change)


def with_data(data: Object, value: Object) -> Object:
    return {**value, "data": data}


def test_each_manager_and_way_is_noted_once(store: Store) -> None:
    make(store, WriteOptions(manager="one"))
    for number, how in enumerate(
        (
            WriteOptions(manager="one"),
            WriteOptions(manager="two", operation="Apply"),
            WriteOptions(manager="one"),
        )
    ):
        data: Object = {"n": str(number)}
        Writer(store).update(CONFIG_MAPS, "a", "x", functools.partial(with_data, data), how)
    managers = items(Writer(store).found(CONFIG_MAPS, "a", "x").value, "metadata", "managedFields")
    assert [(entry["manager"], entry["operation"]) for entry in managers] == [
        ("two", "Apply"),
        ("one", "Update"),
    ]


def test_the_last_finalizer_of_a_deleted_object_takes_it_along(store: Store) -> None:
    value: Object = {"metadata": {"name": "x", "finalizers": ["hold"]}}
    writer = Writer(store)
    writer.create(CONFIG_MAPS, "a", value)
    _, gone = writer.delete(CONFIG_MAPS, "a", "x", Deletion(propagation="Background"))
    assert not gone
    assert text(writer.found(CONFIG_MAPS, "a", "x").value, "metadata", "deletionTimestamp")

    def release(present: Object) -> Object:
        child(present, "metadata")["finalizers"] = []
        return present

    writer.update(CONFIG_MAPS, "a", "x", release)
    assert store.collection("", "configmaps").get("a", "x") is None


def test_annotations_have_a_bound(store: Store) -> None:
    value: Object = {"metadata": {"name": "x", "annotations": {"a": "x" * (256 * 1024)}}}
    with pytest.raises(StatusError, match="Too long"):
        Writer(store).create(CONFIG_MAPS, "a", value)


def test_what_is_in_no_namespace_is_given_none(store: Store) -> None:
    value: Object = {"metadata": {"name": "x", "namespace": "a"}}
    with pytest.raises(StatusError, match="namespace must not be set"):
        Writer(store).create(NAMESPACES, "", value)


def test_suffixes_make_no_words() -> None:
    assert all(len(suffix()) == 5 and set(suffix()) <= set(SUFFIX_ALPHABET) for _ in range(50))
