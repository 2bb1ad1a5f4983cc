"""A finished run, opened to use its model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sft_lab import config as configs
from sft_lab.core.context import StageContext
from sft_lab.core.errors import FolderError, all_problems
from sft_lab.core.run_dir import RunDir
from sft_lab.core.run_discovery import open_run_dir
from sft_lab.core.text import one_line
from sft_lab.core.types import RunState, Work
from sft_lab.run.config import Run

if TYPE_CHECKING:
    from sft_lab.data.renderer import Renderer

MAX_ERROR = 200  # characters of a library's error in ours


@dataclass(frozen=True)
class FinishedRun:
    """A run with weights in its folder.

    Attributes:
        folder: the run folder.
        run: the saved config.
        context: context of its stages, with the tokenizer that the model was trained with.
    """

    folder: RunDir
    run: Run
    context: StageContext

    @property
    def is_adapter(self) -> bool:
        """Whether an adapter was trained rather than all weights."""
        return (self.folder.model / "adapter_config.json").exists()

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer as saved: its chat template is the trained one, even if the template's file has changed."""
        import transformers

        try:
            return transformers.AutoTokenizer.from_pretrained(self.folder.model, trust_remote_code=False)
        except Exception as error:  # a broken file makes the library raise anything
            message = f"its tokenizer cannot be loaded ({one_line(error, MAX_ERROR)}); train it again"
            raise FolderError(f"{self.folder.model}: {message}") from error

    @cached_property
    def renderer(self) -> Renderer:
        """The trained chat template, bound to the tokenizer.

        Raises:
            FolderError: if it is missing or broken.
        """
        from sft_lab.data.renderer import Renderer

        try:
            jinja = str(self.tokenizer.get_chat_template())
            return Renderer(self.tokenizer, jinja, self.context.template_date, self.run.template.system)
        except FolderError:
            raise
        except ValueError as error:  # ours, or of a tokenizer without a template
            message = f"its chat template cannot be used ({one_line(error, MAX_ERROR)}); train it again"
            raise FolderError(f"{self.folder.model}: {message}") from error

    def load_base(self, *, four_bit: bool) -> Any:
        """Load the base model, on the GPU if there is one.

        Raises:
            UserError: if it is missing or cannot be loaded.
        """
        holding = replace(self.run.trainer.holding, four_bit=four_bit)
        return self.run.model.load(self.context, self.run.seed, holding)

    def load_tuned(self, base: Any = None) -> Any:
        """Load the run's weights; an adapter is added to ``base``, which is then no longer the plain base model.

        Args:
            base: the base model, if it is loaded already.
        """
        from sft_lab.training import model_io

        holding = self.run.trainer.holding
        return model_io.load(
            self.folder.model,
            lambda: base or self.load_base(four_bit=holding.four_bit),
            lambda folder: self.run.model.load_saved(folder, self.context, holding),
        ).eval()


def open_run(path: Path) -> FinishedRun:
    """Open the folder of a finished run.

    Raises:
        UserError: if it is not a run folder, its run failed or trained nothing, or its weights are missing.
    """
    folder = open_run_dir(path)
    state, work = folder.state(), folder.work()
    if folder.is_held() and state != RunState.FINISHED:
        raise FolderError(f"{path}: is still {state or 'starting'}; wait until it has finished")
    if state != RunState.FINISHED:
        raise FolderError(f"{path}: is not finished ({state or 'never started'}); sft-lab exec {path} continues it")
    if work != Work.RUN:
        raise FolderError(f"{path}: has prepared data but no model; give the folder of a training run")
    if not any((folder.model / name).is_file() for name in ("adapter_config.json", "config.json")):
        raise FolderError(f"{folder.model}: has no weights; sft-lab replay {path} trains again")

    run = configs.load(folder.config)
    if problems := run.model.check():
        raise all_problems(problems)
    return FinishedRun(folder, run, run.context(folder=folder))
