from __future__ import annotations

import attrs

from proxy.hub.approvals.request import State
from proxy.hub.store.engines.engine import Location
from tests.proxy.hub.approvals.requests.bench import VIEW, new_request, opened, populate


def test_a_request_is_read_as_it_was_opened(database: Location) -> None:
    snapshot = populate(database)
    new = new_request(snapshot)
    with opened(database) as table:
        request = table.open(new, serves="eid")
        assert request.new == new
        assert (request.state, request.changes, request.uses_returned) == (State.PENDING, 0, 0)
        assert request.expires_at == request.created_at + 3600
        assert table.get(request.id) == request
        assert table.find(new.agent_id, new.plan) == request
        assert table.open(new, serves="other") == request
        light = attrs.evolve(VIEW, changes=(), left_out=(), body="")
        (listed,) = table.find_all(states=[], agent_id=None, cluster_id=None, offset=0, limit=9)
        assert listed == attrs.evolve(request, new=attrs.evolve(new, view=light))
        r = table.decide(request.id, approve=True, by="ann", answer="", shown=new.shown)
        assert r.state is State.APPROVED
        assert table.use(request.id, 1)
        assert not table.use(request.id, 1)
        assert table.give_back(request.id)
        assert table.use(request.id, 1)
        table.spend(request.id)
        assert table.get(request.id).state is State.USED
