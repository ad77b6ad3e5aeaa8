"""The certificate that the hub shows, kept current while it runs.

Either the operator's, whose files something else renews, or one of the development CA, which the hub renews
itself. A new one is shown in the handshakes that come; connections that stand go on under the old.
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
from proxy.hub.home.datadir import DataDir, DataDirError
from proxy.hub.home.devca import ServerCertificate, ensure_certificate
from proxy.process.files import WatchedFile, warn_of_expiry, watch_certificate

# How long a renewed certificate stays unseen. They are renewed days before they end.
CHECK_EVERY_S = 60.0
# The development certificate is due a month before its end, so a day with a full disk does no harm. But a
# clock that is set may bring the end at once, and nobody gets in until the next look.
RENEW_EVERY_S = 3600.0

_log = logging.getLogger("hawse.hub")


@attrs.define(eq=False)
class Certificate:
    """The hub's certificate, and the CA that others need to verify it where that is no public one.

    A renewed one brings a context of its own instead of changing the present one, which could be left with
    a certificate and a key that do not fit.
    """

    chain: Path
    ca_pem: str | None
    """Of the development CA as it is now; None for a certificate of the operator's."""
    context: ssl.SSLContext
    """What the next handshake uses."""
    _watched: WatchedFile[ssl.SSLContext]
    _renew: Callable[[], ServerCertificate] | None

    @classmethod
    def open(cls, config: HubConfig, data: DataDir, clock: Callable[[], float]) -> Certificate:
        """The operator's certificate, or one of the development CA; raises FileError or DataDirError."""
        if config.tls.certificate is not None and config.tls.key is not None:
            watched = watch_certificate(
                config.tls.certificate,
                config.tls.key,
                stated="tls.certificate",
                host=config.public_host,
                wildcard=config.cluster_hosts,
            )
            return cls(config.tls.certificate, None, watched.current(), watched, None)

        names = (config.public_host, *([] if config.cluster_hosts is None else [config.cluster_hosts]))

        def ensure() -> ServerCertificate:
            now = datetime.datetime.fromtimestamp(clock(), datetime.UTC)
            return ensure_certificate(data.tls_dir, names, now)

        files = ensure()
        _log.warning("no certificate is configured: using one of a development CA, %s", files.ca)
        watched = watch_certificate(files.certificate, files.key)
        return cls(files.certificate, files.ca.read_text(), watched.current(), watched, ensure)

    async def keep_current(self, tell: Callable[[], None]) -> NoReturn:
        """Look each minute for a renewed certificate, hourly if the development one is due; never returns.

        `tell` is called on a thread before a new certificate is shown. While it raises DataDirError, OSError
        or ValueError the present one stays, and another try is made a minute later.
        """
        renew_at = trio.current_time() + RENEW_EVERY_S
        while True:
            await trio.sleep(CHECK_EVERY_S)
            due = trio.current_time() >= renew_at
            if due:
                renew_at += RENEW_EVERY_S
            # Disks may take their time, and nothing else may wait for them.
            self.context = await trio.to_thread.run_sync(partial(self._follow, tell, renew=due))

    async def warn_of_expiry(self) -> None:
        """Warn in the log before the operator's certificate ends; the development one is renewed here."""
        if self._renew is None:
            await warn_of_expiry(self.chain)

    def _follow(self, tell: Callable[[], None], *, renew: bool) -> ssl.SSLContext:
        """Return the context to use from now on."""
        try:
            if renew and self._renew is not None:
                self.ca_pem = self._renew().ca.read_text()
            context = self._watched.refresh()
            if context is not self.context:
                tell()
                return context
        except (DataDirError, OSError, ValueError) as error:
            # The last two from `tell`, when the file is changed once more under its eyes.
            _log.error("the certificate stays as it is: %s", error)
        return self.context
