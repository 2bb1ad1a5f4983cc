"""The only names of Hydra and OmegaConf used here that these libraries do not publish.

``get_yaml_loader``: OmegaConf's dialect of YAML (``1e-5`` is a number, a key given twice is an error). We change the
nodes of a document before they become values, see ``text_fields.read_yaml``; ``OmegaConf.load`` offers no such step.
"""

from omegaconf._utils import get_yaml_loader

__all__ = ["get_yaml_loader"]
