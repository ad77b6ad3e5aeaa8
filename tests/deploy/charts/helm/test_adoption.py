"""A relay that was deployed by its manifests is taken over by the chart, without new objects."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from proxy.kubernetes.cluster_role import cluster_role
from proxy.kubernetes.manifests import relay_manifests
from proxy.kubernetes.write_yaml import to_yaml
from sandbox.demo.processes import Daemons
from tests.deploy.charts.helm.programs import Helm
from tests.deploy.charts.sets import CHART, SETS

CHOSEN = SETS["example"]


@pytest.mark.kubectl
def test_the_chart_takes_over_the_objects_of_the_manifests(helm: Helm, tmp_path: Path) -> None:
    with Daemons(tmp_path) as daemons:
        argv = [sys.executable, "-m", "sandbox", "--dir", str(tmp_path / "cluster")]
        daemons.start("sandbox", argv).wait_for("ready ")
        environment = {
            **os.environ,
            "HOME": str(tmp_path),
            "KUBECONFIG": str(tmp_path / "cluster" / "admin.kubeconfig"),
        }

        def run(*argv: str, stdin: str = "") -> str:
            done = subprocess.run(
                argv, input=stdin, capture_output=True, text=True, env=environment, timeout=60
            )
            assert done.returncode == 0, done.stderr
            return done.stdout

        def uids() -> dict[str, str]:
            names = [f"{kind}/{name}" for kind, name in CHOSEN.expected]
            read = json.loads(run("kubectl", "get", *names, "--namespace=hawse", "--output=json"))
            return {each["kind"]: each["metadata"]["uid"] for each in read["items"]}

        manifests = [*relay_manifests(CHOSEN.manifest), *cluster_role(CHOSEN.agents, CHOSEN.groups)]
        run("kubectl", "apply", "--filename=-", stdin=to_yaml(manifests))
        before = uids()
        values = tmp_path / "values.json"
        values.write_text(json.dumps(CHOSEN.values))
        place = ("prod", str(CHART), "--namespace", "hawse", "--values", str(values))
        # The sandbox has no owners of fields. In a real cluster kubectl owns those that Helm 4 changes.
        force = ["--force-conflicts"] if helm.program.name == "helm-4" else []
        run(str(helm.program), "upgrade", "--install", "--take-ownership", *force, *place)
        assert uids() == before
        assert len(before) == len(CHOSEN.expected)
        # And a removed release leaves nothing of it.
        run(str(helm.program), "uninstall", "prod", "--namespace", "hawse")
        left = run("kubectl", "get", "deployments,serviceaccounts,pdb", "--namespace=hawse", "--output=name")
        assert left.split() == ["serviceaccount/default"]
