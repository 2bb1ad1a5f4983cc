"""Cards of model and prepared data, with the metadata the Hugging Face Hub reads, made from the run folder alone."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sft_lab.core.errors import FolderError
from sft_lab.core.io import write_text
from sft_lab.core.records import read, read_config
from sft_lab.report.html_report import VERDICTS, environment

if TYPE_CHECKING:
    import jinja2

    from sft_lab.core.run_dir import RunDir

MOST_LANGUAGES = 10  # in a card's metadata
FEW_ROWS = 1000  # conversations; below it a card says so
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
PATH_KEY = re.compile("path|dir|file|folder")
# What made the model. The rest of the config says where it was made, which is nobody's business.
DATA_SETTINGS = ("dataset", "split", "filter", "decontaminate", "dedup", "template", "model")
SETTINGS = ("dataset", "split", "filter", "decontaminate", "dedup", "template", "model", "trainer", "seed")


def write(folder: RunDir, base_model: str, weights: Path | None = None) -> Path:
    """Write the model card; what the run has no file for is left out.

    Paths of the machine it was made on are cut to their last part, since a card is meant to be published.

    Args:
        folder: the run.
        base_model: the model that was tuned. Only a Hub name (``owner/name``) enters the metadata.
        weights: the folder the card is of, None: ``model/``; with ``adapter_config.json`` in it it is an adapter's.

    Returns:
        The card's path.

    Raises:
        FolderError: if a file of the run folder cannot be read.
    """
    weights = weights or folder.model
    adapter = read(weights / "adapter_config.json")
    trained = read(folder.model / "adapter_config.json")
    on_hub = is_hub_name(base_model)
    config, summary, waterfall = read_config(folder.config), read(folder.summary), read(folder.waterfall)
    rows = summary.get("train_rows")
    content = {
        "metadata": _yaml(_metadata(base_model if on_hub else None, config, adapter=bool(adapter))),
        "name": folder.path.absolute().name,
        "adapter": bool(adapter),
        "merged": bool(trained) and not adapter,
        "revision": trained.get("revision"),
        "new_tokens": (config.get("template") or {}).get("special_tokens") if _grew(trained) else [],
        "from_quantized": (config.get("model") or {}).get("kind") == "gguf",
        "on_hub": on_hub,
        "base_model": base_model if on_hub else Path(base_model).name,
        "summary": summary,
        "meaning": VERDICTS.get(summary.get("verdict") or "", ("", ""))[1],
        "enough_rows": FEW_ROWS,
        "few_rows": rows is not None and rows < FEW_ROWS,
        "stages": waterfall.get("stages") or [],
        "held_out": waterfall.get("held_out") or [],
        "settings": _yaml(_without_places({name: config[name] for name in SETTINGS if name in config})),
        "manifest": read(folder.manifest),
    }
    try:
        text = _templates().get_template("card.md.jinja").render(content)
    except (TypeError, ValueError, LookupError, ArithmeticError) as error:
        files = ", ".join(file.name for file in (folder.summary, folder.waterfall, folder.manifest))
        raise FolderError(
            f"{folder.path}: no card can be made of its {files} ({error}); sft-lab replay makes them anew"
        ) from error
    path = weights / "README.md"
    write_text(path, text.encode("utf-8", "replace").decode("utf-8"))
    return path


def write_dataset(folder: RunDir) -> Path:
    """Write the card of prepared data, ``dataset/README.md``: what is in it, how it came about, how to load it.

    Raises:
        FolderError: if a file of the run folder cannot be read.
    """
    config, data, waterfall = read_config(folder.config), read(folder.data), read(folder.waterfall)
    splits = sorted((file.stem for file in (folder.dataset / "parquet").glob("*.parquet")), reverse=True)
    files = [{"split": split, "path": f"data/{split}.parquet"} for split in splits]
    after = [found for found in data.get("languages") or [] if found["code"] and found["after"]]
    metadata = {
        "configs": [{"config_name": "default", "data_files": files}],
        "language": [found["code"] for found in after if len(found["code"]) < 4][:MOST_LANGUAGES],
        "task_categories": ["text-generation"],
        "tags": ["sft", "sft_lab"],
    }
    content = {
        "metadata": _yaml({name: value for name, value in metadata.items() if value}),
        "splits": splits,
        "stages": waterfall.get("stages") or [],
        "held_out": waterfall.get("held_out") or [],
        "languages": after,
        "tokens": (data.get("tokens") or {}).get("after") or {},
        "notices": data.get("notices") or [],
        "settings": _yaml(_without_places({name: config[name] for name in DATA_SETTINGS if name in config})),
        "manifest": read(folder.manifest),
    }
    path = folder.dataset / "README.md"
    text = _templates().get_template("dataset_card.md.jinja").render(content)
    write_text(path, text.encode("utf-8", "replace").decode("utf-8"))
    return path


def _templates() -> jinja2.Environment:
    templates = environment()
    templates.filters |= {"plain": plain, "fenced": fenced}
    return templates


def is_hub_name(name: str) -> bool:
    """Whether a model's name can be one of the Hub: ``owner/name``, and no folder here."""
    return bool(HUB_NAME.fullmatch(name)) and not Path(name).exists()


def plain(value: object) -> str:
    """Text that Markdown and HTML take as it is, on one line."""
    return re.sub(r"[\\`*\[\]|<>&~]", lambda found: f"&#{ord(found[0])};", " ".join(str(value).split()))


def fenced(text: str, language: str) -> str:
    """A code block; its fence is longer than any row of backticks in the text."""
    fence = "`" * (1 + max([2, *(len(found) for found in re.findall("`+", text))]))
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def _grew(adapter: dict[str, Any]) -> bool:
    """Whether rows of tokens that the base model does not have are in an adapter."""
    return bool(adapter.get("trainable_token_indices"))


def _metadata(base_model: str | None, config: dict[str, Any], *, adapter: bool) -> dict[str, Any]:
    """What the Hub files the model under."""
    found: dict[str, Any] = {
        "library_name": "peft" if adapter else "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["sft", "sft_lab"],
    }
    if base_model:
        found |= {"base_model": base_model, "base_model_relation": "adapter" if adapter else "finetune"}
    dataset = config.get("dataset") or {}
    sources = (dataset.get("sources") or {}).values() if dataset.get("kind") == "mixture" else [dataset]
    names = [str(source.get("name")) for source in sources if isinstance(source, dict)]
    if on_hub := [name for name in dict.fromkeys(names) if HUB_NAME.fullmatch(name)]:
        found["datasets"] = on_hub
    return found


def _yaml(content: dict[str, Any]) -> str:
    import yaml

    text: str = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=100) if content else ""
    return text.strip()


def _without_places(value: Any, name: str = "") -> Any:
    """Cut absolute paths to their last part, under keys that hold paths: elsewhere a slash may begin a pattern."""
    if isinstance(value, dict):
        return {key: _without_places(item, str(key)) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_places(item, name) for item in value]
    place = isinstance(value, str) and PATH_KEY.search(name) and value.startswith(("/", "~"))
    return Path(value).name if place else value
