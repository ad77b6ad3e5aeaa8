from __future__ import annotations

from sandbox import kinds


def test_every_kind_is_found_by_its_path() -> None:
    for kind in kinds.KINDS:
        assert kinds.find(kind.group, kind.version, kind.resource) is kind
        assert kind in kinds.of_group(kind.group)
    assert kinds.find("", "v1", "things") is None


def test_names_are_told_apart() -> None:
    stored = [kind for kind in kinds.KINDS if kind.stored]
    short = [name for kind in stored for name in (kind.resource, kind.singular, *kind.short_names)]
    assert len(short) == len(set(short))


def test_names_in_errors_and_paths() -> None:
    assert (str(kinds.PODS.group_resource), kinds.PODS.prefix) == ("pods", "/api/v1")
    assert (str(kinds.DEPLOYMENTS.group_resource), kinds.DEPLOYMENTS.prefix) == (
        "deployments.apps",
        "/apis/apps/v1",
    )
    assert "metadata.namespace" in kinds.PODS.fields
    assert "metadata.namespace" not in kinds.NODES.fields
