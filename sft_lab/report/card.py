"""Model card and data set card, with the metadata that the Hugging Face Hub reads, made from the run folder alone."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sft_lab.core.errors import FolderError
from sft_lab.core.tolerant_readers import read, read_config
from sft_lab.core.verdict_warnings import warnings_beside
from sft_lab.report.formatting import shown_convergence
from sft_lab.report.html_report import VERDICTS
from sft_lab.report.pages import template_environment, write_page

if TYPE_CHECKING:
    from sft_lab.core.run_dir import RunDir

MAX_LANGUAGES = 10  # in a card's metadata
MAX_LANGUAGE_CODE = 3  # letters of a language code that the Hub knows
FEW_ROWS = 1000  # conversations below which a card warns
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
PATH_KEY = re.compile("path|dir|file|folder")

# The groups that shaped the result. The rest of the config is about the machine it was made on, which stays private.
DATA_SETTINGS = ("dataset", "split", "filter", "decontaminate", "dedup", "template", "model")
MODEL_SETTINGS = (*DATA_SETTINGS, "trainer", "seed")


def write_model_card(folder: RunDir, base_model: str, weights: Path | None = None) -> Path:
    """Write the model card; parts that the run has no file for are left out.

    Absolute paths are cut to their last part, since a card is meant to be published.

    Args:
        folder: the run.
        base_model: the model that was tuned. Only a Hub name (``owner/name``) enters the metadata.
        weights: the folder to write the card of, ``model/`` by default; an adapter's has ``adapter_config.json``.

    Returns:
        The card's path.

    Raises:
        FolderError: if a file of the run folder cannot be read.
    """
    weights = weights or folder.model
    adapter = read(weights / "adapter_config.json")
    trained = read(folder.model / "adapter_config.json")
    config, summary, waterfall = read_config(folder.config), read(folder.summary), read(folder.waterfall)
    on_hub = is_hub_name(base_model)
    rows = summary.get("train_rows")
    has_new_tokens = bool(trained.get("trainable_token_indices"))  # rows of tokens that the base model lacks
    content = {
        "metadata": _to_yaml(_hub_metadata(base_model if on_hub else None, config, is_adapter=bool(adapter))),
        "name": folder.path.absolute().name,
        "adapter": bool(adapter),
        "merged": bool(trained) and not adapter,
        "revision": trained.get("revision"),
        "new_tokens": (config.get("template") or {}).get("special_tokens") if has_new_tokens else [],
        "from_quantized": (config.get("model") or {}).get("kind") == "gguf",
        "on_hub": on_hub,
        "base_model": base_model if on_hub else Path(base_model).name,
        "summary": summary,
        "converged": shown_convergence(summary),
        "meaning": VERDICTS.get(summary.get("verdict") or "", ("", ""))[1],
        "warnings": warnings_beside(summary),
        "enough_rows": FEW_ROWS,
        "few_rows": rows is not None and rows < FEW_ROWS,
        "stages": waterfall.get("stages") or [],
        "held_out": waterfall.get("held_out") or [],
        "settings": _publishable_settings(config, MODEL_SETTINGS),
        "manifest": read(folder.manifest),
    }
    try:
        return _write_card(weights / "README.md", "card.md.jinja", content)
    except (TypeError, ValueError, LookupError, ArithmeticError) as error:
        files = ", ".join(file.name for file in (folder.summary, folder.waterfall, folder.manifest))
        raise FolderError(
            f"{folder.path}: {files} do not fit a model card ({error}); sft-lab replay writes them again"
        ) from error


def write_dataset_card(folder: RunDir) -> Path:
    """Write the card of prepared data, ``dataset/README.md``: its content, how it was prepared, how to load it.

    Returns:
        The card's path.

    Raises:
        FolderError: if a file of the run folder cannot be read.
    """
    config, data, waterfall = read_config(folder.config), read(folder.data), read(folder.waterfall)
    splits = sorted((file.stem for file in (folder.dataset / "parquet").glob("*.parquet")), reverse=True)
    languages = [entry for entry in data.get("languages") or [] if entry["code"] and entry["after"]]
    codes = [entry["code"] for entry in languages if len(entry["code"]) <= MAX_LANGUAGE_CODE]
    files = [{"split": split, "path": f"data/{split}.parquet"} for split in splits]
    metadata = {
        "configs": [{"config_name": "default", "data_files": files}],
        "language": codes[:MAX_LANGUAGES],
        "task_categories": ["text-generation"],
        "tags": ["sft", "sft_lab"],
    }
    content = {
        "metadata": _to_yaml({name: value for name, value in metadata.items() if value}),
        "splits": splits,
        "stages": waterfall.get("stages") or [],
        "held_out": waterfall.get("held_out") or [],
        "languages": languages,
        "tokens": (data.get("tokens") or {}).get("after") or {},
        "notices": data.get("notices") or [],
        "settings": _publishable_settings(config, DATA_SETTINGS),
        "manifest": read(folder.manifest),
    }
    return _write_card(folder.dataset / "README.md", "dataset_card.md.jinja", content)


def _write_card(path: Path, template: str, content: dict[str, Any]) -> Path:
    environment = template_environment()
    environment.filters |= {"plain": escape_markdown, "fenced": fence_code}
    write_page(path, environment.get_template(template).render(content))
    return path


def is_hub_name(name: str) -> bool:
    """Return whether a model's name can be one of the Hub: ``owner/name``, and no local folder."""
    return bool(HUB_NAME.fullmatch(name)) and not Path(name).exists()


def escape_markdown(value: object) -> str:
    """Return a value as text on one line that neither Markdown nor HTML takes as markup."""
    text = " ".join(str(value).split())
    return re.sub(r"[\\`*\[\]|<>&~]", lambda match: f"&#{ord(match[0])};", text)


def fence_code(text: str, language: str) -> str:
    """Return a code block, its fence longer than any run of backticks in the text."""
    fence = "`" * (1 + max([2, *(len(run) for run in re.findall("`+", text))]))
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def _hub_metadata(base_model: str | None, config: dict[str, Any], *, is_adapter: bool) -> dict[str, Any]:
    """Return a model card's metadata (https://huggingface.co/docs/hub/model-cards)."""
    metadata: dict[str, Any] = {
        "library_name": "peft" if is_adapter else "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["sft", "sft_lab"],
    }
    if base_model:
        metadata |= {"base_model": base_model, "base_model_relation": "adapter" if is_adapter else "finetune"}

    dataset = config.get("dataset") or {}
    sources = (dataset.get("sources") or {}).values() if dataset.get("kind") == "mixture" else [dataset]
    names = [str(source.get("name")) for source in sources if isinstance(source, dict)]
    if hub_names := [name for name in dict.fromkeys(names) if HUB_NAME.fullmatch(name)]:
        metadata["datasets"] = hub_names
    return metadata


def _publishable_settings(config: dict[str, Any], names: tuple[str, ...]) -> str:
    return _to_yaml(_shorten_paths({name: config[name] for name in names if name in config}))


def _to_yaml(content: dict[str, Any]) -> str:
    import yaml

    text: str = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=100) if content else ""
    return text.strip()


def _shorten_paths(value: Any, name: str = "") -> Any:
    """Return a config with absolute paths cut to their last part, under keys that hold paths.

    Elsewhere a slash may begin a pattern.
    """
    if isinstance(value, dict):
        return {key: _shorten_paths(item, str(key)) for key, item in value.items()}
    if isinstance(value, list):
        return [_shorten_paths(item, name) for item in value]
    is_path = isinstance(value, str) and PATH_KEY.search(name) and value.startswith(("/", "~"))
    return Path(value).name if is_path else value
