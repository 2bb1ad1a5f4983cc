"""Jobs side by side: which setting is better, by how much, and how certain that is.

``collect_jobs`` reads run folders, ``analyze`` compares the jobs, and what it returns is printed by
``print_comparison`` and written by ``write_comparison``.
"""

from sft_lab.compare.analyze import Comparison, analyze
from sft_lab.compare.collect import collect_jobs
from sft_lab.compare.job_order import Order
from sft_lab.compare.job_table import print_comparison
from sft_lab.compare.write import write_comparison

__all__ = ["Comparison", "Order", "analyze", "collect_jobs", "print_comparison", "write_comparison"]
