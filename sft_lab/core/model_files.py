"""The files of a model's folder: those that loading it may read, and those that are not read."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from sft_lab.core.io import ANYWHERE, read_json

# What no loader here opens: notes, and weights that are pickles or of other frameworks.
NOT_LOADED = {".md", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".ot", ".onnx", ".tflite"}


def loaded_files(root: Path, subfolder: str = "", *, deep: bool = False) -> list[Path]:
    """Return the files of a model's folder that loading it may read, sorted.

    Args:
        root: the folder; an adapter's in it leads to the folder of its base model.
        subfolder: of the weights.
        deep: with all folders below: the parts of a sentence-transformers model, some in ``pytorch_model.bin``.
    """
    folders = [root, root / subfolder]
    with suppress(OSError, ValueError, AttributeError, TypeError):
        base = read_json(root / "adapter_config.json", ANYWHERE).get("base_model_name_or_path")
        folders += [Path(base)] if base and Path(base).resolve() != root.resolve() else []
    folders += [folder / "additional_chat_templates" for folder in folders]
    below = [folder for folder in root.rglob("*") if folder.is_dir() and not _is_hidden(folder, root)] if deep else []
    files = {file for folder in [*folders, *below] if folder.is_dir() for file in folder.iterdir() if file.is_file()}
    parts = {folder / "pytorch_model.bin" for folder in below}  # of tensors alone: torch.load reads nothing else of it
    loaded = (file for file in files if file.suffix not in NOT_LOADED or file in parts)
    return sorted(file for file in loaded if not file.name.startswith("."))


def _is_hidden(folder: Path, root: Path) -> bool:
    return any(part.startswith(".") for part in folder.relative_to(root).parts)


def pickled(where: str, folder: Path) -> list[str]:
    """Refuse a folder whose weights are pickles alone: to read one is to run what it says."""
    if any(folder.glob("*.safetensors")) or not (found := sorted([*folder.glob("*.bin"), *folder.glob("*.pt")])):
        return []
    said = f"{where}: its weights are a pickle ({found[0].name}), which can run code; only safetensors are read"
    return [f"{said}; have who made them save them with save_pretrained(safe_serialization=True)"]
