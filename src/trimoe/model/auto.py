"""Which of transformers' automatic classes builds a model: causal language models first, then those that also see."""

from typing import Any


def auto_class(config: Any) -> Any:
    """AutoModelForCausalLM, or AutoModelForImageTextToText for configurations that only it knows."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

    kind = type(config)
    sees = kind in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING and kind not in MODEL_FOR_CAUSAL_LM_MAPPING
    return AutoModelForImageTextToText if sees else AutoModelForCausalLM


def auto_class_of(folder: Any) -> Any:
    """The class for a checkpoint directory; AutoModelForCausalLM where its configuration cannot be read."""
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        return auto_class(AutoConfig.from_pretrained(folder, local_files_only=True))
    except (OSError, ValueError, KeyError):  # the class itself will say what is wrong
        return AutoModelForCausalLM
