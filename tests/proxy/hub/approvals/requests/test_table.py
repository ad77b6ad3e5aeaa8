from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from typing import Any

import attrs
import pytest

from auth.policy.ask import VALID_FOR_S_MAX
from proxy.hub.approvals.request import LIFE_S, Request, State
from proxy.hub.approvals.requests.errors import NotOpenError, ShownDiffersError, TooLargeError
from proxy.hub.approvals.requests.table import (
    DENIED_S,
    ROW_KEPT_S,
    UNDECIDED_KEPT_S,
    USED_S,
    USES_RETURNED_MAX,
    VIEW_KEPT_S,
    RequestsTable,
)
from proxy.hub.store.engines.engine import Location
from proxy.hub.store.engines.errors import NotFoundError
from proxy.hub.store.engines.postgres_address import PostgresAddress
from proxy.hub.store.store import Store
from proxy.hub.store.versions.lineage import Lineage
from tests.fakes.databases import lose, run
from tests.fakes.hub_rows import add_hub
from tests.proxy.hub.approvals.requests.bench import VIEW, new_request, opened, populate, wait

USES = 100


def approved(table: RequestsTable, request: Request) -> Request:
    return table.decide(request.id, approve=True, by="ann@example.com", answer="", shown=request.new.shown)


def test_a_request_is_read_as_it_was_opened(database: Location) -> None:
    new = new_request(populate(database))
    with opened(database) as table:
        request = table.open(new, serves="eid")
        assert request.new == new
        assert (request.state, request.changes, request.uses_returned) == (State.PENDING, 0, 0)
        assert request.expires_at == request.created_at + LIFE_S
        assert table.get(request.id) == table.find(new.agent_id, new.plan) == request
        assert table.find(new.agent_id, "0" * 64) is None
        light = attrs.evolve(VIEW, changes=(), left_out=(), body="")
        assert table.every_open() == [attrs.evolve(request, new=attrs.evolve(new, view=light))]
        with pytest.raises(NotFoundError, match=r"there is no request 'no\\x00'"):
            table.get("no\0")


def test_texts_that_no_database_takes_are_stored_in_another_form(database: Location) -> None:
    snapshot = populate(database)
    with opened(database) as table:
        request = table.open(new_request(snapshot, what="delete a\0b", reason="\0"), serves="")
        assert (request.new.what, request.new.reason) == (r"delete a\x00b", r"\x00")


def test_one_plan_of_an_agent_has_one_open_request(database: Location) -> None:
    snapshot = populate(database, 2)
    with opened(database) as table, opened(database, "boot-b") as other:
        request = table.open(new_request(snapshot), serves="")
        assert other.open(new_request(snapshot), serves="") == request
        assert table.open(new_request(snapshot, 1), serves="").id != request.id
        assert table.open(new_request(snapshot, agent="robot1"), serves="").id != request.id
        assert len(table.committed) == 3


def test_of_a_hundred_uses_of_one_grant_at_once_one_has_it(database: Location) -> None:
    """As at hubs of four processes, each with a connection of its own."""
    snapshot = populate(database)
    with opened(database) as table, ExitStack() as stack:
        request = approved(table, table.open(new_request(snapshot), serves=""))
        hubs = [stack.enter_context(opened(database, f"boot-{number}")) for number in range(4)]
        locks = [threading.Lock() for _ in hubs]

        def use(number: int) -> bool:
            with locks[number % len(hubs)]:
                return hubs[number % len(hubs)].use(request.id, 0)

        with ThreadPoolExecutor(16) as pool:
            won = list(pool.map(use, range(USES)))
        assert sum(won) == 1
        assert table.get(request.id).state is State.USING
        # Only the hub that has it ends its use.
        winner = hubs[won.index(True) % len(hubs)]
        for hub in hubs:
            if hub is not winner:
                hub.spend(request.id)
                assert not hub.give_back(request.id)
                assert not hub.end(request.id, State.STALE, "")
        assert table.get(request.id).state is State.USING
        winner.spend(request.id)
        assert table.get(request.id).state is State.USED


def test_of_many_hubs_that_open_a_request_at_once_one_does(database: Location) -> None:
    snapshot = populate(database)
    with ExitStack() as stack:
        hubs = [stack.enter_context(opened(database, f"boot-{number}")) for number in range(4)]
        with ThreadPoolExecutor(len(hubs)) as pool:
            for number in range(5):
                new = new_request(snapshot, number)
                found = {request.id for request in pool.map(lambda hub: hub.open(new, serves=""), hubs)}  # noqa: B023 - called in the loop
                assert len(found) == 1
        assert sum(len(hub.committed) for hub in hubs) == 5


def test_a_grant_is_returned_ten_times_and_then_spent(database: Location) -> None:
    snapshot = populate(database)
    with opened(database) as table:
        request = approved(table, table.open(new_request(snapshot), serves=""))
        for count in range(USES_RETURNED_MAX):
            assert table.use(request.id, 0)
            assert table.give_back(request.id)
            assert table.get(request.id).uses_returned == count + 1
        assert table.use(request.id, 0)
        assert not table.give_back(request.id)
        assert table.get(request.id).state is State.USED


def test_an_approval_names_what_was_shown(database: Location) -> None:
    snapshot = populate(database)
    with opened(database) as table:
        request = table.open(new_request(snapshot), serves="")
        # The object changed, so another approver is shown another effect.
        other = new_request(snapshot, effect="salt:ffff").shown
        with pytest.raises(ShownDiffersError, match=f"request {request.id} is not what you were shown"):
            table.decide(request.id, approve=True, by="ann", answer="", shown=other)
        large = attrs.evolve(VIEW, too_large=True)
        unseen = table.open(new_request(snapshot, 1, view=large), serves="")
        with pytest.raises(TooLargeError, match="its difference is too large to be shown"):
            approved(table, unseen)
        assert table.decide(unseen.id, approve=False, by="ann", answer="no", shown="").state is State.DENIED
        decided = approved(table, request)
        assert (decided.decided_by, decided.state) == ("ann@example.com", State.APPROVED)
        with pytest.raises(NotOpenError, match=f"request {request.id} was approved by ann@example.com"):
            approved(table, request)
        with pytest.raises(NotOpenError, match=f"request {unseen.id} was denied by ann"):
            table.revoke(unseen.id, by="ann")


@pytest.mark.parametrize(("valid_for_s", "lasts_s"), [(60, 60), (VALID_FOR_S_MAX, LIFE_S - 1000)])
def test_an_approval_ends_with_the_request_at_the_latest(
    database: Location, valid_for_s: int, lasts_s: float
) -> None:
    snapshot = populate(database)
    with opened(database) as table:
        request = table.open(new_request(snapshot, valid_for_s=valid_for_s), serves="")
        wait(database, 1000)
        decided = approved(table, request)
        assert decided.decided_at is not None
        assert decided.valid_until is not None
        assert decided.valid_until - decided.decided_at == pytest.approx(lasts_s, abs=5)
        wait(database, lasts_s + 5)
        assert not table.use(request.id, 0)
        assert table.get(request.id).state is State.EXPIRED


def test_nothing_counts_after_its_time_though_no_sweep_has_come(database: Location) -> None:
    snapshot = populate(database)
    with opened(database) as table:
        request = table.open(new_request(snapshot), serves="")
        wait(database, LIFE_S + 1)
        assert table.find(request.new.agent_id, request.new.plan) is None
        with pytest.raises(NotOpenError, match="has expired"):
            approved(table, request)
        with pytest.raises(NotOpenError, match="has expired"):
            table.revoke(request.id, by="ann")
        assert [each.overdue for each in table.look(60)[0]] == [True]
        table.sweep()
        assert [(each.overdue, each.state) for each in table.look(60)[0]] == [(False, State.EXPIRED)]
        assert table.open(new_request(snapshot), serves="").id != request.id


def test_what_was_denied_or_used_answers_for_a_while(database: Location) -> None:
    snapshot = populate(database)
    with opened(database) as table:
        denied = table.open(new_request(snapshot), serves="")
        table.decide(denied.id, approve=False, by="ann", answer="not today", shown="")
        used = approved(table, table.open(new_request(snapshot, 1), serves=""))
        assert table.use(used.id, 0)
        table.spend(used.id)
        assert table.open(new_request(snapshot), serves="").answer == "not today"
        assert table.open(new_request(snapshot, 1), serves="").state is State.USED
        wait(database, USED_S + 1)
        assert table.find(used.new.agent_id, used.new.plan) is None
        wait(database, DENIED_S)
        assert table.find(denied.new.agent_id, denied.new.plan) is None


def test_a_revoked_grant_serves_no_call_and_is_not_returned(database: Location) -> None:
    snapshot = populate(database)
    with opened(database) as table, opened(database, "boot-b") as other:
        request = approved(table, table.open(new_request(snapshot), serves=""))
        assert table.use(request.id, 0)
        revoked = other.revoke(request.id, by="bob@example.com")
        assert (revoked.state, revoked.because) == (State.REVOKED, "revoked by bob@example.com")
        assert not table.give_back(request.id)
        table.spend(request.id)
        assert not table.use(request.id, 0)
        assert table.get(request.id).state is State.REVOKED


def test_grants_of_hubs_that_have_ended_are_spent(in_postgres: PostgresAddress) -> None:
    snapshot = populate(in_postgres)
    add_hub(in_postgres, "boot-a")
    add_hub(in_postgres, "boot-b", state="leaving")
    add_hub(in_postgres, "boot-c", state="dead")
    with ExitStack() as stack:
        tables = [stack.enter_context(opened(in_postgres, f"boot-{name}")) for name in "abcd"]
        for number, table in enumerate(tables):
            request = approved(table, table.open(new_request(snapshot, number), serves=""))
            assert table.use(request.id, 0)
        tables[0].spend_of([])
        states = {row.hub_boot: row.state for row in tables[0].look(60)[0]}
        # The fourth has no row any more.
        assert states == {
            "boot-a": State.USING,
            "boot-b": State.USING,
            "boot-c": State.USED,
            "boot-d": State.USED,
        }


def test_a_grant_that_the_database_has_lost_the_use_of_is_refused(database: Location) -> None:
    """As after a failover that lost commits, but no change of the directory."""
    snapshot = populate(database)
    with opened(database) as table:
        request = approved(table, table.open(new_request(snapshot), serves=""))
        assert table.use(request.id, 0)
        table.spend(request.id)
        known = table.get(request.id).changes
        run(database, "update requests set state = 'approved', changes = 1, ended_at = null")
        assert not table.use(request.id, known)
        table.cancel_open()
        assert not table.use(request.id, 0)
        assert table.get(request.id).because == "the database has lost changes"


@pytest.mark.parametrize("accepts", [False, True])
def test_an_accepted_loss_of_the_directory_cancels_open_requests(database: Location, accepts: bool) -> None:
    snapshot = populate(database)
    with opened(database) as table, closing(Store(database, org="acme", clock=float)) as store:
        request = approved(table, table.open(new_request(snapshot), serves=""))
        store.add_team("later")
        lineage = Lineage(store.version(), accepts)
        lose(database, back_to=snapshot.version)
        lineage.follow(store, store.version())
        if not accepts:
            assert table.get(request.id).state is State.APPROVED
            # As `hawse admin database accept` does.
            assert lineage.applied is not None
            store.accept_loss(lineage.applied)
        assert not table.use(request.id, 0)
        assert table.get(request.id).state is State.CANCELLED


def test_a_grant_counts_in_the_tables_alone_in_which_it_was_given(database: Location) -> None:
    """A dump of PostgreSQL that is restored has its tables under other OIDs."""
    snapshot = populate(database)
    with opened(database) as table:
        request = approved(table, table.open(new_request(snapshot), serves=""))
        pending = table.open(new_request(snapshot, 1), serves="")
        run(database, "update requests set database = database + 1")
        assert not table.use(request.id, 0)
        with pytest.raises(NotOpenError, match="was cancelled: the database was restored from a backup"):
            approved(table, pending)
        table.sweep()
        assert run(database, "select distinct state from requests") == [("cancelled",)]


def test_what_was_shown_is_deleted_a_week_after_the_end_and_the_row_later(database: Location) -> None:
    snapshot = populate(database)
    with opened(database) as table:
        ended = table.open(new_request(snapshot), serves="")
        table.decide(ended.id, approve=False, by="ann", answer="no", shown="")
        table.open(new_request(snapshot, 1), serves="")
        wait(database, VIEW_KEPT_S - 60)
        table.tidy()
        assert not table.get(ended.id).view_deleted
        wait(database, 120)
        table.tidy()
        left = table.get(ended.id)
        assert left.view_deleted
        assert left.new.effect == ""
        assert (left.new.target, left.answer) == ("", "no")
        # Only what has ended: here no sweep has ended the other one.
        assert run(database, "select count(*) from requests where view <> ''") == [(1,)]
        wait(database, ROW_KEPT_S)
        table.tidy()
        assert run(database, "select count(*) from requests") == [(1,)]


@pytest.mark.parametrize("before", [State.EXPIRED, State.CANCELLED])
def test_what_was_shown_and_never_decided_is_deleted_a_day_after_the_end(
    database: Location, before: State
) -> None:
    snapshot = populate(database)
    with opened(database) as table:
        requests = [table.open(new_request(snapshot, number), serves="") for number in range(3)]
        approved(table, requests[1])
        for request in requests[:2]:
            table.end(request.id, before, "")
        table.decide(requests[2].id, approve=False, by="ann", answer="no", shown="")
        wait(database, UNDECIDED_KEPT_S - 60)
        table.tidy()
        assert not any(table.get(request.id).view_deleted for request in requests)
        wait(database, 120)
        table.tidy()
        assert [table.get(request.id).view_deleted for request in requests] == [True, False, False]
        left = table.get(requests[0].id)
        assert (left.state, left.new.what, left.new.shown) != (before, "", "")
        assert (left.state, left.new.target, left.new.effect) == (before, "", "")
        wait(database, VIEW_KEPT_S)
        table.tidy()
        assert all(table.get(request.id).view_deleted for request in requests)


def test_a_view_that_cannot_be_read_is_not_approved_by_looking(database: Location) -> None:
    snapshot = populate(database)
    with opened(database) as table:
        request = table.open(new_request(snapshot), serves="")
        run(database, "update requests set view = '{'")
        assert table.get(request.id).new.view.notes == ("what was shown cannot be read",)


def test_requests_go_with_their_agent_or_cluster(database: Location) -> None:
    snapshot = populate(database)
    with opened(database) as table, closing(Store(database, org="acme", clock=float)) as store:
        request = table.open(new_request(snapshot), serves="")
        store.remove_cluster("prod")
        with pytest.raises(NotFoundError):
            table.get(request.id)
        with pytest.raises(NotFoundError, match="the cluster was removed"):
            table.open(new_request(snapshot), serves="")
        run(database, "delete from agent_teams", "delete from agents")
        with pytest.raises(NotFoundError, match="the agent was removed"):
            table.open(new_request(snapshot), serves="")


def test_requests_change_no_version_of_the_directory(database: Location) -> None:
    snapshot = populate(database)
    with opened(database) as table, closing(Store(database, org="acme", clock=float)) as store:
        request = approved(table, table.open(new_request(snapshot), serves=""))
        assert table.use(request.id, 0)
        table.spend(request.id)
        table.tidy()
        assert store.version() == snapshot.version


def test_lists_are_by_time_and_by_what_is_asked(database: Location) -> None:
    snapshot = populate(database, 2)
    with opened(database) as table:
        ids: list[str] = []
        for number in range(4):
            ids.insert(0, table.open(new_request(snapshot, number, f"robot{number % 2}"), serves="").id)
            wait(database, 1)
        table.decide(ids[0], approve=False, by="ann", answer="no", shown="")

        def listed(**what: Any) -> list[str]:
            asked = {"states": [], "agent_id": None, "cluster_id": None, "offset": 0, "limit": 9} | what
            return [each.id for each in table.find_all(**asked)]

        assert listed() == ids
        assert listed(offset=1, limit=2) == ids[1:3]
        assert listed(states=[State.PENDING]) == ids[1:]
        assert listed(states=[State.DENIED, State.USED]) == ids[:1]
        assert listed(agent_id=snapshot.agents_by_name["robot1"].id) == ids[::2]
        assert listed(cluster_id="other") == []


def test_neither_the_body_nor_a_value_leaves_with_the_summary(database: Location) -> None:
    snapshot = populate(database)
    with opened(database) as table:
        table.open(new_request(snapshot), serves="")
    ((summary,),) = run(database, "select summary from requests")
    assert json.loads(str(summary)) == {
        "summary": VIEW.summary,
        "flags": list(VIEW.flags),
        "changes": [],
        "left_out": [],
        "notes": list(VIEW.notes),
        "body": "",
        "too_large": False,
        "claimed_reason": VIEW.claimed_reason,
    }
