"""Runs `hawse connect`: the listener, its kubeconfig, the command beside it, and the shutdown."""

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

from proxy.agent.connect.certificate import ADDRESS, loopback_context
from proxy.agent.connect.proxy import Guard, HubSide, LoopbackProxy
from proxy.agent.connect.tokens import Tokens
from proxy.agent.local.account import Account
from proxy.agent.local.errors import AgentError
from proxy.agent.local.files import cache_folder, write_private
from proxy.kubernetes.write_yaml import to_yaml
from proxy.listener.accept import open_listeners
from proxy.process.config import Address
from proxy.process.lifecycle.filelimit import raise_file_limit
from proxy.process.lifecycle.signals import stop_signals
from proxy.process.lifecycle.startup import settle_later
from tunnel.net.egress import ProxySettings

TOKEN_BYTES = 32
USER = "hawse-connect"


@attrs.frozen
class ConnectConfig:
    """The options of `hawse connect`."""

    environment: Mapping[str, str]
    account: Account
    clusters: Sequence[str]
    """Validated names; the first becomes the current context."""
    port: int = 0
    """0 picks a free port."""
    output: str | None = None
    """The kubeconfig's path. None: a file in the cache folder."""
    namespace: str | None = None
    command: Sequence[str] = ()
    """The command to run with the kubeconfig. Empty: run until a signal."""
    reason: str = ""
    """The reason to state to the hub for requests that state none."""


async def run_connect(config: ConnectConfig) -> int:
    """Serve until SIGINT, SIGTERM or the end of the command; returns the exit status.

    Prints the kubeconfig's path once the proxy serves, and removes the file at the end. Open requests are
    then cut. Raises AgentError, and OSError if it can't listen; both may come inside exception groups.
    """
    raise_file_limit()
    try:
        proxy_settings = ProxySettings.from_environment(config.environment)
    except ValueError as error:
        raise AgentError(str(error)) from None  # the cause may hold a password
    hub = HubSide(config.account, proxy_settings)
    tokens = Tokens(config.environment, config.account)
    # Before serving: an invalid login fails here.
    await tokens.token(config.clusters[0])
    context, certificate_pem = loopback_context()
    listeners = await open_listeners(Address(ADDRESS, config.port), "--port")
    port = listeners[0].socket.getsockname()[1]
    guard = Guard(port, {cluster: secrets.token_urlsafe(TOKEN_BYTES) for cluster in config.clusters})
    proxy = LoopbackProxy(context, guard, hub, tokens, config.reason)
    document = kubeconfig(guard, certificate_pem, config)
    with stop_signals() as signals:
        # The connections end before the tasks that their sockets are watched by.
        async with trio.open_nursery() as background:
            background.start_soon(proxy.run)
            background.start_soon(settle_later)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(partial(trio.serve_listeners, proxy.handle_client, listeners))
                path = _path(config)
                _write(path, document, replace=config.output is None)
                try:
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
            background.cancel_scope.cancel()
    return status


def kubeconfig(guard: Guard, certificate_pem: str, config: ConnectConfig) -> str:
    """Return the kubeconfig for the proxy. It holds the proxy's tokens, in one user for each cluster."""
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
    """Run the command with the kubeconfig, and return its exit status.

    Signals are forwarded to the command, except SIGINT in a terminal's foreground: Ctrl-C reaches the command
    directly there. To end only this process there, send it SIGTERM.
    """
    environment = {**config.environment, "KUBECONFIG": path}
    try:
        process = await trio.lowlevel.open_process(list(config.command), env=environment)
    except OSError as error:
        raise AgentError(f"cannot run {config.command[0]!a}: {error.strerror}") from error

    async def pass_on() -> None:
        async for number in signals:
            if number == signal.SIGINT and _at_terminal():
                # A second SIGINT makes many commands skip their cleanup.
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
    # A command that died of a signal: 128 plus its number, as in shells.
    return status if status >= 0 else 128 - status


def _at_terminal() -> bool:
    """Whether Ctrl-C reaches this process, and then also the command, which is in the same process group."""
    try:
        terminal = os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    finally:
        os.close(terminal)


def _path(config: ConnectConfig) -> str:
    """Return the kubeconfig's absolute path, valid in any working folder."""
    if config.output is not None:
        return os.path.abspath(config.output)
    return os.path.join(cache_folder(config.environment), "connect", f"kubeconfig-{os.getpid()}")


def _write(path: str, document: str, *, replace: bool) -> None:
    if not replace and os.path.lexists(path):
        raise AgentError(
            f"{path} exists already: `hawse connect` needs a new file, which it removes at the end"
        )
    write_private(path, document.encode("ascii"))


def _remove(path: str, document: str) -> None:
    """Remove the file, unless its content has been replaced."""
    with suppress(OSError):
        with open(path, encoding="ascii") as file:
            ours = file.read() == document
        if ours:
            os.unlink(path)
