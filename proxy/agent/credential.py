"""The exec plugin: kubectl runs it, and reads a token of at most a minute from its stdout.

Every kubectl process runs it once and keeps the token in memory only, so the plugin keeps a cache of its
own, from which it imports nothing but small parts of the standard library. What it has answered is answered
again by the script `hawse-credential`, without Python; this is what that asks otherwise. Parallel kubectls
wait at a file lock while the first one asks the hub, and then find its token, or its failure, in the cache.
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

from proxy.agent.account import Account, cluster_of_host, find_account, hub_origin
from proxy.agent.answers import SET_MAX_S, known_login, machine_started_s, remember
from proxy.agent.errors import AgentError, NotWritableError, quoted
from proxy.agent.files import cache_folder, locked, read_private, write_private
from proxy.process.untrusted_json import read_json

API_VERSIONS = ("client.authentication.k8s.io/v1", "client.authentication.k8s.io/v1beta1")
# Taken off the token's life: for a clock that runs apart from the hub's, and for a request on its way.
SKEW_S = 10
# A token with less left is not handed out again: kubectl would come back at once.
REMAINING_MIN_S = 5
# For everything together, waiting for another plugin's call included; a person waits at kubectl meanwhile.
DEADLINE_S = 30

_SERVER = re.compile(r"(https://[^/?#@\s]+)/clusters/([a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?)/?")


class ExecInfo(NamedTuple):
    """What kubectl says about the credential that it wants."""

    api_version: str
    server: str
    hub: str
    cluster: str
    """Empty where the server is a host of its own: which cluster's, the login has to tell."""


class Cached(NamedTuple):
    """A token until the local time at which kubectl is to ask again, or why there was none at that time."""

    token: str
    until_s: float
    started_s: float
    """When the machine had started, by the clock that `until_s` is by."""
    failure: str

    def __repr__(self) -> str:
        return f"Cached(until_s={self.until_s}, failure={self.failure!r})"


def run_plugin(server: str = "", hub: str = "") -> int:
    """Answer kubectl, or a client that tells a plugin nothing: then the kubeconfig does, by `server`.

    `hub` is the kubeconfig's word as well, where its servers are the clusters' own hosts.

    Returns the exit status. Errors are one line on stderr.
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
    print(answer)
    return 0


def _give_up(_signal: int, _frame: object) -> None:
    raise AgentError(f"no token from the hub within {DEADLINE_S} s: try again")


def credential(environment: Mapping[str, str], server: str = "", hub: str = "") -> str:
    """Return the ExecCredential for what kubectl asks. Raises AgentError."""
    asked = environment.get("KUBERNETES_EXEC_INFO", "")
    info = read_exec_info(asked, server, hub) if asked or not server else told_by_argument(server, hub)
    login = known_login(environment)
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
    remember(
        environment,
        info.server,
        until_s=cached.until_s - REMAINING_MIN_S,
        started_s=cached.started_s,
        login=login,
        # Its arguments as the script sees them, in the order in which a kubeconfig has them.
        question=f"{asked.rstrip()} {' '.join(_arguments(server, hub))}",
        answer=answer,
    )
    return answer


def _arguments(server: str, hub: str) -> list[str]:
    return [*(["--server", server] if server else []), *(["--hub", hub] if hub else [])]


def read_exec_info(text: str, told: str = "", hub: str = "") -> ExecInfo:
    """Read KUBERNETES_EXEC_INFO: the version to answer in, and hub and cluster out of the server's URL.

    Some clients say the version and no server; then it is the one `told` by an argument. `hub` is told by
    another, where the server is a host of the cluster's own. Raises AgentError.
    """
    if not text:
        raise AgentError(
            "nothing says for which cluster, as kubectl does when it runs this: for other clients write the "
            "kubeconfig by `hawse kubeconfig --user-per-cluster`"
        )
    try:
        document = read_json(text)
        api_version = document["apiVersion"]
        cluster = document["spec"].get("cluster")
        server = told if cluster is None else str(cluster["server"])
        unverified = cluster is not None and bool(cluster.get("insecure-skip-tls-verify"))
    except (ValueError, LookupError, TypeError, AttributeError):
        raise AgentError("KUBERNETES_EXEC_INFO is no ExecCredential") from None
    if api_version not in API_VERSIONS:
        raise AgentError(f"the kubeconfig asks for {quoted(str(api_version))}: use {API_VERSIONS[0]}")
    if unverified:
        raise AgentError(
            "kubectl is told not to verify who answers (insecure-skip-tls-verify), and would show the token "
            "to whoever does: leave that out, and if it does not know the hub's CA, run `hawse login --ca "
            "FILE` and `hawse kubeconfig`"
        )
    if cluster is None and not told:
        raise AgentError(
            "the kubeconfig's exec entry lacks `provideClusterInfo: true`, or this client does not heed it: "
            "run `hawse kubeconfig` again, for such a client with --user-per-cluster"
        )
    return _exec_info(api_version, server, hub)


def told_by_argument(server: str, hub: str = "") -> ExecInfo:
    """Take hub and cluster from arguments; raises AgentError. Such clients know the older version alone."""
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

    The kubeconfig is not trusted for this: it could send a token to any host that it names.
    """
    name = cluster_of_host(account, server)
    if not name:
        hosts = account.cluster_hosts
        said = "has no hosts for its clusters" if hosts is None else f"has said {hosts}"
        raise AgentError(
            f"the kubeconfig's server {quoted(server)} is no cluster's of {account.hub}, which {said}: "
            f"if that has changed, run `hawse kubeconfig --hosts --hub {account.hub}`"
        )
    return name


def cached_token(
    environment: Mapping[str, str], account: Account, cluster: str, *, refused: str = ""
) -> Cached:
    """Return a token that is good for a while, from the cache or the hub; raises AgentError.

    One that the hub has `refused` is not taken from the cache again. Where the cache cannot be written (a
    read-only file system, a full disk), each caller asks the hub by itself.
    """
    path = _cache_path(environment, account.hub, cluster)
    cached = _read_cache(path, account)
    if _usable(cached) and cached.token != refused:
        return cached
    began_s = time.time()
    with ExitStack() as held:
        with suppress(NotWritableError):
            held.enter_context(locked(f"{path}.lock"))
        cached = _read_cache(path, account)
        if _usable(cached) and cached.token != refused:
            return cached
        # Whoever held the lock asked while this one waited: a hub that is away is not asked by each in turn.
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
    from proxy.agent.hub import fetch_token

    # Before the call: the token's life has begun by the time that the answer is here.
    now_s, since_s = time.time(), machine_started_s()
    token = fetch_token(account, cluster)
    return Cached(token.text, now_s + token.expires_in_s - SKEW_S, since_s, "")


def lasts(cached: Cached) -> bool:
    """Whether it holds a token with some life left, and no more than one can have, by the clock as it is."""
    return bool(cached.token) and REMAINING_MIN_S < cached.until_s - time.time() <= 60


def _usable(cached: Cached) -> bool:
    # Or the token would seem to live for as much longer as the clock was set back.
    return lasts(cached) and abs(machine_started_s() - cached.started_s) <= SET_MAX_S


def _cache_path(environment: Mapping[str, str], hub: str, cluster: str) -> str:
    return os.path.join(cache_folder(environment), "tokens", f"{place_of(hub)}_{cluster}.json")


def place_of(hub: str) -> str:
    """What the names of its cached tokens begin with."""
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
        # A cache that cannot be used is no cache; it is written anew.
        return _NOTHING


def _write_cache(path: str, account: Account, cached: Cached) -> None:
    entry = {
        "serial": account.serial,
        "token": cached.token,
        "until": cached.until_s,
        "started": cached.started_s,
        "failure": cached.failure,
    }
    # What cannot be kept is good all the same.
    with suppress(NotWritableError):
        write_private(path, json.dumps(entry).encode())
