"""Build the images, or write their lock of Debian's packages."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from deploy.checkout import CheckoutError, source_epoch
from deploy.image import ROOT, ImageError
from deploy.image.build import ARCHITECTURES, FOLDER, TARGETS, Builder, Built, read_settings
from deploy.image.debian import Apt, write_lock

_MB = 1_000_000


def say(text: str) -> None:
    print(text, flush=True)


def lock(work: Path) -> None:
    """Write packages.lock from the present state of the mirror, for all architectures."""
    settings = read_settings()
    packages = []
    for architecture in ARCHITECTURES:
        packages += Apt(work, architecture, settings.release).latest(settings.packages)
    (FOLDER / "packages.lock").write_text(write_lock(packages))
    say(f"wrote deploy/image/packages.lock: {len(set(packages))} packages")


def report(built: Built) -> str:
    """The file, its contents, sizes and digests."""
    made = built.image
    lines = [
        f"{os.path.relpath(built.file)}: {_sizes(made.compressed, made.unpacked)}",
        f"  contents  {built.packages} packages of Debian, {built.distributions} of Python",
        f"  manifest  {made.manifest.digest}",
    ]
    for layer in made.layers:
        lines.append(f"  layer     {layer.blob.digest}  {_sizes(len(layer.blob.data), layer.size)}")
    return "\n".join(lines)


def _sizes(compressed: int, unpacked: int) -> str:
    return f"{compressed / _MB:.1f} MB compressed, {unpacked / _MB:.1f} MB unpacked"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m deploy.image", description=__doc__)
    parser.add_argument("--target", choices=[*TARGETS, "both"], default="both")
    parser.add_argument("--arch", choices=ARCHITECTURES, default="amd64")
    parser.add_argument("--output", type=Path, default=ROOT / "dist")
    parser.add_argument("--work", type=Path, default=ROOT / ".image")
    parser.add_argument("--lock", action="store_true", help="write packages.lock and build nothing")
    arguments = parser.parse_args()
    try:
        if arguments.lock:
            lock(arguments.work)
            return
        epoch = source_epoch()
        builder = Builder(arguments.work, arguments.output, arguments.arch, epoch, say)
        targets = TARGETS if arguments.target == "both" else (arguments.target,)
        for built in builder.build(targets):
            say(report(built))
    # The last when a disk is full.
    except (CheckoutError, ImageError, OSError) as error:
        sys.exit(f"image: {error}")


if __name__ == "__main__":
    main()
