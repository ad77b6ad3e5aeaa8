"""What each client must come through: a call that waits for its approval, and one that is repeated after it.

Each of them deletes a config map of the namespace NAMESPACE, whose name is its last argument.
"""

from __future__ import annotations

from tests.system.approvals.scene import DEADLINE_S, HELD, LATER, Program, Scene


def approved_while_it_waits(scene: Scene, program: Program) -> None:
    """The call is held, then approved, and succeeds; the client notices nothing but the time."""
    name = scene.named(HELD)
    program.make(name)
    process = program.start(name)
    try:
        row = scene.waiting(name)
        assert process.poll() is None, "the call has ended before it was approved"
        assert scene.is_there(name)
        scene.approve(row)
        process.wait(DEADLINE_S)
    finally:
        process.kill()
        out, err = process.communicate()
    assert process.returncode == 0, (out + err).decode()
    assert not scene.is_there(name)
    assert scene.ended(row) == "used"
    assert scene.writes(f"configmaps/{name}") == [200]
    assert len(scene.requests(name)) == 1


def repeated_after_its_approval(scene: Scene, program: Program) -> None:
    """The call is refused when no approval comes in time; the same call succeeds after it."""
    name = scene.named(LATER)
    program.make(name)
    refused = program.run(name)
    said = (refused.out + refused.err).decode()
    assert refused.code != 0, said
    row = scene.waiting(name)
    assert str(row["id"]) in said
    assert "repeat" in said
    assert (scene.is_there(name), scene.writes(f"configmaps/{name}")) == (True, [])
    scene.approve(row)
    repeated = program.run(name)
    assert repeated.code == 0, (repeated.out + repeated.err).decode()
    assert (scene.is_there(name), scene.ended(row)) == (False, "used")
    assert scene.writes(f"configmaps/{name}") == [200]
