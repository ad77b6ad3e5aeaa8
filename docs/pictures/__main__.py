"""Write README's pictures into docs/images. The demo runs for one of them, half a minute."""

from __future__ import annotations

import sys
from pathlib import Path

from docs.pictures import demo, request

IMAGES = Path(__file__).parents[1] / "images"


def main() -> int:
    """Write all files; returns the exit code."""
    print("running the demo ...", flush=True)
    try:
        lines = demo.chosen(demo.captured())
    except demo.UnfitOutput as error:
        print(f"make pictures: {error}; nothing is written", file=sys.stderr)
        return 1
    for picture in (*request.pictures(), *demo.pictures(lines)):
        for name, content in picture.files().items():
            (IMAGES / name).write_text(content, encoding="utf-8")
            print(f"docs/images/{name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
