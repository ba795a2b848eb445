"""Python programs judged by tests.

tasks.py                what a task is
rows.py (our format), formats.py (MBPP, HumanEval), evalplus.py, live_code_bench.py   files to tasks
env.py, offline.py      the environment; judging without a run
extract.py              an answer to a program
judge.py                a program to a verdict
test_run.py             runs tests: inputs to outcomes to results
assert_forms.py         takes an assert apart: what the program computes, what is decided
assert_names.py         whose the names in an assert are
assert_runs.py, assert_source.py   run what asserts need besides the program
compare.py, checker.py, wording.py  whether an answer is right; what feedback says
"""

from sdpo.envs.code.env import CodeEnv
from sdpo.envs.code.offline import judge_program

__all__ = ["CodeEnv", "judge_program"]
