from __future__ import annotations

import fnmatch
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from auth.policy.patterns import Names, Resources, Urls


@given(st.text("ab*", max_size=8), st.text("ab", max_size=12))
def test_a_star_stands_for_any_characters(pattern: str, name: str) -> None:
    expression = ".*".join(map(re.escape, pattern.split("*")))
    assert (name in Names((pattern,))) is (re.fullmatch(expression, name) is not None)
    assert (name in Names((pattern,))) is fnmatch.fnmatchcase(name, pattern)


def test_a_pattern_of_many_stars_is_no_slower_than_the_name_is_long() -> None:
    # As a regular expression, this pattern would search for hours.
    assert "a" * 20_000 + "c" not in Names(("*a" * 30 + "b",))


@pytest.mark.parametrize(
    ("patterns", "inside", "outside"),
    [
        (("a", "b"), ["a", "b"], ["c", ""]),
        (("app-*", "!app-old"), ["app-1", "app-"], ["app-old", "other"]),
        (("!kube-*",), ["default", ""], ["kube-system"]),
        (("*", "!a"), ["b"], ["a"]),
        (("",), [""], ["a"]),
    ],
)
def test_names_are_those_that_are_meant_without_those_that_are_taken_out(
    patterns: tuple[str, ...], inside: list[str], outside: list[str]
) -> None:
    names = Names(patterns)
    assert all(name in names for name in inside)
    assert not any(name in names for name in outside)


SUBRESOURCES = ("exec", "attach", "portforward", "proxy", "log", "ephemeralcontainers", "eviction", "resize")


@pytest.mark.parametrize("denies", [False, True])
@pytest.mark.parametrize("subresource", SUBRESOURCES)
def test_pods_is_never_one_of_its_subresources(subresource: str, denies: bool) -> None:
    pods = Resources(("pods",), denies)
    assert ("pods", "") in pods
    assert ("pods", subresource) not in pods
    assert ("pods", subresource) in Resources((f"pods/{subresource}",), denies)
    assert ("pods", "") not in Resources((f"pods/{subresource}",), denies)
    assert ("pods", subresource) in Resources(("pods/*",), denies)
    assert ("pods", "") not in Resources(("pods/*",), denies)
    assert ("pods", subresource) in Resources((f"*/{subresource}",), denies)


def test_everything_is_less_in_a_permission_than_in_a_denial() -> None:
    assert ("pods", "exec") not in Resources(("*",))
    assert ("pods", "exec") in Resources(("*",), denies=True)
    assert ("pods", "exec") in Resources(("*", "*/*"))


def test_what_is_taken_out_is_more_in_a_permission_than_in_a_denial() -> None:
    permission = Resources(("*", "*/*", "!secrets", "!pods/exec"))
    assert ("secrets", "") not in permission
    assert ("secrets", "status") not in permission
    assert ("pods", "exec") not in permission
    assert ("pods", "log") in permission
    denial = Resources(("*", "!pods"), denies=True)
    assert ("pods", "") not in denial
    assert ("pods", "exec") in denial


def test_a_list_of_exclusions_is_everything_else() -> None:
    assert ("pods", "") in Resources(("!secrets",))
    assert ("pods", "log") not in Resources(("!secrets",))
    assert ("secrets", "") not in Resources(("!secrets",))


def test_resources_know_which_they_can_be_about() -> None:
    assert Resources(("pods", "pods/log", "!secrets")).named == {"pods"}
    assert Resources(("*/scale",)).named is None
    assert Resources(("!secrets",)).named is None


@pytest.mark.parametrize(
    ("pattern", "inside", "outside"),
    [
        ("/metrics", ["/metrics", "/metrics/"], ["/metrics/cadvisor", "/metricsx", "/"]),
        ("/logs/*", ["/logs/", "/logs/a/b"], ["/logs", "/log"]),
        ("/*", ["/", "/anything"], []),
        ("/", ["/"], ["/a"]),
    ],
)
def test_paths_match_as_a_whole_or_by_their_beginning(
    pattern: str, inside: list[str], outside: list[str]
) -> None:
    urls = Urls((pattern,))
    assert all(path in urls for path in inside)
    assert not any(path in urls for path in outside)
