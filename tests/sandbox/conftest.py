"""Sandboxes at every level this machine has, and something outside for programs to reach for."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from sdpo.sandbox import Sandbox, open_sandbox
from sdpo.sandbox.local import LocalSandbox
from sdpo.sandbox.worker import Settings


@pytest.fixture(scope="session")
def sandbox() -> Iterator[Sandbox]:
    with open_sandbox("auto", width=2) as opened:
        yield opened


@pytest.fixture(scope="session", params=["without namespaces", "strict"])
def weaker_sandbox(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    """What machines without user namespaces, and those without Landlock too, get."""
    settings = Settings(jailed=True, namespaces=False, landlock=request.param != "strict")
    with LocalSandbox(settings, 2) as opened:
        yield opened


@dataclass(frozen=True, slots=True, kw_only=True)
class Outside:
    """What a program must not reach."""

    folder: Path
    secret: Path
    named: Path
    listener: socket.socket
    datagrams: socket.socket

    def source(self, program: str) -> str:
        """`program` with the places it is to reach for."""
        for word, place in (
            ("SECRET", self.secret),
            ("FOLDER", self.folder),
            ("NAMED", self.named),
            ("PORT", self.listener.getsockname()[1]),
            ("JUDGE", os.getpid()),
        ):
            program = program.replace(word, str(place))
        return program

    def assert_untouched(self) -> None:
        assert sorted(path.name for path in self.folder.iterdir()) == ["named", "secret"]
        assert self.secret.read_text() == "secret"
        for listening in (self.listener, self.datagrams):
            with pytest.raises(BlockingIOError):
                listening.recv(1) if listening is self.datagrams else listening.accept()


@pytest.fixture(scope="session")
def outside(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outside]:
    folder = tmp_path_factory.mktemp("outside")
    secret, named = folder / "secret", folder / "named"
    secret.write_text("secret")
    secret.chmod(0o644)
    with socket.socket() as listener, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as datagrams:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        listener.setblocking(False)
        datagrams.bind(str(named))
        datagrams.setblocking(False)
        yield Outside(
            folder=folder, secret=secret, named=named, listener=listener, datagrams=datagrams
        )
