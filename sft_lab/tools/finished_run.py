"""A finished run opened again, for what is done with its model afterwards."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sft_lab import config as configs
from sft_lab.core.context import StageContext
from sft_lab.core.errors import FolderError, all_problems
from sft_lab.core.run_dir import FINISHED, RUN, RunDir
from sft_lab.core.run_discovery import open_run_dir
from sft_lab.run.config import Run

if TYPE_CHECKING:
    from sft_lab.data.chat_template import Renderer


@dataclass(frozen=True)
class Finished:
    """A run with weights in its folder.

    Attributes:
        folder: the run's.
        run: its saved config.
        context: tools with the tokenizer that the model was trained with.
    """

    folder: RunDir
    run: Run
    context: StageContext

    @property
    def is_adapter(self) -> bool:
        """Whether an adapter was trained, not all weights."""
        return (self.folder.model / "adapter_config.json").exists()

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer as it was saved: its chat template is the one that was trained, whatever became of the file."""
        import transformers

        try:
            return transformers.AutoTokenizer.from_pretrained(self.folder.model, trust_remote_code=False)
        except Exception as error:  # a broken file makes the library raise anything
            said = " ".join(str(error).split())[:200]
            raise FolderError(
                f"{self.folder.model}: its tokenizer cannot be loaded ({said}); train it again"
            ) from error

    @cached_property
    def renderer(self) -> Renderer:
        """The chat template that was trained, bound to the tokenizer.

        Raises:
            FolderError: if it is gone or broken.
        """
        from sft_lab.data.chat_template import Renderer

        try:
            return Renderer(self.tokenizer, str(self.tokenizer.get_chat_template()), self.context.template_date)
        except FolderError:
            raise
        except ValueError as error:  # ours, or of a tokenizer without one
            said = " ".join(str(error).split())[:200]
            raise FolderError(
                f"{self.folder.model}: its chat template cannot be used ({said}); train it again"
            ) from error

    def load_base(self, *, four_bit: bool) -> Any:
        """Load the model that was tuned, on the GPU where there is one.

        Raises:
            UserError: if it is not there any more, or cannot be loaded.
        """
        import torch

        model = self.run.model.load(self.context, self.run.seed, four_bit=four_bit)
        return model.to("cuda") if torch.cuda.is_available() and not four_bit else model

    def load_tuned(self, base: Any) -> Any:
        """Load the run's weights; an adapter is put onto ``base``, which is then no base model any more."""
        from sft_lab.training import model_io

        return model_io.load(base, self.folder.model).eval()


def open_run(path: Path) -> Finished:
    """Open the folder of a finished run.

    Raises:
        UserError: if it is no run folder, its run did not end well or trained nothing, or its weights are gone.
    """
    folder = open_run_dir(path)
    state, work = folder.state(), folder.work()
    if state != FINISHED:
        raise FolderError(f"{path}: is not finished ({state or 'never started'}); sft-lab exec {path} goes on with it")
    if work != RUN:
        raise FolderError(f"{path}: holds prepared data and no model; give the folder of a run that trained")
    if not any((folder.model / name).is_file() for name in ("adapter_config.json", "config.json")):
        raise FolderError(f"{folder.model}: holds no weights; sft-lab replay {path} trains them again")
    run = configs.load(folder.config)
    if problems := run.model.check():
        raise all_problems(problems)
    return Finished(folder, run, run.context(folder=folder))
