from __future__ import annotations

from tests.proxy.hub.peers.dialled import linked, make_hub, serving


async def test_two_hubs_are_linked_by_tls() -> None:
    first, second = await make_hub("aaaaaaaa"), await make_hub("bbbbbbbb")
    rows = first.me, second.me
    async with serving(first, second):
        first.members.read(*rows)
        second.members.read(*rows)
        await linked(first)
        await linked(second)

        async def answer(link: object, body: dict[str, object]) -> dict[str, object]:
            return {"heard": body["word"]}

        first.mesh.answers["echo"] = answer
        (link,) = second.mesh.links
        assert await link.ask("echo", {"word": "x" * 200_000}) == {"heard": "x" * 200_000}
