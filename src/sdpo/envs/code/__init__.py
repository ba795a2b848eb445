"""Python programs judged by tests: task formats, the judge, and the wording of its feedback.

`env.py` is the environment; a test is prepared by `assert_forms.py` or `tasks.py`, run by
`test_run.py` or `assert_runs.py`, decided with `compare.py` and worded by `wording.py`.
"""

from sdpo.envs.code.env import CodeEnv
from sdpo.envs.code.judging import judge_file, judge_program

__all__ = ["CodeEnv", "judge_file", "judge_program"]
