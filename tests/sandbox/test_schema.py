from __future__ import annotations

from sandbox import kinds
from sandbox.openapi import SCALARS
from sandbox.schema import load


def test_every_type_that_is_named_is_there() -> None:
    messages = load()
    named = {field.type for message in messages.values() for field in message.fields}
    assert named - set(SCALARS) <= set(messages)


def test_no_number_or_name_stands_twice_in_a_message() -> None:
    for message in load().values():
        assert len(message.by_number) == len(message.fields), message.name
        assert len(message.by_name) == len(list(message.flat())), message.name


def test_every_served_kind_has_its_fields() -> None:
    assert {kind.kind for kind in kinds.KINDS} <= set(load())


def test_inline_fields_stand_in_their_surroundings() -> None:
    volume = load()["Volume"].by_name
    assert {"name", "emptyDir", "configMap"} <= set(volume)
    assert "." not in volume


def test_a_field_tells_how_it_is_merged() -> None:
    containers = load()["PodSpec"].by_name["containers"]
    assert (containers.containers, containers.merges, containers.merge_key) == (("[]",), True, "name")
    finalizers = load()["ObjectMeta"].by_name["finalizers"]
    assert (finalizers.merges, finalizers.merge_key) == (True, None)
    assert not load()["PodSpec"].by_name["tolerations"].merges
