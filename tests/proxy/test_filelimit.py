from __future__ import annotations

import resource
from collections.abc import Iterator

import pytest

from proxy.filelimit import raise_file_limit


@pytest.fixture(autouse=True)
def _limits_as_they_were() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_the_soft_limit_becomes_the_hard_one() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    raise_file_limit()
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)


def test_a_system_that_refuses_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    # As macOS does, whose hard limit is "unlimited" while the kernel allows less.
    def refuse(kind: int, limits: tuple[int, int]) -> None:
        raise ValueError("not allowed to raise maximum limit")

    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    with monkeypatch.context() as patch:
        patch.setattr(resource, "setrlimit", refuse)
        raise_file_limit()
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == before
