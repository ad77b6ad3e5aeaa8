"""Upgrades from the request to the last byte: refusals, and exec and attach in each protocol."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock, memory_stream_pair
from wsproto.events import CloseConnection, Ping

from sandbox import spdy
from sandbox.container import ContainerSpec
from sandbox.processes import Pod
from sandbox.streaming import STREAMS_DEADLINE_S, Subresource, UpgradeRefused, UpgradeRequest, serve_upgrade
from tests.sandbox.clients import (
    SPDY_HEADERS,
    WEBSOCKET_HEADERS,
    SpdyClient,
    WebSocketClient,
    group_members,
    read_head,
    running_pod,
    served,
    spdy_request,
    until,
    websocket_request,
)

V5, V4 = "v5.channel.k8s.io", "v4.channel.k8s.io"
Query = Mapping[str, Sequence[str]]


def shell(script: str, **flags: str) -> dict[str, list[str]]:
    return {"command": ["sh", "-c", script], **{name: [value] for name, value in flags.items()}}


async def refusal(pod: Pod, subresource: Subresource, request: UpgradeRequest) -> UpgradeRefused:
    client, server = memory_stream_pair()
    with pytest.raises(UpgradeRefused) as raised:
        await serve_upgrade(server, b"", request, subresource, pod)
    await server.aclose()
    assert await client.receive_some() == b"", "something was written before the refusal"
    return raised.value


async def over_websocket(
    pod: Pod, query: Query, *protocols: str, stdin: bytes | None = None, subresource: Subresource = "exec"
) -> tuple[dict[int, bytes], dict[str, object] | None]:
    async with served(websocket_request(*protocols, query=query), subresource, pod) as stream:
        head, rest = await read_head(stream)
        assert head[0] == "HTTP/1.1 101 Switching Protocols"
        client = WebSocketClient(stream, rest)
        if stdin is not None:
            await client.send(b"\x00" + stdin)
            await client.send(b"\xff\x00")
        outcome = await client.outcome()
        assert client.closed == 1000
        return outcome


@pytest.mark.parametrize(
    ("request_", "status", "message"),
    [
        (UpgradeRequest("GET", {}, []), 400, "Upgrade request required"),
        (UpgradeRequest("GET", {}, [(b"connection", b"Upgrade")]), 400, "Upgrade request required"),
        (UpgradeRequest("GET", {}, [(b"upgrade", b"websocket")]), 400, "Upgrade request required"),
        (
            websocket_request(V5, query={"container": ["other"]}),
            400,
            "container other is not valid for pod p",
        ),
    ],
)
async def test_the_api_server_refuses_with_a_status(
    tmp_path: Path, request_: UpgradeRequest, status: int, message: str
) -> None:
    async with running_pod(tmp_path) as pod:
        refused = await refusal(pod, "exec", request_)
        assert refused.status == status
        assert refused.content_type == "application/json"
        body = json.loads(refused.body)
        assert (body["kind"], body["message"], body["code"]) == ("Status", message, status)


async def test_a_pod_of_several_containers_wants_one_named(tmp_path: Path) -> None:
    async with running_pod(tmp_path, ContainerSpec("a"), ContainerSpec("b")) as pod:
        refused = await refusal(pod, "exec", websocket_request(V5, query={}))
        assert json.loads(refused.body)["message"] == (
            "a container name must be specified for pod p, choose one of: [a b]"
        )


@pytest.mark.parametrize(
    ("request_", "status", "message"),
    [
        (
            spdy_request(V4, query={"stdout": ["false"], "stderr": ["0"]}),
            400,
            "you must specify at least 1 of stdin, stdout, stderr",
        ),
        (spdy_request(query={}), 400, "unable to upgrade: header X-Stream-Protocol-Version does not exist"),
        (
            spdy_request("v9", V5, query={}),
            403,
            f"unable to upgrade: unable to negotiate protocol: client supports [v9 {V5}], server accepts "
            f"[{V4} v3.channel.k8s.io v2.channel.k8s.io channel.k8s.io]",
        ),
        (
            UpgradeRequest("POST", {}, [(b"connection", b"Upgrade"), (b"upgrade", b"SPDY/3")]),
            400,
            "unable to upgrade: missing upgrade headers in request",
        ),
    ],
)
async def test_the_kubelet_refuses_with_a_text(
    tmp_path: Path, request_: UpgradeRequest, status: int, message: str
) -> None:
    async with running_pod(tmp_path) as pod:
        refused = await refusal(pod, "exec", request_)
        assert refused.status == status
        assert refused.content_type.startswith("text/plain")
        assert refused.body.decode().startswith(message)
        accepted = [
            value for name, value in refused.headers if name == b"X-Accepted-Stream-Protocol-Versions"
        ]
        assert len(accepted) == (4 if status == 403 else 0)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ([*WEBSOCKET_HEADERS, (b"sec-websocket-protocol", b"base64.channel.k8s.io")], 403),
        ([*WEBSOCKET_HEADERS[:3], (b"sec-websocket-version", b"8")], 400),
        ([*WEBSOCKET_HEADERS[:2], WEBSOCKET_HEADERS[3]], 400),
    ],
)
async def test_a_bad_handshake_is_refused_without_a_word(
    tmp_path: Path, headers: list[tuple[bytes, bytes]], status: int
) -> None:
    async with running_pod(tmp_path) as pod:
        refused = await refusal(pod, "exec", UpgradeRequest("GET", {}, headers))
        assert (refused.status, refused.body) == (status, b"")


async def test_a_port_forward_without_ports_is_refused(tmp_path: Path) -> None:
    async with running_pod(tmp_path) as pod:
        refused = await refusal(pod, "portforward", websocket_request(V4, query={}))
        assert refused.body == b'query parameter "port" is required\n'
        refused = await refusal(pod, "portforward", websocket_request(V4, query={"ports": ["http"]}))
        assert refused.body == b'unable to parse "http" as a port\n'
        refused = await refusal(pod, "portforward", websocket_request("SPDY/3.1+x.k8s.io", query={}))
        assert refused.status == 403


async def test_exec_separates_its_outputs_and_ends_with_a_status(tmp_path: Path) -> None:
    async with running_pod(tmp_path) as pod:
        channels, status = await over_websocket(pod, shell("echo out; echo err >&2; exit 3"), V5)
        assert channels == {1: b"out\n", 2: b"err\n"}
        assert status is not None
        assert status["reason"] == "NonZeroExitCode"
        assert status["details"] == {"causes": [{"reason": "ExitCode", "message": "3"}]}


async def test_an_empty_message_tells_that_the_connection_stands(tmp_path: Path) -> None:
    async with running_pod(tmp_path) as pod:
        for query, first in (
            (shell("sleep 100"), b"\x01"),
            (shell("sleep 100", stdout="false"), b"\x02"),
            (shell("sleep 100", stdout="false", stderr="false", stdin="true"), b"\x03"),
        ):
            async with served(websocket_request(V5, query=query), "exec", pod) as stream:
                _, rest = await read_head(stream)
                assert await WebSocketClient(stream, rest).receive() == first


async def test_stdin_half_closes_in_v5(tmp_path: Path) -> None:
    async with running_pod(tmp_path) as pod:
        query = {"command": ["cat"], "stdin": ["true"]}
        channels, status = await over_websocket(pod, query, V5, V4, stdin=b"foo")
        assert channels == {1: b"foo", 2: b""} or channels == {1: b"foo"}
        assert status == {"metadata": {}, "status": "Success"}


async def test_input_that_came_with_the_request_is_read(tmp_path: Path) -> None:
    async with running_pod(tmp_path) as pod:
        client, server = memory_stream_pair()
        websocket = WebSocketClient(client)
        await websocket.send(b"\x00early")
        await websocket.send(b"\xff\x00")
        leftover = bytes(await server.receive_some())
        request = websocket_request(V5, query={"command": ["cat"], "stdin": ["true"]})
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve_upgrade, server, leftover, request, "exec", pod)
            _, rest = await read_head(client)
            channels, _ = await WebSocketClient(client, rest).outcome()
            await client.aclose()
        assert channels[1] == b"early"


@pytest.mark.parametrize(
    ("protocols", "answer", "error"),
    [
        (
            (V4,),
            f"Sec-WebSocket-Protocol: {V4}",
            b'{"metadata":{},"status":"Failure","message":"command term',
        ),
        (("channel.k8s.io",), "Sec-WebSocket-Protocol: channel.k8s.io", b"command terminated with non-zero"),
        ((), "Sec-WebSocket-Protocol: ", b"command terminated with non-zero exit code: error executing"),
    ],
)
async def test_older_protocols_and_none_are_the_kubelets(
    tmp_path: Path, protocols: tuple[str, ...], answer: str, error: bytes
) -> None:
    async with running_pod(tmp_path) as pod:
        async with served(websocket_request(*protocols, query=shell("exit 1")), "exec", pod) as stream:
            head, rest = await read_head(stream)
            assert answer in head
            client = WebSocketClient(stream, rest)
            assert await client.receive() == b"\x01"
            message = await client.receive()
            assert message is not None
            assert message[1:].startswith(error)


async def test_a_command_that_cannot_start_is_an_internal_error(tmp_path: Path) -> None:
    async with running_pod(tmp_path) as pod:
        for protocol, prefix in (
            (V5, "Internal error occurred: Internal error"),
            (V4, "Internal error occurred: error"),
        ):
            _, status = await over_websocket(pod, {"command": ["no-such"]}, protocol)
            assert status is not None
            assert str(status["message"]).startswith(prefix)
            assert 'exec: "no-such": executable file not found in $PATH: unknown' in str(status["message"])
            assert status["code"] == 500


async def test_a_container_that_does_not_run_is_not_found(tmp_path: Path) -> None:
    async with running_pod(tmp_path) as pod:
        debug = pod.add_ephemeral(ContainerSpec("debug", command=("true",)))
        await until(lambda: debug.started and not debug.running)
        query = {"container": ["debug"], "command": ["true"]}
        _, status = await over_websocket(pod, query, V5)
        assert status is not None
        assert status["message"] == (
            'Internal error occurred: unable to upgrade connection: container not found ("debug")'
        )
        refused = await refusal(pod, "exec", spdy_request(V4, query=query))
        assert (refused.status, refused.body) == (500, b'container not found ("debug")\n')


async def test_a_client_that_left_before_the_answer_is_no_error(tmp_path: Path) -> None:
    async with running_pod(tmp_path) as pod:
        requests: list[tuple[Subresource, UpgradeRequest]] = [
            ("exec", websocket_request(V5, query=shell("true"))),
            ("exec", spdy_request(V4, query=shell("true"))),
            ("portforward", spdy_request("portforward.k8s.io", query={})),
        ]
        for subresource, request in requests:
            client, server = memory_stream_pair()
            await client.aclose()
            await serve_upgrade(server, b"", request, subresource, pod)


@pytest.mark.parametrize("farewell", ["close frame", "cut"])
async def test_a_client_that_leaves_takes_its_command_along(tmp_path: Path, farewell: str) -> None:
    async with running_pod(tmp_path) as pod:
        query = shell("echo $$; sleep 100 & wait")
        async with served(websocket_request(V5, query=query), "exec", pod) as stream:
            _, rest = await read_head(stream)
            client = WebSocketClient(stream, rest)
            assert await client.receive() == b"\x01"
            message = await client.receive()
            assert message is not None
            pid = int(message[1:])
            if farewell == "close frame":
                await client.send_event(CloseConnection(1000))
            else:
                await stream.aclose()
        await until(lambda: not group_members(pid))


async def test_pings_are_answered_while_the_command_is_silent(tmp_path: Path) -> None:
    async with running_pod(tmp_path) as pod:
        async with served(websocket_request(V5, query=shell("read _", stdin="1")), "exec", pod) as stream:
            _, rest = await read_head(stream)
            client = WebSocketClient(stream, rest)
            await client.send_event(Ping(b"still there?"))
            await client.send(b"\xff\x00")
            await client.outcome()
            assert client.pongs == [b"still there?"]


def until_sized(size: str) -> str:
    return f'while test "$(stty size)" != "{size}"; do sleep 0.01; done; echo sized'


async def test_a_terminal_has_one_output_and_follows_the_clients_size(tmp_path: Path) -> None:
    async with running_pod(tmp_path) as pod:
        query = shell(until_sized("30 100") + "; echo err >&2", tty="true")
        async with served(websocket_request(V5, query=query), "exec", pod) as stream:
            _, rest = await read_head(stream)
            client = WebSocketClient(stream, rest)
            await client.send(b'\x04{"Width":100,"Height":30}')
            channels, status = await client.outcome()
        assert channels == {1: b"sized\r\nerr\r\n"}
        assert status is not None
        assert status["status"] == "Success"


async def test_attach_joins_the_running_command_and_succeeds_at_its_end(tmp_path: Path) -> None:
    script = "read line; echo got $line; exit 5"
    spec = ContainerSpec("main", command=("sh", "-c", script), stdin=True)
    async with running_pod(tmp_path, spec) as pod:
        pod.restart_policy = "Never"
        channels, status = await over_websocket(
            pod, {"stdin": ["true"]}, V5, stdin=b"hello\n", subresource="attach"
        )
        assert channels[1] == b"got hello\n"
        assert status == {"metadata": {}, "status": "Success"}


async def spdy_exec(
    stream: trio.abc.Stream, *kinds: str, protocol: str = V4
) -> tuple[SpdyClient, dict[str, int]]:
    head, rest = await read_head(stream)
    assert head == [
        "HTTP/1.1 101 Switching Protocols",
        "Connection: Upgrade",
        "Upgrade: SPDY/3.1",
        f"X-Stream-Protocol-Version: {protocol}",
    ]
    client = SpdyClient(stream, rest)
    streams: dict[str, int] = {}
    for kind in kinds:
        streams[kind] = await client.open(streamtype=kind)
        await client.receive_until(lambda: len(client.replied) == len(streams))
    return client, streams


async def test_exec_over_spdy_has_a_stream_for_each(tmp_path: Path) -> None:
    request = spdy_request(
        V5,
        V4,
        "v3.channel.k8s.io",
        "v2.channel.k8s.io",
        "channel.k8s.io",
        query=shell("cat; echo err >&2; exit 4", stdin="true"),
    )
    async with running_pod(tmp_path) as pod, served(request, "exec", pod) as stream:
        client, streams = await spdy_exec(stream, "error", "stdin", "stdout", "stderr")
        await client.send(streams["stdin"], b"foo")
        await client.send(streams["stdin"], b"", fin=True)
        await client.receive_until(lambda: client.gone_away)
        assert client.data[streams["stdout"]] == b"foo"
        assert client.data[streams["stderr"]] == b"err\n"
        status = json.loads(client.data[streams["error"]])
        assert status["details"]["causes"] == [{"reason": "ExitCode", "message": "4"}]
        assert client.ended == {streams["stdout"], streams["stderr"]}
        assert client.reset == {streams["error"]: spdy.CANCEL, streams["stdin"]: spdy.CANCEL}


async def test_spdy_before_v4_reports_an_error_as_text_and_success_as_nothing(tmp_path: Path) -> None:
    async with running_pod(tmp_path) as pod:
        for script, error in (("exit 0", b""), ("exit 2", b"command terminated with non-zero exit code")):
            request = spdy_request("v2.channel.k8s.io", query=shell(script))
            async with served(request, "exec", pod) as stream:
                client, streams = await spdy_exec(
                    stream, "error", "stdout", "stderr", protocol="v2.channel.k8s.io"
                )
                await client.receive_to_the_end()
                assert client.data.get(streams["error"], b"").startswith(error)


async def test_a_terminal_over_spdy_waits_for_its_resize_stream(tmp_path: Path) -> None:
    request = spdy_request(V4, query=shell(until_sized("20 90"), tty="1", stdin="1"))
    async with running_pod(tmp_path) as pod, served(request, "exec", pod) as stream:
        client, streams = await spdy_exec(stream, "error", "stdin", "stdout", "resize")
        await client.send(streams["resize"], b'{"Width":90,"Height":20}\n')
        await client.receive_until(lambda: client.gone_away)
        assert client.data[streams["stdout"]] == b"sized\r\n"


async def test_unexpected_streams_of_an_exec_are_refused(tmp_path: Path) -> None:
    request = spdy_request(V4, query=shell("sleep 100"))
    async with running_pod(tmp_path) as pod, served(request, "exec", pod) as stream:
        client, _ = await spdy_exec(stream, "error")
        again, data = await client.open(streamtype="error"), await client.open(streamtype="data")
        await client.receive_until(lambda: len(client.reset) == 2)
        assert client.reset == {again: spdy.CANCEL, data: spdy.CANCEL}


async def test_a_client_that_does_not_open_its_streams_is_sent_away(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with running_pod(tmp_path) as pod:
        ours, theirs = memory_stream_pair()
        request = spdy_request(V4, query=shell("true"))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve_upgrade, theirs, b"", request, "exec", pod)
            client, _ = await spdy_exec(ours, "error")
            await client.receive_until(lambda: client.gone_away)
            assert trio.current_time() >= STREAMS_DEADLINE_S
            await ours.aclose()


async def test_a_flood_to_a_client_that_does_not_read_stalls_only_its_own_command(tmp_path: Path) -> None:
    async with running_pod(tmp_path) as pod:
        query = shell("yes | head -c 50000000")
        stalled = trio.testing.memory_stream_pair()
        async with trio.open_nursery() as nursery:
            server = BlockedStream(stalled[1])
            nursery.start_soon(serve_upgrade, server, b"", websocket_request(V5, query=query), "exec", pod)
            with trio.fail_after(10):
                await server.blocked.wait()
                channels, _ = await over_websocket(pod, shell("echo fine"), V5)
            assert channels[1] == b"fine\n"
            nursery.cancel_scope.cancel()


class BlockedStream(trio.abc.Stream):
    """Accepts the first 100 kB and then blocks."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.blocked = trio.Event()
        self._stream = stream
        self._taken = 0

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        self._taken += len(data)
        if self._taken > 100_000:
            self.blocked.set()
            await trio.sleep_forever()
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        return bytes(await self._stream.receive_some(max_bytes))

    async def aclose(self) -> None:
        await self._stream.aclose()


def test_flags_are_read_as_the_api_server_reads_them() -> None:
    request = UpgradeRequest("GET", {"a": ["true"], "b": ["0"], "c": ["False"], "d": [""]}, SPDY_HEADERS)
    assert [request.flag(name) for name in "abcde"] == [True, False, False, True, False]
    assert request.flag("e", default=True)
