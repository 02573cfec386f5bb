"""Policies: what is refused, what is recorded, and the commands that start containers."""

import json
import shutil
import sys

import pytest
from click.testing import CliRunner

from trimoe.cli.eval import eval_
from trimoe.cli.parts.sandbox import policy_of
from trimoe.errors import MissingPrerequisite, Refused, UsageError
from trimoe.sandbox import UNSAFE, Limits, Policy, Sandbox, current, engines, using


def test_no_sandbox_only_in_so_many_words() -> None:
    with pytest.raises(Refused, match="--unsafe-no-sandbox"):
        Policy("none")
    with pytest.raises(UsageError):
        Policy("docker", unsafe=True)
    assert UNSAFE.describe() == {"engine": "none", "sandboxed": False}
    assert Policy().describe() == {"engine": "namespaces", "sandboxed": True}
    assert Policy("docker", image="mine").describe() == {"engine": "docker", "sandboxed": True, "image": "mine"}


def test_options_that_contradict_each_other_are_a_usage_error() -> None:
    command = ["m", "--bench", "tiny-code", "--dry-run", "--unsafe-no-sandbox"]
    assert CliRunner().invoke(eval_, command).exit_code == 0
    assert isinstance(CliRunner().invoke(eval_, [*command, "--sandbox", "docker"]).exception, UsageError)
    assert CliRunner().invoke(eval_, ["m", "--bench", "tiny-code", "--dry-run", "--sandbox", "none"]).exit_code == 2
    assert policy_of("docker", "mine", False) == Policy("docker", image="mine")
    assert policy_of(None, None, False) == Policy()
    assert policy_of(None, None, True) == UNSAFE


def test_a_policy_is_in_force_for_its_block_only() -> None:
    with using(UNSAFE):
        assert current() is UNSAFE
        with using(Policy("podman")):
            assert current().engine == "podman"
        assert Sandbox().policy is UNSAFE
    assert current() == Policy()


def test_the_default_command_takes_nothing_from_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    command = engines.command(Policy(), Limits())
    assert command[0] == sys.executable
    environment = engines.environment(Policy())
    assert environment is not None
    assert "HF_TOKEN" not in environment
    assert environment["PYTHONHASHSEED"] == "0"


@pytest.mark.parametrize("engine", ["docker", "podman"])
def test_container_command(engine: str) -> None:
    limits = Limits(memory=1 << 30, scratch=1 << 20, processes=32)
    words = engines.command(Policy(engine, image="python:3.11-slim"), limits)  # type: ignore[arg-type]
    assert words[:4] == [engine, "run", "--rm", "--interactive"]
    line = " ".join(words)
    for part in (
        "--read-only",
        "--network none",
        "--cap-drop ALL",
        "--security-opt no-new-privileges",
        "--user 65534:65534",
        "--pids-limit 40",
        f"--memory {(2 << 30) + (256 << 20)}",
        "--ulimit core=0:0",
        ":ro ",
        f"--tmpfs /tmp:rw,exec,nosuid,nodev,size={1 << 20}",
        "--env PYTHONHASHSEED=0",
        "python:3.11-slim python3",
    ):
        assert part in line, part
    assert "HF_TOKEN" not in line
    configuration = engines.configuration(Policy(engine), (), proc=False)  # type: ignore[arg-type]
    assert "view" not in json.dumps(configuration)
    assert configuration["filtered"] is True


@pytest.mark.parametrize("engine", ["docker", "podman"])
def test_a_container_engine_that_is_not_there_is_named(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(MissingPrerequisite, match=engine):
        Sandbox(policy=Policy(engine))  # type: ignore[arg-type]


def test_another_system_is_sent_to_containers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(Refused, match="--sandbox docker"):
        Sandbox()
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    with pytest.raises(Refused, match="riscv64"):
        Sandbox()


def test_a_container_that_does_not_start_says_what_its_engine_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "command", lambda policy, limits: ["/bin/sh", "-c", "echo no daemon >&2; exit 125"])
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    with pytest.raises(MissingPrerequisite, match="no daemon"), Sandbox(policy=Policy("docker")) as sandbox:
        sandbox.start()
