from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from benchmarks.system import Endpoint, System
from benchmarks.upstream.apiserver import ApiServer
from benchmarks.workload import Options
from benchmarks.workloads.kubectl import QUICK_CALLS, WORKLOADS, Asked, Home, sample, token_kubeconfig

KUBECTL = WORKLOADS[0]


def test_the_kubeconfig_leads_to_the_endpoint_and_runs_nothing() -> None:
    endpoint = Endpoint("127.0.0.1", 8443, Path("/ca.pem"), prefix="/clusters/bench")
    document = yaml.safe_load(token_kubeconfig(endpoint, "secret"))
    assert document["clusters"][0]["cluster"]["server"] == "https://127.0.0.1:8443/clusters/bench"
    assert document["users"][0]["user"] == {"token": "secret"}


def test_a_home_forgets_its_caches_and_keeps_the_rest(tmp_path: Path) -> None:
    home = Home(tmp_path)
    for name in ("cache", "kubecache", "config"):
        (tmp_path / name).mkdir()
    home.forget_token()
    assert {path.name for path in tmp_path.iterdir()} == {"kubecache", "config"}
    home.forget_all()
    home.forget_all()
    assert [path.name for path in tmp_path.iterdir()] == ["config"]


def test_kubectl_behind_nginx_is_held_against_kubectl_without_it(apiserver: ApiServer) -> None:
    system = System("nginx", apiserver.endpoint)
    taken = KUBECTL.run(system, apiserver, 1, Options(runs=1, quick=True))
    assert (taken.measurement.system, taken.notes["requests"]) == ("nginx", QUICK_CALLS)
    assert "added_ms" in taken.notes
    assert taken.cpu_s["nginx"] > 0


def test_what_hawse_adds_is_the_median_of_the_pairs() -> None:
    taken = sample(
        "kubectl", "hawse", [30_000_000, 10_000_000, 20_000_000], [5_000_000, 1_000_000, 3_000_000]
    )
    assert taken.measurement.p50_ms == pytest.approx(20.0)
    assert taken.notes["added_ms"] == pytest.approx(3.0)


def test_the_plugins_own_share_is_the_median_of_its_runs() -> None:
    taken = sample(
        "kubectl-token", "hawse", [1], [1], asked=[Asked(9.0, 4.0), Asked(5.0, 6.0), Asked(7.0, 5.0)]
    )
    assert (taken.notes["plugin_ms"], taken.notes["plugin_cpu_ms"]) == (7.0, 5.0)


def test_direct_adds_nothing_that_could_be_told() -> None:
    assert "added_ms" not in sample("kubectl", "direct", [1], []).notes
