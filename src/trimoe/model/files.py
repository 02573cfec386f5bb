"""Files of a checkpoint directory besides the weights: which ones are copied, and whether they changed meanwhile."""

from pathlib import Path

from trimoe.errors import CheckpointError
from trimoe.io.publish import (
    MANIFEST,
)

METADATA = "expert_drop_metadata.json"
INDEX = "model.safetensors.index.json"
WEIGHTS = {".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".ckpt", ".npz", ".onnx", ".ot"}
_OURS = {"config.json", METADATA, MANIFEST, "certificate.json"}
# The card describes the original, not the cut; attributes steer a git repository; neither is read by a loader.
_NOT_COPIED = {"README.md", ".gitattributes", ".gitignore"}
_TEMPLATES = "additional_chat_templates"
_SMALL_FILE = 256 << 20


def source_stamps(model: Path | str) -> dict[str, tuple[int, int, int]]:
    """Size, time of change and time of change of the inode of every weights file; different after any write."""
    stamps = {}
    for file in sorted(Path(model).glob("*.safetensors")):
        status = file.stat()
        stamps[file.name] = (status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    return stamps


def other_files(directory: Path) -> tuple[list[Path], list[str]]:
    """Tokenizer, templates, processor, licence and other small files to copy; and the names of those left out."""
    if broken := sorted(file.name for file in directory.iterdir() if file.is_symlink() and not file.exists()):
        raise CheckpointError(
            f"{directory / broken[0]} is a link to nothing",
            expected="every file of the model",
            remedy="fetch it, or remove the link",
        )
    candidates = [file for file in directory.iterdir() if file.is_file()]
    if (directory / _TEMPLATES).is_dir():
        candidates += [file for file in (directory / _TEMPLATES).iterdir() if file.is_file()]
    files, left_out = [], []
    for file in sorted(candidates):
        ours = file.name in _OURS or file.name.endswith((".safetensors", ".safetensors.index.json"))
        if file.suffix in WEIGHTS or file.name.endswith(".index.json") or file.name in _NOT_COPIED or ours:
            left_out += [] if ours else [file.name]
        elif file.stat().st_size > _SMALL_FILE:
            left_out.append(file.name)
        else:
            files.append(file)
    return files, left_out
