"""Jobs side by side: which setting was better, by how much, and how sure that is."""

from sft_lab.compare.comparison import Comparison, compare
from sft_lab.compare.table import show

__all__ = ["Comparison", "compare", "show"]
