"""The files of a comparison: ``compare.json``, its data, and ``compare.html`` beside it."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from sft_lab.compare import claims
from sft_lab.compare.html_page import render_page
from sft_lab.compare.notes import notes_on
from sft_lab.compare.uncertainty import WINNING_CLAIMS
from sft_lab.core.errors import FolderError
from sft_lab.core.io import write_json
from sft_lab.report.pages import write_page

if TYPE_CHECKING:
    from pathlib import Path

    from sft_lab.compare.analyze import BaseModelScore, Comparison, Setting
    from sft_lab.compare.collect import ComparedJob
    from sft_lab.compare.effects import AxisEffect, AxisLevel
    from sft_lab.compare.uncertainty import LossDifference


def write_comparison(comparison: Comparison, folder: Path) -> Path:
    """Write ``compare.json`` and ``compare.html`` into a folder.

    Returns:
        The page's path.

    Raises:
        FolderError: when the folder cannot be written.
    """
    folder = folder.absolute()
    page = folder / "compare.html"
    try:
        write_json(folder / "compare.json", to_json(comparison))
        write_page(page, render_page(comparison, folder))
    except OSError as error:
        message = f"{folder}: cannot be written ({error.strerror}); choose another folder with --out"
        raise FolderError(message) from error
    return page


def to_json(comparison: Comparison) -> dict[str, Any]:
    """Return what ``compare.json`` holds; values of axes that JSON does not know are written as text."""
    spread, head = comparison.spread, claims.headline(comparison)
    record = {
        "measure": comparison.measure,
        "jobs": [_job(twin, job) for job in comparison.jobs for twin in job.twins or [job]],
        "base": [_base_model(base) for base in comparison.base_models],
        "effects": [_effect(effect) for effect in comparison.effects],
        "best": _best(comparison),
        "winner": _winner(comparison),
        "settings": [_setting(setting) for setting in comparison.settings],
        "seed_spread": {"share_of_loss": spread.share, "replicates": spread.replicates},
        "sorted_by": asdict(comparison.order) if comparison.order else None,
        "search": asdict(comparison.search) if comparison.search else None,
        "held_out_rows": comparison.row_count,
        "held_out_fingerprints": comparison.fingerprints,
        "alarms": claims.alarms(comparison),
        "next_step": {"says": head.next_step, "commands": list(head.commands)} if head.next_step else None,
        "notes": notes_on(comparison),
    }
    plain: dict[str, Any] = json.loads(json.dumps(record, default=str))
    return plain


def _job(job: ComparedJob, merged: ComparedJob) -> dict[str, Any]:
    return {
        "job": job.name,
        "same_as": merged.name if merged.name != job.name else None,
        "state": job.state,
        "axes": job.axes,
        "summary": job.summary or None,
        "folder": str(job.folder.path),
        "error": job.error or None,
        "so_far": job.numbers,
        "held_out_fingerprint": job.fingerprint,
    }


def _base_model(base: BaseModelScore) -> dict[str, Any]:
    losses = {str(measure): loss for measure, loss in base.losses.items()}
    return {**losses, **base.extras, "prompted": base.prompted, "axes": base.axes, "jobs": base.jobs}


def _effect(effect: AxisEffect) -> dict[str, Any]:
    return {
        "axis": effect.axis,
        "range": effect.range,
        "matched": effect.is_matched,
        "values": [_level(level) for level in effect.levels],
        "best_to_worst": _difference(effect.difference),
    }


def _level(level: AxisLevel) -> dict[str, Any]:
    return {
        "value": level.value,
        "mean": level.mean,
        "lowest": level.lowest,
        "highest": level.highest,
        "sd": level.sd,
        "jobs": list(level.losses),
    }


def _difference(difference: LossDifference | None) -> dict[str, Any] | None:
    if difference is None:
        return None
    return {
        "difference": difference.value,
        "share": difference.share,
        "claim": difference.claim,
        "on_these_rows": list(difference.on_rows),
        "with_seeds": list(difference.over_seeds),
    }


def _best(comparison: Comparison) -> dict[str, Any] | None:
    if comparison.best is None:
        return None
    setting = comparison.settings[0]
    return {
        "job": comparison.best.name,
        "axes": setting.axes,
        "jobs": _names(setting),
        "over_base": _difference(comparison.over_base),
    }


def _winner(comparison: Comparison) -> dict[str, Any] | None:
    if comparison.winner is None:
        return None
    claims_made = [setting.from_best.claim for setting in comparison.settings[1:] if setting.from_best]
    return {
        "axes": comparison.winner.axes,
        "jobs": _names(comparison.winner),
        "claim": max(claims_made, key=WINNING_CLAIMS.index),  # the weakest: it holds against every other setting
    }


def _setting(setting: Setting) -> dict[str, Any]:
    return {
        "axes": setting.axes,
        "jobs": _names(setting),
        "mean": setting.loss,
        "from_best": _difference(setting.from_best),
    }


def _names(setting: Setting) -> list[str]:
    return [job.name for job in setting.jobs]
