from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
import trustme

from proxy.process.certificates import NAMES_SHOWN_MAX, remarks_on

NOW = datetime.now(UTC)


def certificate_of(*names: str, **dates: datetime) -> bytes:
    return trustme.CA().issue_cert(*names, **dates).cert_chain_pems[0].bytes()


@pytest.mark.parametrize(
    ("names", "host", "fits"),
    [
        (("hub.example",), "hub.example", True),
        (("HUB.example",), "hub.example", True),
        (("other.example", "hub.example"), "hub.example", True),
        (("*.teams.example",), "hub.teams.example", True),
        (("*.teams.example",), "a.hub.teams.example", False),
        (("*.teams.example",), "teams.example", False),
        (("hub.example",), "sub.hub.example", False),
        (("hub.example",), "hub.example.com", False),
        (("127.0.0.1",), "127.0.0.1", True),
        (("127.0.0.1",), "127.0.0.2", False),
        (("::1",), "0:0:0:0:0:0:0:1", True),
        (("localhost",), "127.0.0.1", False),
    ],
)
def test_a_certificate_for_another_host_is_remarked_on(names: tuple[str, ...], host: str, fits: bool) -> None:
    remarks = remarks_on(certificate_of(*names), NOW, host)
    assert [remark.refused for remark in remarks] == ([] if fits else [True])
    assert all(host in remark.text and names[0].lower() in remark.text for remark in remarks)


def test_only_some_of_many_names_are_shown() -> None:
    names = [f"name-{number}.example" for number in range(NAMES_SHOWN_MAX + 3)]
    (remark,) = remarks_on(certificate_of(*names), NOW, "hub.example")
    assert f"name-{NAMES_SHOWN_MAX - 1}.example and 3 more and not for hub.example" in remark.text


def test_a_certificate_without_a_name_is_for_no_host() -> None:
    pem = trustme.CA().issue_cert(common_name="hub.example").cert_chain_pems[0].bytes()
    (remark,) = remarks_on(pem, NOW, "hub.example")
    assert "is for no host at all and not for hub.example" in remark.text


@pytest.mark.parametrize(
    ("begins_d", "ends_d", "said", "refused"),
    [
        (-10, -1, "has expired on", True),
        (1, 30, "is not valid before", True),
        (-80, 10, "expires on", False),
        (-10, 80, "", False),
    ],
)
def test_dates_are_remarked_on(begins_d: int, ends_d: int, said: str, refused: bool) -> None:
    dates = {"not_before": NOW + timedelta(days=begins_d), "not_after": NOW + timedelta(days=ends_d)}
    remarks = remarks_on(certificate_of("hub.example", **dates), NOW, "hub.example")
    found = [(said in remark.text, remark.refused) for remark in remarks]
    assert found == ([(True, refused)] if said else [])


def test_what_is_wrong_in_two_ways_is_remarked_on_twice() -> None:
    pem = certificate_of("old.example", not_after=NOW - timedelta(days=1))
    assert len(remarks_on(pem, NOW, "hub.example")) == 2
