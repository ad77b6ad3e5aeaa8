"""What `hawse admin cluster add` and `cluster key` hand over: a relay's manifests or files, with its key."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import attrs
import click

from proxy.cli.admin.client import Object
from proxy.cli.admin.output import as_json_text, child, say, text
from proxy.cli.admin.relay_files import FILES, left_to_do, relay_files, write_relay_files
from proxy.cli.admin.rendered import dials_itself, rendered_manifests, rendered_role
from proxy.cli.admin.secret_output import secret_output
from proxy.cli.errors import CommandError


@attrs.frozen
class Handover:
    """To whom what the hub makes of a cluster goes; the hub keeps no copy of the key in it."""

    name: str
    said: Mapping[str, object]
    """What was said of the relay's place; what was not is the hub's to choose."""
    output_dir: Path | None
    kubeconfig: Path | None
    relay_url: str | None
    as_json: bool = attrs.field(kw_only=True)

    @contextmanager
    def opened(self, output: Path | None, *, force: bool, secret: bool) -> Iterator[Callable[..., None]]:
        """Yield what takes the hub's answer. Looks before there is one: a key without a place is lost.

        A `secret` is not printed on a terminal. Raises CommandError, and UsageError for options that exclude
        one another.
        """
        if output is not None and self.output_dir is not None:
            raise click.UsageError("--output takes manifests, --output-dir a relay's files: say one of them")
        _check_output_dir(self.output_dir, self.kubeconfig)
        if self.output_dir is not None and not self.as_json:
            yield partial(self._write_files, self.output_dir)
            return
        pipe = "COMMAND" if self.as_json else "kubectl apply -f -"
        with secret_output(output, force=force, secret=secret, pipe=pipe) as write:
            yield partial(self._print, write, output)

    def _write_files(self, folder: Path, made: Object, *, constrained: bool) -> None:
        relay = child(made, "relay")
        # First: the hub does not keep the private key, so a failure before this would lose it.
        write_relay_files(folder, relay_files(relay, self.kubeconfig, self.relay_url))
        rendered_role(made, self.said, constrained=constrained)
        say(f"the relay of cluster {self.name}: its configuration and keys are in {folder}")
        say("in the cluster, first let it impersonate:")
        place = "--namespace NAMESPACE --service-account NAME"
        say(f"  hawse admin cluster rbac {self.name} {place} | kubectl apply -f -")
        for sentence in left_to_do(relay, folder):
            say(sentence)
        say(f"then: hawse relay --config {folder / 'relay.toml'}")

    def _print(
        self, write: Callable[[str], None], output: Path | None, made: Object, *, constrained: bool
    ) -> None:
        relay = child(made, "relay")
        if self.output_dir is not None:
            write_relay_files(self.output_dir, relay_files(relay, self.kubeconfig, self.relay_url))
        role = rendered_role(made, self.said, constrained=constrained)
        manifests = rendered_manifests(self.name, made, self.said)
        if self.as_json:
            write(as_json_text({**made, "manifests": manifests, "rbac": role}))
            return
        write(manifests + role)
        where = "apply them with kubectl" if output is None else f"kubectl apply -f {output}, then remove it"
        say(
            f"these manifests hold the key of the relay of {self.name}, which the hub has not kept: {where}"
            if text(relay, "private_key_pem")
            else f"the manifests of the relay of {self.name}: {where}"
        )
        if "image" not in self.said:
            say(
                "warning: they name the image hawse-relay, which no registry has: build the target relay of "
                "the Containerfile in hawse's repository, push it to a registry of yours, and name it by "
                "--image, or afterwards by "
                "kubectl --namespace NAMESPACE set image deployment hawse-relay relay=IMAGE"
            )
        if dials_itself(relay):
            say(
                f"warning: the hub's public_url is {text(relay, 'hub_url')}, which a pod cannot reach: set "
                f"public_url, then print new manifests by hawse admin cluster key {self.name}"
            )


def _check_output_dir(output_dir: Path | None, kubeconfig: Path | None) -> None:
    """Look before anything is made: a key that cannot be written afterwards is lost."""
    if kubeconfig is not None:
        try:
            str(kubeconfig.absolute()).encode("utf-8")
        except UnicodeEncodeError as error:
            raise CommandError(
                f"the path {str(kubeconfig)!a} is no UTF-8, as relay.toml has to be: name another"
            ) from error
    if output_dir is None:
        if kubeconfig is not None:
            raise click.UsageError("--kubeconfig belongs to --output-dir: in a cluster a relay needs none")
        return
    for name in FILES:
        if (output_dir / name).exists():
            raise CommandError(f"{output_dir / name} exists already: choose another --output-dir")
    try:
        output_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise CommandError(f"cannot write into {output_dir}: {error.strerror}") from error
