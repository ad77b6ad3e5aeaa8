"""The client process against a server that answers in every shape, and not at all."""

from __future__ import annotations

import ssl
from pathlib import Path

import attrs
import pytest

from benchmarks.load import Job, Load
from benchmarks.workload import RunFailed
from tests.benchmarks.canned import Canned, canned

BODY = bytes(range(256)) * 8


def whole(sock: ssl.SSLSocket, head: bytes) -> None:
    sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(BODY), BODY))


def in_pieces(sock: ssl.SSLSocket, head: bytes) -> None:
    for piece in (b"HTTP/1.1 200 OK\r\nCONTENT-LENG", b"TH: 2048\r\n\r", b"\n", BODY[:7], BODY[7:]):
        sock.sendall(piece)


def empty(sock: ssl.SSLSocket, head: bytes) -> None:
    sock.sendall(b"HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n")


def no_content(sock: ssl.SSLSocket, head: bytes) -> None:
    sock.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")


def requests(server: Canned, connections: int = 2) -> Job:
    return Job("requests", server.endpoint, "/pod", connections, seconds=0.4, warmup_s=0.01)


@pytest.mark.parametrize("answer", [whole, in_pieces, empty, no_content])
def test_requests_are_counted_and_timed_whatever_shape_their_answers_have(
    tmp_path: Path, answer: object
) -> None:
    assert callable(answer)
    with canned(tmp_path, answer) as server, Load(requests(server)) as load:
        before = len(server.heads)
        assert before >= 2, "the connections are warm"
        load.go()
        report = load.report()
    assert report.requests == len(server.heads) - before == len(report.latencies_ns)
    assert report.requests > 2, "the loop is closed: an answer starts the next request"
    assert list(report.latencies_ns) == sorted(report.latencies_ns)
    assert 0.1 <= report.wall_s < 5
    assert 0 < report.cpu_s < report.wall_s
    assert report.transferred == report.requests * (0 if answer in (empty, no_content) else len(BODY))


def test_runs_follow_each_other_over_the_same_connections(tmp_path: Path) -> None:
    with canned(tmp_path, whole) as server, Load(requests(server)) as load:
        reports = []
        for _ in range(3):
            before = len(server.heads)
            load.go()
            reports.append(load.report())
            assert reports[-1].requests == len(server.heads) - before == len(reports[-1].latencies_ns)
        assert server.connections == 2
    assert all(report.transferred == report.requests * len(BODY) for report in reports)


def test_a_request_is_that_of_the_endpoint(tmp_path: Path) -> None:
    with canned(tmp_path, whole) as server, Load(requests(server, 1)):
        lines = server.heads[0].split(b"\r\n")
    assert lines[0] == b"GET /p/pod HTTP/1.1"
    assert b"Host: 127.0.0.1:%d" % server.endpoint.port in lines
    assert b"X-Who: me" in lines


def test_a_small_write_has_a_path_for_each_connection_and_its_body_with_the_head(tmp_path: Path) -> None:
    with canned(tmp_path, no_content) as server:
        job = attrs.evolve(requests(server), path="/configmaps/n", size=1024)
        with Load(job) as load:
            load.go()
            report = load.report()
    assert report.requests == len(report.latencies_ns) > 2
    lines = {head.split(b"\r\n")[0] for head in server.heads}
    assert lines == {b"PUT /p/configmaps/n0 HTTP/1.1", b"PUT /p/configmaps/n1 HTTP/1.1"}
    assert set(server.bodies) == {1024}


def test_of_every_so_many_requests_one_is_a_write_and_the_others_read_the_same_path(tmp_path: Path) -> None:
    with canned(tmp_path, no_content) as server:
        job = attrs.evolve(requests(server, 1), path="/configmaps/n", size=1024, write_every=3)
        with Load(job) as load:
            before = len(server.heads)
            load.go()
            report = load.report()
    assert report.requests > 6
    methods = [head.split(b" ")[0] for head in server.heads[before:]]
    assert methods[:6] == [b"PUT", b"GET", b"GET", b"PUT", b"GET", b"GET"]
    assert {head.split(b" ")[1] for head in server.heads} == {b"/p/configmaps/n0"}


def test_a_new_connection_carries_one_request(tmp_path: Path) -> None:
    with canned(tmp_path, whole) as server:
        job = attrs.evolve(requests(server), kind="connections")
        with Load(job) as load:
            before = len(server.heads)
            load.go()
            report = load.report()
    assert report.requests == len(server.heads) - before == len(report.latencies_ns)
    assert report.requests > 2, "the end of a connection starts the next one"
    assert server.connections == len(server.heads)
    # The handshake is in it: the requests of two at a time take all of the time.
    assert sum(report.latencies_ns) / 1e9 > report.wall_s


def test_downloads_are_so_many_bodies_a_stream(tmp_path: Path) -> None:
    with canned(tmp_path, whole) as server:
        with Load(Job("download", server.endpoint, "/bulk", connections=3, bodies=4)) as load:
            load.go()
            report = load.report()
    assert (report.requests, report.transferred) == (12, 12 * len(BODY))
    # One more each, before, to be warm.
    assert len(server.heads) == 15


def test_uploads_arrive_whole(tmp_path: Path) -> None:
    with canned(tmp_path, empty) as server:
        job = Job("upload", server.endpoint, "/sink/n", connections=2, bodies=3, size=700_001)
        with Load(job) as load:
            load.go()
            report = load.report()
    assert (report.requests, report.transferred) == (6, 6 * 700_001)
    assert server.bodies == [700_001] * 8
    assert {head.split(b" ")[1] for head in server.heads} == {b"/p/sink/n0", b"/p/sink/n1"}


def test_an_endless_download_goes_on_until_it_is_stopped(tmp_path: Path) -> None:
    with canned(tmp_path, whole) as server:
        with Load(Job("download", server.endpoint, "/bulk", bodies=0)) as load:
            load.go()
            while len(server.heads) < 20:
                pass
            report = load.stop()
    assert report.transferred >= 15 * len(BODY)


def test_a_stalled_reader_reads_no_more_than_the_beginning(tmp_path: Path) -> None:
    stuck: list[bool] = []

    def long_answer(sock: ssl.SSLSocket, head: bytes) -> None:
        sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n")
        sock.settimeout(0.3)
        try:
            while True:
                sock.sendall(bytes(65536))
        except TimeoutError:
            stuck.append(True)

    with canned(tmp_path, long_answer) as server:
        with Load(Job("stall", server.endpoint, "/bulk")):
            while not stuck:
                pass


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n", "403 Forbidden"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "without a length"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nab", "more came"),
    ],
)
def test_an_answer_that_was_not_asked_for_fails_the_run(tmp_path: Path, answer: bytes, words: str) -> None:
    with canned(tmp_path, lambda sock, head: sock.sendall(answer)) as server:
        with pytest.raises(RunFailed, match=words), Load(requests(server)):
            pass


def test_a_connection_that_is_cut_fails_the_run(tmp_path: Path) -> None:
    def cut(sock: ssl.SSLSocket, head: bytes) -> None:
        if len(server.heads) < 20:
            whole(sock, head)
        else:
            sock.unwrap()

    with canned(tmp_path, cut) as server:
        with pytest.raises(RunFailed, match="the client: "):  # noqa: PT012 - where it comes is its own affair
            with Load(requests(server)) as load:
                load.go()
                load.report()


def test_a_server_of_another_ca_fails_the_run(tmp_path: Path) -> None:
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
    with canned(tmp_path / "one", whole) as server, canned(tmp_path / "other", whole) as other:
        wrong = attrs.evolve(server.endpoint, ca=other.endpoint.ca)
        with pytest.raises(RunFailed, match="CERTIFICATE_VERIFY_FAILED"):
            with Load(Job("requests", wrong, "/pod")):
                pass
