from __future__ import annotations

from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from auth.impersonation import escape_extra_key, impersonation_headers
from auth.principal import IdentityError


def test_one_user_line_one_line_a_group_and_escaped_extras() -> None:
    assert impersonation_headers(
        "agent:probe",
        ("acme/platform", "acme/sre"),
        {"hawse.dev/agent-id": "0193", "hawse.dev/session": "s1"},
    ) == (
        (b"impersonate-user", b"agent:probe"),
        (b"impersonate-group", b"acme/platform"),
        (b"impersonate-group", b"acme/sre"),
        (b"impersonate-extra-hawse.dev%2fagent-id", b"0193"),
        (b"impersonate-extra-hawse.dev%2fsession", b"s1"),
    )


@pytest.mark.parametrize("user", ["", " ", "agent:", "system:masters", "system:serviceaccount:a:b", "probe"])
def test_no_headers_exist_for_an_identity_that_is_no_agent(user: str) -> None:
    with pytest.raises(IdentityError):
        impersonation_headers(user, ("acme/platform",), {})


@pytest.mark.parametrize("groups", [(), ("",), ("system:masters",), ("acme/a,acme/b",), ("acme/a\r\nx: y",)])
def test_no_headers_exist_without_good_groups(groups: tuple[str, ...]) -> None:
    with pytest.raises(IdentityError):
        impersonation_headers("agent:probe", groups, {})


@pytest.mark.parametrize("value", ["", " a", "a ", "a\r\nimpersonate-user: x", "a\x00", "é", "a" * 1025])
def test_an_extra_value_that_a_header_would_change_is_refused(value: str) -> None:
    with pytest.raises(IdentityError):
        impersonation_headers("agent:probe", ("acme/platform",), {"k": value})


@pytest.mark.parametrize(
    ("key", "escaped"),
    [
        ("scopes", "scopes"),
        ("acme.com/project", "acme.com%2fproject"),
        ("a%b", "a%25b"),
        ("a b:c", "a%20b%3ac"),
        ("ü", "%c3%bc"),
    ],
)
def test_extra_keys_are_escaped_as_client_go_does(key: str, escaped: str) -> None:
    assert escape_extra_key(key) == escaped


@pytest.mark.parametrize("key", ["", "Acme.com/project"])
def test_an_extra_key_that_the_server_would_read_as_another_is_refused(key: str) -> None:
    with pytest.raises(IdentityError):
        escape_extra_key(key)


@given(st.text(min_size=1).map(str.lower).filter(lambda key: key == key.lower()))
def test_the_server_reads_the_key_back(key: str) -> None:
    try:
        escaped = escape_extra_key(key)
    except UnicodeEncodeError:
        return  # lone surrogates come from no configuration
    assert set(escaped) <= set("!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyz")
    assert unquote(escaped.lower(), errors="strict") == key
