"""Run the sandbox: `python -m sandbox --dir DIR [--port 0] [--host 127.0.0.1]`.

Writes ca.crt, admin.kubeconfig, relay.kubeconfig and relay-token into DIR, and appends to audit.jsonl there.
Prints `ready https://HOST:PORT` once it accepts connections, and exits 0 on SIGTERM or SIGINT.
"""

from __future__ import annotations

import argparse
import logging
import signal
from pathlib import Path

import trio

from sandbox import bootstrap, certificates, kubeconfig
from sandbox.apiserver import ApiServer
from sandbox.audit import RELAY_NAMESPACE, AuditLog
from sandbox.authn import AUTHENTICATED, MASTERS, Authenticator, User, service_account_user
from sandbox.collector import Collector
from sandbox.disruption import Budgets
from sandbox.jobs import Jobs
from sandbox.kinds import SERVICE_ACCOUNTS
from sandbox.kubelet import Kubelet
from sandbox.podstreams import PodStreams
from sandbox.processes import open_registry
from sandbox.rbac import Authorizer
from sandbox.recorder import EventRecorder
from sandbox.resources import Resources
from sandbox.reviews import Reviews
from sandbox.server import serve_connections
from sandbox.storage import Store
from sandbox.workloads import Workloads
from sandbox.writing import Writer

RELAY_ACCOUNT = "relay"
ADMIN = User("admin", groups=(MASTERS, AUTHENTICATED))


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m sandbox", description="A small in-memory Kubernetes API."
    )
    parser.add_argument(
        "--dir", type=Path, required=True, help="where kubeconfigs, tokens and the audit log go"
    )
    parser.add_argument("--port", type=int, default=0, help="0, the default, chooses a free port")
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen on")
    return parser.parse_args(arguments)


def url_of(host: str, port: int) -> str:
    """The URL of the server for clients."""
    return f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"


async def run(directory: Path, host: str, port: int) -> None:
    """Serve until SIGTERM or SIGINT."""
    listeners = await trio.open_tcp_listeners(port, host=host)
    server = url_of(host, listeners[0].socket.getsockname()[1])
    ca_pem, context = certificates.make(host)
    store = Store()
    writer = Writer(store)
    accounts = store.collection(SERVICE_ACCOUNTS.group, SERVICE_ACCOUNTS.resource)
    authenticator = Authenticator(accounts)
    authorizer = Authorizer(store)
    address = server.removeprefix("https://")
    bootstrap.populate(store, writer, ca_pem, address)
    _write_credentials(directory, server, ca_pem, authenticator)
    events = EventRecorder(store)
    with AuditLog(directory / "audit.jsonl") as audit_log:
        async with open_registry(directory / "pods") as registry, trio.open_nursery() as nursery:
            streams = PodStreams(registry)
            resources = Resources(store, writer, Reviews(authorizer, authenticator), streams)
            api = ApiServer(authenticator, authorizer, audit_log, address, resources.answer)
            nursery.start_soon(_stop_on_signal, nursery.cancel_scope)
            nursery.start_soon(Kubelet(store, registry, events).run)
            nursery.start_soon(Workloads(store, writer, events).run)
            nursery.start_soon(Jobs(store, writer, events).run)
            nursery.start_soon(Budgets(store).run)
            nursery.start_soon(Collector(store, writer).run)
            nursery.start_soon(bootstrap.Furnisher(store, writer, ca_pem).run)
            nursery.start_soon(serve_connections, listeners, context, api.handle)
            print(f"ready {server}", flush=True)


def _write_credentials(directory: Path, server: str, ca_pem: bytes, authenticator: Authenticator) -> None:
    (directory / "ca.crt").write_bytes(ca_pem)
    relay = service_account_user(RELAY_NAMESPACE, RELAY_ACCOUNT)
    for name, user in (("admin", ADMIN), ("relay", relay)):
        token = authenticator.issue(user)
        path = directory / f"{name}.kubeconfig"
        kubeconfig.write(path, server=server, ca_pem=ca_pem, user=name, token=token)
        if name == "relay":
            kubeconfig.write_secret(directory / "relay-token", token)


async def _stop_on_signal(scope: trio.CancelScope) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for _ in signals:
            scope.cancel()
            return


def main() -> None:
    """Run from the command line."""
    arguments = parse()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    arguments.dir.mkdir(parents=True, exist_ok=True)
    trio.run(run, arguments.dir, arguments.host, arguments.port)


if __name__ == "__main__":
    main()
