"""Sampling by vLLM servers, on this machine or on others: token ids out, token ids and log-probs
back, and new weights after every update.

    VLLM_SERVER_DEV_MODE=1 vllm serve MODEL --tokens-only --logprobs-mode processed_logprobs \
        --load-format dummy

Every set of weights has a name that no other has, and every answer says the name of the weights it
was sampled with: a server that was not updated, or that another run updates, is noticed at once.
The completions of a prompt go to one server, which computes it once, and elsewhere when it dies. A
server that comes back gets weights at the next update. Nothing is started or stopped here.
"""

from __future__ import annotations

import math
import secrets
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from sdpo.engines.base import Completion, GenerationRequest, Sampling
from sdpo.engines.completions import cut_at_stop
from sdpo.engines.sampling import check_sampling
from sdpo.engines.server_http import Answer, Server, Unavailable, in_threads
from sdpo.engines.vllm_params import check_copied, sampling_params
from sdpo.engines.weight_transfer import Transfer
from sdpo.errors import EngineError
from sdpo.models.saved_weights import saved_weights
from sdpo.models.structure import causal_lm, max_positions
from sdpo.parallel import Parallel

_IN_FLIGHT = 256
"""Completions that one server is asked for at a time: as many as vLLM runs at once by default."""
_WAITS_S = (0.0, 1.0, 2.0, 4.0, 8.0, 16.0)
"""Seconds before each try to find a server that answers."""

_ALONE = Parallel()


class ServerEngine:
    """Samples with vLLM servers that hold copies of one policy.

    Example:
        ServerEngine(model, [Server("http://gpu7:8000", timeout_s=600)], FolderTransfer(path))
    """

    def __init__(
        self,
        model: torch.nn.Module,
        servers: Sequence[Server],
        transfer: Transfer,
        *,
        max_model_len: int | None = None,
        parallel: Parallel = _ALONE,
        waits_s: Sequence[float] = _WAITS_S,  # tests wait less
    ) -> None:
        """Sends the weights of `model`. Of several ranks the first sends and all sample, and all of
        them call `load_weights`. `max_model_len` is the longest sequence to come. Raises
        `EngineError` for servers that cannot be used, on every rank."""
        self.policy_version = 0
        inner = causal_lm(model)
        check_copied(model)
        self._num_rows = inner.get_output_embeddings().weight.shape[0]
        self._servers = list(servers)
        self._transfer = transfer
        self._parallel = parallel
        self._waits_s = waits_s
        self._name = parallel.gather(f"sdpo-{secrets.token_hex(8)}")[0]
        self._num_sent = 0
        self._label = ""
        self._problems: dict[str, str] = {}
        """By URL, why a server is not asked."""
        self._looking = threading.Lock()
        self._looked_at = 0.0
        self.load_weights(model, 0)
        if max_model_len is not None:
            max_model_len = min(max_model_len, max_positions(inner))
        self._on_main(lambda: self._check_options(max_model_len))

    @torch.no_grad()
    def load_weights(self, model: torch.nn.Module, version: int) -> None:
        """Sends the weights of `model`, adapters merged, to every server. One that cannot be
        reached is left out until the next time; raises `EngineError` when none can, on every
        rank."""
        # The version does not name weights: a self-teacher samples under that of its policy.
        self._num_sent += 1
        label = f"{self._name}-{self._num_sent}"
        self._on_main(lambda: self._send(model, label))
        self._problems.clear()
        self._label, self.policy_version = label, version

    def generate(
        self, requests: Sequence[GenerationRequest], sampling: Sampling
    ) -> list[list[Completion]]:
        """Completions per request, in the order of its seeds. Seeds are handed to vLLM, whose
        batches may still change a completion by rounding. Raises `EngineError` when no server
        answers for half a minute."""
        check_sampling(sampling)
        self._look()
        jobs = [
            (place, request.prompt_ids, sampling_params(request, seed, sampling, self._num_rows))
            for place, request in enumerate(requests)
            for seed in request.seeds
        ]
        answers = iter(
            in_threads(lambda job: self._ask(*job), jobs, at_once=_IN_FLIGHT * len(self._servers))
        )
        return [
            [_completion(next(answers), sampling) for _ in request.seeds] for request in requests
        ]

    def _ask(self, place: int, prompt_ids: Sequence[int], params: Mapping[str, Any]) -> Answer:
        """A completion by the server whose turn it is, or by the next that can."""
        for wait_s in self._waits_s:
            if wait_s:
                began = time.monotonic()
                time.sleep(wait_s)
                self._look(began)
            for server in self._ready(place + self._parallel.rank):
                try:
                    answer = server.sample(prompt_ids, params)
                    self._check_label(server, answer.labels)
                except Unavailable as problem:
                    self._problems[server.url] = str(problem)
                    continue
                return answer
        raise EngineError(f"no vLLM server answers: {'; '.join(self._problems.values())}")

    def _check_options(self, max_model_len: int | None) -> None:
        """Raises `EngineError` for a server that was not started as it must be."""
        # Of the distribution sampled from, the only token that is allowed has all mass.
        only = {"max_tokens": 1, "allowed_token_ids": [0], "temperature": 1.0}
        self._look()
        for server in self._ready(0):
            longest = server.max_model_len()
            if max_model_len is not None and longest is not None and longest < max_model_len:
                raise EngineError(
                    f"{server.url} takes sequences of {longest} tokens, and this run makes some of "
                    f"{max_model_len}; start it with --max-model-len {max_model_len}"
                )
            if server.sample((0,), only).logprobs != (0.0,):
                raise EngineError(
                    f"{server.url} reports log-probs of another distribution than it samples from; "
                    "start it with --logprobs-mode processed_logprobs"
                )

    def _ready(self, first: int) -> list[Server]:
        """The servers that can be asked, beginning with one."""
        ready = [server for server in self._servers if server.url not in self._problems]
        start = first % len(ready) if ready else 0
        return ready[start:] + ready[:start]

    def _look(self, began: float = math.inf) -> None:
        """See whether each server lives and has the current weights, unless another thread has
        since `began`."""

        def problem_of(server: Server) -> str:
            try:
                server.check_alive()
                self._check_label(server, frozenset({server.label()}))
            except Unavailable as problem:
                return str(problem)
            return ""

        with self._looking:
            if self._looked_at > began:
                return
            found = in_threads(problem_of, self._servers, at_once=len(self._servers))
            self._problems = {
                server.url: problem
                for server, problem in zip(self._servers, found, strict=True)
                if problem
            }
            self._looked_at = time.monotonic()

    def _check_label(self, server: Server, labels: frozenset[str]) -> None:
        if labels != {self._label}:
            raise Unavailable(
                f"{server.url} samples with the weights {', '.join(sorted(labels)) or 'of no name'}"
                f" instead of {self._label}: it was started anew, or another run uses it"
            )

    def _on_main(self, work: Callable[[], None]) -> None:
        """`work` on the main rank; its `EngineError` is raised on all."""
        raised = None
        if self._parallel.is_main:
            try:
                work()
            except EngineError as error:
                raised = error
        raised = self._parallel.gather(raised)[0]
        if raised is not None:
            raise raised

    def _send(self, model: torch.nn.Module, label: str) -> None:
        """Give the weights to all servers that can be reached."""
        self._transfer.begin(saved_weights(model), label)
        for wait_s in self._waits_s:
            time.sleep(wait_s)
            problems = in_threads(
                lambda server: self._send_to(server, label),
                self._servers,
                at_once=self._transfer.at_once,
            )
            if not all(problems):
                self._transfer.end()
                return
        raise EngineError(f"no vLLM server takes weights: {'; '.join(problems)}")

    def _send_to(self, server: Server, label: str) -> str:
        """What went wrong; empty if nothing did."""
        try:
            server.check_alive()
            # Completions that others wait for end first: halves of two policies belong to none.
            server.post("/pause?mode=wait")
            try:
                self._transfer.send(server)
                if not server.post("/reset_prefix_cache")["success"]:
                    raise Unavailable(f"{server.url} goes on with prompts read by older weights")
                server.post("/update_weight_version", {"new_version": label})
            finally:
                server.post("/resume")
        except Unavailable as problem:
            return str(problem)
        return ""


def _completion(answer: Answer, sampling: Sampling) -> Completion:
    is_greedy = sampling.temperature == 0.0
    completion = Completion(
        token_ids=answer.token_ids,
        # A greedy choice is certain; vLLM reports its probability at temperature 1 instead.
        logprobs=(0.0,) * len(answer.token_ids) if is_greedy else answer.logprobs,
        truncated=answer.truncated,
    )
    return cut_at_stop(completion, sampling)
