"""The process that scores answers to Reasoning Gym's tasks: the other end of `workers.py`.

Many of its sets read an answer with sympy, whose parser evaluates Python. A request is
`[name, options, index, answer]`; the reply is the score as a JSON number, or null where the library
has a bug on that answer.
"""

from __future__ import annotations

import functools
import json
import logging
import sys
from collections.abc import Iterable
from typing import Any, TextIO


def serve(requests: Iterable[str], replies: TextIO) -> None:
    """Answer requests until there are no more; the first reply says that the process is ready."""
    import reasoning_gym  # ty: ignore[import-not-found]  # an extra

    from sdpo.envs.worker_side import confined, reply

    logging.disable(logging.CRITICAL)
    packages = sorted({name.partition(".")[0] for name in sys.modules})
    reply(replies, f"ready {confined(packages)}")

    @functools.cache
    def opened(name: str, options: str) -> Any:
        return reasoning_gym.create_dataset(name, **json.loads(options))

    for line in requests:
        name, options, index, answer = json.loads(line)
        data = opened(name, json.dumps(options, sort_keys=True))
        try:
            score = float(data.score_answer(answer, data[index]))
        except Exception:  # noqa: BLE001 - whatever an answer makes a set raise
            reply(replies, "null")
        else:
            reply(replies, json.dumps(score))


if __name__ == "__main__":
    sys.path[:] = json.loads(sys.argv[1])
    from sdpo.envs.worker_side import own_replies

    serve(sys.stdin, own_replies())
