"""The data folder that a command finds without the rest of the configuration: the hub's own, or none."""

from __future__ import annotations

from pathlib import Path

import pytest

from proxy.hub.home.config import load
from proxy.hub.home.data_folder import stated_data_dir

DIR, CONFIG = "HAWSE_HUB_DATA_DIR", "HAWSE_HUB_CONFIG"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "hub.toml"
    file.write_text('org = "acme"\ndata_dir = "data"\n')
    return file


def test_it_is_the_folder_of_the_whole_configuration(file: Path) -> None:
    home = {"HOME": "/home/ann"}
    cases: list[tuple[Path | None, dict[str, str]]] = [
        (None, home),
        (None, {**home, "XDG_DATA_HOME": "/var/share"}),
        (None, {**home, "XDG_DATA_HOME": "share"}),
        (None, {**home, DIR: "relative"}),
        (None, {**home, DIR: "/absolute"}),
        (None, {**home, CONFIG: str(file)}),
        (file, home),
        # Relative to the folder of the file.
        (file, {**home, DIR: "relative"}),
        (file, {**home, CONFIG: "/nonexistent"}),
    ]
    for path, environment in cases:
        found = stated_data_dir(path, environment)
        assert found == load(path, environment).data_dir, environment
        assert found is not None


@pytest.mark.parametrize(
    "text", ['org = "acme"\n', 'data_dirr = "data"\n', "data_dir = 1\n", 'data_dir = ""\n', "no TOML"]
)
def test_a_file_that_states_no_folder_leads_to_no_default(file: Path, text: str) -> None:
    file.write_text(text)
    assert stated_data_dir(file, {}) is None
    assert stated_data_dir(None, {CONFIG: str(file)}) is None


def test_a_missing_file_and_a_misspelt_variable_lead_to_no_default(tmp_path: Path) -> None:
    assert stated_data_dir(tmp_path / "missing.toml", {}) is None
    assert stated_data_dir(None, {"HAWSE_HUB_DATADIR": str(tmp_path)}) is None
