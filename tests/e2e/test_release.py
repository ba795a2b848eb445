"""What is published holds the package: the archives and the image; the wheel alone runs."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "sdpo"


def build(source, out, *options):
    pytest.importorskip("build")
    # Without isolation nothing is fetched: setuptools is here, since torch needs it.
    command = [sys.executable, "-m", "build", "--no-isolation", *options, "--outdir", str(out)]
    subprocess.run([*command, str(source)], check=True, capture_output=True, cwd=out)


@pytest.mark.slow
def test_built_archives_hold_the_package_and_the_wheel_runs(tmp_path):
    build(ROOT, tmp_path)
    done = subprocess.run(
        [sys.executable, str(ROOT / ".ci" / "check_release.py"), str(tmp_path)],
        capture_output=True, encoding="utf-8", check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "git tag -a v" in done.stdout


@pytest.mark.slow
def test_the_image_was_without_recipes(tmp_path):
    """The package as `pip install .` makes it of what the Dockerfile copies, and of no more."""
    for line in (ROOT / "Dockerfile").read_text(encoding="utf-8").splitlines():
        if line.startswith("COPY "):
            *sources, _ = line.split()[1:]
            for source in sources:
                if (ROOT / source).is_dir():
                    junk = shutil.ignore_patterns("*.egg-info", "__pycache__")
                    shutil.copytree(ROOT / source, tmp_path / source, ignore=junk)
                else:
                    shutil.copy(ROOT / source, tmp_path)
    build(tmp_path, tmp_path, "--wheel")
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if name.startswith("sdpo/")}
    files = [path for path in PACKAGE.rglob("*") if path.is_file() and path.suffix != ".pyc"]
    assert held == {path.relative_to(PACKAGE.parent).as_posix() for path in files}
