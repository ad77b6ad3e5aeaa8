from __future__ import annotations

from pathlib import Path
from typing import Literal

import attrs
import pytest

from proxy.process.config import Address, add_faults, read_stated, read_text
from proxy.process.settings import fault_of_hub_url
from proxy.process.stated import FILE_BYTES_MAX


@attrs.frozen
class Harbour:
    listen: Address | None = None
    berths: int = 3
    open: bool = True


@attrs.frozen
class Boat:
    oars: int
    name: str = "dinghy"


@attrs.frozen
class Ship:
    name: str
    harbour: Harbour = Harbour()
    rig: Literal["sloop", "ketch"] = "sloop"
    flags: tuple[str, ...] = ()
    chart: Path | None = None
    boat: tuple[Boat, ...] = ()


def read(text: str, folder: Path, **environment: str) -> Ship:
    """Read what must hold no fault; `environment` is by variables without their prefix."""
    ship, faults = attempt(text, folder, **environment)
    assert faults == []
    assert ship is not None
    return ship


def faults_of(text: str, folder: Path, **environment: str) -> list[str]:
    _, faults = attempt(text, folder, **environment)
    assert faults
    return faults


def attempt(text: str, folder: Path, **environment: str) -> tuple[Ship | None, list[str]]:
    file = folder / "ship.toml"
    file.write_text(text)
    faults: list[str] = []
    named = {f"SHIP_{name}": value for name, value in environment.items()}
    return read_stated(Ship, "SHIP_", file, {"PATH": "/bin", **named}, faults), faults


def test_every_kind_of_value_is_read_from_the_file(tmp_path: Path) -> None:
    text = """
    name = "Ann"
    rig = "ketch"
    flags = ["q", "u"]
    chart = "charts/north"
    [harbour]
    listen = "[::]:443"
    berths = 7
    open = false
    """
    harbour = Harbour(Address("::", 443), 7, open=False)
    # The path is relative to the file, not to the working directory.
    chart = tmp_path / "charts" / "north"
    assert read(text, tmp_path) == Ship("Ann", harbour, "ketch", ("q", "u"), chart)


def test_a_list_of_tables_is_read_in_its_order(tmp_path: Path) -> None:
    text = 'name = "Ann"\n[[boat]]\noars = 2\n[[boat]]\noars = 4\nname = "gig"\n'
    assert read(text, tmp_path).boat == (Boat(2), Boat(4, "gig"))


def test_faults_of_a_list_of_tables_have_the_number_of_the_table(tmp_path: Path) -> None:
    text = 'name = "Ann"\n[[boat]]\noars = 2\n[[boat]]\noars = "4"\nsail = 1\n[[boat]]\n'
    ship, faults = attempt(text, tmp_path)
    assert faults == [
        "boat.2.oars: expected a whole number",
        "boat.2.sail: no such key; there are name, oars",
        "boat.3.oars: missing",
    ]
    assert ship == Ship("Ann")
    for other in ("boat = 1", "[boat]\noars = 2", 'boat = ["gig"]'):
        [fault] = faults_of(f'name = "Ann"\n{other}\n', tmp_path)
        assert fault in {"boat: expected a list of tables", "boat.1: expected a table"}
    [fault] = faults_of('name = "Ann"\n', tmp_path, BOAT="gig")
    assert fault.startswith("SHIP_BOAT: no such setting")


def test_what_is_not_stated_has_its_default(tmp_path: Path) -> None:
    assert read('name = "Ann"', tmp_path) == Ship("Ann")
    faults: list[str] = []
    assert read_stated(Ship, "SHIP_", None, {}, faults, defaults={"name": "Ann"}) == Ship("Ann")
    named = {"SHIP_NAME": "Bob"}
    assert read_stated(Ship, "SHIP_", None, named, faults, defaults={"name": "Ann"}) == Ship("Bob")
    assert faults == []


def test_the_environment_wins_over_the_file_and_may_name_it(tmp_path: Path) -> None:
    environment = {
        "RIG": "ketch",
        "FLAGS": "q\nu\n",
        "CHART": "/charts",
        "HARBOUR_LISTEN": "127.0.0.1:1",
        "HARBOUR_BERTHS": "9",
        "HARBOUR_OPEN": "false",
    }
    expected = Ship(
        "Ann", Harbour(Address("127.0.0.1", 1), 9, open=False), "ketch", ("q", "u"), Path("/charts")
    )
    assert read('name = "Ann"\nrig = "sloop"\n[harbour]\nberths = 1', tmp_path, **environment) == expected
    named = {"SHIP_CONFIG": str(tmp_path / "ship.toml"), "SHIP_NAME": "Bob"}
    faults: list[str] = []
    assert read_stated(Ship, "SHIP_", None, named, faults) == Ship("Bob", Harbour(berths=1))
    assert faults == []


def test_all_faults_are_reported_together_each_with_its_path(tmp_path: Path) -> None:
    text = """
    rig = "raft"
    flags = "q"
    chart = 5
    colour = "blue"
    [harbour]
    listen = "8443"
    berths = "many"
    open = "yes"
    port = 3
    """
    assert sorted(faults_of(text, tmp_path, HARBOUR_OPEN="no", HARBOUR_BERTHS="1_0", COLOUR="red")) == [
        "SHIP_COLOUR: no such setting; there are SHIP_CHART, SHIP_FLAGS, SHIP_HARBOUR_BERTHS, "
        "SHIP_HARBOUR_LISTEN, SHIP_HARBOUR_OPEN, SHIP_NAME, SHIP_RIG",
        "SHIP_HARBOUR_BERTHS: expected a whole number",
        "SHIP_HARBOUR_OPEN: expected true or false",
        "chart: expected a string",
        "colour: no such key; there are boat, chart, flags, harbour, name, rig",
        "flags: expected a list of strings",
        "harbour.berths: expected a whole number",
        "harbour.listen: expected host:port, as in 127.0.0.1:8443 or [::]:8443",
        "harbour.open: expected true or false",
        "harbour.port: no such key; there are berths, listen, open",
        "name: missing",
        'rig: expected "sloop" or "ketch"',
    ]


def test_a_mistyped_key_or_variable_is_answered_with_what_it_may_mean(tmp_path: Path) -> None:
    found = faults_of("chat = 'x'\nname = 'n'\n[harbour]\nlisen = 1", tmp_path, RIGG="sloop")
    assert sorted(found) == [
        "SHIP_RIGG: no such setting (did you mean SHIP_RIG?)",
        "chat: no such key (did you mean chart?)",
        "harbour.lisen: no such key (did you mean listen?)",
    ]


def test_a_file_of_another_format_is_named_as_such(tmp_path: Path) -> None:
    (fault,) = [each for each in faults_of("name: yaml", tmp_path) if "missing" not in each]
    assert ": not TOML: " in fault


def test_the_mark_that_windows_puts_in_front_of_a_text_is_no_fault(tmp_path: Path) -> None:
    assert faults_of("\ufeffrig = 7\nname = 'n'", tmp_path) == ['rig: expected "sloop" or "ketch"']


def test_a_required_key_is_missed_by_its_name_though_its_section_is_missing_too() -> None:
    @attrs.frozen
    class Fleet:
        flagship: Ship

    faults: list[str] = []
    assert read_stated(Fleet, "FLEET_", None, {}, faults) is None
    assert faults == ["flagship.name: missing"]


@pytest.mark.parametrize("value", ["5", "true", "[]", "1970-01-01", "1.5"])
def test_a_value_of_another_type_is_not_converted(value: str, tmp_path: Path) -> None:
    text = f"name = {value}\nrig = {value}\nchart = {value}\nharbour.listen = {value}"
    assert len(faults_of(text, tmp_path)) == 4
    assert faults_of(f'name = "Ann"\nflags = [{value}]', tmp_path) == ["flags: expected a list of strings"]


def test_true_is_no_number(tmp_path: Path) -> None:
    found = faults_of('name = "Ann"\nharbour.berths = true\nharbour.open = 1', tmp_path)
    assert found == ["harbour.berths: expected a whole number", "harbour.open: expected true or false"]


def test_what_is_faulty_counts_as_not_stated_so_that_the_rest_can_be_checked(tmp_path: Path) -> None:
    text = 'name = "Ann"\nrig = "raft"\noars = 2\n[harbour]\nberths = "two"\nopen = false\nbar = 1'
    ship, faults = attempt(text, tmp_path)
    assert ship == Ship("Ann", Harbour(open=False))
    assert len(faults) == 4
    ship, faults = attempt('name = "Ann"\nharbour = 3', tmp_path)
    assert ship == Ship("Ann")
    assert faults == ["harbour: expected a table"]
    ship, faults = attempt("name = 1", tmp_path)
    assert ship is None
    assert faults == ["name: expected a string"]


def test_a_section_that_is_no_table_is_one_fault_beside_the_others(tmp_path: Path) -> None:
    found = faults_of("harbour = 1", tmp_path, HARBOUR_BERTHS="5")
    assert found == ["name: missing", "harbour: expected a table"]


def test_a_misplaced_secret_is_never_repeated(tmp_path: Path) -> None:
    secret = "hws_SECRETSECRET"
    text = f"""
    name = "Ann"
    rig = "{secret}"
    flags = "{secret}"
    chart = '''-----BEGIN PRIVATE KEY-----
{secret}'''
    harbour.listen = "{secret}"
    harbour.berths = "{secret}"
    """
    found = faults_of(text, tmp_path, HARBOUR_OPEN=secret)
    assert len(found) == 6
    assert secret not in "\n".join(found)


def test_a_stated_file_that_cannot_be_read_is_named_as_far_as_it_is_there(tmp_path: Path) -> None:
    def fault(path: Path) -> list[str]:
        found: list[str] = []
        assert read_text("ca", path, found) is None
        return found

    (tmp_path / "latin").write_bytes(b"\xe4")
    (tmp_path / "big").write_bytes(b"x" * (FILE_BYTES_MAX + 1))
    assert fault(tmp_path) == [f"ca: {tmp_path} cannot be read: Is a directory"]
    assert fault(tmp_path / "latin") == [f"ca: {tmp_path / 'latin'} is not UTF-8"]
    assert fault(tmp_path / "big") == [f"ca: {tmp_path / 'big'} is larger than {FILE_BYTES_MAX} bytes"]
    assert fault(tmp_path / "hws_SECRET/x/y") == [
        f"ca: cannot be read: No such file or directory, looked for in {tmp_path}"
    ]
    assert fault(tmp_path / "latin" / "x") == [
        f"ca: cannot be read: Not a directory, looked for in {tmp_path}"
    ]
    # What was pasted may have slashes, and be longer than any name.
    assert fault(tmp_path / ("hws_SECRET" * 50) / "x") == [
        f"ca: cannot be read: File name too long, looked for in {tmp_path}"
    ]


def test_kubernetes_service_links_are_not_settings(tmp_path: Path) -> None:
    links = {
        "SERVICE_HOST": "10.0.0.1",
        "SERVICE_PORT": "443",
        "SERVICE_PORT_HTTPS": "443",
        "PORT": "tcp://10.0.0.1:443",
        "PORT_443_TCP": "tcp://10.0.0.1:443",
        "PORT_443_TCP_ADDR": "10.0.0.1",
    }
    assert read('name = "Ann"', tmp_path, **links) == Ship("Ann")


@pytest.mark.parametrize(
    "text",
    ["not toml", "a = 1\na = 2", "\x00", "#" * (FILE_BYTES_MAX + 1), "a = " + "[" * 10_000],
    ids=["text", "twice", "null", "long", "deep"],
)
def test_a_file_that_is_no_toml_is_one_fault(text: str, tmp_path: Path) -> None:
    (found,) = faults_of(text, tmp_path)
    assert found.startswith(f"{tmp_path / 'ship.toml'}: ")


def test_a_file_that_cannot_be_read_is_one_fault(tmp_path: Path) -> None:
    (tmp_path / "latin").write_bytes(b"\xff")
    faults: list[str] = []
    for name in ("none", "latin"):
        assert read_stated(Ship, "SHIP_", tmp_path / name, {}, faults) is None
    assert faults == [
        f"{tmp_path / 'none'}: cannot be read: No such file or directory",
        f"{tmp_path / 'latin'}: not UTF-8",
    ]


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("localhost:0", Address("localhost", 0)),
        ("[::1]:5", Address("::1", 5)),
        ("0.0.0.0:65535", Address("0.0.0.0", 65535)),
    ],
)
def test_addresses(text: str, address: Address) -> None:
    assert Address.parse(text) == address
    assert str(address) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":1",
        "a",
        "a:",
        "::1:5",
        "[1.2.3.4]:5",
        "[zz]:5",
        "[1:2]:5",
        "a:65536",
        "a:+5",
        "a:٣",
        "a:5\n",
        "a b:5",
        "[fe80::1%eth0]:5",
    ],
)
def test_texts_that_are_no_address(text: str) -> None:
    with pytest.raises(ValueError, match=r"expected host:port|exceeds 65535|in brackets|with a zone"):
        Address.parse(text)


def test_loopback_addresses_are_recognised() -> None:
    assert all(Address(host, 1).is_loopback for host in ("127.0.0.1", "127.3.2.1", "::1", "localhost"))
    assert not any(Address(host, 1).is_loopback for host in ("0.0.0.0", "::", "10.0.0.1", "hub.example"))


@pytest.mark.parametrize(
    ("url", "fault"),
    [
        ("http://hub.example", "expected https://host"),
        ("hub.example", "expected https://host"),
        ("https://", "expected https://host"),
        ("https://hub.example:0", "expected https://host"),
        ("https://hub example", "expected https://host"),
        ("https://hüb.example", "expected https://host"),
        ("https://hub.example\n", "expected https://host"),
        ("https://hub.example:port", "not a URL"),
        ("https://hub.example:99999", "not a URL"),
        ("https://user:pass@hub.example", "must not hold"),
        ("https://hub.example/base", "no path"),
        ("https://hub.example?x", "no path"),
        ("https://hub.example?", "no path"),
        ("https://hub.example#", "no path"),
        ("https://Hub.example", "lower case"),
        ("https://[fe80::1%eth0]", "an address with a zone"),
    ],
)
def test_urls_that_no_token_could_name(url: str, fault: str) -> None:
    assert fault in (fault_of_hub_url(url) or "")


@pytest.mark.parametrize("url", ["https://hub.example", "https://hub.example:8443/", "https://[::1]:1"])
def test_urls_of_a_hub(url: str) -> None:
    assert fault_of_hub_url(url) is None


def test_a_consequence_of_a_reported_fault_is_not_reported() -> None:
    faults = ["tls.key: expected a string", "org: expected a string"]
    add_faults(faults, ["tls: given together", "org: reserved", "tls.certificate: a", "mask: b", "mask: c"])
    assert faults[2:] == ["tls.certificate: a", "mask: b", "mask: c"]
