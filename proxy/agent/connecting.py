"""`hawse connect` as a whole: the listener, the kubeconfig that leads to it, and how it stops."""

from __future__ import annotations

import base64
import os
import secrets
import signal
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from functools import partial

import attrs
import trio

from proxy.agent.account import Account
from proxy.agent.connect import Guard, HubSide, LoopbackProxy
from proxy.agent.errors import AgentError
from proxy.agent.files import cache_folder, write_private
from proxy.agent.loopback import ADDRESS, loopback_context
from proxy.agent.rotation import Tokens
from proxy.exchange.pool import Connections
from proxy.kubernetes.manifests import to_yaml
from proxy.listener.accept import open_listeners
from proxy.process.config import Address
from proxy.process.filelimit import raise_file_limit
from proxy.process.signals import stop_signals
from proxy.process.startup import settle
from tunnel.net.egress import ProxySettings

TOKEN_BYTES = 32
USER = "hawse-connect"


@attrs.frozen
class ConnectConfig:
    """What `hawse connect` was told."""

    environment: Mapping[str, str]
    account: Account
    clusters: Sequence[str]
    """Names that are checked already; the first is the current context."""
    port: int = 0
    """0 for any."""
    output: str | None = None
    """The kubeconfig's path; one in the cache folder without it."""
    namespace: str | None = None
    command: Sequence[str] = ()
    """What is run with it; without one it runs until a signal."""


async def run_connect(config: ConnectConfig) -> int:
    """Serve until SIGINT or SIGTERM, or the command's end; returns the exit status.

    The kubeconfig's path is printed when the proxy serves; at the end the file is removed. What is under way
    then is cut. Raises, some from within exception groups, AgentError, and OSError when it cannot listen.
    """
    raise_file_limit()
    try:
        proxy_settings = ProxySettings.from_environment(config.environment)
    except ValueError as error:
        raise AgentError(str(error)) from None  # its cause may hold a password
    hub = HubSide(config.account, proxy_settings)
    tokens = Tokens(config.environment, config.account)
    # Before anything is said to be served: a login that is no good shows itself here.
    await tokens.token(config.clusters[0])
    context, certificate_pem = loopback_context()
    connections = Connections(hub.dial, f"the hub {hub.name}")
    listeners = await open_listeners(Address(ADDRESS, config.port), "--port")
    port = listeners[0].socket.getsockname()[1]
    guard = Guard(port, {cluster: secrets.token_urlsafe(TOKEN_BYTES) for cluster in config.clusters})
    proxy = LoopbackProxy(context, guard, hub, tokens, connections)
    document = kubeconfig(guard, certificate_pem, config)
    with stop_signals() as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(connections.sweep)
            nursery.start_soon(proxy.deadlines.run)
            nursery.start_soon(partial(trio.serve_listeners, proxy.handle_client, listeners))
            path = _path(config)
            _write(path, document, replace=config.output is None)
            try:
                settle()
                if not config.command:
                    print(path, flush=True)
                    async for _ in signals:
                        break
                    status = signals.exit_status
                else:
                    status = await _run_command(config, path, signals)
            finally:
                _remove(path, document)
            nursery.cancel_scope.cancel()
    return status


def kubeconfig(guard: Guard, certificate_pem: str, config: ConnectConfig) -> str:
    """The kubeconfig that leads to the proxy, with the proxy's tokens in it: a user for each cluster."""
    ca = base64.b64encode(certificate_pem.encode("ascii")).decode("ascii")
    server = f"https://{ADDRESS}:{guard.port}/clusters"
    namespace = {} if config.namespace is None else {"namespace": config.namespace}
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [
            {"name": name, "cluster": {"server": f"{server}/{name}", "certificate-authority-data": ca}}
            for name in config.clusters
        ],
        "users": [
            {"name": f"{USER}-{name}", "user": {"token": guard.tokens[name]}} for name in config.clusters
        ],
        "contexts": [
            {"name": name, "context": {"cluster": name, "user": f"{USER}-{name}", **namespace}}
            for name in config.clusters
        ],
        "current-context": config.clusters[0],
    }
    return to_yaml([document])


async def _run_command(config: ConnectConfig, path: str, signals: AsyncIterator[int]) -> int:
    """Run the command with the kubeconfig, and end with it.

    A signal that comes to us goes on to it, but for a SIGINT in the foreground of a terminal: from there the
    command gets Ctrl-C by itself. Whoever ends this process alone there does it by SIGTERM.
    """
    environment = {**config.environment, "KUBECONFIG": path}
    try:
        process = await trio.lowlevel.open_process(list(config.command), env=environment)
    except OSError as error:
        raise AgentError(f"cannot run {config.command[0]!a}: {error.strerror}") from error

    async def pass_on() -> None:
        async for number in signals:
            if number == signal.SIGINT and _at_terminal():
                # Who is told twice to stop leaves undone what has to be done before.
                continue
            with suppress(ProcessLookupError):
                process.send_signal(number)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(pass_on)
        try:
            status = await process.wait()
        finally:
            if process.returncode is None:
                process.kill()
        nursery.cancel_scope.cancel()
    # As a shell says it.
    return status if status >= 0 else 128 - status


def _at_terminal() -> bool:
    """Whether Ctrl-C is for this process, and then for the command by itself, which is of the same group."""
    try:
        terminal = os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    finally:
        os.close(terminal)


def _path(config: ConnectConfig) -> str:
    """Where the kubeconfig is written, in a form that is good in every folder."""
    if config.output is not None:
        return os.path.abspath(config.output)
    return os.path.join(cache_folder(config.environment), "connect", f"kubeconfig-{os.getpid()}")


def _write(path: str, document: str, *, replace: bool) -> None:
    if not replace and os.path.lexists(path):
        raise AgentError(f"{path} is there already: `hawse connect` writes a file of its own, and removes it")
    write_private(path, document.encode("ascii"))


def _remove(path: str, document: str) -> None:
    """Remove the file, unless it is somebody else's by now."""
    with suppress(OSError):
        with open(path, encoding="ascii") as file:
            ours = file.read() == document
        if ours:
            os.unlink(path)
