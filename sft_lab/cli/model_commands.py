"""The commands that use the model of a finished run; each returns the exit code."""

from __future__ import annotations

import argparse
import sys

from sft_lab.cli.arguments import refuse_rest
from sft_lab.core.errors import UserError


def generate(arguments: argparse.Namespace, rest: list[str]) -> int:
    """Print answers of a run's model."""
    from sft_lab.tools import generate as tool

    refuse_rest("generate", rest)
    options = tool.GenerationOptions(
        tool.decode_argument(arguments.system, "--system"),
        arguments.max_new_tokens,
        arguments.temperature,
        arguments.top_p,
        arguments.top_k,
        arguments.seed,
    )
    if arguments.messages:
        for name, value in (("prompt", arguments.prompt), ("--system", options.system)):
            if value:
                raise UserError(
                    f"{name}: cannot be combined with --messages, which has all messages, the system message included"
                )
        from sft_lab.data.conversation_file import read_conversations

        conversations = read_conversations(arguments.messages, f"--messages {arguments.messages}")
        answered = tool.answer_conversations(arguments.folder, conversations, options, base=arguments.base)
        tool.print_conversations(answered, options)
        return 0
    from_stdin = arguments.prompt == "-"
    prompt = tool.read_stdin() if from_stdin else tool.decode_argument(arguments.prompt, "prompt")
    answers = tool.answer_prompt(arguments.folder, prompt, options, base=arguments.base)
    tool.print_answers(answers, options)
    return 0


def merge(arguments: argparse.Namespace, rest: list[str]) -> int:
    """Merge a run's adapter into its base model."""
    from sft_lab.tools.merge import merge_adapter

    refuse_rest("merge", rest)
    sys.stdout.write(f"{merge_adapter(arguments.folder, arguments.out)}\n")
    return 0


def export(arguments: argparse.Namespace, rest: list[str]) -> int:
    """Write a run's model for what serves it, and print the commands that do."""
    from sft_lab.tools.export_model import export_model

    refuse_rest("export", rest)
    exported = export_model(arguments.folder, arguments.to, arguments.out)
    sys.stdout.write("\n".join([str(exported.path), *(f"use it: {command}" for command in exported.commands), ""]))
    return 0


def push(arguments: argparse.Namespace, rest: list[str]) -> int:
    """Publish a run's model or data."""
    from sft_lab.core.run_dir import RunDir
    from sft_lab.tools.push import push_to_hub

    refuse_rest("push", rest)
    folder = RunDir(arguments.folder.absolute())
    url = push_to_hub(
        folder, arguments.repo, repo_type=arguments.what, public=arguments.public, merged=arguments.merged
    )
    sys.stdout.write(f"{url}\n")
    return 0


def evaluate(arguments: argparse.Namespace, rest: list[str]) -> int:
    """Run benchmarks on a run's model and its base model."""
    from sft_lab.tools.evaluate import EvaluationOptions, evaluate_run, print_scores

    refuse_rest("evaluate", rest)
    tasks = [name for name in map(str.strip, arguments.tasks.split(",")) if name]
    options = EvaluationOptions(
        tasks, arguments.limit, arguments.num_fewshot, arguments.batch_size, arguments.apply_chat_template
    )
    print_scores(evaluate_run(arguments.folder, options))
    return 0
