"""The output of `cluster add` and `cluster key` for Helm: values on stdout, and the Secret in a private file.

The values are for a repository and hold no key. So the two never share an output.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import attrs
import click

from proxy.cli.admin.cluster.manifests import impersonated, relay_manifest
from proxy.cli.admin.cluster.secret_output import secret_output
from proxy.cli.errors import CommandError
from proxy.cli.output import Object, say
from proxy.kubernetes.chart_values import relay_values, secret_manifests, split_image
from proxy.kubernetes.cluster_role import ManifestError
from proxy.kubernetes.write_yaml import to_yaml

# Given to --output instead of a file.
HELM = "helm"


@attrs.frozen
class HelmOutput:
    """Prints the chart's values, and writes the Secret. The hub keeps no copy of the private key in it."""

    name: str
    given: Mapping[str, object]
    """The options that were given for the relay's setup. The hub chooses the others."""

    @contextmanager
    def opened(self, file: Path, *, force: bool) -> Iterator[Callable[..., None]]:
        """Yield a function that takes the hub's answer. The file is checked before a key can get lost.

        Raises CommandError.
        """
        if "image" in self.given:
            # The manifests take forms of a reference that the chart does not.
            with _refused():
                split_image(str(self.given["image"]))
        with secret_output(file, force=force, secret=True, pipe="", option="--secret") as write:
            yield partial(self._print, write, file)

    def _print(self, write: Callable[[str], None], file: Path, made: Object, *, constrained: bool) -> None:
        manifest = relay_manifest(self.name, made, self.given)
        agents, groups = impersonated(made)
        with _refused():
            values = relay_values(manifest, agents, groups, constrained=constrained)
        secret = to_yaml(secret_manifests(manifest))
        printed = to_yaml([values]).removeprefix("---\n")
        # First the key, which cannot be printed again.
        write(secret)
        head = (
            f"# Values of the chart hawse-relay for cluster {self.name}, without a key. Printed by Hawse:\n"
        )
        click.echo(f"{head}# keep your own values in another file.\n{printed}", nl=False)
        say(f"{file} holds the key of the relay of {self.name}, and the hub keeps no copy. In this order:")
        say(f"  kubectl apply -f {file}, then remove it")
        place = f"CHART --namespace {manifest.namespace}"
        say(f"  helm upgrade --install {self.name} {place} --values FILE, with the printed values as FILE")


@contextmanager
def _refused() -> Iterator[None]:
    try:
        yield
    except ManifestError as error:
        raise CommandError(f"these can't be values of the chart: {error}") from error


def check_options(*, secret_file: Path | None, output_dir: Path | None, mode: str, as_json: bool) -> Path:
    """Return the file for the Secret; raises UsageError for options that do not go with `--output helm`."""
    if output_dir is not None:
        raise click.UsageError("--output helm is for a relay in a cluster, --output-dir for one outside")
    if mode != "tunnel":
        raise click.UsageError("--output helm is for mode tunnel: deploy mode direct by its manifests")
    if as_json:
        raise click.UsageError("--output helm prints YAML: leave out --json")
    if secret_file is None:
        raise click.UsageError(
            "--output helm needs --secret FILE: a new file, outside of your repository, for the Secret with "
            "the relay's key"
        )
    return secret_file
