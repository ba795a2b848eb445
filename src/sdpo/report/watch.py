"""A page that follows runs while they go on: a server on this machine alone, from the standard
library.

The browser asks every two seconds whether something is new and gets the whole data of the page when
a file of the runs has grown. Only what is new is read from disk (`ReportReader`). Model output is
as untrusted here as in the file: nobody but the page's own origin can read the answers, and other
host names that point to this machine are refused.
"""

from __future__ import annotations

import errno
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

from sdpo.errors import ConfigError, SdpoError
from sdpo.metrics.jsonl import dumps
from sdpo.report.data import FILES, ReportReader, run_names
from sdpo.report.packed import gzip_json
from sdpo.report.page import live_page

HOST = "127.0.0.1"
PORT = 8600
"""Tried first, so that a bookmark and a forwarded port last; a free one is taken where it is
busy."""
NAMES = ("127.0.0.1", "localhost")
"""Host names the server answers to, with any port: it may have been forwarded. A page of somebody
else's whose name was made to point here has another one."""
PAUSE = 5.0
"""Times the last reading took that pass before the next: following a large run must not cost a
core."""
IDLE_S = 60
"""Seconds after which a connection without a request is closed."""


def watch(run_dirs: Sequence[Path], *, port: int | None = None, say: Callable[[str], None]) -> None:
    """Serve the page of these directories until Ctrl-C; `say` gets its address.

    Raises `ConfigError` when a directory is not a run's or the port is taken.
    """
    if not run_dirs:
        raise ConfigError("report needs at least one run directory")
    with ReportServer(run_dirs, port=port) as server:
        try:
            say(f"{server.address} follows {', '.join(map(str, run_dirs))}; Ctrl-C ends it")
            server.serve_forever()
        except KeyboardInterrupt:
            say("no longer following")


class ReportServer(ThreadingHTTPServer):
    """The server of one page.

    Example:
        with ReportServer([Path("runs/quickstart")]) as server:
            print(server.address)
            server.serve_forever()
    """

    daemon_threads = True

    def __init__(self, run_dirs: Sequence[Path], *, port: int | None = None) -> None:
        """`port` None: `PORT`, or a free one; 0: a free one. Raises as `watch`."""
        self.feed = _Feed(run_dirs)
        self.page = live_page(run_names(run_dirs), secrets.token_hex(16)).encode()
        try:
            super().__init__((HOST, PORT if port is None else port), _Handler)
        except OSError as error:
            if port is not None or error.errno != errno.EADDRINUSE:
                raise ConfigError(
                    f"--port = {port}: {error.strerror}; choose another, or 0 for a free one"
                ) from error
            super().__init__((HOST, 0), _Handler)

    @property
    def address(self) -> str:
        """What to open in a browser."""
        return f"http://{HOST}:{self.server_address[1]}/"


class _Feed:
    """The data of the page, read again when a file has changed."""

    def __init__(self, run_dirs: Sequence[Path]) -> None:
        self._run_dirs = tuple(run_dirs)
        self._reader = ReportReader(run_dirs)
        self._lock = threading.Lock()
        self._seen: object = None
        self._body = b""
        self._version = 0
        self._not_before = 0.0
        self._read()

    def current(self) -> tuple[str, bytes]:
        """A name of this version of the data, and the data as gzip. Raises `SdpoError` when a file
        is damaged."""
        with self._lock:
            if time.monotonic() >= self._not_before:
                self._read()
            return f'"{self._version}"', self._body

    def _read(self) -> None:
        # Looked at before reading: what is written meanwhile makes a difference next time.
        state = [_state(run / name) for run in self._run_dirs for name in FILES]
        if state == self._seen:
            return
        start = time.monotonic()
        self._body = gzip_json(self._reader.load(may_wait=True), level=1)
        self._seen = state
        self._version += 1
        end = time.monotonic()
        self._not_before = end + PAUSE * (end - start)


def _state(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns


class _Handler(BaseHTTPRequestHandler):
    server_version = "sdpo"
    sys_version = ""
    timeout = IDLE_S

    @property
    def _owner(self) -> ReportServer:
        assert isinstance(self.server, ReportServer)
        return self.server

    def do_GET(self) -> None:
        if urlsplit(f"//{self.headers.get('Host', '')}").hostname not in NAMES:
            return self._send(HTTPStatus.FORBIDDEN, b"this page is for this machine only")
        match urlsplit(self.path).path:
            case "/":
                self._send(HTTPStatus.OK, self._owner.page, kind="text/html")
            case "/data":
                self._send_data()
            case _:
                self._send(HTTPStatus.NOT_FOUND, b"not here; the page is /")

    def _send_data(self) -> None:
        try:
            version, body = self._owner.feed.current()
        except SdpoError as error:
            body = dumps({"error": str(error)}).encode()
            return self._send(HTTPStatus.INTERNAL_SERVER_ERROR, body, kind="application/json")
        if self.headers.get("If-None-Match") == version:
            return self._send(HTTPStatus.NOT_MODIFIED, b"")
        headers = {"ETag": version, "Content-Encoding": "gzip"}
        self._send(HTTPStatus.OK, body, kind="application/json", headers=headers)

    def _send(
        self,
        status: HTTPStatus,
        body: bytes,
        *,
        kind: str = "text/plain",
        headers: dict[str, str] | None = None,
    ) -> None:
        self.send_response(status)
        fixed = {
            "Content-Type": f"{kind}; charset=utf-8",
            "Content-Length": str(len(body)),
            "Cache-Control": "no-store",
            "X-Content-Type-Options": "nosniff",
            "X-Frame-Options": "DENY",
        }
        for name, value in (fixed | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: a line every two seconds would hide the address."""
