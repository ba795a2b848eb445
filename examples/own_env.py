"""An environment of one's own, trained: the judge writes what is missing from an attempt.

    python examples/own_env.py

With the demo model it takes minutes; it is about the form, since a model this small cannot use such
feedback (docs/does-it-help.md).
"""

from __future__ import annotations

import sdpo

WORDS = {"sea": "salt", "desert": "sand", "glacier": "ice", "library": "books"}


def judge(task: sdpo.Task, rollout: sdpo.Rollout) -> sdpo.Verdict:
    """Solved by a sentence that contains the word wanted and is short."""
    text = rollout.text.strip()
    has_word, is_short = task.reference in text.lower(), len(text.split()) <= 12
    said = []
    if not has_word:
        said.append(f"The sentence has to contain the word {task.reference}.")
    if not is_short:
        said.append("Write at most 12 words.")
    return sdpo.Verdict(
        reward=(has_word + is_short) / 2,
        solved=has_word and is_short,
        feedback=" ".join(said) or None,
        metrics={"words": len(text.split())},
        info={"category": "accepted" if not said else "no_word" if not has_word else "too_long"},
    )


def main() -> None:
    tasks = [
        {"id": place, "prompt": f"Write one short sentence about a {place}.", "reference": word}
        for place, word in WORDS.items()
    ]
    env = sdpo.env(tasks, judge)
    settings = ("quickstart", "objective.type=hybrid", "rollout.tasks_per_step=4")
    print(sdpo.probe(*settings, env=env).sentence())
    result = sdpo.train(*settings, "steps=4", "run=runs/own-env", env=env)
    print(f"solved after {result.step} steps: {result.metrics['eval/solved']:.2f}")


if __name__ == "__main__":
    main()
