"""Hubs that join one real database, and lose their leases."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import trio

from audit.ids import new_eid
from proxy.hub.home.files.private_files import DataDirError
from proxy.hub.membership import lease, spread
from proxy.hub.membership.member import MemberState
from proxy.hub.membership.members import Figures, LostLeaseError
from proxy.hub.membership.spread import Spread, notice_of
from proxy.hub.membership.table import MembersTable, read_state
from proxy.hub.store.engines.postgres import conninfo_of
from proxy.hub.store.engines.postgres_address import PostgresAddress
from tests.fakes.databases import run
from tests.proxy.hub.membership.hubs import Hub, joined
from tests.proxy.hub.membership.rows import member

WITHIN_S = 10.0


async def until(hub: Hub, met: Callable[[], bool]) -> None:
    """Renew until a condition is met."""
    with trio.fail_after(WITHIN_S):
        while not met():
            await hub.members.read()


def closed(address: PostgresAddress) -> set[str]:
    """The boots whose epochs of the trail are closed."""
    rows = run(address, "SELECT boot FROM trail_epochs WHERE closed")
    return {str(boot) for (boot,) in rows}


async def test_hubs_see_one_another_and_what_each_says_of_itself(in_postgres: PostgresAddress) -> None:
    one, other = new_eid(), new_eid()
    changes: list[str] = []
    async with joined(in_postgres, one, hub="0000000a", address="10.0.0.1:8445", certificate="pem") as first:
        assert first.members.others() == []
        first.members.on_change(lambda: changes.append("first"))
        async with joined(in_postgres, other, hub="0000000b") as second:
            (seen,) = second.members.others()
            assert (seen.boot, seen.address, seen.certificate) == (one, "10.0.0.1:8445", "pem")
            assert seen.living
            assert second.members.me.epoch == seen.epoch + 1
            second.members.figures = lambda: Figures(3, 5, ("0000000a",))
            second.members.renew_soon()
            first.members.renew_soon()
            await until(first, lambda: bool(changes))
            await second.members.read()
            await first.members.read()
            (seen,) = first.members.others()
            assert (seen.tunnels, seen.calls, seen.unreachable) == (3, 5, ("0000000a",))
            assert [each.boot for each in first.members.of_hub("0000000b")] == [other]
            second.members.leave()
            await second.members.read()
            await first.members.read()
            assert first.members.others()[0].state is MemberState.LEAVING
        await first.members.read()
        gone = first.members.by_boot(other)
        assert gone is not None
        assert gone.state is MemberState.GONE
        assert first.members.others() == []
        assert first.members.of_hub("0000000b") == []
    assert read_state(partial(conninfo_of, in_postgres), one) == ("0000000a", MemberState.GONE)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ("UPDATE hubs SET state = 'dead'", "the lease of this hub had ended"),
        ("DELETE FROM hubs", "the database has lost this hub's lease"),
        ("UPDATE trail_epochs SET closed = true", "the epoch of this hub in the audit trail is closed"),
        ("DELETE FROM trail_epochs WHERE epoch > 0", "the epoch of this hub in the audit trail is lost"),
    ],
)
async def test_a_hub_ends_that_others_took_for_dead(
    in_postgres: PostgresAddress, change: str, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    boot, ended = new_eid(), False
    with pytest.RaisesGroup(LostLeaseError, flatten_subgroups=True):
        async with joined(in_postgres, boot) as hub:
            await trio.to_thread.run_sync(run, in_postgres, change)
            hub.members.renew_soon()
            try:
                await trio.sleep(WITHIN_S)
            except trio.Cancelled:
                ended = True
                raise
    assert ended
    assert f"this hub ends its calls and exits: {why}" in caplog.text
    state = read_state(partial(conninfo_of, in_postgres), boot)
    assert state is None or state[1] is not MemberState.SERVING or "epoch" in why


async def test_a_copy_of_a_running_hubs_folder_does_not_start(
    in_postgres: PostgresAddress, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "COPY_LOOK_S", 0.01)
    async with joined(in_postgres, new_eid(), hub="0000000a", place="here") as first:
        async with trio.open_nursery() as nursery:

            async def renew() -> None:
                while True:
                    await first.members.read()

            nursery.start_soon(renew)
            with pytest.raises(
                DataDirError, match=r"id of this hub, 0000000a .* remove the files hub-id and"
            ):
                async with joined(in_postgres, new_eid(), hub="0000000a", place="there"):
                    pass
            nursery.cancel_scope.cancel()


async def test_a_hub_starts_at_once_beside_its_killed_process_and_in_place_of_a_silent_one(
    in_postgres: PostgresAddress, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed, silent, running, new = (new_eid() for _ in range(4))
    table = MembersTable(partial(conninfo_of, in_postgres))
    async with joined(in_postgres, running, hub="0000000a", place="here", running=[running]):
        table.join(member(killed, hub="0000000a"), "here", [running])
        table.join(member(silent, hub="0000000a"), "elsewhere", [])
        # The silent one may be a machine that has just lost its power: it is watched, but not waited for.
        monkeypatch.setattr(lease, "COPY_WATCH_S", 0.1)
        monkeypatch.setattr(lease, "COPY_LOOK_S", 0.02)
        async with joined(in_postgres, new, hub="0000000a", place="here", running=[running, new]) as hub:
            states = {
                each.boot: each.state for each in map(hub.members.by_boot, (killed, silent, running)) if each
            }
            assert states == {
                killed: MemberState.DEAD,
                silent: MemberState.SERVING,
                running: MemberState.SERVING,
            }
            assert [each.boot for each in hub.members.of_hub("0000000a")] == [new, silent, running]
    table.close()


async def test_a_dead_hub_is_marked_unless_it_has_renewed(in_postgres: PostgresAddress) -> None:
    async with joined(in_postgres, new_eid(), hub="0000000a") as hub:
        table = MembersTable(partial(conninfo_of, in_postgres))
        boots = [new_eid(), new_eid()]
        for boot in boots:
            table.join(member(boot), boot, [])
        rows = [row for row in table.read().rows if row.member.boot in boots]
        table.renew(rows[0].member)
        assert table.mark_dead(rows) == boots[1:]
        # Its calls are closed in the trail, by any hub.
        await until(hub, lambda: boots[1] in closed(in_postgres))
        assert boots[0] not in closed(in_postgres)
        reading = table.renew(rows[1].member)
        dead = reading.of(boots[1])
        assert dead is not None
        assert (dead.member.state, dead.member.certificate) == (MemberState.DEAD, "")
        table.close()


async def test_ended_hubs_are_forgotten_after_some_minutes(in_postgres: PostgresAddress) -> None:
    async with joined(in_postgres, new_eid(), hub="0000000a") as hub:
        async with joined(in_postgres, other := new_eid()):
            pass
        await hub.members.read()
        assert hub.members.by_boot(other) is not None
        await until(hub, lambda: other in closed(in_postgres))
        run(in_postgres, f"UPDATE hubs SET renewed_at = renewed_at - 601 WHERE boot = '{other}'")
        await hub.members.read()
        await hub.members.read()
        assert hub.members.by_boot(other) is None


async def test_a_change_waits_for_the_hubs_that_have_not_applied_it(
    in_postgres: PostgresAddress, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spread, "SPREAD_WAIT_S", 1.0)
    async with joined(in_postgres, new_eid(), hub="0000000a") as hub:
        waiting = Spread(hub.directory, hub.members)
        await hub.directory.change(lambda store: store.add_team("alone"))
        assert await waiting.wait() == ()
        async with joined(in_postgres, new_eid(), hub="0000000b"):
            await hub.directory.change(lambda store: store.add_team("both"))
            began = trio.current_time()
            assert await waiting.wait() == ()
            assert trio.current_time() - began < 1.0
        async with joined(in_postgres, slow := new_eid(), hub="0000000c", polls=False):
            await hub.directory.change(lambda store: store.add_team("one"))
            behind = await waiting.wait()
            assert notice_of(behind).startswith(
                f"not yet in force at every hub; missing: 0000000c (boot {slow}), whose lease ends in 7"
            )


async def test_a_snapshot_is_confirmed_by_renewals_alone(in_postgres: PostgresAddress) -> None:
    async with joined(in_postgres, new_eid()) as hub:
        age = hub.directory.age
        await hub.members.read()
        confirmed_s = age.confirmed_s
        hub.directory.poll_soon()
        await trio.sleep(0.1)
        assert age.confirmed_s == confirmed_s
        # A change that no poll has read yet is not applied.
        await hub.directory.change(lambda store: store.add_team("sre"))
        await hub.members.read()
        assert age.confirmed_s > confirmed_s
