"""Probes the API server at the start and periodically: whether it answers, and the cluster's UID.

Liveness never depends on it: restarting the relay does not help a dead API server.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import NoReturn

import attrs
import trio

from proxy.kubernetes.statement import Statement
from proxy.relay.own_requests import NoAnswerError, ask_cluster_uid, ask_readyz
from proxy.relay.pool import Dial, dial_tls
from proxy.relay.service_account import ClusterAccess

log = logging.getLogger("hawse.relay")

# The interval of probes while the API server answers.
PROBE_EVERY_S = 30.0
# The interval while it does not. The kubelet probes every 5 s, and two failures mean "not ready" (see
# proxy.kubernetes.manifests). So a single failed probe costs no Service its endpoint.
PROBE_DOWN_EVERY_S = 5.0


@attrs.define(eq=False)
class Probe:
    """Probes the API server of `access`; the caller starts `run`."""

    access: ClusterAccess
    dial: Dial = dial_tls
    statement: Statement = attrs.Factory(Statement)
    """The result of the last probe."""
    probed: trio.Event = attrs.Factory(trio.Event)
    """Set once the first probe has ended, with either result."""
    took_s: float | None = None
    """How long the last probe of the API server took; None before the first one."""
    on_change: Callable[[Statement], None] = lambda _: None
    """Called with a new statement; it must neither block nor raise."""
    _logged_fault: str = ""
    """Why the API server does not answer, as logged last."""
    _logged_no_uid: str = ""
    """Why the UID is unknown, as logged last."""

    @property
    def answers(self) -> bool:
        """Whether the API server answered the last probe, by anything but a 5xx."""
        return self.statement.api_server is True

    async def run(self) -> NoReturn:
        """Probe until cancelled."""
        while True:
            await self.look()
            self.probed.set()
            await trio.sleep(PROBE_EVERY_S if self.answers else PROBE_DOWN_EVERY_S)

    async def look(self) -> None:
        """Probe once; when cancelled, the last result stays."""
        before = self.statement
        began_s = trio.current_time()
        fault = await self._fault()
        self.took_s = trio.current_time() - began_s
        uid = before.cluster_uid if fault else await self._uid()
        self.statement = Statement(uid, api_server=not fault)
        if fault != self._logged_fault:
            self._logged_fault = fault
            if fault:
                log.warning("the API server does not answer: %s", fault)
            else:
                log.info("the API server answers again")
        if self.statement != before:
            self.on_change(self.statement)

    async def _fault(self) -> str:
        """The error of the API server; "" when it answers."""
        try:
            status = await ask_readyz(self.access, self.dial)
        except NoAnswerError as error:
            return str(error)
        return f"/readyz is answered with {status}" if status >= 500 else ""

    async def _uid(self) -> str:
        """The cluster's UID. A known UID is kept when it cannot be read again."""
        try:
            status, uid = await ask_cluster_uid(self.access, self.dial)
        except NoAnswerError as error:
            self._log_no_uid(f"{error}; the hub cannot tell which cluster this is")
            return self.statement.cluster_uid
        if uid:
            self._logged_no_uid = ""
        else:
            # An API server checks roles only after it has accepted the token.
            step = "apply what `hawse admin cluster rbac` prints"
            if status == 401:
                step = "the relay's token is not accepted: renew that of its kubeconfig or service account"
            why = f"it is answered with {status}; the hub cannot tell which cluster this is: {step}"
            self._log_no_uid(why)
        return self.statement.cluster_uid if status >= 500 else uid

    def _log_no_uid(self, why: str) -> None:
        if why != self._logged_no_uid:
            self._logged_no_uid = why
            log.warning("cannot read the namespace kube-system: %s", why)
