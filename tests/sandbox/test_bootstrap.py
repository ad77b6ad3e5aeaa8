from __future__ import annotations

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from sandbox import kinds
from sandbox.authn import User
from sandbox.bootstrap import Furnisher
from sandbox.rbac import Attributes, Authorizer
from tests.sandbox.world import ADMIN, World

SOMEBODY = User("somebody", groups=("system:authenticated",))


async def test_a_new_cluster_has_what_a_client_looks_for(world: World) -> None:
    assert world.names(kinds.NAMESPACES, "") == ["default", "kube-node-lease", "kube-public", "kube-system"]
    assert world.names(kinds.NODES, "") == ["sandbox"]
    assert world.names(kinds.SERVICES) == ["kubernetes"]
    for namespace in ("default", "kube-system"):
        assert world.names(kinds.SERVICE_ACCOUNTS, namespace) == ["default"]
        assert world.names(kinds.CONFIG_MAPS, namespace) == ["kube-root-ca.crt"]


@pytest.mark.parametrize(
    ("wanted", "allowed"),
    [
        (Attributes(SOMEBODY, "get", path="/apis/apps/v1"), True),
        (Attributes(SOMEBODY, "get", path="/openapi/v3/api/v1"), True),
        (Attributes(SOMEBODY, "get", path="/metrics"), False),
        (Attributes(SOMEBODY, "create", kinds.AUTHENTICATION, "selfsubjectreviews"), True),
        (Attributes(SOMEBODY, "create", kinds.AUTHORIZATION, "subjectaccessreviews"), False),
        (Attributes(SOMEBODY, "list", resource="pods"), False),
        (Attributes(User("nobody"), "get", path="/api"), False),
        (Attributes(ADMIN, "delete", resource="nodes"), True),
    ],
)
async def test_its_roles_let_everybody_look_around(world: World, wanted: Attributes, allowed: bool) -> None:
    assert (Authorizer(world.store).refusal(wanted) is None) is allowed


@pytest.mark.parametrize(
    ("role", "verb", "resource", "subresource", "allowed"),
    [
        ("view", "list", "pods", "", True),
        ("view", "list", "secrets", "", False),
        ("view", "create", "pods", "", False),
        ("edit", "create", "pods", "exec", True),
        ("edit", "get", "secrets", "", True),
        ("admin", "get", "configmaps", "", True),
    ],
)
async def test_the_roles_for_users(
    world: World, role: str, verb: str, resource: str, subresource: str, allowed: bool
) -> None:
    reference = {"apiGroup": kinds.RBAC, "kind": "ClusterRole", "name": role}
    subjects = [{"kind": "User", "name": "somebody"}]
    world.writer.create(
        kinds.ROLE_BINDINGS,
        "default",
        {"metadata": {"name": "b"}, "roleRef": {**reference}, "subjects": [{**each} for each in subjects]},
    )
    wanted = Attributes(SOMEBODY, verb, resource=resource, subresource=subresource, namespace="default")
    assert (Authorizer(world.store).refusal(wanted) is None) is allowed


async def test_new_namespaces_are_furnished_and_old_ones_again(world: World) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Furnisher(world.store, world.writer, b"CA").run)
        await wait_all_tasks_blocked()
        world.writer.create(kinds.NAMESPACES, "", {"metadata": {"name": "new"}})
        world.writer.delete(kinds.SERVICE_ACCOUNTS, "default", "default")
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert world.names(kinds.SERVICE_ACCOUNTS, "new") == ["default"]
    assert world.names(kinds.CONFIG_MAPS, "new") == ["kube-root-ca.crt"]
    assert world.names(kinds.SERVICE_ACCOUNTS) == ["default"]
