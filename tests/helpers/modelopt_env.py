"""An environment of its own for NVIDIA Model Optimizer, which does not fit beside the project's packages.

`TRIMOE_MODELOPT=build` makes it once with pip, in the user's cache (1.5 GB, some minutes); `TRIMOE_MODELOPT=PYTHON`
names an interpreter that has it. Without either an environment that was built before is used.
"""

import os
import subprocess
import sys
from pathlib import Path

VERSION = "0.47.0"
PACKAGES = [
    f"nvidia-modelopt=={VERSION}",
    "torch==2.13.0",
    "transformers==5.23.0",
    "accelerate",
    "safetensors>=0.8,<0.9",
    "requests",
    "datasets",
]
EXPORT = Path(__file__).with_name("modelopt_export.py")


def modelopt_python() -> Path | str:
    """The interpreter, or the reason why there is none."""
    wish = os.environ.get("TRIMOE_MODELOPT", "")
    if wish and wish != "build":
        return Path(wish) if Path(wish).is_file() else f"TRIMOE_MODELOPT={wish} is no file"
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "trimoe" / f"modelopt-{VERSION}"
    python, done = cache / "bin" / "python", cache / "complete"
    if not done.exists():
        if wish != "build":
            return "Model Optimizer is not installed: set TRIMOE_MODELOPT=build, or to a python that has it"
        for command in ([sys.executable, "-m", "venv", str(cache)], [str(python), "-m", "pip", "install", *PACKAGES]):
            made = subprocess.run(command, capture_output=True, text=True, check=False)
            if made.returncode:
                return f"Model Optimizer could not be installed: {(made.stdout + made.stderr)[-300:]}"
        done.touch()
    return python
