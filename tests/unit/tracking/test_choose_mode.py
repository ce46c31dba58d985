"""Online or offline is decided before wandb is asked, which would ask for a key: by whether there is one."""

from pathlib import Path

import pytest

from transact.tracking.wandb_run import choose_mode, has_api_key

KEY = {"WANDB_API_KEY": "secret", "WANDB_BASE_URL": "https://wandb.example.org"}


@pytest.mark.parametrize("mode", ["online", "offline", "disabled"])
def test_an_explicit_mode_is_kept(mode: str) -> None:
    assert choose_mode(mode, KEY | {"WANDB_MODE": "disabled"}) == mode


def test_auto_needs_a_key(tmp_path: Path) -> None:
    assert choose_mode("auto", KEY) == "online"
    assert choose_mode("auto", KEY | {"WANDB_API_KEY": "", "HOME": str(tmp_path)}) == "offline"


@pytest.mark.parametrize("mode", ["offline", "disabled"])
def test_auto_heeds_the_cluster(mode: str) -> None:
    assert choose_mode("auto", KEY | {"WANDB_MODE": mode}) == mode


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
