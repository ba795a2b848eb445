"""A model behind an OpenAI-compatible endpoint as the judge.

A row has `prompt` (a string, or a list of messages), and may have `answer` (which the judge reads
and never quotes), `id`, `system`, `split`. The judge reads `env.template` and answers with a JSON
object of `feedback` and `score`. With `env.reward = "none"` only its words count: a list of
principles is enough to train by, without a reward.

An attempt can say "give me full marks" too: its text stands between tags that it cannot close, and
the template says that it is data. A judge can still be talked round, which is one reason why
feedback alone is the default.

`env.concurrency` calls wait at once; a busy or unreachable endpoint, and a reply that is not the
object asked for, are tried again (`env.retries`) and then leave the attempt out.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import threading
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, assert_never

from sdpo.config import schema
from sdpo.envs.adapters.datasets import as_messages
from sdpo.envs.base import CheckReport
from sdpo.envs.rows import RowTasks
from sdpo.envs.table import Line, id_of, messages_of, text_of
from sdpo.envs.text import cut_middle, escape
from sdpo.errors import ConfigError, JudgeError, Unjudged
from sdpo.records import Message, Rollout, Task, Verdict

KEY_VARIABLE = "OPENAI_API_KEY"
MAX_FEEDBACK_CHARS = 2000
MAX_ERROR_CHARS = 500
BUSY = (408, 425, 429, 500, 502, 503, 504)
"""HTTP statuses after which a later call may succeed."""
NO_PRINCIPLES = "- The answer is right, complete and clear."
NO_REFERENCE = "(none is given)"
SCHEMA = {
    "type": "object",
    "properties": {
        "feedback": {"type": ["string", "null"]},
        "score": {"type": "number", "minimum": 0, "maximum": 1},
    },
    "required": ["feedback", "score"],
    "additionalProperties": False,
}
"""Of the judge's reply."""

_PLACE = re.compile(r"\{(principles|task|attempt|reference)\}")
_TAG = re.compile(r"<(?=\s*/?\s*(?:task|attempt)\s*>)", re.IGNORECASE)


class LlmJudge(RowTasks):
    """Tasks of a file, judged by a model.

    Example:
        config = schema.LlmJudgeEnvConfig(
            tasks="prompts.jsonl", model="Qwen/Qwen3-32B", principles=("Name a source.",)
        )
        LlmJudge(config).load("train")
    """

    def __init__(self, config: schema.LlmJudgeEnvConfig) -> None:
        super().__init__(config)
        self.config = config
        if "{attempt}" not in config.template:
            raise ConfigError("env.template has no {attempt}, so the judge would not read it")
        self._cache = _Cache(Path(config.cache)) if config.cache else None

    def parse(self, line: Line) -> Task:
        """The task of one row."""
        prompt = line.row.get("prompt")
        if isinstance(prompt, Sequence) and not isinstance(prompt, str):
            messages: tuple[Message, ...] = as_messages(prompt, where=f"{line.path}:{line.number}")
        else:
            messages = messages_of(line, text_of(line, "prompt"))
        answer = line.row.get("answer")
        return Task(
            id=id_of(line, messages[-1]["content"]),
            messages=messages,
            reference=None if answer is None else str(answer),
        )

    def judge(self, task: Task, rollout: Rollout) -> Verdict:
        """What the model says about the attempt. Raises `Unjudged` if it cannot say anything now,
        `JudgeError` if the endpoint refuses the request; thread-safe."""
        feedback, score = self._opinion(self._question(task, rollout.text))
        match self.config.reward:
            case "none":
                return Verdict(
                    reward=0.0, solved=False, feedback=feedback, metrics={"judge_score": score}
                )
            case "score":
                return Verdict(reward=score, solved=score >= 1, feedback=feedback)
            case _:
                assert_never(self.config.reward)

    def check(self) -> CheckReport:
        """Whether the model answers; one call, about an empty attempt."""
        tasks = [task for split in self._load().values() for task in split]
        failures = {}
        try:
            self._opinion(self._question(tasks[0], ""))
        except (Unjudged, JudgeError) as error:
            failures[tasks[0].id] = f"the judge did not answer: {error}"
        return CheckReport(num_tasks=len(tasks), failures=failures, skipped=len(tasks) - 1)

    def _question(self, task: Task, attempt: str) -> str:
        listed = "\n".join(f"- {principle}" for principle in self.config.principles)
        parts = {
            "principles": listed or NO_PRINCIPLES,
            "task": _closed("\n\n".join(m["content"] for m in task.messages)),
            "attempt": _closed(attempt),
            "reference": task.reference or NO_REFERENCE,
        }
        # In one pass: an attempt that has `{reference}` in it must not be filled in.
        return _PLACE.sub(lambda match: parts[match[1]], self.config.template)

    def _opinion(self, question: str) -> tuple[str | None, float]:
        """(feedback, score) of the model, from the cache if it was asked before."""
        key = hashlib.sha256(f"{self.config.url} {self.config.model} {question}".encode())
        if self._cache is None:
            return as_opinion(self._reply(question))
        kept = self._cache.get(key.hexdigest())
        if kept is not None:
            return as_opinion(kept)
        reply = self._reply(question)
        opinion = as_opinion(reply)
        self._cache.put(key.hexdigest(), reply)
        return opinion

    def _reply(self, question: str) -> str:
        body = {
            "model": self.config.model,
            "messages": [{"role": "user", "content": question}],
            "temperature": 0,
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "review", "strict": True, "schema": SCHEMA},
            },
        }
        headers = {"Content-Type": "application/json"}
        if os.environ.get(KEY_VARIABLE):
            headers["Authorization"] = f"Bearer {os.environ[KEY_VARIABLE]}"
        url = f"{self.config.url.rstrip('/')}/chat/completions"
        request = urllib.request.Request(url, json.dumps(body).encode(), headers)
        try:
            with urllib.request.urlopen(request, timeout=self.config.timeout_s) as response:
                answer = json.load(response)
        except urllib.error.HTTPError as error:
            with error:
                said = error.read(MAX_ERROR_CHARS).decode(errors="replace")
            if error.code in BUSY:
                raise Unjudged(f"{url}: HTTP {error.code}: {said}") from error
            raise JudgeError(f"{url} refused the request: HTTP {error.code}: {said}") from error
        except (OSError, ValueError) as error:  # URLError and TimeoutError are OSErrors.
            raise Unjudged(f"{url}: {error}") from error
        return _content(answer, url)


def _content(answer: Any, url: str) -> str:
    try:
        content = answer["choices"][0]["message"]["content"]
    except (KeyError, IndexError, TypeError) as error:
        raise JudgeError(f"{url} is not an endpoint like OpenAI's: {answer!r:.200}") from error
    if not isinstance(content, str):
        raise Unjudged(f"{url}: the judge said nothing")
    return content


def as_opinion(reply: str) -> tuple[str | None, float]:
    """(feedback, score) in a judge's reply, which may stand in a fence. Raises `Unjudged` if they
    do not."""
    start, end = reply.find("{"), reply.rfind("}")
    try:
        found = json.loads(reply[start : end + 1])
        feedback, score = found["feedback"], found["score"]
    except (ValueError, KeyError, TypeError) as error:
        raise Unjudged(f"the judge's reply is not the object asked for: {reply!r:.200}") from error
    is_number = isinstance(score, int | float) and not isinstance(score, bool)
    if not is_number or not 0 <= score <= 1 or not isinstance(feedback, str | None):
        raise Unjudged(f"the judge's reply has no score from 0 to 1 or no feedback: {reply!r:.200}")
    if feedback is None or not feedback.strip():
        return None, float(score)
    return cut_middle(escape(feedback.strip()), MAX_FEEDBACK_CHARS), float(score)


def _closed(text: str) -> str:
    """`text` that cannot close the tags around it."""
    return _TAG.sub("< ", text)


class _Cache:
    """Replies by key, in a file of JSON lines that grows."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._known: dict[str, str] = {}
        if path.exists():
            for line in path.read_text(encoding="utf-8").splitlines():
                self._keep(line)

    def get(self, key: str) -> str | None:
        """The reply kept under `key`."""
        return self._known.get(key)

    def put(self, key: str, reply: str) -> None:
        """Keep a reply, in the file too."""
        with self._lock:
            self._known[key] = reply
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"key": key, "reply": reply}) + "\n")

    def _keep(self, line: str) -> None:
        try:
            row = json.loads(line)
        except ValueError:
            return  # The last line of a run that was killed while it wrote.
        if isinstance(row, Mapping) and {"key", "reply"} <= row.keys():
            self._known[row["key"]] = row["reply"]
