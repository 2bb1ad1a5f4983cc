"""What a run is saved as, and what makes two runs the same job."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any

from sft_lab.core.io import FORMAT, digest
from sft_lab.core.params import default, plain
from sft_lab.core.plugins import origin
from sft_lab.run.launch_config import DDP
from sft_lab.run.schemas import SCHEMAS, kind_of

if TYPE_CHECKING:
    from sft_lab.data.preparation import Prepared
    from sft_lab.run.config import Run

# Fields that change no result, and so are no part of a job's identity.
NOT_IDENTITY = {"tracking", "launch", "engine", "store", "prepare", "threads", "rerun", "choices", "format"}
PROCESSES = "launch.num_processes"  # which is part of the identity although launch is not
MAX_DIFFERENCES = 3  # listed in a message
# Stages that select among the training rows and do nothing else.
SELECTING_STAGES = ("filter", "decontaminate", "dedup")


def saved_config(run: Run, *, complete: bool = False) -> dict[str, Any]:
    """Return the run as plain data, each stage with its ``kind``.

    Args:
        run: the run.
        complete: include every key, as ``config.yaml`` does; else those that later versions added are left out at
            their defaults, so that what is computed from the rest stays the same.
    """

    def saved(value: Any) -> Any:
        return plain(value, every_knob=True, complete=complete)

    def saved_stage(group: str, stage: Any) -> dict[str, Any]:
        return {"kind": kind_of(group, stage), **saved(stage)}

    def saved_filters(filters: dict[str, Any]) -> dict[str, Any]:
        return {name: saved_stage("filter", stage) for name, stage in filters.items()}

    content: dict[str, Any] = {"format": FORMAT}
    for field in fields(run):
        value = getattr(run, field.name)
        if field.name == "filter":
            content["filter"] = saved_filters(value)
        elif field.name in SCHEMAS:
            content[field.name] = saved_stage(field.name, value)
        elif field.name != "plugins" or value:
            content[field.name] = saved(value)
    content["split"]["filter"] = saved_filters(run.split.filter)
    return content


def to_yaml(run: Run) -> str:
    """Return the text of ``config.yaml``."""
    from omegaconf import OmegaConf

    return OmegaConf.to_yaml(OmegaConf.create(saved_config(run, complete=True)))


def completed(config: dict[str, Any]) -> dict[str, Any]:
    """Return the content of a ``config.yaml`` with the keys that it lacks because they did not exist yet."""

    def fill(schema: Any, values: dict[str, Any]) -> dict[str, Any]:
        knobs = fields(schema) if is_dataclass(schema) else ()
        added = {knob.name: plain(default(knob)) for knob in knobs if knob.metadata.get("added")}
        inner = {
            knob.name: fill(default(knob), values[knob.name])
            for knob in knobs
            if isinstance(values.get(knob.name), dict) and is_dataclass(default(knob))
        }
        return {**added, **values, **inner}

    def fill_stage(group: str, values: Any) -> Any:
        schema = SCHEMAS[group].get(str(values.get("kind"))) if isinstance(values, dict) else None
        return fill(schema, values) if schema else values

    stages = {group: fill_stage(group, config[group]) for group in SCHEMAS if group != "filter" and group in config}
    return {**config, **stages}


def job_identity(run: Run) -> dict[str, Any]:
    """Return everything of the saved config that changes the result."""
    identity = {name: value for name, value in saved_config(run).items() if name not in NOT_IDENTITY}
    identity["dataset"] = {name: value for name, value in identity["dataset"].items() if name != "max_record_mb"}

    # A step takes one batch from each process. Sharded training computes in the weights' own type, whereas a copy of
    # the model in each process, like a single process, computes under autocast, with slightly different results.
    if run.launch.num_processes > 1:
        identity["num_processes"] = run.launch.num_processes
    if run.launch.config_file is not None and (kind := run.launch.distributed_type()) != DDP:
        identity["distributed_type"] = kind
    return identity


def job_hash(run: Run) -> str:
    """Return a key of everything that changes the job's result, 12 hex digits."""
    return digest(_with_order(job_identity(run)))[:12]


def _with_order(identity: dict[str, Any]) -> dict[str, Any]:
    """Return filters and sources as lists: their order counts, and a digest sorts the keys of a mapping."""
    split = {**identity["split"], "filter": list(identity["split"]["filter"].items())}
    dataset = {**identity["dataset"]}
    if "sources" in dataset:
        dataset["sources"] = list(dataset["sources"].items())
    return {**identity, "filter": list(identity["filter"].items()), "split": split, "dataset": dataset}


def training_key(run: Run, data: Prepared) -> str:
    """Return a key of the training rows and of all that is done with them.

    It is equal for two jobs whose filters and thresholds keep the same rows.
    """
    identity = {name: value for name, value in job_identity(run).items() if name not in SELECTING_STAGES}
    return digest([data.train_fingerprint, identity])


def plugin_origins(run: Run) -> dict[str, str]:
    """Return the package or module of each stage that comes from a plug-in, by ``group.kind``."""
    stages = [
        ("dataset", run.dataset),
        ("split", run.split),
        *(("filter", stage) for stage in [*run.filter.values(), *run.split.filter.values()]),
        ("dedup", run.dedup),
        ("template", run.template),
    ]
    origins = {}
    for group, stage in stages:
        if plugin := origin(type(stage)):
            origins[f"{group}.{kind_of(group, stage)}"] = plugin
    return origins


def describe_differences(old: dict[str, Any], new: dict[str, Any]) -> str:
    """Return the first differences of two flat configs, for a message."""
    ignored = tuple(f"{name}." for name in NOT_IDENTITY)
    keys = [
        key
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key) and not key.startswith(ignored) and key not in NOT_IDENTITY
    ]
    listed = [f"{key} was {old.get(key, 'absent')}, is {new.get(key, 'absent')}" for key in keys[:MAX_DIFFERENCES]]
    if len(keys) > MAX_DIFFERENCES:
        listed.append(f"and {len(keys) - MAX_DIFFERENCES} more")
    return "; ".join(listed)
