"""The classes that a config can be made of, by group and kind. A kind is what a saved config calls a stage's class."""

from __future__ import annotations

from sft_lab.core.engine import LocalEngine, RayEngine
from sft_lab.data.chat_template import Auto, Jinja
from sft_lab.data.filters import filter_schemas
from sft_lab.data.mixture import Mixture
from sft_lab.data.sources import File, Hub
from sft_lab.data.split import FromFile, Hash, Source
from sft_lab.dedup.decontaminate import Decontaminate
from sft_lab.dedup.exact import Exact, Nothing
from sft_lab.dedup.minhash import MinHash
from sft_lab.dedup.semantic import Semantic
from sft_lab.evaluation.config import Evaluation
from sft_lab.run.launch_config import Processes, Ray, Serial, Slurm
from sft_lab.tracking.config import Tracking, Wandb
from sft_lab.training.config import Full, Lora
from sft_lab.training.gguf import Gguf
from sft_lab.training.models import Pretrained
from sft_lab.training.tiny_random import TinyRandom

# Plug-ins add to the groups of the data stages; config/registry.py does so.
SCHEMAS: dict[str, dict[str, type]] = {
    "dataset": {"file": File, "hub": Hub, "mixture": Mixture},
    "split": {"hash": Hash, "source": Source, "file": FromFile},
    "filter": dict(filter_schemas()),
    "decontaminate": {"decontaminate": Decontaminate},
    "dedup": {"none": Nothing, "exact": Exact, "minhash": MinHash, "semantic": Semantic},
    "template": {"auto": Auto, "jinja": Jinja},
    "model": {"pretrained": Pretrained, "gguf": Gguf, "tiny_random": TinyRandom},
    "trainer": {"full": Full, "lora": Lora},
    "evaluation": {"evaluation": Evaluation},
    "tracking": {"local": Tracking, "wandb": Wandb},
    "engine": {"local": LocalEngine, "ray": RayEngine},
    "launch": {"serial": Serial, "processes": Processes, "slurm": Slurm, "ray": Ray},
}


def kind_of(group: str, stage: object) -> str:
    """Return the kind of a stage: the name that its class is registered under."""
    return next(kind for kind, schema in SCHEMAS[group].items() if type(stage) is schema)
