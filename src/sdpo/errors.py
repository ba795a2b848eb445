"""The error model.

Three kinds of thing go wrong, and each has one way out:

* The user's input is wrong (a config key, a task line, a model folder): a child of `SdpoError` is
raised, whose message
  names the field, the value and the fix. The command line prints that message alone and exits with
  status 2.
* The world is wrong (a full disk, a judge that cannot start, a non-finite loss): also an
`SdpoError`, exit status 1.
  Whatever was already written stays intact.
* Our code is wrong: an `AssertionError` or any other exception, shown with its traceback.

A rollout that fails (crashes, is truncated, says nonsense) is none of these: it is data, and its
verdict says so.
"""

from __future__ import annotations


class SdpoError(Exception):
    """Base of every error meant for a user; its text is complete without a traceback."""

    exit_code = 1


class ConfigError(SdpoError):
    """A recipe, an override or an argument is wrong."""

    exit_code = 2


class TaskError(SdpoError):
    """A task file or a data row is wrong; the message names file, line and key."""

    exit_code = 2


class ModelError(SdpoError):
    """A model or tokenizer cannot be loaded or used."""

    exit_code = 2


class PromptTooLongError(SdpoError):
    """A prompt exceeds its token budget; nothing is cut silently."""

    exit_code = 2


class SandboxError(SdpoError):
    """Untrusted programs cannot be isolated or the judge itself failed; never a verdict."""


class JudgeError(SdpoError):
    """An environment's `judge` raised, returned what is not a verdict, or left too many attempts
    without one; carries task, attempt and the judge's own frames."""


class Unjudged(Exception):
    """Raised by a judge that cannot say anything *now* (its service is down or busy). The call is
    repeated `env.retries` times; then the attempt is left out of its group and counted."""


class EngineError(SdpoError):
    """Sampling failed."""


class NonFiniteLossError(SdpoError):
    """The loss or gradient of an update is not finite; the weights were not touched."""


class CheckpointError(SdpoError):
    """A checkpoint cannot be written or read."""


class CanaryStop(SdpoError):
    """A canary with action `stop` fired; the run ended on purpose."""


class ProcessLost(SdpoError):
    """Another process of a run under `torchrun` has ended, and this one ends with it."""


class Terminated(KeyboardInterrupt):
    """SIGTERM: like Ctrl-C, but the command exits with 143 as a scheduler expects."""


def first_line(error: BaseException) -> str:
    """What a library's error says first, short enough for one sentence."""
    text = str(error).strip()
    return text.splitlines()[0][:300].rstrip(".:") if text else type(error).__name__
