from __future__ import annotations

import resource
from collections.abc import Iterator

import pytest

from proxy.process.lifecycle.filelimit import OPEN_MAX, raise_file_limit


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
    def refuse(kind: int, limits: tuple[int, int]) -> None:
        raise ValueError("not allowed to raise maximum limit")

    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    with monkeypatch.context() as patch:
        patch.setattr(resource, "setrlimit", refuse)
        raise_file_limit()
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == before


@pytest.mark.parametrize(("soft", "raised"), [(256, [OPEN_MAX]), (20_000, [])])
def test_where_there_is_no_hard_limit_the_soft_one_is_as_high_as_the_system_takes(
    monkeypatch: pytest.MonkeyPatch, soft: int, raised: list[int]
) -> None:
    """As on macOS: the hard limit is "unlimited", and the kernel takes no more than OPEN_MAX."""
    taken = []

    def setrlimit(kind: int, limits: tuple[int, int]) -> None:
        if limits[0] == resource.RLIM_INFINITY:
            raise ValueError("not allowed to raise maximum limit")
        taken.append(limits[0])

    with monkeypatch.context() as patch:
        patch.setattr(resource, "getrlimit", lambda _: (soft, resource.RLIM_INFINITY))
        patch.setattr(resource, "setrlimit", setrlimit)
        raise_file_limit()
    assert taken == raised
