from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio
import trio.testing

from audit.record import Event, Kind
from audit.store import TrailMark
from proxy.hub.authorize.events import Trail
from proxy.hub.calls.outcome import CloseReason
from proxy.hub.health import trail_watch
from proxy.hub.health.trail_watch import DISK_CHECK_S, Disk, TrailWatch, disk_of

GIB = 2**30


class Recorder:
    """A trail that is down since some time."""

    def __init__(self) -> None:
        self.down_since: float | None = None
        self.events: list[Event] = []

    @property
    def down_s(self) -> float:
        return 0.0 if self.down_since is None else trio.current_time() - self.down_since

    def complete(self, event: Event) -> None:
        self.events.append(event)


class Store:
    """The trail."""

    mark = TrailMark("its-id", 17)

    def expect(self, mark: TrailMark) -> None:
        self.mark = mark


class Directory:
    """The positions recorded in the hub's store."""

    def __init__(self) -> None:
        self.noted: list[TrailMark] = []
        self.current = SimpleNamespace(trail=None)
        self.used = self

    def note_trail(self, mark: TrailMark) -> None:
        self.noted.append(mark)


class Live:
    """Calls under way: an exec, a port-forward and a watch."""

    def __init__(self) -> None:
        upgrades = (b"websocket", b"SPDY/3.1", None)
        self.calls = [
            SimpleNamespace(call=SimpleNamespace(head=SimpleNamespace(upgrade=each))) for each in upgrades
        ]
        self.endings: list[tuple[float, Any]] = []

    def __iter__(self) -> Any:
        return iter(list(self.calls))

    async def end(self, doomed: list[tuple[Any, Any]]) -> list[Any]:
        for each, ending in doomed:
            self.calls.remove(each)
            self.endings.append((trio.current_time(), ending))
        return doomed


def watch_of(recorder: Recorder, live: Live, grace_s: int = 60) -> TrailWatch:
    return TrailWatch(
        Store(),  # type: ignore[arg-type]
        Directory(),  # type: ignore[arg-type]
        recorder,  # type: ignore[arg-type]
        live,  # type: ignore[arg-type]
        grace_s,
        Trail("acme").hub,
        Path("/"),
    )


@pytest.mark.parametrize(("grace_s", "ended"), [(60, 2), (0, 0)])
async def test_open_upgrades_end_when_their_grace_is_over_and_nothing_else_does(
    autojump_clock: trio.testing.MockClock, grace_s: int, ended: int
) -> None:
    recorder, live = Recorder(), Live()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch_of(recorder, live, grace_s).run_grace)
        await trio.sleep(3600)
        recorder.down_since = trio.current_time()
        await trio.sleep(59.5)
        # Back before its grace is over, and down again.
        recorder.down_since = None
        await trio.sleep(5)
        assert live.endings == []
        recorder.down_since = down_at = trio.current_time()
        await trio.sleep(3600)
        nursery.cancel_scope.cancel()
    assert len(live.endings) == ended
    for at, ending in live.endings:
        assert 60 <= at - down_at <= 61
        assert ending.close_reason is CloseReason.DEADLINE
        assert ending.reason == "the audit trail cannot be written for 60 s (audit.down_grace_s)"


async def test_a_full_disk_is_recorded_once_until_it_is_well_below_again(
    autojump_clock: trio.testing.MockClock,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    filled = [0.5, 0.79, 0.80, 0.95, 0.78, 0.81, 1.0, 0.76, 0.74, 0.79, 0.85, 0.9]
    looks = iter(filled)

    def look(_: Path) -> Disk:
        return Disk(100 * GIB, int(100 * GIB * (1 - next(looks, filled[-1]))))

    monkeypatch.setattr(trail_watch, "disk_of", look)
    # A look is on a thread, for which the clock waits.
    autojump_clock.autojump_threshold = 0.02
    recorder = Recorder()
    watch = watch_of(recorder, Live())
    with trio.move_on_after(DISK_CHECK_S * (len(filled) + 2)):
        await watch.run_disk()
    assert [event.kind for event in recorder.events] == [Kind.AUDIT_DISK] * 2
    assert recorder.events[0].note.startswith("the disk of / is 80% full, 20479 MiB are free: ")
    errors = [record.message for record in caplog.records if record.levelname == "ERROR"]
    assert len(errors) == 2
    assert [r.message for r in caplog.records if r.levelname == "WARNING"] == [
        "audit: the disk of / is 74 % full again"
    ]
    # Each check records the trail's position in the hub's store.
    assert len(watch.directory.noted) >= len(filled)  # type: ignore[attr-defined]
    assert watch.disk is not None
    assert watch.disk.filled == pytest.approx(0.9)


async def test_a_disk_that_cannot_be_looked_at_is_looked_at_again(
    autojump_clock: trio.testing.MockClock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    autojump_clock.autojump_threshold = 0.02
    watch = watch_of(Recorder(), Live())
    watch.folder = Path("/nowhere/at/all")
    with trio.move_on_after(DISK_CHECK_S * 1.5):
        await watch.run_disk()
    assert len([record for record in caplog.records if "cannot see how full" in record.message]) == 2
    assert watch.disk is None


def test_a_trail_that_was_accepted_is_followed_and_no_other() -> None:
    watch = watch_of(Recorder(), Live())
    for known in (None, TrailMark("its-id", 3)):
        watch.directory.current = SimpleNamespace(trail=known)  # type: ignore[assignment]
        watch.follow()
        assert watch.store.mark == TrailMark("its-id", 17)
    watch.directory.current = SimpleNamespace(trail=TrailMark("another", 3))  # type: ignore[assignment]
    watch.follow()
    assert watch.store.mark == TrailMark("another", 3)


def test_a_disk_is_as_full_as_df_says(tmp_path: Path) -> None:
    disk = disk_of(tmp_path)
    assert 0 < disk.free_bytes < disk.size_bytes
    assert disk.filled == 1 - disk.free_bytes / disk.size_bytes
    assert Disk(0, 0).filled == 1.0
