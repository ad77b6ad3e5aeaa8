"""How long the admin API's searches of the trail take: `python -m benchmarks.trail [EVENTS] [FOLDER | URL]`.

Makes a trail of EVENTS events (10 million) by 1,000 agents within 30 days, in a file of FOLDER, or in the
empty PostgreSQL database of URL; one that is there is used again. The first BASE events are written by the
store, as a hub writes them. The others are copies of them with later times, made by the database: they take
seconds for a million. Then prints, for each search, its CPU time in this process, the median and the longest
of its runs in milliseconds, and what it found. benchmarks/README.md has the figures.
"""

from __future__ import annotations

import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path

import msgspec

from audit.blocks import BLOCK_EVENTS
from audit.members import Members
from audit.postgres.search import PostgresSearch
from audit.postgres.store import PostgresStore
from audit.query import Query
from audit.search.file import FileSearch
from audit.search.search import Newest, SearchReader
from audit.store import AuditStore
from audit.textsearch import Text
from benchmarks.audit_search import Fleet

EVENTS = 10_000_000
# The copies continue the blocks of the base.
BASE = 512 * BLOCK_EVENTS
AGENTS = 1000
DAYS = 30
BATCH = BLOCK_EVENTS
RUNS = 7
DEADLINE_S = 2.0


def make_file(path: Path, number: int) -> None:
    """Make a trail in a file, unless it is there."""
    if path.exists():
        return
    with closing(AuditStore(path)) as store:
        span_us = _fill(store, number)
    with closing(sqlite3.connect(path, isolation_level=None)) as file:
        file.execute("PRAGMA synchronous = OFF")
        for copy in range(1, number // BASE):
            file.execute("BEGIN")
            file.execute(
                "INSERT INTO events (eid, phase, kind, ts_us, agent, cluster, body, common) "
                "SELECT eid, phase, kind, ts_us + ?, agent, cluster, body, common FROM events "
                "WHERE seq BETWEEN ? AND ? ORDER BY seq",
                (copy * span_us, BLOCK_EVENTS, BASE + BLOCK_EVENTS - 1),
            )
            first = copy * BASE // BLOCK_EVENTS
            file.execute(
                "INSERT OR REPLACE INTO blocks SELECT number + ?, first_us + ?, last_us + ? FROM blocks "
                "WHERE number BETWEEN 1 AND ?",
                (first, copy * span_us, copy * span_us, BASE // BLOCK_EVENTS),
            )
            file.execute(
                'INSERT OR IGNORE INTO block_names SELECT block + ?, "column", name FROM block_names '
                "WHERE block BETWEEN 1 AND ?",
                (first, BASE // BLOCK_EVENTS),
            )
            file.execute("COMMIT")


def make_postgres(url: str, number: int) -> None:
    """Make a trail in a database, unless it has one."""
    import psycopg

    seconds = iter(range(1_790_000_000, 2**40))
    clock = partial(next, seconds)
    with (
        closing(PostgresStore(lambda: url, clock=clock)) as store,
        psycopg.connect(url, autocommit=True) as database,
    ):
        if database.execute("SELECT count(*) FROM trail_blocks").fetchone() != (0,):
            return
        span_us = _fill(store, number)
        [(epoch, span)] = database.execute(
            "SELECT epoch, max(written) - min(written) + 1000000 FROM trail_events GROUP BY epoch"
        ).fetchall()
        for copy in range(1, number // BASE):
            database.execute(
                "INSERT INTO trail_events "
                "(written, n, ts_us, eid, epoch, common, phase, kind, agent, cluster, body) "
                "SELECT written + %s, n + %s, ts_us + %s, "
                "eid, epoch, common, phase, kind, agent, cluster, body FROM trail_events "
                "WHERE epoch = %s AND n BETWEEN %s AND %s ORDER BY n",
                (copy * span, copy * BASE, copy * span_us, epoch, BLOCK_EVENTS, BASE + BLOCK_EVENTS - 1),
            )
            database.execute(
                "SELECT trail_index(%s, %s, %s)", (epoch, copy * BASE, (copy + 1) * BASE + BLOCK_EVENTS)
            )
        database.execute("VACUUM ANALYZE trail_events")


def _fill(store: AuditStore | PostgresStore, number: int) -> int:
    """Write the base; returns how many microseconds it covers."""
    fleet = Fleet(AGENTS, number / (DAYS * 86400))
    source = fleet.events()
    began_s = fleet.now_s
    # From number 1 on, to the last one of a block.
    for left in range(BASE + BLOCK_EVENTS - 1, 0, -BATCH):
        store.append([next(source) for _ in range(min(left, BATCH))], boot="bench")
    return int((fleet.now_s - began_s) * 1e6)


def measure(name: str, search: Callable[[], Newest]) -> None:
    """Run one search some times."""
    took_ms = []
    cpu_s = time.process_time()
    for _ in range(RUNS):
        began_s = time.perf_counter()
        found = search()
        took_ms.append((time.perf_counter() - began_s) * 1000)
    cpu_ms = (time.process_time() - cpu_s) * 1000 / RUNS
    stopped = f", {found.stopped} at {found.searched_to:%m-%d %H:%M}" if found.searched_to is not None else ""
    print(
        f"{name:<44} {cpu_ms:8.1f} {statistics.median(took_ms):8.1f} {max(took_ms):8.1f} ms   "
        f"{len(found.rows)} events{stopped}",
        flush=True,
    )


def searches(reader: SearchReader) -> None:
    """Measure the searches of a page."""

    def search(query: Query, text: Text | None = None, limit: int = 200) -> Callable[[], Newest]:
        return lambda: reader.newest(query, text=text, limit=limit, until_s=time.monotonic() + DEADLINE_S)

    [newest] = reader.newest(limit=1).rows
    end: datetime = msgspec.json.decode(newest.body, type=_Time).ts
    measure("the newest 200", search(Query()))
    for days in (1, 4, 11, 21):
        day = end - timedelta(days=days), end - timedelta(days=days - 1)
        measure(f"agent and day, {days} days ago", search(Query("robot-7", since=day[0], until=day[1])))
    measure("agent and day, all of 500", search(Query("robot-7", since=day[0], until=day[1]), limit=500))
    measure("an agent without events", search(Query("robot-none")))
    for name, members in (
        ("status=5xx, which is rare", Members(statuses=["5xx"])),
        ("verb=delete, of which there is none", Members(verbs=["delete"])),
        ("actor=operator:ada, of whom there is none", Members(actors=["operator:ada"])),
        ("team=team-3&namespace=app-7", Members(teams=["team-3"], namespaces=["app-7"])),
    ):
        measure(name, search(Query(members=members)))
    measure("q=web-999", search(Query(), Text("web-999")))
    measure("q of which there is none", search(Query(), Text("no such text")))


class _Time(msgspec.Struct):
    ts: datetime


def main() -> None:
    """Make the trail, and search it."""
    number = int(sys.argv[1]) if len(sys.argv) > 1 else EVENTS
    place = sys.argv[2] if len(sys.argv) > 2 else ""
    if place.startswith("postgres"):
        make_postgres(place, number)
        with closing(PostgresSearch(lambda: place)) as reader:
            searches(reader)
        return
    with tempfile.TemporaryDirectory() as name:
        path = Path(place or name) / "audit.db"
        make_file(path, number)
        with closing(FileSearch(path)) as reader:
            searches(reader)


if __name__ == "__main__":
    main()
