"""A small vLLM server for tests: the HTTP API as vllm 0.32 has it, in front of a tiny model that
the local engine samples. It keeps what it is sent, and can be told to misbehave.

A real one answers the same calls in tests/with_vllm/.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from sdpo.engines.base import GenerationRequest, Sampling
from sdpo.engines.local import LocalEngine


class StubServer(ThreadingHTTPServer):
    """One server; `model` is its own copy."""

    daemon_threads = True

    def __init__(self, model: Any) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.model = model
        self.engine = LocalEngine(model)
        self.label = "default"
        self.max_model_len = 512
        self.requests: list[tuple[str, Any]] = []
        """Path and body of every POST, in order."""
        self.broken: dict[str, list[int]] = {}
        """HTTP statuses that the next calls of a path are answered with instead."""
        self.answers_before_death = 10**9
        """Completions after which every connection is dropped."""
        self.is_raw = False
        """Log-probs are those before temperature and allowed tokens."""
        self.is_paused = False
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def paths(self, without: str = "/inference/v1/generate") -> list[str]:
        return [path for path, _ in self.requests if path != without]

    @property
    def is_dead(self) -> bool:
        return self.answers_before_death < 0

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Callers that go away are none of a server's business."""

    def answer(self, path: str, body: Any) -> Any:
        """What a path answers."""
        match path.partition("?")[0]:
            case "/health":
                return None
            case "/reset_prefix_cache":
                return {"success": True}
            case "/weight_info":
                return {"weight_version": self.label}
            case "/v1/models":
                return {"data": [{"id": "stub", "max_model_len": self.max_model_len}]}
            case "/pause" | "/resume" as verb:
                self.is_paused = verb == "/pause"
                return {"status": verb}
            case "/collective_rpc":
                assert self.is_paused
                if body["method"] == "update_config":
                    loading = {"load_config": {"load_format": "auto"}}
                    assert body["kwargs"] == {"overrides": loading}
                    return {"results": [None]}
                assert body["method"] == "reload_weights"
                weights = load_file(Path(body["kwargs"]["weights_path"]) / "model.safetensors")
                self.model.load_state_dict(weights, strict=False)
                return {"results": [None]}
            case "/update_weight_version":
                self.label = body["new_version"]
                return {"success": True, "new_version": self.label}
            case "/inference/v1/generate":
                return self.generate(body)
        raise AssertionError(f"no such path in the stub: {path}")

    def generate(self, body: Any) -> Any:
        params = body["sampling_params"]
        vocabulary = self.model.config.vocab_size
        if "allowed_token_ids" in params:
            assert params["allowed_token_ids"] == [0]
            vocabulary = 1
        elif bias := params.get("logit_bias"):
            vocabulary = min(map(int, bias))
            assert set(bias.values()) == {-100.0}
        sampling = Sampling(
            max_new_tokens=params["max_tokens"],
            stop_ids=tuple(params.get("stop_token_ids", ())),
            temperature=params["temperature"],
            top_p=params.get("top_p", 1.0),
            vocabulary=vocabulary,
        )
        request = GenerationRequest(
            prompt_ids=tuple(body["token_ids"]), seeds=(params.get("seed", 0),)
        )
        with self.lock:
            ((completion,),) = self.engine.generate([request], sampling)
        shift = -1.0 if self.is_raw else 0.0
        return {
            "choices": [
                {
                    "index": 0,
                    "token_ids": list(completion.token_ids),
                    "finish_reason": "length" if completion.truncated else "stop",
                    "logprobs": {
                        "content": [
                            {"token_id": token, "logprob": logprob + shift}
                            for token, logprob in zip(
                                completion.token_ids, completion.logprobs, strict=True
                            )
                        ]
                    },
                    "weight_versions": [
                        {"version": self.label, "start": 0, "end": len(completion.token_ids)}
                    ],
                }
            ]
        }


class Handler(BaseHTTPRequestHandler):
    server: StubServer

    def do_GET(self) -> None:
        self._reply(None)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append((self.path, body))
        if self.path == "/inference/v1/generate":
            self.server.answers_before_death -= 1
        self._reply(body)

    def _reply(self, body: Any) -> None:
        if self.server.is_dead:
            self.close_connection = True
            return
        statuses = self.server.broken.get(self.path.partition("?")[0])
        if statuses:
            status, text = statuses.pop(0), b'{"error": "told to fail"}'
        else:
            said = self.server.answer(self.path, body)
            status, text = 200, b"" if said is None else json.dumps(said).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: Any) -> None:
        """Says nothing."""


@contextmanager
def serving(*models: Any) -> Generator[list[StubServer]]:
    """A server for each model."""
    with ExitStack() as stack:
        servers = []
        for model in models:
            server = stack.enter_context(StubServer(model))
            stack.callback(server.shutdown)
            threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
            servers.append(server)
        yield servers
