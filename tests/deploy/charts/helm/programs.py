"""Helm's programs, as a platform team runs them: `helm template` and `helm lint` with a file of values."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import attrs
import yaml

from tests.deploy.charts.sets import CHART, Objects, ValueSet, by_name


@attrs.frozen
class Helm:
    """A version of Helm, with a folder for its files."""

    program: Path
    folder: Path

    def run(
        self, *args: str, values: dict[str, Any], chart: Path = CHART
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on a chart with these values."""
        file = self.folder / "values.json"
        file.write_text(json.dumps(values))
        argv = [str(self.program), *args, str(chart), "--values", str(file)]
        # Without the caller's kubeconfig and plugins.
        environment = {"HOME": str(self.folder), "PATH": ""}
        return subprocess.run(argv, capture_output=True, text=True, env=environment, timeout=60)

    def render(self, chosen: ValueSet, chart: Path = CHART) -> str:
        """Render a set of values, to its success."""
        place = ("template", chosen.manifest.cluster_name, "--namespace", chosen.manifest.namespace)
        done = self.run(*place, values=chosen.values, chart=chart)
        assert (done.returncode, done.stderr) == (0, ""), done.stderr
        return done.stdout

    def objects(self, chosen: ValueSet, chart: Path = CHART) -> Objects:
        return by_name([each for each in yaml.safe_load_all(self.render(chosen, chart)) if each])
