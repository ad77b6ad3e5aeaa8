"""The quickstart's commands do what its page says, in the order of the page."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.quickstart.page import blocks
from tests.quickstart.running import PAGE, WAYS, run_page
from tests.quickstart.shell import ShellError
from tests.quickstart.stand_ins import StandIns

pytestmark = [pytest.mark.kubectl, pytest.mark.timeout(180)]


def test_each_command_of_the_page_works(tmp_path: Path) -> None:
    run_page(PAGE.read_text(), "kubectl", tmp_path)


def test_each_mark_of_the_page_is_known() -> None:
    found = list(blocks(PAGE.read_text()))
    assert len(found) > 10
    assert {block.way for block in found} - {""} == set(WAYS)
    assert [each for each in found if each.stand_in and not hasattr(StandIns, each.stand_in)] == []


WRONG = {
    "a command that does not exist": "    hawse admin teem add platform\n",
    "a command that fails in the middle": "    false\n    echo done\n",
    "a command that fails beside a job": "    sleep 600 &\n    false\n",
    "a command that fails in a pipe": "    false | cat\n",
    "an output that differs": "    $ echo Running 1\n    Pending 2\n",
    "a status that differs": "    $ echo 403\n    200\n",
    "containers that are not ready": "    $ echo 1/1\n    0/1\n",
    "an output of the second command": "    $ echo a\n    a\n    $ echo b\n    c\n",
}


@pytest.mark.parametrize("page", WRONG.values(), ids=WRONG)
def test_a_page_that_is_wrong_fails(page: str, tmp_path: Path) -> None:
    with pytest.raises(ShellError):
        run_page(page, "kubectl", tmp_path)


def test_blocks_share_variables_folders_and_jobs(tmp_path: Path) -> None:
    page = "    x=1; sleep 600 &\n    cd /\n\ntext\n\n    $ echo $x $PWD; kill %1\n    1 /\n"
    run_page(page, "kubectl", tmp_path)


def test_a_block_of_another_way_is_not_run(tmp_path: Path) -> None:
    run_page("<!-- way: helm -->\n\n    false\n\nThen:\n\n    true\n", "kubectl", tmp_path)


def test_a_mark_without_a_block_is_an_error() -> None:
    with pytest.raises(ValueError, match="line 3"):
        list(blocks("<!-- way: helm -->\n\ntext\n"))
