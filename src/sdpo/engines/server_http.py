"""One vLLM server by its HTTP API, and calls to several of them at once.

Knows no policy and no other server. What may go better later or elsewhere (no connection, a
time-out, a busy or broken server) is `Unavailable`; what never will is an `EngineError`.
"""

from __future__ import annotations

import http.client
import json
import os
import queue
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass
from typing import Any, TypeVar

from sdpo.errors import EngineError

KEY_VARIABLE = "VLLM_API_KEY"
"""Holds the key of servers that were started with one."""

_T = TypeVar("_T")
_R = TypeVar("_R")

_BUSY = (408, 425, 429, 500, 502, 503, 504)
_UNKNOWN = (403, 404, 405)
_START = "VLLM_SERVER_DEV_MODE=1 vllm serve MODEL --tokens-only"
"""The first part lets trainers change weights, the last lets them send and get tokens."""
_MAX_ERROR_CHARS = 500
_HEALTH_S = 10.0
"""Seconds in which a living server says that it lives."""
_LOWEST_LOGPROB = -9000.0
"""vLLM writes -9999 for a log-prob that is not finite."""
_WAKE_S = 0.5
"""How often a waiting caller looks up, so that Ctrl-C is heard on every system."""


class Unavailable(Exception):
    """A server that does not answer now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a server sampled.

    Example:
        Answer(token_ids=(7, 2), logprobs=(-0.3, -0.1), truncated=False, labels={"a-1"})
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    truncated: bool
    labels: frozenset[str]
    """Names of the weights that its tokens were sampled with."""


class Server:
    """A vLLM server.

    Example:
        Server("http://gpu7:8000", timeout_s=600).label()
    """

    def __init__(self, url: str, *, timeout_s: float) -> None:
        """`timeout_s` bounds every call but the question whether it lives."""
        self.url = url.rstrip("/")
        self._timeout_s = timeout_s

    def check_alive(self) -> None:
        """Raises `Unavailable` unless the server says that it is well."""
        self._call("/health", timeout_s=_HEALTH_S)

    def label(self) -> str:
        """Name of the weights it samples with, as who sent them has called them."""
        return str(self.get("/weight_info")["weight_version"])

    def max_model_len(self) -> int | None:
        """Tokens that a sequence may have there."""
        return self.get("/v1/models")["data"][0].get("max_model_len")

    def sample(self, prompt_ids: Sequence[int], params: Mapping[str, Any]) -> Answer:
        """One completion; `params` are fields of vLLM's SamplingParams. Raises `EngineError` for
        log-probs that are not finite."""
        body = {"token_ids": list(prompt_ids), "sampling_params": {**params, "logprobs": 0}}
        choice = self.post("/inference/v1/generate", body)["choices"][0]
        if choice["finish_reason"] not in ("stop", "length"):
            raise Unavailable(f"{self.url} broke a completion off ({choice['finish_reason']})")
        logprobs = tuple(token["logprob"] for token in choice["logprobs"]["content"])
        if not all(logprob > _LOWEST_LOGPROB for logprob in logprobs):
            raise EngineError(
                f"{self.url}: logits are not finite: vLLM does not compute this model as the "
                "trainer does, or the weights have diverged; take rollout.engine.type = 'local'"
            )
        return Answer(
            token_ids=tuple(choice["token_ids"]),
            logprobs=logprobs,
            truncated=choice["finish_reason"] == "length",
            labels=frozenset(span["version"] for span in choice["weight_versions"] or ()),
        )

    def get(self, path: str) -> Any:
        """The JSON at `path`."""
        return json.loads(self._call(path, timeout_s=self._timeout_s))

    def post(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """What `path` answers to `body`; None where it answers nothing."""
        said = self._call(path, json.dumps(body or {}).encode(), timeout_s=self._timeout_s)
        return json.loads(said) if said else None

    def _call(self, path: str, body: bytes | None = None, *, timeout_s: float) -> bytes:
        headers = {"Content-Type": "application/json"}
        if os.environ.get(KEY_VARIABLE):
            headers["Authorization"] = f"Bearer {os.environ[KEY_VARIABLE]}"
        request = urllib.request.Request(f"{self.url}{path}", body, headers)
        try:
            with urllib.request.urlopen(request, timeout=timeout_s) as response:
                return response.read()
        except urllib.error.HTTPError as error:
            with error:
                said = error.read(_MAX_ERROR_CHARS).decode(errors="replace")
            if error.code in _BUSY:
                raise Unavailable(f"{self.url}{path}: HTTP {error.code}: {said}") from error
            hint = f"; start it as {_START}" if error.code in _UNKNOWN else ""
            raise EngineError(f"{self.url}{path}: HTTP {error.code}: {said}{hint}") from error
        # URLError and TimeoutError are OSErrors; an answer that breaks off is an HTTPException.
        except (OSError, http.client.HTTPException) as error:
            raise Unavailable(f"{self.url}{path}: {error!r}") from error


def in_threads(work: Callable[[_T], _R], items: Sequence[_T], *, at_once: int) -> list[_R]:
    """`work` of every item, in order, by up to `at_once` threads. The first error ends the call;
    what still waits for a server is left to itself, and does not keep the interpreter from exiting
    as the threads of an executor would."""
    jobs: queue.SimpleQueue[tuple[Future[_R], _T]] = queue.SimpleQueue()
    futures: list[Future[_R]] = []
    for item in items:
        futures.append(Future())
        jobs.put((futures[-1], item))

    def run() -> None:
        while True:
            try:
                future, item = jobs.get_nowait()
            except queue.Empty:
                return
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(work(item))
            except BaseException as error:  # noqa: BLE001 (raised where the result is asked for)
                future.set_exception(error)

    for _ in range(min(at_once, len(futures))):
        threading.Thread(target=run, name="vllm-server", daemon=True).start()
    try:
        pending = set(futures)
        while pending:
            done, pending = wait(pending, timeout=_WAKE_S, return_when="FIRST_EXCEPTION")
            for future in done:
                future.result()
        return [future.result() for future in futures]
    finally:
        for future in futures:
            future.cancel()
