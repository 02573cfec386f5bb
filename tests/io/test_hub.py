"""Without a network the hub is asked once, quickly, and the clients are told."""

import pytest

from trimoe.io import hub


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    hub.unreachable.cache_clear()
    for name in ("HF_HUB_OFFLINE", "HF_ENDPOINT", "http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)


def test_a_closed_port_is_out_of_reach_and_told_to_the_clients(monkeypatch: pytest.MonkeyPatch) -> None:
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    before = constants.HF_HUB_OFFLINE
    with hub.offline_if_unreachable() as reason:
        assert "127.0.0.1 cannot be reached" in str(reason)
        assert constants.HF_HUB_OFFLINE
    assert before == constants.HF_HUB_OFFLINE


def test_a_server_that_answers_is_within_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        assert hub.unreachable() is None


def test_offline_mode_and_proxies_are_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert hub.unreachable() == "HF_HUB_OFFLINE is set"
    hub.unreachable.cache_clear()
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:8")
    assert hub.unreachable() is None, "only the client knows how to use the proxy"


def test_a_data_set_in_the_cache_is_not_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    assert hub.out_of_reach("openai/gsm8k") is not None
    from pathlib import Path

    (Path(str(tmp_path)) / "hub" / "datasets--openai--gsm8k").mkdir(parents=True)
    assert hub.out_of_reach("openai/gsm8k") is None
