"""Algorithm 1 (`loop.py`, read first), a step of learning, checkpoints and the books of a run."""
