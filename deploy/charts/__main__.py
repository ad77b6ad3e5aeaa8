"""Write the packaged charts into a folder, and print path, SHA-256 and size of each."""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
from pathlib import Path

from deploy.charts import CHARTS, ROOT, package
from proxy.process.version import VERSION


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m deploy.charts", description=__doc__)
    parser.add_argument("--output", type=Path, default=ROOT / "dist")
    folder: Path = parser.parse_args().output
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for chart in CHARTS:
            path, content = folder / f"{chart}-{VERSION}.tgz", package(chart)
            path.write_bytes(content)
            sha256 = hashlib.sha256(content).hexdigest()
            print(f"{os.path.relpath(path)}: {len(content):,} bytes\n  sha256    {sha256}", flush=True)
    except OSError as error:
        sys.exit(f"charts: cannot write {error.filename}: {error.strerror}")


if __name__ == "__main__":
    main()
