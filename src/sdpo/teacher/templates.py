"""The wording of teacher contexts. The paper finds results insensitive to it (Table 2); the order
of sections is the paper's."""

from __future__ import annotations

DEMONSTRATION = "Here is a correct solution:\n\n{demonstration}"
FEEDBACK = "An earlier attempt failed. This is what the environment said about it:\n\n{feedback}"
ATTEMPT = "This is the earlier attempt:\n\n{attempt}"
SOLVE = "Now solve the original task yourself."
"""Last line of the single-turn layout; it makes clear that the answer is due, not a comment on the
sections above."""

CORRECT = "This answer is correct."
WRONG = "This answer is wrong."
AGAIN = "Answer the same task again:\n\n{task}"
"""Last user turn of the `turns` layout: the task in its original words, so that the format is asked
for once more."""
