"""Loading a checkpoint through transformers, exactly or not at all. The only module that builds a torch model."""

import importlib.util
from pathlib import Path
from typing import Any

from trimoe.errors import CheckpointError, MissingPrerequisite


def require_torch() -> None:
    """Raise `MissingPrerequisite` unless torch and transformers can be imported."""
    for name in ("torch", "transformers"):
        if importlib.util.find_spec(name) is None:
            raise MissingPrerequisite(
                f"{name} is not installed",
                expected="the torch extra",
                remedy='pip install "torch==2.13.0", then pip install "trimoe[torch]"',
            )


def load_model(path: Path, device: str = "cpu") -> Any:
    """The model in fp32; refuses when the loader left out, invented or reshaped any tensor."""
    require_torch()
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    model, info = AutoModelForCausalLM.from_pretrained(
        path, dtype=torch.float32, output_loading_info=True, local_files_only=True
    )
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        if info.get(kind):
            raise CheckpointError(
                f"{path} does not load exactly: {kind}",
                expected="none",
                actual=", ".join(map(str, sorted(info[kind], key=str)[:5])),
                remedy="the architecture and the weights do not belong together",
            )
    return model.eval().to(device)


def load_tokenizer(path: Path) -> Any:
    """The tokenizer of a checkpoint directory; `CheckpointError` when it has none."""
    require_torch()
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(path, local_files_only=True)
    except (OSError, ValueError) as exc:
        raise CheckpointError(
            f"{path} has no usable tokenizer",
            expected="tokenizer.json and tokenizer_config.json",
            actual=str(exc).splitlines()[0][:200],
            remedy="copy the base model's tokenizer files",
        ) from exc
