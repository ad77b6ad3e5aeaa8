"""The hub's TLS certificate, kept current while it runs.

It is either the operator's, whose files another program renews, or one of the development CA, which the hub
renews. New handshakes use a renewed certificate; open connections keep the old one.
"""

from __future__ import annotations

import datetime
import logging
import ssl
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NoReturn

import attrs
import trio

from proxy.hub.home.config import HubConfig
from proxy.hub.home.datadir import DataDir
from proxy.hub.home.devca import ServerCertificate, ensure_certificate
from proxy.hub.home.files.private_files import DataDirError
from proxy.process.files import WatchedFile, warn_of_expiry, watch_certificate

# How late a renewed certificate may be noticed. Certificates are renewed days before they expire.
CHECK_EVERY_S = 60.0
# The development certificate is renewed a month early, so a day with a full disk does no harm. But a changed
# clock may expire it at once, and then clients fail until the next check.
RENEW_EVERY_S = 3600.0

_log = logging.getLogger("hawse.hub")


@attrs.define(eq=False)
class Certificate:
    """The hub's certificate, and the CA that clients need to verify it, unless that is a public one.

    A renewed certificate gets a new TLS context. Changing the current context could leave it with a
    certificate and a key that do not match.
    """

    chain: Path
    ca_pem: str | None
    """The current development CA; None with the operator's certificate."""
    context: ssl.SSLContext
    """Used by new handshakes."""
    _watched: WatchedFile[ssl.SSLContext]
    _renew: Callable[[], ServerCertificate] | None

    @classmethod
    def open(cls, config: HubConfig, data: DataDir, clock: Callable[[], float]) -> Certificate:
        """Open the operator's certificate, or one of the development CA; raises FileError or DataDirError."""
        if config.tls.certificate is not None and config.tls.key is not None:
            watched = watch_certificate(
                config.tls.certificate,
                config.tls.key,
                stated="tls.certificate",
                host=config.public_host,
                wildcard=config.cluster_hosts,
            )
            return cls(config.tls.certificate, None, watched.current(), watched, None)

        others = (config.cluster_hosts, config.console.tls_host)
        names = (config.public_host, *(name for name in others if name is not None))

        def ensure() -> ServerCertificate:
            now = datetime.datetime.fromtimestamp(clock(), datetime.UTC)
            return ensure_certificate(data.tls_dir, names, now)

        files = ensure()
        _log.warning("no certificate is configured: using one of a development CA, %s", files.ca)
        watched = watch_certificate(files.certificate, files.key)
        return cls(files.certificate, files.ca.read_text(), watched.current(), watched, ensure)

    async def keep_current(self, publish: Callable[[], None]) -> NoReturn:
        """Check each minute for a renewed certificate, and renew the development one hourly when it is due.

        Never returns. `publish` is called on a thread before a new certificate is used. If it raises
        DataDirError, OSError or ValueError, the current certificate stays, and the next try is a minute
        later.
        """
        renew_at = trio.current_time() + RENEW_EVERY_S
        while True:
            await trio.sleep(CHECK_EVERY_S)
            due = trio.current_time() >= renew_at
            if due:
                renew_at += RENEW_EVERY_S
            # On a thread, because a disk may be slow.
            self.context = await trio.to_thread.run_sync(partial(self._follow, publish, renew=due))

    async def warn_of_expiry(self) -> None:
        """Warn in the log before the operator's certificate expires; the development one is renewed here."""
        if self._renew is None:
            await warn_of_expiry(self.chain)

    def _follow(self, publish: Callable[[], None], *, renew: bool) -> ssl.SSLContext:
        """Return the context to use from now on."""
        try:
            if renew and self._renew is not None:
                self.ca_pem = self._renew().ca.read_text()
            context = self._watched.refresh()
            if context is not self.context:
                publish()
                return context
        except (DataDirError, OSError, ValueError) as error:
            # OSError and ValueError come from `publish`, when the file changes again meanwhile.
            _log.error("the certificate stays as it is: %s", error)
        return self.context
