"""One world with a policy that asks, for all the tests of approvals of a process."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.fakes.receiver import FakeReceiver, running_receiver
from tests.system.approvals.scene import Scene
from tests.system.world import running_world


@pytest.fixture(scope="session")
def receiver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeReceiver]:
    """Gets the messages of the hub's webhook."""
    with running_receiver(tmp_path_factory.mktemp("receiver")) as receiver:
        yield receiver


@pytest.fixture(scope="session")
def scene(tmp_path_factory: pytest.TempPathFactory, receiver: FakeReceiver) -> Iterator[Scene]:
    webhook = (
        f'[[webhook]]\nname = "people"\nurl = "{receiver.url}"\nformat = "slack"\n'
        f'ca_file = "{receiver.ca_file}"\nallow_private_address = true\n'
    )
    with running_world(tmp_path_factory.mktemp("approvals"), hub_settings=webhook) as world:
        yield Scene.of(world)
