"""The pictures of docs/images show the console as it is."""

from __future__ import annotations

import json
import re
from pathlib import Path

from tests.console.browser.screenshots import IMAGES, PICTURED, PICTURES, ROOT, digests

PAGES = (ROOT / "README.md", ROOT / "docs" / "console.md")
_IMAGE = re.compile(r"!\[([^\]]*)\]\(([^)]+)\)")


def test_no_template_has_changed_since_the_pictures_were_taken() -> None:
    pictured = json.loads(PICTURED.read_text())
    changed = {name for name, digest in digests().items() if pictured.get(name) != digest}
    assert not changed, f"run `make screenshots`, and look at the pictures: {', '.join(sorted(changed))}"


def test_each_picture_is_shown_and_described() -> None:
    shown = {
        (path.parent / target).resolve(): text
        for path in PAGES
        for text, target in _IMAGE.findall(path.read_text())
    }
    assert set(shown) == {IMAGES / f"{picture.name}.png" for picture in PICTURES}
    assert {path.name for path in IMAGES.glob("*.png")} == {f"{picture.name}.png" for picture in PICTURES}
    assert all(shown.values()), "a picture has no text"
    assert all(Path(path).stat().st_size < 300_000 for path in shown)
