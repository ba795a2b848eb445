"""What runs outside the suite (hooks, CI, the image, a release) names things that exist."""

from __future__ import annotations

import fnmatch
import itertools
import re
import shlex
import tomllib
from pathlib import Path

import pytest
import yaml

import sdpo

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
TARGETS = set(re.findall(r"^([a-z-]+):", MAKEFILE, re.MULTILINE))
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")


def read_yaml(name):
    return yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))


def instructions():
    """(instruction, arguments) of the Dockerfile, continued lines joined, comments dropped."""
    text = re.sub(r"^#.*\n", "", DOCKERFILE, flags=re.MULTILINE).replace("\\\n", " ")
    return [tuple(line.split(maxsplit=1)) for line in text.splitlines() if line.strip()]


def of(kind):
    return [arguments for instruction, arguments in instructions() if instruction == kind]


def pip_installs(text):
    """Words of each `pip install` in shell text, without the options that only change its noise."""
    found = []
    for command in re.split(r"&&|\n", text):
        if "pip install" in command:
            words = shlex.split(command.partition("pip install")[2])
            found.append([w for w in words if w not in ("-q", "-e", "--disable-pip-version-check")])
    return found


def extras(words):
    (found,) = [word for word in words if word.startswith(".[")]
    return set(found[2:-1].split(","))


def is_ignored(path):
    """Whether .dockerignore keeps `path` out of the build; the last line that matches decides."""
    ignored = False
    for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines():
        pattern = line.removeprefix("!")
        if not line.startswith("#") and fnmatch.fnmatch(path, pattern):
            ignored = not line.startswith("!")
    return ignored


def test_hooks_are_the_makefiles_targets():
    hooks = [
        hook for repo in read_yaml(".pre-commit-config.yaml")["repos"] for hook in repo["hooks"]
    ]
    assert {hook["entry"] for hook in hooks} == {"make fmt", "make check"}
    # A hook of a repository would be fetched when a commit is made.
    assert {hook["language"] for hook in hooks} == {"system"}
    assert {"fmt", "check", "golden", "models", "release"} <= TARGETS


def test_the_workflow_runs_what_a_contributor_runs():
    jobs = read_yaml(".github/workflows/ci.yml")["jobs"]
    assert [s["run"] for s in jobs["test"]["steps"] if "run" in s] == [".ci/run"]
    oldest = PROJECT["project"]["requires-python"].removeprefix(">=")
    assert jobs["test"]["strategy"]["matrix"]["python"][0] == oldest
    runs = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]
    assert {word for run in runs for word in re.findall(r"^make ([\w-]+)", run)} <= TARGETS


@pytest.mark.parametrize("path", sorted((ROOT / ".github").rglob("*.yml")), ids=lambda p: p.name)
def test_templates_are_forms_that_github_reads(path):
    form = yaml.safe_load(path.read_text(encoding="utf-8"))
    if path.parent.name == "ISSUE_TEMPLATE" and path.name != "config.yml":
        assert {"name", "description", "body"} <= set(form)
        ids = [field["id"] for field in form["body"] if field["type"] != "markdown"]
        assert len(ids) == len(set(ids))
        assert all("label" in field["attributes"] for field in form["body"] if "id" in field)


def test_one_version_and_one_licence():
    cff = read_yaml("CITATION.cff")
    assert "version" in PROJECT["project"]["dynamic"]
    assert cff["version"] == sdpo.__version__
    assert cff["license"] == PROJECT["project"]["license"]
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(rf"^## {re.escape(sdpo.__version__)}\b", changelog, re.MULTILINE)


def test_the_image_copies_what_is_there():
    for arguments in of("COPY"):
        *sources, _ = arguments.split()
        for source in sources:
            assert (ROOT / source).exists(), source
            assert not is_ignored(source), source
    # What pyproject.toml reads is needed to build the package.
    copied = " ".join(of("COPY"))
    assert PROJECT["project"]["readme"] in copied
    assert "LICENSE" in copied


def test_the_image_installs_what_make_setup_installs():
    ours = [words for run in of("RUN") for words in pip_installs(run)]
    setup = pip_installs(MAKEFILE.partition(".venv/.ready:")[2].partition("touch")[0])
    torch, package, data = ours
    assert torch[-1] == "torch"
    assert extras(package) == extras(setup[0]) - {"dev"}
    assert sorted(data) == sorted(setup[1])
    assert all(("-c", "constraints.txt") in itertools.pairwise(w) for w in ours)
    (argument,) = of("ARG")
    assert re.fullmatch(r"TORCH_INDEX=https://\S+/cpu", argument)
    assert "$TORCH_INDEX" in torch


def test_the_image_runs_the_command_and_not_as_root():
    (base,) = of("FROM")
    oldest = PROJECT["project"]["requires-python"].removeprefix(">=")
    assert base == f"python:{oldest}-slim"
    names = [name for name, _ in instructions()]
    (user,) = of("USER")
    assert user not in ("root", "0")
    assert f" {user} " in " ".join(of("RUN"))
    assert names.index("USER") < names.index("ENTRYPOINT")
    assert not {"RUN", "COPY"} & set(names[names.index("USER") :])
    (entry,) = of("ENTRYPOINT")
    assert entry == '["sdpo"]'
    assert "sdpo" in PROJECT["project"]["scripts"]


def test_the_way_out_of_the_sandboxs_refusal_is_the_images():
    from sdpo.sandbox import local

    source = Path(local.__file__).read_text(encoding="utf-8")
    (folder,) = of("WORKDIR")[-1:]
    assert f"{folder}/runs" in of("VOLUME")
    assert f"-v $PWD/runs:{folder}/runs sdpo train" in source
    assert "docker build -t sdpo ." in DOCKERFILE


def test_security_md_names_the_levels_that_verdicts_name():
    def levels(name):
        text = (ROOT / name).read_text(encoding="utf-8")
        table = text.partition("| `sandbox` |")[2].partition("\n\n")[0]
        return re.findall(r"^\| `([a-z+ ]+)`", table, re.MULTILINE)

    assert levels("SECURITY.md") == levels("docs/code-tasks.md")
    assert levels("SECURITY.md")[-1] == "none"


def test_two_test_files_of_one_name_ended_the_collection():
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert len(names) == len(set(names)), sorted(n for n in set(names) if names.count(n) > 1)
