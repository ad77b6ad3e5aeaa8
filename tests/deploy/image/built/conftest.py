"""The images that `make test-image` built, in the folder HAWSE_TEST_IMAGE. Without it no tests are here."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.deploy.image.built.unpacked import Unpacked, unpack

FOLDER = os.environ.get("HAWSE_TEST_IMAGE", "")
collect_ignore_glob = [] if FOLDER else ["test_*.py"]


def _unpacked(target: str, factory: pytest.TempPathFactory) -> Unpacked:
    [file] = Path(FOLDER).glob(f"hawse-{target}-*-amd64.oci.tar")
    return unpack(target, file, factory.mktemp(target))


@pytest.fixture(scope="session")
def relay_image(tmp_path_factory: pytest.TempPathFactory) -> Unpacked:
    return _unpacked("relay", tmp_path_factory)


@pytest.fixture(scope="session")
def hub_image(tmp_path_factory: pytest.TempPathFactory) -> Unpacked:
    return _unpacked("hub", tmp_path_factory)


@pytest.fixture(params=["relay", "hub"])
def image(request: pytest.FixtureRequest) -> Unpacked:
    found = request.getfixturevalue(f"{request.param}_image")
    assert isinstance(found, Unpacked)
    return found
