"""The wheel: conf/ and experiments/ travel in it, and it works from any folder. Slow."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    subprocess.run([sys.executable, "-m", "build", "--wheel", "--outdir", str(out), str(ROOT)], check=True)
    return next(out.glob("*.whl"))


def test_every_option_and_data_file_is_in_it(wheel: Path) -> None:
    inside = set(zipfile.ZipFile(wheel).namelist())
    for kind in ("conf", "experiments"):
        files = sorted((ROOT / kind).rglob("*.yaml"))
        assert files
        for file in files:
            assert f"sft_lab/_{kind}/{file.relative_to(ROOT / kind).as_posix()}" in inside
    for file in (ROOT / "sft_lab").rglob("*"):
        if file.suffix in (".jinja", ".jsonl", ".json", ".py"):
            assert file.relative_to(ROOT).as_posix() in inside


def test_it_runs_from_another_environment_and_folder(wheel: Path, tmp_path: Path) -> None:
    """Installed without the checkout in reach; the heavy packages are borrowed from this environment."""
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([str(python), "-m", "pip", "install", "--quiet", "--no-deps", str(wheel)], check=True)
    site = next(path for path in sys.path if path.endswith("site-packages"))
    own = next((tmp_path / "venv").glob("lib/*/site-packages"))
    (own / "borrowed.pth").write_text(f"{site}\n")  # the editable finder of this environment is not followed by a path
    somewhere = tmp_path / "somewhere"
    somewhere.mkdir()
    words = ["+experiment=quickstart", "dedup=exact", "decontaminate.method=exact", "tracking=local", "threads=1"]
    words += ["trainer.max_steps=2", "hydra.run.dir=run"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    sft_lab = tmp_path / "venv" / "bin" / "sft-lab"
    where = subprocess.run(
        [str(python), "-c", "import sft_lab; print(sft_lab.__file__)"],
        capture_output=True, text=True, check=True, cwd=somewhere, env=environment,
    ).stdout  # fmt: skip
    assert str(own) in where
    done = subprocess.run(
        [str(sft_lab), *words], cwd=somewhere, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert (somewhere / "run" / "report.html").exists()
