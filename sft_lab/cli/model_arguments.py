"""The arguments of the commands that use the model of a finished run."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def add_to_model_commands(commands: Mapping[str, argparse.ArgumentParser]) -> None:
    """Add the arguments of the commands that use the model of a finished run."""
    generate = commands["generate"]
    generate.add_argument("folder", type=Path, metavar="RUN_DIR")
    prompt_help = "the user's message; -: read from standard input"
    prompt = generate.add_argument("prompt", metavar="PROMPT", help=prompt_help)
    generate.add_argument(
        "--messages", type=Path, metavar="FILE", action=_InsteadOf, other=prompt,
        help="instead of PROMPT: conversations to continue, with their tools (JSON or JSON lines)",
    )  # fmt: skip
    generate.add_argument("--base", action="store_true", help="also print the base model's answer")
    generate.add_argument("--system", default="", metavar="TEXT", help="a system message before the prompt")
    generate.add_argument(
        "--max-new-tokens", type=int, default=256, metavar="N", help="maximum length of an answer; default: 256"
    )
    generate.add_argument(
        "--temperature", type=float, default=0.0, metavar="T", help="default: 0, always the most likely token"
    )
    generate.add_argument(
        "--top-p", type=float, metavar="P", help="sample from the most likely tokens with this total probability"
    )
    generate.add_argument("--top-k", type=int, metavar="K", help="sample from the K most likely tokens")
    generate.add_argument("--seed", type=int, metavar="N", help="seed for sampling; default: the run's")

    evaluate = commands["evaluate"]
    evaluate.add_argument("folder", type=Path, metavar="RUN_DIR")
    evaluate.add_argument(
        "--tasks", default="arc_easy,hellaswag,winogrande", metavar="NAMES|FILE",
        help="lm-evaluation-harness tasks or YAML files, comma-separated; default: arc_easy,hellaswag,winogrande",
    )  # fmt: skip
    evaluate.add_argument(
        "--limit", type=int, metavar="N", help="use only the first N questions of each task; default: all"
    )
    evaluate.add_argument(
        "--num-fewshot", type=int, metavar="N", help="example questions before each question; default: the task's"
    )
    evaluate.add_argument("--batch-size", type=int, default=8, metavar="N", help="questions per batch; default: 8")
    evaluate.add_argument(
        "--apply-chat-template", action="store_true", help="use the run's chat template, for the base model too"
    )

    merge = commands["merge"]
    merge.add_argument("folder", type=Path, metavar="RUN_DIR")
    merge.add_argument("--out", type=Path, metavar="DIR", help="the new folder; default: RUN_DIR/merged")

    export = commands["export"]
    export.add_argument("folder", type=Path, metavar="RUN_DIR")
    export.add_argument(
        "--to", choices=["gguf", "ollama", "vllm"], required=True, help="the program that will serve it"
    )
    export.add_argument(
        "--out", type=Path, metavar="DIR", help="the new folder; default: RUN_DIR/export/gguf or ollama"
    )

    push = commands["push"]
    push.add_argument("folder", type=Path, metavar="RUN_DIR")
    push.add_argument("repo", metavar="REPO", help="owner/name")
    push.add_argument("--what", choices=["model", "dataset"], default="model", help="default: model")
    push.add_argument(
        "--merged", action="store_true", help="push the model that `sft-lab merge` wrote, not the adapter"
    )
    push.add_argument("--public", action="store_true", help="make the repository public")


class _InsteadOf(argparse.Action):
    """An option in place of a positional argument, which is then not required."""

    def __init__(self, *arguments: Any, other: argparse.Action, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self._other = other

    def __call__(self, _: object, namespace: argparse.Namespace, values: Any, __: str | None = None) -> None:
        self._other.required = False
        setattr(namespace, self.dest, values)
