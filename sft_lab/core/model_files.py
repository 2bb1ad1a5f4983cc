"""The files of a model's folder that loading it may read."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from sft_lab.core.io import ANYWHERE, read_json

# Files that no loader here opens: notes, and weights in pickles or for other frameworks.
NOT_LOADED = {".md", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".ot", ".onnx", ".tflite"}


def loaded_files(root: Path, subfolder: str = "", *, deep: bool = False) -> list[Path]:
    """Return the files of a model's folder that loading it may read, sorted.

    Args:
        root: the folder; for an adapter, the folder of its base model is included.
        subfolder: of the weights.
        deep: include all subfolders, which hold the parts of a sentence-transformers model.
    """
    folders = [root, root / subfolder]
    with suppress(OSError, ValueError, AttributeError, TypeError):
        base = read_json(root / "adapter_config.json", ANYWHERE).get("base_model_name_or_path")
        folders += [Path(base)] if base and Path(base).resolve() != root.resolve() else []
    folders += [folder / "additional_chat_templates" for folder in folders]
    below = [folder for folder in root.rglob("*") if folder.is_dir() and not _is_hidden(folder, root)] if deep else []
    files = {file for folder in [*folders, *below] if folder.is_dir() for file in folder.iterdir() if file.is_file()}
    parts = {folder / "pytorch_model.bin" for folder in below}  # torch.load reads only tensors of it
    loaded = (file for file in files if file.suffix not in NOT_LOADED or file in parts)
    return sorted(file for file in loaded if not file.name.startswith("."))


def _is_hidden(folder: Path, root: Path) -> bool:
    return any(part.startswith(".") for part in folder.relative_to(root).parts)


def pickled_weights(key: str, folder: Path) -> list[str]:
    """Return an error if a folder's only weights are pickles: loading a pickle may run code.

    Args:
        key: the config key that names the folder, for the message.
        folder: of the model.
    """
    pickles = sorted([*folder.glob("*.bin"), *folder.glob("*.pt")])
    if any(folder.glob("*.safetensors")) or not pickles:
        return []
    problem = f"{key}: its weights are a pickle ({pickles[0].name}), which can run code, so they are not loaded"
    return [f"{problem}; ask its authors for safetensors (save_pretrained writes them)"]
