"""The statements that the trail's writer sends, and the calls that write a batch with them."""

from __future__ import annotations

from audit.blocks import BLOCK_EVENTS
from audit.postgres import arrays
from audit.postgres.batch import Batch
from audit.postgres.link import Call, Statement
from audit.postgres.schema import LOCK_CLASS

# A dead hub may leave 20,000 open calls. A row of one with 64 KiB of target has 260 KiB, with its digits.
LEFT_ROWS_MAX = 100


def _statement(name: str, sql: str) -> Statement:
    return Statement(name.encode(), sql.encode())


BEGIN: Call = (_statement("begin", "BEGIN"), ())
COMMIT: Call = (_statement("commit", "COMMIT"), ())
ROLLBACK: Call = (_statement("rollback", "ROLLBACK"), ())
# Without a transaction id, the commit of a repeated batch would write nothing, and so not wait for a standby.
_REAL = (_statement("real", "SELECT txid_current()"), ())
_ENTER = _statement("enter", "SELECT trail_enter($1)")
_PARTS = _statement(
    "parts",
    "INSERT INTO trail_parts (epoch, number, n, body) "
    "SELECT $1::int, number, $2::bigint, body FROM unnest($3::int[], $4::bytea[]) AS part (number, body) "
    "ON CONFLICT DO NOTHING",
)
_EVENTS_SQL = (
    "INSERT INTO trail_events "
    "(epoch, n, written, eid, phase, kind, ts_us, agent, cluster, common, body) "
    "SELECT $1::int, $2::bigint + i, $3::bigint, eid, phase, kind, ts_us, agent, cluster, nullif(common, 0), "
    "body "
    "FROM unnest($4::uuid[], $5::text[], $6::text[], $7::bigint[], $8::text[], $9::text[], $10::int[], "
    "$11::bytea[]) WITH ORDINALITY AS batch (eid, phase, kind, ts_us, agent, cluster, common, body, i)"
)
# The first time, a number that is taken is an error: another process would be writing in this epoch.
_EVENTS = _statement("events", _EVENTS_SQL)
_EVENTS_AGAIN = _statement("events_again", f"{_EVENTS_SQL} ON CONFLICT (epoch, n) DO NOTHING")
_OPEN = _statement(
    "open",
    "INSERT INTO trail_open (eid, epoch, n) SELECT eid, $1::int, n FROM unnest($2::uuid[], $3::bigint[]) "
    "AS begun (eid, n) ON CONFLICT DO NOTHING",
)
_END = _statement("end", "DELETE FROM trail_open WHERE eid = ANY ($1::uuid[])")
_LATE = _statement(
    "late",
    "INSERT INTO trail_late_ends (eid, epoch, n) "
    "SELECT eid, $1::int, n FROM unnest($2::uuid[], $3::bigint[]) AS ended (eid, n) ON CONFLICT DO NOTHING",
)
_INDEX = _statement("index", "SELECT trail_index($1, $2, $3)")
_LOCK = _statement("lock", f"SELECT pg_advisory_xact_lock({LOCK_CLASS}, $1)")
IDENTIFY: Call = (
    _statement("identify", "SELECT id, version, (SELECT max(written) FROM trail_events) FROM trail"),
    (),
)
ALL_OPEN: Call = (_statement("all_open", "SELECT eid, epoch, n FROM trail_open"), ())
_FIND_EPOCH = _statement(
    "find_epoch", "SELECT epoch FROM trail_epochs WHERE boot = convert_from($1::bytea, 'UTF8')"
)
_ADD_EPOCH = _statement(
    "add_epoch",
    "INSERT INTO trail_epochs (epoch, boot) SELECT max(epoch) + 1, convert_from($1::bytea, 'UTF8') "
    "FROM trail_epochs ON CONFLICT (boot) DO NOTHING",
)
_NUMBERS = _statement(
    "numbers",
    "SELECT coalesce((SELECT max(n) FROM trail_events WHERE epoch = $1), 0), "
    "coalesce((SELECT written FROM trail_events WHERE epoch = $1 ORDER BY n DESC LIMIT 1), 0), "
    "coalesce((SELECT max(number) FROM trail_parts WHERE epoch = $1), 0)",
)
OPEN_EPOCHS: Call = (
    _statement(
        "open_epochs",
        "SELECT epoch, boot FROM trail_epochs e WHERE NOT closed "
        "AND (epoch > 0 OR EXISTS (SELECT FROM trail_open o WHERE o.epoch = e.epoch)) ORDER BY epoch",
    ),
    (),
)
_CLOSE = _statement("close", "UPDATE trail_epochs SET closed = true WHERE epoch = $1 AND epoch > 0")
# Each row is looked up by its key. Without statistics on the list of open calls, a join may be planned the
# other way round: for 4,096 calls, that took more than 5 s.
_LEFT = _statement(
    "left",
    "SELECT e.eid, e.kind, e.agent, e.cluster, e.phase, e.ts_us, encode(e.body, 'hex'), "
    "e.common, encode(p.body, 'hex') "
    "FROM (SELECT * FROM trail_open WHERE epoch = $1 ORDER BY n LIMIT $2) o "
    "CROSS JOIN LATERAL (SELECT * FROM trail_events e WHERE e.epoch = o.epoch AND e.n = o.n LIMIT 1) e "
    "LEFT JOIN LATERAL "
    "(SELECT body FROM trail_parts p WHERE p.epoch = e.epoch AND p.number = e.common LIMIT 1) p ON true "
    "ORDER BY o.n",
)
_PRESENT = _statement(
    "present", "SELECT eid, phase FROM trail_events WHERE written >= $1 AND eid = ANY ($2::uuid[])"
)


def lock(epoch: int) -> Call:
    """Wait until no other writer is in the epoch, and keep others out until the transaction ends."""
    return _LOCK, (arrays.int4(epoch),)


def find_epoch(boot: str) -> Call:
    return _FIND_EPOCH, (boot.encode(),)


def add_epoch(boot: str) -> Call:
    """Add an epoch; the next free number needs the lock on epoch 0."""
    return _ADD_EPOCH, (boot.encode(),)


def numbers(epoch: int) -> Call:
    """Select the last number of an event, its time, and the last number of a common part."""
    return _NUMBERS, (arrays.int4(epoch),)


def close(epoch: int) -> Call:
    return _CLOSE, (arrays.int4(epoch),)


def left(epoch: int) -> Call:
    """Select the rows of an epoch's first open intents."""
    return _LEFT, (arrays.int4(epoch), arrays.int8(LEFT_ROWS_MAX))


def index_rest(epoch: int, newest: int) -> Call:
    """Index the events of an epoch that gets no more of them."""
    end = (newest // BLOCK_EVENTS + 1) * BLOCK_EVENTS
    return _INDEX, (arrays.int4(epoch), arrays.int8(newest), arrays.int8(end))


def present(eids: list[str], since_us: int) -> Call:
    """Select those of these events that were written to the trail since then."""
    return _PRESENT, (arrays.int8(since_us), arrays.uuids(eids))


def written(batch: Batch, *, again: bool = False) -> list[Call]:
    """The calls that write a batch, without the transaction around them."""
    epoch, before = arrays.int4(batch.epoch), arrays.int8(batch.before)
    calls: list[Call] = [_REAL] if again else []
    if batch.parts:
        numbers, _, bodies = zip(*batch.parts, strict=True)
        calls.append((_PARTS, (epoch, before, arrays.int4s(numbers), arrays.blobs(bodies))))
    eids, phases, kinds, times, agents, clusters, common, bodies = zip(*batch.rows, strict=True)
    calls.append(
        (
            _EVENTS_AGAIN if again else _EVENTS,
            (
                *(epoch, before, arrays.int8(batch.written)),
                *(arrays.uuids(eids), arrays.texts(phases), arrays.texts(kinds), arrays.int8s(times)),
                *(arrays.texts(agents), arrays.texts(clusters), arrays.int4s(common), arrays.blobs(bodies)),
            ),
        )
    )
    for statement, ends in ((_OPEN, batch.opened), (_LATE, batch.late)):
        if ends:
            calls.append((statement, (epoch, arrays.uuids([*ends]), arrays.int8s([*ends.values()]))))
    if batch.ended:
        # Sorted, or two processes that end the same calls could wait for each other.
        calls.append((_END, (arrays.uuids(sorted(batch.ended)),)))
    if (batch.newest // BLOCK_EVENTS) > (batch.before // BLOCK_EVENTS):
        calls.append((_INDEX, (epoch, before, arrays.int8(batch.newest))))
    return calls


def in_epoch(batch: Batch, *, again: bool) -> list[Call]:
    """The whole transaction of a batch in its writer's own epoch."""
    return [BEGIN, (_ENTER, (arrays.int4(batch.epoch),)), *written(batch, again=again), COMMIT]
