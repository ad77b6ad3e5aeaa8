from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

from proxy.hub.approvals.request import State
from proxy.hub.approvals.requests.outbox import KEPT_S
from proxy.hub.approvals.requests.table import RequestsTable
from proxy.hub.store.engines.engine import Location
from tests.fakes.databases import run
from tests.proxy.hub.approvals.requests.bench import new_request, opened, populate, wait


def events(table: RequestsTable, webhook: str) -> list[str]:
    """Claim and deliver all that is due."""
    found = []
    while (delivery := table.claim(webhook, 60)) is not None:
        found.append(delivery.event)
        table.delivered(delivery)
    return found


def test_each_webhook_hears_of_what_became_of_a_request(database: Location) -> None:
    snapshot = populate(database)
    with opened(database, webhooks=("slack", "pager")) as table:
        request = table.open(new_request(snapshot), serves="")
        assert events(table, "slack") == ["opened"]
        table.decide(request.id, approve=True, by="ann", answer="", shown=request.new.shown)
        # A use that is returned is no news.
        assert table.use(request.id, 0)
        assert table.give_back(request.id)
        assert table.use(request.id, 0)
        table.spend(request.id)
        assert events(table, "slack") == ["approved", "used"]
        assert events(table, "pager") == ["opened", "approved", "used"]
        late = table.open(new_request(snapshot, 1), serves="")
        wait(database, 4000)
        table.sweep()
        assert events(table, "slack") == ["opened", "expired"]
        assert table.get(late.id).state is State.EXPIRED
    with opened(database) as table:
        table.open(new_request(snapshot, 2), serves="")
        assert events(table, "slack") == []


def test_a_claim_takes_one_message_whatever_the_database_knows_of_the_table(database: Location) -> None:
    snapshot = populate(database)
    with opened(database, webhooks=("slack",)) as table:
        table.open(new_request(snapshot), serves="")
        # PostgreSQL does so by itself, and takes the table for one of a single row from then on.
        run(database, "analyze")
        for number in range(1, 10):
            table.open(new_request(snapshot, number), serves="")
        assert table.claim("slack", 60) is not None
    counted = "select attempts, count(*) from outbox group by attempts order by attempts"
    assert run(database, counted) == [(0, 9), (1, 1)]


def test_a_claim_is_one_hubs_until_its_lease_ends(database: Location) -> None:
    snapshot = populate(database)
    with opened(database, webhooks=("slack",)) as table, opened(database, "boot-b") as other:
        request = table.open(new_request(snapshot), serves="")
        first = table.claim("slack", 60)
        assert first is not None
        assert (first.request, first.attempts) == (request, 1)
        assert other.claim("slack", 60) is None
        # The hub died, or the webhook hung for longer than the lease.
        run(database, "update outbox set due_at = due_at - 61")
        second = other.claim("slack", 60)
        assert second is not None
        assert (second.id, second.attempts) == (first.id, 2)
        # The first hub does not take the second one's claim away.
        table.delivered(first)
        table.retry(first, 0)
        assert table.claim("slack", 60) is None
        other.retry(second, 0)
        third = table.claim("slack", 60)
        assert third is not None
        table.delivered(third)
        assert run(database, "select count(*) from outbox") == [(0,)]


def test_of_hubs_that_claim_at_once_one_has_it(database: Location) -> None:
    snapshot = populate(database)
    with ExitStack() as stack:
        hubs = [stack.enter_context(opened(database, f"boot-{n}", ("slack",))) for n in range(4)]
        for number in range(3):
            hubs[0].open(new_request(snapshot, number), serves="")
        with ThreadPoolExecutor(4) as pool:
            claimed = [each.id for each in pool.map(lambda hub: hub.claim("slack", 60), hubs) if each]
        # A hub may have skipped the row that another one had locked.
        assert len(claimed) == len(set(claimed)) >= 1
        assert len(set(claimed)) + len(events(hubs[0], "slack")) == 3


def test_what_cannot_be_sent_for_a_day_is_dropped(database: Location) -> None:
    snapshot = populate(database)
    with opened(database, webhooks=("slack",)) as table:
        table.open(new_request(snapshot), serves="")
        table.tidy()
        assert run(database, "select count(*) from outbox") == [(1,)]
        run(database, f"update outbox set created_at = created_at - {KEPT_S + 1}")
        table.tidy()
        assert run(database, "select count(*) from outbox") == [(0,)]
