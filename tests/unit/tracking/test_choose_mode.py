"""Online or offline is decided before wandb is asked, from a key and a short probe."""

import socket
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from transact.tracking.wandb_mode import choose_mode, has_api_key, server_reachable


@pytest.fixture
def open_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture
def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
    return port


def environ(port: int, **more: str) -> dict[str, str]:
    return {"WANDB_API_KEY": "secret", "WANDB_BASE_URL": f"http://127.0.0.1:{port}", **more}


def yes(_: Mapping[str, str]) -> bool:
    return True


def no(_: Mapping[str, str]) -> bool:
    return False


@pytest.mark.parametrize("mode", ["online", "offline", "disabled"])
def test_an_explicit_mode_is_kept(mode: str) -> None:
    assert choose_mode(mode, {}, no, no) == mode


def test_an_unknown_mode_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match="'of' is unknown; choose one of auto, online"):
        choose_mode("of")


@pytest.mark.parametrize(
    ("key", "network", "expected"),
    [(yes, yes, "online"), (yes, no, "offline"), (no, yes, "offline"), (no, no, "offline")],
)
def test_auto_needs_a_key_and_a_network(key: object, network: object, expected: str) -> None:
    assert choose_mode("auto", {}, key, network) == expected  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", ["offline", "disabled"])
def test_auto_heeds_the_cluster(mode: str) -> None:
    assert choose_mode("auto", {"WANDB_MODE": mode}, yes, yes) == mode


def test_auto_with_a_real_server(open_port: int) -> None:
    assert choose_mode("auto", environ(open_port)) == "online"


def test_auto_with_a_closed_port(closed_port: int) -> None:
    assert choose_mode("auto", environ(closed_port)) == "offline"


@pytest.mark.parametrize("url", ["nonsense", "http://127.0.0.1:port", "http://", "http://a..b"])
def test_a_malformed_address_is_offline(url: str) -> None:
    assert choose_mode("auto", {"WANDB_API_KEY": "secret", "WANDB_BASE_URL": url}) == "offline"


def test_a_slow_name_look_up_is_cut_off(monkeypatch: pytest.MonkeyPatch, open_port: int) -> None:
    monkeypatch.setattr("transact.tracking.wandb_mode.PROBE_SECONDS", 0.1)

    def find_no_name(*_: object, **__: object) -> None:
        time.sleep(1)
        raise TimeoutError

    monkeypatch.setattr(socket, "create_connection", find_no_name)
    began = time.monotonic()
    assert not server_reachable(environ(open_port))
    assert time.monotonic() - began < 0.9


def test_behind_a_proxy_the_proxy_is_probed(open_port: int, closed_port: int) -> None:
    proxy = {"http_proxy": f"http://127.0.0.1:{open_port}"}
    assert server_reachable(environ(closed_port, **proxy))
    assert not server_reachable(environ(closed_port, **proxy, no_proxy="localhost, 127.0.0.1"))


def test_a_key_in_netrc_counts_for_its_host_only(tmp_path: Path) -> None:
    (tmp_path / ".netrc").write_text("machine wandb.example.org login user password secret\n")
    home = {"HOME": str(tmp_path)}
    assert has_api_key({**home, "WANDB_BASE_URL": "https://wandb.example.org"})
    assert not has_api_key({**home, "WANDB_BASE_URL": "https://other.example.org"})
    assert not has_api_key({"HOME": str(tmp_path / "empty"), "WANDB_BASE_URL": "https://a.org"})


@pytest.mark.parametrize("machine", ["api.wandb.ai", "api.forge.coreweave.com"])
def test_either_name_of_the_hosted_service_will_do(tmp_path: Path, machine: str) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text(f"machine {machine} login user password secret\n")
    assert has_api_key({"NETRC": str(netrc), "WANDB_BASE_URL": "https://api.forge.coreweave.com"})
