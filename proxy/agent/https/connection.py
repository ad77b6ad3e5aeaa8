"""HTTPS connections of an agent's commands, direct or through the environment's proxy.

tunnel.net.egress decides which hosts go through the proxy, for tunnels too. So all of an agent's commands and
its relay read HTTPS_PROXY and NO_PROXY as kubectl does.
"""

from __future__ import annotations

import os
import ssl

from proxy.agent.https.blocking import HTTPSConnection
from proxy.agent.local.errors import AgentError

# For each wait on the network. The plugin has a total deadline besides.
SOCKET_TIMEOUT_S = 10.0


def https_connection(host: str, port: int, context: ssl.SSLContext) -> tuple[HTTPSConnection, str]:
    """Return a connection, opened by its first request, and its route in words for an error.

    Raises AgentError if the proxy can't be used. The message never holds the proxy's password.
    """
    direct = HTTPSConnection(host, port, timeout_s=SOCKET_TIMEOUT_S, context=context)
    if not (os.environ.get("HTTPS_PROXY") or os.environ.get("https_proxy")):
        # Without a proxy, skip the imports that only a proxy needs.
        return direct, ""
    from tunnel.net.egress import ProxySettings

    try:
        proxy = ProxySettings.from_environment(os.environ).proxy_for(host, port)
    except ValueError as error:
        raise AgentError(str(error)) from None  # the cause may hold a password
    if proxy is None:
        return direct, ""
    if proxy.tls:
        raise AgentError("HTTPS_PROXY is an https:// proxy: this command supports only http:// proxies")
    connection = HTTPSConnection(host, port, timeout_s=SOCKET_TIMEOUT_S, context=context, proxy=proxy)
    return connection, f" through the proxy {proxy.name}"
