"""A device that the installed torch cannot have is refused before torch is imported."""

import subprocess
import sys

import pytest

from trimoe.errors import UsageError
from trimoe.model import device
from trimoe.model.device import require_device


@pytest.mark.parametrize("build", ["2.13.0+cpu", "2.13.0+cu128", "2.13.0"])
@pytest.mark.parametrize("name", ["cpu", "cuda", "cuda:1", "abacus", "cuda:x", "", "cpu "])
def test_names_and_builds(build: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "version", lambda package: build)
    known = name in ("cpu", "cuda", "cuda:1")
    if known and not (name.startswith("cuda") and build.endswith("+cpu")):
        require_device(name)
        return
    with pytest.raises(UsageError, match="cannot be used") as caught:
        require_device(name)
    assert not known or build in str(caught.value)


def test_no_torch_is_imported() -> None:
    code = "import sys, trimoe.model.device as d; d.require_device('cpu'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
