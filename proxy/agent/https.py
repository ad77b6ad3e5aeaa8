"""The way out for what an agent's commands ask over HTTPS: straight, or through the environment's proxy.

Which hosts go through the proxy is decided where it is for tunnels (tunnel.net.egress), so that all of an
agent's commands, its relay and its kubectl understand HTTPS_PROXY and NO_PROXY alike.
"""

from __future__ import annotations

import os
import ssl

from proxy.agent.blocking_https import HTTPSConnection
from proxy.agent.errors import AgentError

# For each wait on the network; the plugin has a deadline for all of it together.
SOCKET_TIMEOUT_S = 10.0


def https_connection(host: str, port: int, context: ssl.SSLContext) -> tuple[HTTPSConnection, str]:
    """Make a connection that is opened by its first request, and what it goes through, in words for an error.

    Raises AgentError for a proxy that cannot be used, which never holds its password.
    """
    direct = HTTPSConnection(host, port, timeout_s=SOCKET_TIMEOUT_S, context=context)
    if not (os.environ.get("HTTPS_PROXY") or os.environ.get("https_proxy")):
        # Only who is behind a proxy pays for loading what knows of them.
        return direct, ""
    from tunnel.net.egress import ProxySettings

    try:
        proxy = ProxySettings.from_environment(os.environ).proxy_for(host, port)
    except ValueError as error:
        raise AgentError(str(error)) from None  # its cause may hold a password
    if proxy is None:
        return direct, ""
    if proxy.tls:
        raise AgentError("HTTPS_PROXY: this command can use a proxy of the kind http:// alone")
    connection = HTTPSConnection(host, port, timeout_s=SOCKET_TIMEOUT_S, context=context, proxy=proxy)
    return connection, f" through the proxy {proxy.name}"
