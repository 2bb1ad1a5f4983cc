"""What the help says of each command."""

from __future__ import annotations

# For each command: its line in the list of commands, the first line of its own help, and examples.
ABOUT: dict[str, tuple[str, str, str]] = {
    "train": (
        "start a run or a sweep; the default: `sft-lab x=y` is `sft-lab train x=y`",
        "Start one run, or with -m one job for every combination of values.",
        """\
  sft-lab                                        the defaults: bundled model and conversations
  sft-lab dataset=my.jsonl                       your own conversations
  sft-lab -m dedup.threshold=0.8,0.95 trainer.learning_rate=1e-5,1e-4
  sft-lab +experiment=quickstart                 a file of experiments/
  sft-lab --cfg job dedup=exact                  show the composed config, run nothing
""",
    ),
    "prepare": (
        "run only the data stages: report, figures, dataset/",
        "Load, split, filter, decontaminate, deduplicate and apply the template, without training.",
        """\
  sft-lab prepare dataset=my.jsonl                     report, and dataset/ to train on
  sft-lab prepare -m dedup.threshold=0.8,0.9,0.95      the same at several thresholds
""",
    ),
    "plan": (
        "show what would run and what is already stored; writes nothing",
        "Show jobs, folders, stored data stages, rows, steps and time before running anything.",
        """\
  sft-lab plan                                        the defaults: rows, tokens, steps
  sft-lab plan dataset=my_conversations.jsonl         a file: its format, and whether it can be read
  sft-lab plan -m dedup.threshold=0.8,0.95 seed=1,2   a sweep: finished jobs, shared work
  sft-lab plan --probe                                train six steps to estimate all times
  sft-lab plan -m seed=1,2 launch=slurm               the batch script too, as it would be submitted
""",
    ),
    "search": (
        "search for the best values of a few keys with Optuna",
        "Let Optuna propose values, trial by trial. The same command again resumes the search.",
        """\
  sft-lab search --over 'trainer.learning_rate=tag(log, interval(1e-5,1e-3))' --trials 20
  sft-lab search --over 'dedup.threshold=interval(0.7,0.99)' 'trainer.peft.r=8,16' --confirm 3
  sft-lab search hparams_search=mine    hparams_search/mine.yaml, as in lightning-hydra-template
""",
    ),
    "exec": (
        "run the saved config of a job folder, as every launcher does",
        "Run the config.yaml of a job folder and write the results into that folder.",
        """\
  sft-lab exec multirun/sweep-1a2b3c4d/seed_1-0123456789ab   resume a job of a sweep
  sft-lab exec outputs/2026-11-21/10-30-00                   a folder with a config.yaml
""",
    ),
    "runs": (
        "list run folders, one line each: state, verdict, losses",
        "List the run folders below DIR with their state, verdict and losses.",
        """\
  sft-lab runs                    one line per run folder
  sft-lab runs multirun/sweep-1a2b3c4d
  sft-lab runs multirun/sweep-1a2b3c4d --delete
""",
    ),
    "compare": (
        "compare jobs: table, compare.html, compare.json",
        "Compare the jobs of a sweep, or any runs. Needs no network.",
        """\
  sft-lab compare multirun/sweep-1a2b3c4d        table; compare.html and compare.json in the folder
  sft-lab compare outputs/*/* --out comparison   any runs, wherever they are
  sft-lab compare multirun/sweep-1a2b3c4d --rank-by outputs/ended_share
""",
    ),
    "replay": (
        "run a saved config again and report every difference",
        "Report how the environment differs, run, and report how the result differs.",
        """\
  sft-lab replay outputs/2026-11-22/10-30-00          in a new folder; reports every difference
  sft-lab replay outputs/2026-11-22/10-30-00 seed=7   with one key changed
""",
    ),
    "promote": (
        "save a run's config as ./experiments/NAME.yaml",
        "Save what differs from the defaults as an experiment, and verify that it gives the same config.",
        """\
  sft-lab promote multirun/sweep-1a2b3c4d/seed_1-0123456789ab best   writes experiments/best.yaml
  sft-lab promote outputs/2026-11-22/10-30-00 best --force           replaces that file
""",
    ),
    "generate": (
        "try the model of a run, optionally next to its base model",
        "Print how a finished run's model answers a prompt. Decoding is greedy unless you set a temperature.",
        """\
  sft-lab generate outputs/2026-11-22/11-00-00 "What is the capital of Norway?" --base
  sft-lab generate outputs/2026-11-22/11-00-00 - --temperature 0.7 --top-p 0.9 < prompt.txt
  sft-lab generate outputs/2026-11-22/11-00-00 --messages talk.json   a conversation with tools
""",
    ),
    "evaluate": (
        "benchmark a run's model and its base model (lm-evaluation-harness)",
        "Score both models on benchmark tasks; the numbers go into summary, report, W&B and compare.",
        """\
  sft-lab evaluate outputs/2026-11-22/11-00-00 --tasks hellaswag,arc_easy
  sft-lab evaluate outputs/2026-11-22/11-00-00 --tasks my_task.yaml     a task of your own
  sft-lab evaluate outputs/2026-11-22/11-00-00 --limit 100 --apply-chat-template
""",
    ),
    "merge": (
        "merge an adapter into the weights of its base model",
        "Write a run's model so that Transformers can load it without PEFT.",
        """\
  sft-lab merge outputs/2026-11-22/11-00-00                  into merged/ in the run folder
  sft-lab merge outputs/2026-11-22/11-00-00 --out my-model
""",
    ),
    "export": (
        "write a run's model for llama.cpp, Ollama or vLLM",
        "Write a run's model, with chat template and stop tokens, and print the commands that serve it.",
        """\
  sft-lab export outputs/2026-11-22/11-00-00 --to gguf      one file for llama.cpp
  sft-lab export outputs/2026-11-22/11-00-00 --to ollama    the same, and a Modelfile
  sft-lab export outputs/2026-11-22/11-00-00 --to vllm      a merged folder
""",
    ),
    "push": (
        "publish a run's model or prepared data on the Hugging Face Hub",
        "Publish on the Hub: private unless --public. Needs HF_TOKEN or a login.",
        """\
  sft-lab push outputs/2026-11-22/10-30-00 me/my-data --what dataset   what `sft-lab prepare` wrote
  sft-lab push outputs/2026-11-22/11-00-00 me/my-model                 a run's adapter or model
  sft-lab push outputs/2026-11-22/11-00-00 me/my-model --merged        what `sft-lab merge` wrote
""",
    ),
    "doctor": (
        "show what this machine has and lacks, or what changed since a run",
        "Check versions, devices, store, logins and known conflicts, or show what changed since a run.",
        """\
  sft-lab doctor                                one line per check: ok, note or problem
  sft-lab doctor outputs/2026-11-22/10-30-00    what changed since this run
  sft-lab doctor --train                        ten steps of each trainer on each device
  sft-lab doctor --train --model smollm2_135m   the same with another model option
""",
    ),
    "store": (
        "list stored stage results, or free their space",
        "All runs share stored stage results. List them, or remove those that are no longer used.",
        """\
  sft-lab store list                             stage, key, size and last use of each result
  sft-lab store prune --older-than 7             remove results that no run has used for a week
  sft-lab store prune --older-than 0 --stage embed
""",
    ),
}
