"""Languages besides Python: how a program is built and run, with what this machine has, and what
its diagnostics say.

A language is a source file, a command that checks or compiles it, a command that runs it, and a
function that reads an error off what was printed to standard error. Nothing here runs anything.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sdpo.sandbox.protocol import Failure, Frame

LanguageName = Literal["cpp", "javascript"]

MAX_DIAGNOSTICS = 3
COMPILE_ERROR = "CompileError"
OUT_OF_MEMORY = frozenset({"std::bad_alloc", "JavaScript heap out of memory"})
"""Kinds of failure that mean the memory limit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Language:
    """One language.

    Example:
        LANGUAGES["cpp"].missing()
    """

    name: LanguageName
    title: str
    tags: frozenset[str]
    """Tags of its blocks in an answer; the first one asked for is `name`."""
    source: str
    """File name of a program."""
    tools: tuple[str, ...]
    """Commands of which the first that is installed is used."""
    compile_arguments: tuple[str, ...]
    beside: dict[str, str]
    """Files that lie beside the program: name and content."""
    run_command: tuple[str, ...]
    """`{tool}` stands for the tool, `{memory_mb}` for the task's memory limit."""
    address_mb: int | None
    """Address space beyond the memory limit; None: unbounded, because the runtime reserves far more
    than it uses."""
    extra_mb: int
    """Memory of the runtime itself, which does not count."""
    stack_mb: int
    """Stack of the main thread. Each other thread reserves as much, which counts as memory."""
    runs_tool: bool
    """Whether the tool runs the program, or only builds it."""
    explain: Callable[[str], Failure | None]
    """The error that a program ended with, from its standard error."""
    self_test: str
    """A program that prints "held" if everything that the jail forbids was refused."""

    def tool(self) -> str | None:
        """Path of the compiler or interpreter, None if none is installed."""
        return next((path for name in self.tools if (path := shutil.which(name))), None)

    def missing(self) -> str | None:
        """What to install, or None if the language can be judged here."""
        if self.tool() is not None:
            return None
        return f"{self.title}: none of {', '.join(self.tools)} is installed; install one"


def compile_failure(stderr: str, source: str) -> Failure:
    """What a compiler says, shortened to its first errors: line numbers and messages."""
    named = re.compile(rf"^\S*{re.escape(source)}:(\d+)(?::\d+)?:?(.*)$")
    found: list[str] = []
    lines = stderr.splitlines()
    for line in lines:
        match = named.match(line)
        if match and "error" in match[2]:
            found.append(f"line {match[1]}: {match[2].partition('error:')[2].strip()}")
    script = next((m for line in lines if (m := named.match(line))), None)
    if not found and script is not None:
        error = next((line for line in lines if re.match(r"^\w*Error: ", line)), "")
        found = [f"line {script[1]}: {error}"]
    text = "\n".join(found[:MAX_DIAGNOSTICS]) or "\n".join(lines[-MAX_DIAGNOSTICS:])
    return Failure(kind=COMPILE_ERROR, message=text, at_load=True)


def _cpp_failure(stderr: str) -> Failure | None:
    match = re.search(r"^terminate called after throwing an instance of '([^'\n]+)'", stderr, re.M)
    if match is None:
        return None
    what = re.search(r"^  what\(\):  (.*)$", stderr, re.M)
    return Failure(kind=match[1], message=what[1] if what else "")


def _javascript_failure(stderr: str) -> Failure | None:
    if "JavaScript heap out of memory" in stderr:
        return Failure(kind="JavaScript heap out of memory", message="")
    match = re.search(r"^(?:Uncaught )?([A-Z]\w*)(?:: (.*))?$\n(?=\s+at |\n*Node)", stderr, re.M)
    if match is None:
        return None
    places = re.findall(r"^\s+at (?:(\S+) \()?\S*solution\.js:(\d+):\d+", stderr, re.M)
    frames = [
        Frame(line=int(line), function=name if name and "<anonymous>" not in name else "<module>")
        for name, line in reversed(places)
    ]
    return Failure(kind=match[1], message=match[2] or "", frames=tuple(frames))


_CPP_TEST = r"""
#include <cerrno>
#include <cstdio>
#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <unistd.h>
static int bad = 0;
static void refused(const char* what, long result) {
    if (result >= 0) { std::printf("%s\n", what); bad = 1; }
}
int main() {
    refused("start a process", fork());
    refused("open a network socket", socket(AF_INET, SOCK_STREAM, 0));
    refused("read a file outside", open("/etc/passwd", O_RDONLY));
    refused("list processes", open("/proc", O_RDONLY));
    refused("write a file", open("/tmp/x", O_CREAT | O_WRONLY, 0600));
    refused("write its own folder", open("x", O_CREAT | O_WRONLY, 0600));
    refused("signal its parent", kill(getppid(), 0));
    refused("trace its parent", ptrace(PTRACE_ATTACH, getppid(), 0, 0));
    refused("make a memory file", memfd_create("x", 0));
    char* const arguments[] = {nullptr};
    refused("run a program", execv("/bin/sh", arguments));
    if (!bad) std::puts("held");
}
"""
_JAVASCRIPT_TEST = r"""
const fs = require("fs"), net = require("net"), child = require("child_process");
const left = [];
function refused(what, action) {
  try { action(); left.push(what); } catch (error) { }
}
refused("start a process", () => { const r = child.spawnSync("/bin/sh", ["-c", "exit 9"]);
  if (r.error) throw r.error; });
refused("read a file outside", () => fs.readFileSync("/etc/passwd"));
refused("list processes", () => fs.readdirSync("/proc"));
refused("write a file", () => fs.writeFileSync("/tmp/x", "x"));
refused("write its own folder", () => fs.writeFileSync("x", "x"));
refused("signal its parent", () => process.kill(process.ppid, 0));
const socket = net.connect(9, "127.0.0.1");
function end(ok) { if (!ok) left.push("open a network socket");
  console.log(left.length ? left.join("\n") : "held"); process.exit(0); }
socket.on("error", error => end(error.code === "EPERM" || error.code === "EACCES"));
socket.on("connect", () => end(false));
"""
_JAVASCRIPT_BLOCKING = """\
for (const stream of [process.stdout, process.stderr]) stream._handle.setBlocking(true);
"""
"""Node queues in memory what a full pipe does not take, until the program returns to its event
loop. One that prints in an endless loop would never exceed its output, and one that ends by
`process.exit` would lose the rest of its answer."""

LANGUAGES: dict[LanguageName, Language] = {
    "cpp": Language(
        name="cpp",
        title="C++",
        tags=frozenset({"cpp", "c++", "cc", "cxx"}),
        source="solution.cpp",
        tools=("g++", "clang++", "c++"),
        compile_arguments=(
            "-std=gnu++17", "-O2", "-w", "-fmax-errors=3", "-fno-diagnostics-show-caret",
            "-o", "solution", "solution.cpp",
        ),
        beside={},
        run_command=("./solution",),
        address_mb=1024,
        extra_mb=8,
        stack_mb=256,
        runs_tool=False,
        explain=_cpp_failure,
        self_test=_CPP_TEST,
    ),
    "javascript": Language(
        name="javascript",
        title="JavaScript",
        tags=frozenset({"javascript", "js", "node", "nodejs"}),
        source="solution.js",
        tools=("node", "nodejs"),
        compile_arguments=("--v8-pool-size=1", "--check", "solution.js"),
        beside={"blocking.js": _JAVASCRIPT_BLOCKING},
        run_command=("{tool}", "--stack-size=60000", "--max-old-space-size={memory_mb}",
                     "--v8-pool-size=1", "--require=./blocking.js", "solution.js"),
        address_mb=None,
        extra_mb=448,
        stack_mb=64,
        runs_tool=True,
        explain=_javascript_failure,
        self_test=_JAVASCRIPT_TEST,
    ),
}  # fmt: skip


def readable_paths(language: Language) -> tuple[list[str], list[str]]:
    """What building may read and execute, and what running may: the system's libraries and headers
    with the compiler, or the interpreter alone."""
    tool = language.tool()
    assert tool is not None, "the language was found missing before"
    real = Path(tool).resolve()
    system = [path for path in ("/usr", "/lib", "/lib64", "/bin", "/etc/alternatives")
              if Path(path).exists()]  # fmt: skip
    own = [] if real.is_relative_to("/usr") else [str(real.parents[1])]
    building = [*system, *own, "/etc/ld.so.cache"]
    running = [str(real), *own] if language.runs_tool else []
    return building, running
