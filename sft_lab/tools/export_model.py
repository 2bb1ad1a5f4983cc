"""``sft-lab export``: a run's model for what serves it, with its chat template and the tokens that end an answer."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path
from typing import NamedTuple

from sft_lab.core.errors import UserError
from sft_lab.core.log import log
from sft_lab.tools.finished_run import FinishedRun, open_run
from sft_lab.tools.merge import merge_adapter
from sft_lab.tools.new_folder import new_folder, refuse_used

WEIGHTS = "model.gguf"


class Exported(NamedTuple):
    """What was written, and the commands that use it."""

    path: Path
    commands: list[str]


def export_model(path: Path, target: str, out: Path | None = None) -> Exported:
    """Write a run's model for llama.cpp, Ollama or vLLM.

    An adapter is merged first, into ``merged/`` of the run folder, or used from there if it is merged already.

    Args:
        path: a finished run.
        target: ``gguf``, ``ollama`` or ``vllm``.
        out: the new folder; None: ``export/<target>/`` in the run folder, and for vLLM the merged folder itself.

    Raises:
        UserError: if the run has no model, a link leads out of its folder, its kind of model or template cannot be
            written, or ``out`` is in use.
    """
    finished = open_run(path)
    finished.folder.refuse_links()
    if target == "vllm":
        return _for_vllm(finished, out)
    folder = (out or finished.folder.export / target).absolute()
    refuse_used(folder)
    modelfile = _modelfile(finished) if target == "ollama" else ""
    source = _whole_model(finished)
    with new_folder(folder) as work:
        _write_gguf(finished, source, work / WEIGHTS, folder)
        if modelfile:
            (work / "Modelfile").write_text(modelfile, encoding="utf-8")
    log.info("export: %.1f MB in %s", (folder / WEIGHTS).stat().st_size / 1e6, folder)

    weights = shlex.quote(str(folder / WEIGHTS))
    if target == "ollama":
        file = shlex.quote(str(folder / "Modelfile"))
        return Exported(folder, [f"ollama create tuned -f {file}", "ollama run tuned"])
    return Exported(folder / WEIGHTS, [f"llama-server -m {weights} --jinja", f"llama-cli -m {weights} --jinja"])


def _for_vllm(finished: FinishedRun, out: Path | None) -> Exported:
    """Return the merged folder: vLLM reads its chat template, and the end tokens in its generation config."""
    if out is None:
        folder = _whole_model(finished)
    elif finished.is_adapter:
        folder = merge_adapter(finished.folder.path, out)
    else:
        folder = out.absolute()
        refuse_used(folder)
        with new_folder(folder) as work:
            shutil.copytree(finished.folder.model, work, dirs_exist_ok=True)
    return Exported(folder, [f"vllm serve {shlex.quote(str(folder))} --served-model-name tuned"])


def _whole_model(finished: FinishedRun) -> Path:
    """Return the folder with all weights, merged now if they were not before."""
    if not finished.is_adapter:
        return finished.folder.model
    merged = finished.folder.merged
    return merged if (merged / "config.json").is_file() else merge_adapter(finished.folder.path)


def _modelfile(finished: FinishedRun) -> str:
    from sft_lab.tools.ollama import TurnTexts, modelfile

    renderer, tokenizer = finished.renderer, finished.tokenizer
    texts = TurnTexts.of(renderer)
    bos = tokenizer.bos_token if _prompt(finished)[0] == tokenizer.bos_token_id else ""
    texts = texts.without_bos(bos)
    stops = tokenizer.convert_ids_to_tokens(renderer.end_ids)
    return modelfile(texts, WEIGHTS, stops, finished.run.model.base_name or "A model", bos)


def _prompt(finished: FinishedRun) -> list[int]:
    """Return the tokens of a prompt."""
    from sft_lab.data.tokens_and_labels import prompt_ids

    return prompt_ids(finished.renderer.prompt([{"role": "user", "content": "a"}]), finished.tokenizer)


def _write_gguf(finished: FinishedRun, source: Path, file: Path, folder: Path) -> None:
    from sft_lab.tools.gguf_file import write_gguf
    from sft_lab.tools.gguf_vocab import CannotWrite

    name = f"{finished.run.model.base_name or finished.folder.path.name} fine-tuned"
    try:
        write_gguf(source, file, name, end_ids=finished.renderer.end_ids, prompt=_prompt(finished))
    except CannotWrite as error:
        command = shlex.join(["python", "convert_hf_to_gguf.py", str(source), "--outfile", str(folder / WEIGHTS)])
        raise UserError(f"export: cannot write {error} as GGUF; use llama.cpp's script: {command}") from error
