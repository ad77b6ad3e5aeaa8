"""README's pictures are what their program draws, and show the demo's steps as they are."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from docs.pictures import demo, request
from docs.pictures.__main__ import IMAGES
from docs.pictures.svg import PALETTES, Picture
from sandbox.demo.script import STEPS
from tests.contrast import contrast
from tests.pages import unknown

README = (Path(__file__).parents[2] / "README.md").read_text()
SVG = "{http://www.w3.org/2000/svg}"
FILES = sorted(IMAGES.glob("*.svg"))
# What the demo's run is shown in.
LINES = demo.lines_of((IMAGES / "demo-light.svg").read_text())
PICTURES = (*request.pictures(), *demo.pictures(LINES))
# The colours of texts, and what is behind them.
ON = {
    "request": (("text", "quiet", "accent"), ("ground", "surface", "soft")),
    "demo": (("text", "quiet", "accent", "bad", "ok"), ("surface",)),
}
STEP = "$ kubectl get pods\n  NAME\n"
TABLE = "  NAME        READY   STATUS    RESTARTS   AGE\n  workbench   1/1     Running   0          "


def output(*names: str, lines: str = STEP) -> str:
    """What the demo prints of these steps, with a line before and after them."""
    parts = [f"\n{lines}{step.verdict}\n" for step in STEPS if step.name in names]
    return "logging the agent in ...\n" + "".join(parts) + "\nall steps did what they say\n"


def test_each_file_is_what_the_program_draws() -> None:
    drawn = {name: content for picture in PICTURES for name, content in picture.files().items()}
    assert {path.name for path in FILES} == set(drawn)
    changed = [path.name for path in FILES if path.read_text() != drawn[path.name]]
    assert changed == [], "run `make pictures`, and look at them"


def test_the_demos_picture_shows_steps_that_the_demo_has() -> None:
    shown = [line for line in LINES if line.startswith("ok ")]
    assert shown == [step.verdict for step in demo.steps()], "run `make pictures`"
    assert len(shown) == len(demo.SHOWN) < len(STEPS)
    assert demo.chosen("\n".join(["", *LINES, ""])) == LINES


def test_each_command_in_the_demos_picture_exists() -> None:
    commands = [line.removeprefix("$ ") for line in LINES if line.startswith("$ hawse ")]
    assert commands
    assert {each: wrong for each in commands if (wrong := unknown(each))} == {}


@pytest.mark.parametrize("path", FILES, ids=[path.name for path in FILES])
def test_a_picture_needs_nothing_else_and_is_described(path: Path) -> None:
    content = path.read_text()
    assert re.findall(r"href|url\(|@import|<script|<image|<foreignObject|\son\w+=", content) == []
    assert content.count("http") == 1
    root = ElementTree.fromstring(content)
    assert root.get("aria-labelledby") == "title desc"
    for name in ("title", "desc"):
        element = root.find(f"{SVG}{name}")
        assert element is not None
        assert element.get("id") == name
        assert element.text
    # A phone has 358 px for it.
    if "phone" in path.name:
        assert float(root.get("width", "")) <= 424
    assert len(content) < 20_000


@pytest.mark.parametrize("scheme", PALETTES)
@pytest.mark.parametrize("name", ON)
def test_texts_have_the_contrast_of_wcag_aa(scheme: str, name: str) -> None:
    palette = PALETTES[scheme]
    texts, grounds = ON[name]
    for text in texts:
        for ground in grounds:
            assert contrast(palette[text], palette[ground]) >= 4.5, (text, ground)


@pytest.mark.parametrize("picture", PICTURES, ids=lambda picture: picture.name)
def test_no_colour_is_left_without_a_value(picture: Picture) -> None:
    used = set(re.findall(r"\$(\w+)", picture.style))
    assert used <= set(PALETTES["light"])
    assert all("$" not in picture.svg(scheme).partition("</style>")[0] for scheme in PALETTES)


@pytest.mark.parametrize("name", ["request", "demo"])
def test_the_readme_shows_each_in_four_forms(name: str) -> None:
    pictures = re.findall(r"<picture>.*?</picture>", README, re.DOTALL)
    [shown] = [each for each in pictures if f"/{name}-" in each]
    sources = re.findall(r'<source media="(.*)" srcset="docs/images/(.*)">', shown)
    phone, dark = "(max-width: 600px)", "(prefers-color-scheme: dark)"
    # The first that holds is taken.
    assert sources == [
        (f"{phone} and {dark}", f"{name}-phone-dark.svg"),
        (phone, f"{name}-phone-light.svg"),
        (dark, f"{name}-dark.svg"),
    ]
    [(text, source)] = re.findall(r'<img alt="(.*)" src="docs/images/(.*)">', shown, re.DOTALL)
    assert source == f"{name}-light.svg"
    assert len(text) > 60


def test_the_lines_of_a_step_are_taken_without_what_differs() -> None:
    lines = f"$ kubectl get pods\n{TABLE}3s\n$ hawse admin request deny 89a5b57162039ce5\n"
    found = demo.chosen(output(*demo.SHOWN, "whoami", lines=lines))
    assert found[:4] == [
        "$ kubectl get pods",
        *f"{TABLE}8s".splitlines(),
        "$ hawse admin request deny 7b6bdb4f15868a7b",
    ]
    assert found.count("") == len(demo.SHOWN) - 1
    # The number of a bundle is the same in each run.
    assert demo.stable("  bundle 2-48c85804ac3af998 is in force") == "  bundle 2-48c85804ac3af998 is in force"


def test_a_step_that_failed_is_an_error() -> None:
    for name in demo.SHOWN:
        others = [each for each in demo.SHOWN if each != name]
        with pytest.raises(demo.UnfitOutput, match=re.escape(f"step {name!r}")):
            demo.chosen(output(*others))


@pytest.mark.parametrize(
    "secret",
    [
        "eyJhbGciOiJFZERTQSIsImtpZCI6IjEifQ",
        "hwo_short",
        "hwa_3f9c",
        "1c90955bffce4e47c13e9faeb89fadce165c2ff2c729ece121f1733eda8e79e3",
        "4c8cdc88-abab-4560-9219-f27dce93fcfd",
        "https://127.0.0.1/console",
        "127.0.0.1:45525",
        "/home/you/hawse/.demo/hub.toml",
        "FILE=/home/you/hub.toml",
        "2026-12-01T22:57:04Z",
        "-----BEGIN PRIVATE KEY-----",
    ],
)
def test_what_may_be_a_secret_never_reaches_a_picture(secret: str) -> None:
    with pytest.raises(demo.UnfitOutput, match="must not show"):
        demo.chosen(output(*demo.SHOWN, lines=f"$ hawse admin console open\n  {secret}\n"))


WORDS = st.lists(st.text("abc-./", min_size=1, max_size=30), min_size=1, max_size=12).map(" ".join)


@given(st.lists(st.tuples(st.sampled_from(["$ ", "  ", "    ", "ok      get           "]), WORDS)))
def test_a_narrower_terminal_has_the_same_words(lines: list[tuple[str, str]]) -> None:
    whole = ["$ first", *(start + words for start, words in lines)]
    fitted = demo.fit(whole, demo.PHONE_COLUMNS)
    assert " ".join(fitted).split() == " ".join(whole).split()
    assert max(map(len, fitted)) <= demo.PHONE_COLUMNS


def test_every_line_fits_its_terminal() -> None:
    assert max(map(len, LINES)) <= demo.COLUMNS
    assert max(map(len, demo.lines_of((IMAGES / "demo-phone-light.svg").read_text()))) <= demo.PHONE_COLUMNS
