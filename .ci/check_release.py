"""Proves the archives in a folder that `make release` filled: their files, and that the wheel runs.

The wheel holds the package as the checkout has it, data included, and nothing else; installed alone
into a new environment, its command works. Prints the lines that publish it.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
WANTED = ("config/recipes/quickstart.toml", "envs/tasks/python_basics.jsonl",
          "report/assets/report.html", "py.typed", "cli.py")  # fmt: skip
"""One of each kind, so that an empty folder does not prove itself."""
SOURCES = ("pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff", "SECURITY.md",
           "Makefile", "constraints.txt", "tests/conftest.py", "docs/algorithm.md")  # fmt: skip


def package_files() -> set[str]:
    """Everything in the checkout's package, as the wheel names it."""
    source = ROOT / "src"
    return {
        path.relative_to(source).as_posix()
        for path in (source / "sdpo").rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }


def check_wheel(wheel: Path) -> None:
    """Raises `SystemExit` naming the files that the wheel lacks or has too many."""
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    wanted = package_files()
    for name in WANTED:
        if f"sdpo/{name}" not in wanted:
            raise SystemExit(f"the checkout has no src/sdpo/{name}")
    if held != wanted:
        raise SystemExit(
            f"{wheel.name} lacks {sorted(wanted - held)} and has besides {sorted(held - wanted)}; "
            "see MANIFEST.in"
        )


def check_sources(archive: Path) -> None:
    """Raises `SystemExit` naming what one needs to test the sources and they lack."""
    with tarfile.open(archive) as opened:
        held = {name.partition("/")[2] for name in opened.getnames()}
    wanted = {f"src/{name}" for name in package_files()} | set(SOURCES)
    if missing := sorted(wanted - held):
        raise SystemExit(f"{archive.name} lacks {missing}; see MANIFEST.in")


def run_installed(wheel: Path) -> str:
    """What `sdpo --version` prints of the wheel in an environment of its own; the libraries are
    this environment's."""
    with tempfile.TemporaryDirectory(prefix="sdpo-release-") as folder:
        venv.create(folder, with_pip=False)
        python = Path(folder, "bin", "python")
        site = Path(sysconfig.get_path("purelib", vars={"base": folder}))
        pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "-q", "--no-deps"]
        subprocess.run([*pip, str(wheel)], check=True)
        # `site.addsitedir` would also follow the editable install of the checkout.
        libraries = "\n".join(path for path in sys.path if path.endswith("-packages"))
        (site / "libraries.pth").write_text(libraries + "\n", encoding="utf-8")
        shown = ""
        for command in (["config", "list"], ["config", "show", "quickstart"], ["--version"]):
            shown = subprocess.run(
                [str(python.with_name("sdpo")), *command],
                check=True, capture_output=True, encoding="utf-8", cwd=folder,
            ).stdout  # fmt: skip
        where = "import sdpo; print(sdpo.__file__)"
        found = subprocess.run(
            [str(python), "-c", where], check=True, capture_output=True, encoding="utf-8"
        )
        if not Path(found.stdout.strip()).is_relative_to(site):
            raise SystemExit(f"the checkout was tried instead of the wheel: {found.stdout.strip()}")
    return shown


def main() -> None:
    (wheel,) = Path(sys.argv[1]).glob("*.whl")
    (archive,) = Path(sys.argv[1]).glob("*.tar.gz")
    check_wheel(wheel)
    check_sources(archive)
    shown = run_installed(wheel)
    version = wheel.name.split("-")[1]
    minor = ".".join(version.split(".")[:2])
    if not shown.startswith(f"sdpo {version}\n"):
        raise SystemExit(f"{wheel.name} says it is {shown.splitlines()[0]!r}")
    sys.stdout.write(
        f"{shown}\n{wheel.name} and {archive.name} hold what they should, and the wheel runs.\n"
        f"To publish: CHANGELOG.md says {version} and its date, all is committed and CI is green;\n"
        f"  git tag -a v{version} -m 'sdpo {version}' && git push origin v{version}\n"
        f"  twine upload dist/*\n"
        f"  make docs && .venv/bin/mike deploy --push --update-aliases {minor} latest\n"
        "then the next version goes into src/sdpo/_version.py and CITATION.cff.\n"
    )


if __name__ == "__main__":
    main()
