from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from auth.principal import IdentityError, Principal, check_groups, check_user, slug

# C05: names that must never become an identity.
HOSTILE_NAMES = [
    "",
    " ",
    "a\n",
    "\na",
    "a b",
    "A",
    "Agent",
    "system",
    "kubernetes",
    "system:admin",
    "system:masters",
    "system:serviceaccount:ns:sa",
    "system:node:n1",
    "oidc:alice",
    "\u017fystem",  # upper() turns it into SYSTEM
    "ｓystem",  # NFKC turns it into system
    "sys\u200dtem",
    "a,b",
    "a/b",
    "a:b",
    "a%2fb",
    "-a",
    "a-",
    "a..b",
    "a\x00",
    "a\r\nImpersonate-Group: system:masters",
    "$(id)",
    "--server=x",
    "a" * 64,
    "é",
    "٣",
]


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_a_hostile_name_is_refused_everywhere(name: str) -> None:
    with pytest.raises(IdentityError):
        slug("agent name", name)
    with pytest.raises(IdentityError):
        Principal(agent_id="1", name=name, org="acme", teams=("platform",))
    with pytest.raises(IdentityError):
        Principal(agent_id="1", name="probe", org=name, teams=("platform",))
    with pytest.raises(IdentityError):
        Principal(agent_id="1", name="probe", org="acme", teams=("platform", name))
    with pytest.raises(IdentityError):
        check_user(f"agent:{name}")
    with pytest.raises(IdentityError):
        check_groups([f"acme/{name}"])
    with pytest.raises(IdentityError):
        check_groups([f"{name}/platform"])


@pytest.mark.parametrize("name", ["a", "0", "probe", "sre-1", "a" * 63, "a--b"])
def test_a_slug_is_returned_as_it_is(name: str) -> None:
    assert slug("team", name) == name


def test_the_message_names_the_kind_and_escapes_the_value() -> None:
    with pytest.raises(IdentityError, match=r"^cluster name '\\x1b]0;' is not valid"):
        slug("cluster name", "\x1b]0;")


@pytest.mark.parametrize(
    "user",
    [
        "",
        "  ",
        "\t",
        "probe",
        "agent:",
        "agent: ",
        "Agent:probe",
        "agent:agent:probe",
        "system:admin",
        "SYSTEM:ADMIN",
        "\u017fystem:admin",
        "system:serviceaccount:hawse:relay",
        "system:anonymous",
    ],
)
def test_a_user_that_is_no_agent_is_refused(user: str) -> None:
    with pytest.raises(IdentityError):
        check_user(user)


@pytest.mark.parametrize(
    "groups",
    [
        [],
        [""],
        ["platform"],
        ["acme/platform", ""],
        ["system:masters"],
        ["system:authenticated"],
        ["acme/a,acme/b"],
        ["acme/a b"],
        ["acme/a\r\n"],
        ["acme/a/b"],
        ["acme/a", "acme/a"],
        [f"acme/t{i}" for i in range(65)],
    ],
)
def test_groups_that_are_not_org_and_team_are_refused(groups: list[str]) -> None:
    with pytest.raises(IdentityError):
        check_groups(groups)


def test_what_the_hub_itself_sends_is_returned_as_it_is() -> None:
    assert check_user("agent:probe") == "agent:probe"
    most = [f"acme/t{number}" for number in range(64)]
    assert check_groups(most) == tuple(most)


def test_a_principal_derives_user_and_groups() -> None:
    principal = Principal(agent_id="0193-ab", name="probe", org="acme", teams=("platform", "sre"))
    assert principal.user == "agent:probe"
    assert principal.groups == ("acme/platform", "acme/sre")
    assert principal == Principal(agent_id="0193-ab", name="probe", org="acme", teams=("platform", "sre"))


def test_a_principal_without_a_team_or_with_a_bad_id_cannot_be_made() -> None:
    with pytest.raises(IdentityError, match="no group"):
        Principal(agent_id="1", name="probe", org="acme", teams=())
    with pytest.raises(IdentityError, match="agent id"):
        Principal(agent_id="1\n", name="probe", org="acme", teams=("platform",))


@given(st.text())
def test_what_passes_as_a_slug_is_plain_ascii_and_survives_folding(value: str) -> None:
    try:
        slug("team", value)
    except IdentityError:
        return
    assert value.isascii()
    assert value == value.casefold().strip()
    assert not set(value) - set("abcdefghijklmnopqrstuvwxyz0123456789-")
