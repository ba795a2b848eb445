"""Questions answered with an SQL query on a SQLite database: task formats, the judge, and the
wording of its feedback.

`env.py` is the environment; `formats.py` reads task files, Spider and BIRD; `judge.py` asks
databases through `child.py`, which runs in the sandbox; `wording.py` says what was wrong.
"""

from sdpo.envs.sql.env import SqlEnv

__all__ = ["SqlEnv"]
