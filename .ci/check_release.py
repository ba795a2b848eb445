"""Proves the archives in a folder that `make release` filled: their files, and that the wheel runs.

The wheel holds the package as the checkout has it, data included, and nothing else; installed into
a new environment with what it requires and no more, its command works and a GGUF file, as which the
demo model comes, is read. Prints the lines that publish it.
"""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import venv
import zipfile
from collections.abc import Iterable
from pathlib import Path

from packaging.requirements import Requirement

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


READS_GGUF = """
from pathlib import Path

from tokenizers.pre_tokenizers import ByteLevel
from transformers import AutoModelForCausalLM

from sdpo.export.gguf import write_gguf
from sdpo.models.policy import as_policy
from sdpo.testing import byte_tokenizer, tiny_model

tokenizer = byte_tokenizer()
tokenizer.backend_tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
write_gguf(as_policy(tiny_model(), tokenizer), Path("tiny.gguf"), name="tiny")
AutoModelForCausalLM.from_pretrained(".", gguf_file="tiny.gguf")
"""
"""Without accelerate, which an extra brought along here, `quickstart` failed for newcomers."""


def required(
    requirements: Iterable[str], found: dict[str, importlib.metadata.Distribution]
) -> None:
    """Add to `found` every distribution that `requirements` and theirs name, extras aside."""
    for requirement in map(Requirement, requirements):
        name = re.sub(r"[-_.]+", "-", requirement.name).lower()
        marker = requirement.marker
        if name in found or not (marker is None or marker.evaluate({"extra": ""})):
            continue
        found[name] = importlib.metadata.distribution(requirement.name)
        required(found[name].requires or (), found)


def link_libraries(wheel: Path, folder: Path) -> None:
    """Make `folder` hold this environment's libraries that `wheel` requires, as links, and no
    others."""
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        text = archive.read(metadata).decode("utf-8")
    found: dict[str, importlib.metadata.Distribution] = {}
    required(re.findall(r"^Requires-Dist: (.*)$", text, re.MULTILINE), found)
    folder.mkdir()
    for distribution in found.values():
        for top in {file.parts[0] for file in distribution.files or ()} - {"..", "__pycache__"}:
            link = folder / top
            if not link.is_symlink():
                link.symlink_to(Path(str(distribution.locate_file(top))).resolve())


def run_installed(wheel: Path) -> str:
    """What `sdpo --version` prints of the wheel in an environment of its own; the libraries are
    this environment's, as far as the wheel requires them."""
    with tempfile.TemporaryDirectory(prefix="sdpo-release-") as folder:
        venv.create(folder, with_pip=False)
        python = Path(folder, "bin", "python")
        site = Path(sysconfig.get_path("purelib", vars={"base": folder}))
        pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "-q", "--no-deps"]
        subprocess.run([*pip, str(wheel)], check=True)
        libraries = Path(folder, "libraries")
        link_libraries(wheel, libraries)
        (site / "libraries.pth").write_text(f"{libraries}\n", encoding="utf-8")
        shown = ""
        for command in (["config", "list"], ["config", "show", "quickstart"], ["--version"]):
            shown = subprocess.run(
                [str(python.with_name("sdpo")), *command],
                check=True, capture_output=True, encoding="utf-8", cwd=folder,
            ).stdout  # fmt: skip
        subprocess.run([str(python), "-c", READS_GGUF], check=True, cwd=folder)
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
        f"  make docs && PATH=.venv/bin:$PATH mike deploy --push --update-aliases {minor} latest\n"
        "then the next version goes into src/sdpo/_version.py and CITATION.cff.\n"
    )


if __name__ == "__main__":
    main()
