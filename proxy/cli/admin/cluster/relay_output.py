"""The output of `hawse admin cluster add` and `cluster key`: a relay's manifests or files, with its key."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import attrs
import click

from proxy.cli.admin.cluster.helm_output import HELM, HelmOutput, check_options
from proxy.cli.admin.cluster.manifests import dials_itself, rendered_manifests, rendered_role
from proxy.cli.admin.cluster.relay_files import FILES, relay_files, remaining_steps, write_relay_files
from proxy.cli.admin.cluster.secret_output import secret_output
from proxy.cli.errors import CommandError, drop_output
from proxy.cli.output import Object, as_json_text, child, say, text


@attrs.frozen
class Handover:
    """Prints or writes a relay's manifests or files. The hub keeps no copy of the private key in them."""

    name: str
    given: Mapping[str, object]
    """The options that were given for the relay's setup. The hub chooses the others."""
    output_dir: Path | None
    kubeconfig: Path | None
    relay_url: str | None
    as_json: bool = attrs.field(kw_only=True)
    mode: str = attrs.field(kw_only=True)
    secret_file: Path | None = attrs.field(kw_only=True)
    """For `--output helm`: the file for the Secret with the key."""

    @contextmanager
    def opened(self, output: Path | None, *, force: bool) -> Iterator[Callable[..., None]]:
        """Yield a function that takes the hub's answer. The output is checked before a key can get lost.

        A key is not printed on a terminal. Raises CommandError, and UsageError for options that exclude each
        other.
        """
        with self._opened(output, force=force) as take:
            yield partial(self._take, take)

    def _take(self, take: Callable[..., None], made: Object, *, constrained: bool) -> None:
        """Hand over what the hub has stored already. A key that is lost here can only be replaced."""
        try:
            take(made, constrained=constrained)
        except (CommandError, OSError) as error:
            if not text(child(made, "relay"), "private_key_pem"):
                raise
            if isinstance(error, CommandError):
                why = error.message
            else:
                drop_output()
                why = f"cannot print: {error.strerror}"
            raise CommandError(
                f"{why}; the hub has stored the new key of {self.name} already, so make another: "
                f"hawse admin cluster key {self.name}"
            ) from error

    @contextmanager
    def _opened(self, output: Path | None, *, force: bool) -> Iterator[Callable[..., None]]:
        if output is not None and str(output) == HELM:
            file = check_options(
                secret_file=self.secret_file,
                output_dir=self.output_dir,
                mode=self.mode,
                as_json=self.as_json,
            )
            with HelmOutput(self.name, self.given).opened(file, force=force) as take:
                yield partial(self._take_for_helm, take)
            return
        if self.secret_file is not None:
            raise click.UsageError("--secret goes with --output helm only")
        if output is not None and self.output_dir is not None:
            raise click.UsageError(
                "--output is for manifests, --output-dir for a relay's files: use one of them"
            )
        _check_output_dir(self.output_dir, self.kubeconfig)
        if self.output_dir is not None and not self.as_json:
            yield partial(self._write_files, self.output_dir)
            return
        pipe = "COMMAND" if self.as_json else "kubectl apply -f -"
        with secret_output(output, force=force, secret=self.mode == "tunnel", pipe=pipe) as write:
            yield partial(self._print, write, output)

    def _write_files(self, folder: Path, made: Object, *, constrained: bool) -> None:
        relay = child(made, "relay")
        # Written first: the hub keeps no copy of the private key, so an earlier failure would lose it.
        write_relay_files(folder, relay_files(relay, self.kubeconfig, self.relay_url))
        rendered_role(made, self.given, constrained=constrained)
        say(f"wrote the configuration and keys of the relay of cluster {self.name} to {folder}")
        say("first allow it to impersonate, in the cluster:")
        place = "--namespace NAMESPACE --service-account NAME"
        say(f"  hawse admin cluster rbac {self.name} {place} | kubectl apply -f -")
        for sentence in remaining_steps(relay, folder):
            say(sentence)
        say(f"then start it: hawse relay --config {folder / 'relay.toml'}")

    def _print(
        self, write: Callable[[str], None], output: Path | None, made: Object, *, constrained: bool
    ) -> None:
        relay = child(made, "relay")
        if self.output_dir is not None:
            write_relay_files(self.output_dir, relay_files(relay, self.kubeconfig, self.relay_url))
        role = rendered_role(made, self.given, constrained=constrained)
        manifests = rendered_manifests(self.name, made, self.given)
        if self.as_json:
            write(as_json_text({**made, "manifests": manifests, "rbac": role}))
            return
        write(manifests + role)
        where = "apply them with kubectl" if output is None else f"kubectl apply -f {output}, then remove it"
        say(
            f"these manifests hold the key of the relay of {self.name}, and the hub keeps no copy: {where}"
            if text(relay, "private_key_pem")
            else f"the manifests of the relay of {self.name}: {where}"
        )
        later = "run kubectl --namespace NAMESPACE set image deployment hawse-relay relay=IMAGE"
        self._warn(relay, what="the manifests use", later=later)

    def _take_for_helm(self, take: Callable[..., None], made: Object, *, constrained: bool) -> None:
        take(made, constrained=constrained)
        later = "as image.repository in your values"
        self._warn(child(made, "relay"), what="the values use", later=later)

    def _warn(self, relay: Object, *, what: str, later: str) -> None:
        if "image" not in self.given:
            say(
                f"warning: {what} the image hawse-relay, which is in no registry: build the target relay of "
                "the Containerfile in hawse's repository, push it to your registry, and name it with "
                f"--image, or afterwards {later}"
            )
        if dials_itself(relay):
            say(
                f"warning: the hub's public_url is {text(relay, 'hub_url')}, which a pod cannot reach: set "
                f"public_url, then start again with hawse admin cluster key {self.name}"
            )


def _check_output_dir(output_dir: Path | None, kubeconfig: Path | None) -> None:
    """Check the output folder before a key is made: a key that can't be written is lost."""
    if kubeconfig is not None:
        try:
            str(kubeconfig.absolute()).encode("utf-8")
        except UnicodeEncodeError as error:
            raise CommandError(
                f"the path {str(kubeconfig)!a} is not UTF-8, which relay.toml requires: name another"
            ) from error
    if output_dir is None:
        if kubeconfig is not None:
            raise click.UsageError(
                "--kubeconfig goes with --output-dir only: a relay in a cluster needs none"
            )
        return
    for name in FILES:
        if (output_dir / name).exists():
            raise CommandError(f"{output_dir / name} exists already: choose another --output-dir")
    try:
        output_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise CommandError(f"cannot write into {output_dir}: {error.strerror}") from error
