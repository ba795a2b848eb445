"""Small real things to test against, for users' own environments as for this project's.

`models` builds a random tiny model of any supported family and a byte tokenizer; `toy_world` has
tasks whose hidden answers only the feedback reveals; `toy_policy` teaches a tiny model to read such
feedback. Nothing is downloaded.
"""

from sdpo.testing.models import CHAT_TEMPLATE, byte_tokenizer, tiny_model
from sdpo.testing.toy_policy import teach_feedback_reading
from sdpo.testing.toy_reader import save_toy_model, toy_model
from sdpo.testing.toy_world import Reveal, ToyEnv, toy_env, toy_tokenizer

__all__ = [
    "CHAT_TEMPLATE",
    "Reveal",
    "ToyEnv",
    "byte_tokenizer",
    "save_toy_model",
    "teach_feedback_reading",
    "tiny_model",
    "toy_env",
    "toy_model",
    "toy_tokenizer",
]
