"""The exec plugin: kubectl runs it and reads a token from its stdout, valid for at most a minute.

Each kubectl process runs the plugin once and keeps the token in memory only, so the plugin has its own cache.
Answering from the cache imports only small parts of the standard library. The script `hawse-credential`
repeats recent answers without Python, and calls this module otherwise. Of several kubectls in parallel one
asks the hub. The others wait for its file lock, and read the token or the failure from the cache.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from typing import NamedTuple

from proxy.agent.local.account import Account, cluster_of_host, find_account, hub_origin
from proxy.agent.local.errors import AgentError, NotWritableError, quoted
from proxy.agent.local.files import cache_folder, locked, read_private
from proxy.agent.token.answers import CLOCK_DRIFT_MAX_S, logins_version, machine_started_s, store_answer
from proxy.agent.token.cache import LOCK_SUFFIX, store
from proxy.process.untrusted_json import read_json

API_VERSIONS = ("client.authentication.k8s.io/v1", "client.authentication.k8s.io/v1beta1")
# Subtracted from the token's life, for clock skew to the hub and for requests in transit.
SKEW_S = 10
# A token with less left is not returned from the cache: kubectl would ask again at once.
REMAINING_MIN_S = 5
# The total, including the wait for another plugin's request. A person at kubectl waits meanwhile.
DEADLINE_S = 30

_SERVER = re.compile(r"(https://[^/?#@\s]+)/clusters/([a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?)/?")


class ExecInfo(NamedTuple):
    """kubectl's description of the credential that it needs."""

    api_version: str
    server: str
    hub: str
    cluster: str
    """Empty if the server is a cluster's own host: then the login tells the cluster."""


class Cached(NamedTuple):
    """A token and the local time at which kubectl must ask again, or the failure at that time."""

    token: str
    until_s: float
    started_s: float
    """The machine's boot time, by the clock of `until_s`."""
    failure: str

    def __repr__(self) -> str:
        return f"Cached(until_s={self.until_s}, failure={self.failure!r})"


def run_plugin(server: str = "", hub: str = "") -> int:
    """Print and flush the credential for kubectl, and return the exit status. Errors are one line on stderr.

    `server` and `hub` are arguments in the kubeconfig. `server` is for clients that don't pass the plugin
    KUBERNETES_EXEC_INFO with a server. `hub` is for kubeconfigs whose servers are the clusters' own hosts.
    """
    signal.signal(signal.SIGALRM, _give_up)
    signal.alarm(DEADLINE_S)
    try:
        answer = credential(os.environ, server, hub)
    except AgentError as error:
        print(f"hawse: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    try:
        print(answer, flush=True)
    except OSError as error:
        # kubectl has ended meanwhile, or stdout is a file on a full disk.
        print(f"hawse: cannot write the credential: {error.strerror}", file=sys.stderr)
        return 1
    return 0


def _give_up(_signal: int, _frame: object) -> None:
    raise AgentError(f"no token from the hub within {DEADLINE_S} s: try again")


def credential(environment: Mapping[str, str], server: str = "", hub: str = "") -> str:
    """Return the ExecCredential for kubectl's request. Raises AgentError."""
    exec_info = environment.get("KUBERNETES_EXEC_INFO", "")
    if exec_info or not server:
        info = read_exec_info(exec_info, server, hub)
    else:
        info = exec_info_of_arguments(server, hub)
    login = logins_version(environment)
    account = find_account(environment, info.hub)
    cached = cached_token(environment, account, info.cluster or _cluster_of_host(info.server, account))
    answer = json.dumps(
        {
            "apiVersion": info.api_version,
            "kind": "ExecCredential",
            "status": {
                "token": cached.token,
                "expirationTimestamp": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(cached.until_s)),
            },
        }
    )
    store_answer(
        environment,
        info.server,
        until_s=cached.until_s - REMAINING_MIN_S,
        started_s=cached.started_s,
        login=login,
        # The script sees the arguments in the order of the kubeconfig.
        question=f"{exec_info.rstrip()} {' '.join(_arguments(server, hub))}",
        answer=answer,
    )
    return answer


def _arguments(server: str, hub: str) -> list[str]:
    return [*(["--server", server] if server else []), *(["--hub", hub] if hub else [])]


def read_exec_info(text: str, argument: str = "", hub: str = "") -> ExecInfo:
    """Parse KUBERNETES_EXEC_INFO: the API version of the answer, and hub and cluster from the server's URL.

    Some clients state the version but no server; `argument`, the --server argument, replaces it. `hub`, the
    --hub argument, is set if the server is a cluster's own host. Raises AgentError.
    """
    if not text:
        raise AgentError(
            "KUBERNETES_EXEC_INFO is not set, so the cluster is unknown. kubectl sets it; for other clients "
            "write the kubeconfig with `hawse kubeconfig --user-per-cluster`"
        )
    try:
        document = read_json(text)
        api_version = document["apiVersion"]
        cluster = document["spec"].get("cluster")
        server = argument if cluster is None else str(cluster["server"])
        unverified = cluster is not None and bool(cluster.get("insecure-skip-tls-verify"))
    except (ValueError, LookupError, TypeError, AttributeError):
        raise AgentError("KUBERNETES_EXEC_INFO is not an ExecCredential") from None
    if api_version not in API_VERSIONS:
        raise AgentError(
            f"the kubeconfig's exec apiVersion is {quoted(str(api_version))}: use {API_VERSIONS[0]}"
        )
    if unverified:
        raise AgentError(
            "insecure-skip-tls-verify is set, so the token could go to an impostor: remove it from the "
            "kubeconfig. If kubectl does not trust the hub's CA, run `hawse login --ca FILE`, then "
            "`hawse kubeconfig`"
        )
    if cluster is None and not argument:
        raise AgentError(
            "the client did not name a cluster: the exec entry lacks `provideClusterInfo: true`, or the "
            "client ignores it. Run `hawse kubeconfig` again; for such clients add --user-per-cluster"
        )
    return _exec_info(api_version, server, hub)


def exec_info_of_arguments(server: str, hub: str = "") -> ExecInfo:
    """Get hub and cluster from arguments; raises AgentError. Such clients support only the older version."""
    return _exec_info(API_VERSIONS[1], server, hub)


def _exec_info(api_version: str, server: str, hub: str) -> ExecInfo:
    if hub:
        return ExecInfo(api_version, server, hub_origin(hub), "")
    match = _SERVER.fullmatch(server)
    if match is None:
        raise AgentError(f"the kubeconfig's server {quoted(server)} is not https://<hub>/clusters/<name>")
    return ExecInfo(api_version, server, hub_origin(match[1]), match[2])


def _cluster_of_host(server: str, account: Account) -> str:
    """Return the cluster of a host, by the pattern that the hub stated at login; raises AgentError.

    The kubeconfig can't decide this: it could send the token to any host.
    """
    name = cluster_of_host(account, server)
    if not name:
        hosts = account.cluster_hosts
        pattern = "has no hosts for its clusters" if hosts is None else f"uses {hosts}"
        raise AgentError(
            f"the kubeconfig's server {quoted(server)} is not a cluster of {account.hub}, which {pattern}: "
            f"if that has changed, run `hawse kubeconfig --hosts --hub {account.hub}`"
        )
    return name


def cached_token(
    environment: Mapping[str, str], account: Account, cluster: str, *, refused: str = ""
) -> Cached:
    """Return a token with some life left, from the cache or the hub; raises AgentError.

    The cached token is skipped if the hub has `refused` it. If the cache is not writable (read-only file
    system, full disk), each caller asks the hub itself.
    """
    path = _cache_path(environment, account.hub, cluster)
    cached = _read_cache(path, account)
    if _usable(cached) and cached.token != refused:
        return cached
    began_s = time.time()
    with ExitStack() as held:
        with suppress(NotWritableError):
            held.enter_context(locked(path + LOCK_SUFFIX))
        cached = _read_cache(path, account)
        if _usable(cached) and cached.token != refused:
            return cached
        # The lock's last holder asked the hub during this wait. If it failed, don't queue up to retry.
        if cached.failure and began_s <= cached.until_s <= time.time():
            raise AgentError(cached.failure)
        try:
            cached = _fetch(account, cluster)
        except AgentError as error:
            _write_cache(path, account, Cached("", time.time(), machine_started_s(), str(error)))
            raise
        _write_cache(path, account, cached)
        return cached


def _fetch(account: Account, cluster: str) -> Cached:
    from proxy.agent.hub.requests import fetch_token

    # Read the clock before the request: the token's life starts before its answer arrives.
    now_s, since_s = time.time(), machine_started_s()
    token = fetch_token(account, cluster)
    return Cached(token.text, now_s + token.expires_in_s - SKEW_S, since_s, "")


def has_life_left(cached: Cached) -> bool:
    """Whether the token is valid for a while, and for no longer than a token can be, by the current clock."""
    return bool(cached.token) and REMAINING_MIN_S < cached.until_s - time.time() <= 60


def _usable(cached: Cached) -> bool:
    # A clock set back would prolong the token's life.
    return has_life_left(cached) and abs(machine_started_s() - cached.started_s) <= CLOCK_DRIFT_MAX_S


def _cache_path(environment: Mapping[str, str], hub: str, cluster: str) -> str:
    return os.path.join(tokens_folder(environment), f"{cache_prefix(hub)}_{cluster}.json")


def tokens_folder(environment: Mapping[str, str]) -> str:
    """Return the folder of the cached tokens."""
    return os.path.join(cache_folder(environment), "tokens")


def cache_prefix(hub: str) -> str:
    """Return the common prefix of the cache files for a hub."""
    return re.sub(r"[^a-z0-9.-]", "_", hub.removeprefix("https://"))


_NOTHING = Cached("", 0.0, 0.0, "")


def _read_cache(path: str, account: Account) -> Cached:
    try:
        raw = read_private(path)
        if raw is None:
            return _NOTHING
        entry = read_json(raw)
        if entry["serial"] != account.serial:
            return _NOTHING
        return Cached(
            str(entry["token"]), float(entry["until"]), float(entry["started"]), str(entry["failure"])
        )
    except (AgentError, ValueError, LookupError, TypeError):
        # A damaged cache counts as empty, and is overwritten.
        return _NOTHING


def _write_cache(path: str, account: Account, cached: Cached) -> None:
    entry = {
        "serial": account.serial,
        "token": cached.token,
        "until": cached.until_s,
        "started": cached.started_s,
        "failure": cached.failure,
    }
    # The token is valid even if it can't be cached.
    store(*os.path.split(path), json.dumps(entry).encode())
