"""From the files that people hold to tasks: folders, tables, Parquet, the hub, and the rows of
published data sets as they are downloaded."""

from __future__ import annotations

import csv
import gzip
import json
import sys

import pytest

from sdpo.config import schema
from sdpo.envs import sources
from sdpo.envs.code.env import CodeEnv
from sdpo.envs.code.formats import load_code_tasks
from sdpo.envs.opening import open_env
from sdpo.errors import ConfigError, TaskError

LETTERS = "What?\n\nA: 1 kg\nB: 2 kg"


def rows_file(path, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def choices(*ids, answer="A"):
    return [{"idx": i, "prompt": f"{LETTERS} {i}", "answer": answer} for i in ids]


def opened(kind, tasks, **settings):
    cls = {"choice": schema.ChoiceEnvConfig, "math": schema.MathEnvConfig,
           "tools": schema.ToolsEnvConfig}[kind]  # fmt: skip
    return open_env(cls(tasks=str(tasks), **settings))


def ids(env):
    return [[task.id for task in env.load(split)] for split in ("train", "eval")]


# --- where rows come from -------------------------------------------------------------------


def test_a_test_file_beside_the_training_file_could_not_be_evaluated_on(tmp_path):
    train = rows_file(tmp_path / "a.json", *choices(0, 1, 2))
    test = rows_file(tmp_path / "b.json", *choices(0, 7))
    assert ids(opened("choice", train, eval_tasks=test)) == [["0", "1", "2"], ["0", "7"]]


def test_a_folder_with_train_and_test_files_was_a_directory_error(tmp_path):
    rows_file(tmp_path / "train.json", *choices(1, 2))
    rows_file(tmp_path / "test.json", *choices(3))
    rows_file(tmp_path / "validation.json", *choices(9))
    rows_file(tmp_path / "everything.json", *choices(1, 2, 3))
    rows_file(tmp_path / "dataset_infos.json", {"default": {}})
    assert ids(opened("choice", tmp_path)) == [["1", "2"], ["3"]]


def test_shards_in_a_data_folder_are_read_in_order(tmp_path):
    rows_file(tmp_path / "data" / "train-00001-of-00002.jsonl", *choices(2))
    rows_file(tmp_path / "data" / "train-00000-of-00002.jsonl", *choices(1))
    rows_file(tmp_path / "data" / "test-00000-of-00001.jsonl", *choices(3))
    assert ids(opened("choice", tmp_path)) == [["1", "2"], ["3"]]


def test_files_of_one_kind_are_split_like_one_file(tmp_path):
    rows_file(tmp_path / "test.jsonl", *choices(*range(20)))
    rows_file(tmp_path / "test2.jsonl", *choices(*range(20, 40)))
    train, held_out = ids(opened("choice", tmp_path, eval_fraction=0.3))
    assert len(train) + len(held_out) == 40
    assert held_out


def test_of_two_folders_each_gives_its_own_part(tmp_path):
    for name, first in (("a", 0), ("b", 10)):
        rows_file(tmp_path / name / "train.json", *choices(first))
        rows_file(tmp_path / name / "test.json", *choices(first + 1))
    env = opened("choice", tmp_path / "a", eval_tasks=str(tmp_path / "b"))
    assert ids(env) == [["0"], ["11"]]


def test_tables_with_a_head_line_are_read(tmp_path):
    rows = [{"idx": str(i), "prompt": f'{LETTERS}\n"{i}", so', "answer": "B"} for i in range(3)]
    for name, delimiter in (("rows.csv", ","), ("rows.tsv", "\t"), ("rows.csv.gz", ",")):
        path = tmp_path / name
        write = gzip.open if name.endswith(".gz") else open
        with write(path, "wt", encoding="utf-8-sig", newline="") as file:
            writer = csv.DictWriter(file, rows[0], delimiter=delimiter)
            writer.writeheader()
            writer.writerows(rows)
        env = opened("choice", path, eval_fraction=0)
        assert ids(env)[0] == ["0", "1", "2"]
        assert env.load("train")[1].messages[-1]["content"] == rows[1]["prompt"]


@pytest.mark.parametrize("text", ["a,b\n1\n", "a,b\n1,2,3\n"])
def test_a_ragged_table_names_its_line(tmp_path, text):
    path = tmp_path / "rows.csv"
    path.write_text(text)
    with pytest.raises(TaskError, match=r"rows.csv:2: not as many values as the head line"):
        opened("choice", path).load("train")


def test_parquet_was_not_a_json_object(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = [{"question": f"{i} or?", "choices": ["a", "b"], "answer": 1} for i in range(3)]
    path = tmp_path / "train-00000-of-00001.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    env = opened("choice", path, eval_fraction=0)
    assert [task.reference["answer"] for task in env.load("train")] == ["B"] * 3
    path.write_bytes(b"PAR1")
    with pytest.raises(TaskError, match="cannot read"):
        opened("choice", path).load("train")


def test_parquet_and_the_hub_name_the_extra_they_need(tmp_path, monkeypatch):
    for name in ("pyarrow", "datasets"):
        monkeypatch.setitem(sys.modules, name, None)
    path = tmp_path / "a.parquet"
    path.write_bytes(b"PAR1")
    for source in (str(path), "hub:openai/gsm8k"):
        with pytest.raises(ConfigError, match=r"pip install 'sdpo\[data\]'"):
            opened("math", source).load("train")


GSM8K = {"question": "Two and two?", "answer": "2+2=<<2+2=4>>4\n#### 4"}


def test_a_data_set_of_the_hub_is_named_by_its_id(monkeypatch):
    asked = []

    def load(name, configuration):
        asked.append((name, configuration))
        return {"train": [GSM8K], "test": [GSM8K | {"question": "Three?"}]}

    monkeypatch.setattr(sources, "load_hub", load)
    env = opened("math", "hub:openai/gsm8k/main")
    assert [len(env.load(split)) for split in ("train", "eval")] == [1, 1]
    assert env.load("eval")[0].messages[-1]["content"].startswith("Three?")
    assert asked == [("openai/gsm8k", "main")]
    one = opened("math", "hub:openai/gsm8k:test", eval_fraction=0)
    assert one.load("train")[0].messages[-1]["content"].startswith("Three?")
    assert asked[1] == ("openai/gsm8k", None)


def test_the_librarys_own_splits_are_read(tmp_path, monkeypatch):
    """The real `datasets`, which takes a folder where it takes a name of the hub."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    for name, question in (("train", "Two?"), ("test", "Three?")):
        rows = datasets.Dataset.from_list([GSM8K | {"question": question}])
        rows.to_parquet(str(tmp_path / "data" / f"{name}.parquet"))
    found = sources.load_hub(str(tmp_path / "data"), None)
    assert list(found) == ["train", "test"]
    assert [row["question"] for row in found["test"]] == ["Three?"]


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("hub:gsm8k", "write hub:OWNER/NAME"),
        ("hub:a/b:dev", "no split 'dev'; it has one, two"),
        ("hub:a/b", "add :SPLIT; it has one, two"),
    ],
)
def test_a_hub_name_that_is_wrong_says_what_is_there(monkeypatch, source, says):
    monkeypatch.setattr(sources, "load_hub", lambda name, configuration: {"one": [], "two": []})
    with pytest.raises((TaskError, ConfigError), match=says):
        opened("math", source).load("train")


def test_columns_of_other_names_are_named_by_fields(tmp_path):
    rows = [{"uid": i, "task": {"text": f"What is {i}?"}, "gold": str(i)} for i in range(2)]
    path = rows_file(tmp_path / "rows.jsonl", *rows)
    fields = {"id": "uid", "problem": "task.text", "answer": "gold"}
    tasks = opened("math", path, fields=fields, eval_fraction=0).load("train")
    assert [(task.id, task.reference) for task in tasks] == [("0", "0"), ("1", "1")]
    with pytest.raises(
        TaskError, match=r"rows.jsonl:1: task.txt: no such column .*uid, task, gold"
    ):
        opened("math", path, fields=fields | {"problem": "task.txt"}).load("train")


def test_rows_repeated_word_for_word_are_kept_once_unless_they_have_ids(tmp_path):
    row = {"problem": "p", "answer": "1"}
    path = rows_file(tmp_path / "rows.jsonl", row, row)
    assert len(opened("math", path, eval_fraction=0).load("train")) == 1
    path = rows_file(tmp_path / "rows.jsonl", row | {"id": "a"}, row | {"id": "a"})
    with pytest.raises(TaskError, match="already the id"):
        opened("math", path).load("train")


# --- refusals name what would fit -----------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "row", "says"),
    [
        ("choice", GSM8K, "GSM8K rows, which env.type = 'math' reads"),
        ("math", {"question": "q", "choices": ["a", "b"], "answer": 0, "split": "nope"}, "MMLU"),
        (
            "choice",
            {"task_id": 1, "code": "", "test_list": []},
            "MBPP rows, which .* 'code' reads",
        ),
        ("tools", {"question": "q", "input_output": "{}", "prompt": 3}, "APPS or TACO"),
        ("choice", {"q": "?", "a": "!"}, r"columns are q, a; env.fields = \{KEY = \"COLUMN\"\}"),
    ],
)
def test_a_refusal_names_the_environment_that_would_read_the_rows(tmp_path, kind, row, says):
    path = rows_file(tmp_path / "rows.jsonl", row)
    with pytest.raises(TaskError, match=says):
        opened(kind, path).load("train")


def test_code_names_the_environment_that_would_read_the_rows(tmp_path):
    path = rows_file(tmp_path / "rows.jsonl", GSM8K)
    with pytest.raises(TaskError, match="GSM8K rows, which"):
        load_code_tasks(path)


# --- published data sets --------------------------------------------------------------------

DAPO_PROMPT = (
    "Solve the following math problem step by step. The last line of your response should be of "
    "the form Answer: $Answer (without quotes) where $Answer is the answer to the problem.\n\n"
    'What is 2+2?\n\nRemember to put your answer on its own line after "Answer:".'
)
MATH_ROWS = {
    "GSM8K": (GSM8K | {"answer": "so\n#### 1,234"}, "Two and two?", "1234"),
    "MATH": (
        {"problem": "P?", "level": "Level 5", "type": "Algebra",
         "solution": "First \\boxed{1}, then $\\boxed{\\frac{1}{2}}$."},
        "P?", "\\frac{1}{2}",
    ),
    "MATH-500": (
        {"problem": "P?", "solution": "s", "answer": "3", "unique_id": "test/algebra/1.json"},
        "P?", "3",
    ),
    "AIME 2024 of Maxwell-Jia": (
        {"ID": "2024-II-4", "Problem": "P?", "Solution": "s", "Answer": 33}, "P?", "33",
    ),
    "AIME 1983-2024": (
        {"ID": "1983-1", "Year": 1983, "Question": "P?", "Answer": "60"}, "P?", "60",
    ),
    "AIME 2024 of math-ai": ({"id": 60, "problem": "P?", "solution": "\\boxed{204}"}, "P?", "204"),
    "DAPO": (
        {"data_source": "math_dapo", "prompt": [{"role": "user", "content": DAPO_PROMPT}],
         "ability": "MATH", "reward_model": {"ground_truth": "34", "style": "rule"},
         "extra_info": {"index": "9a9b6eb4"}},
        "What is 2+2?", "34",
    ),
    "a column with gaps": ({"problem": "P?", "answer": 12.0}, "P?", "12"),
    "the paper's": (
        {"idx": 3, "kind": "math", "dataset": "math500", "prompt": "P? in \\boxed{}.",
         "answer": "7"},
        "P? in \\boxed{}.", "7",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MATH_ROWS)
def test_math_rows_were_refused(tmp_path, name):
    pytest.importorskip("math_verify")
    row, problem, answer = MATH_ROWS[name]
    (task,) = opened("math", rows_file(tmp_path / "r.jsonl", row), eval_fraction=0).load("train")
    assert task.reference == answer
    assert task.messages[-1]["content"].startswith(problem)
    assert "Answer: $Answer" not in task.messages[-1]["content"]
    assert task.messages[-1]["content"].count("\\boxed{}") == 1


def test_a_proof_has_nothing_to_compare(tmp_path):
    path = rows_file(tmp_path / "r.jsonl", {"problem": "Show it.", "solution": "Clear."})
    with pytest.raises(TaskError, match="and no key answer"):
        opened("math", path).load("train")


CHOICE_ROWS = {
    "GPQA": (
        {"Question": "Q?", "Correct Answer": "right\n", "Incorrect Answer 1": "w1",
         "Incorrect Answer 2": "w2", "Incorrect Answer 3": "w3", "Record ID": "rec1"},
        "right",
    ),
    "ARC": (
        {"id": "M_1", "question": "Q?", "answerKey": "C",
         "choices": {"text": ["w1", "w2", "right", "w3"], "label": ["A", "B", "C", "D"]}},
        "right",
    ),
    "ARC with numbers": (
        {"id": "M_1", "question": "Q?", "answerKey": "2",
         "choices": {"text": ["w1", "right", "w3"], "label": ["1", "2", "3"]}},
        "right",
    ),
    "MMLU": ({"question": "Q?", "subject": "s", "choices": ["w", "right"], "answer": 1}, "right"),
    "MMLU as CSV": ({"question": "Q?", "choices": ["w", "right"], "answer": "1"}, "right"),
    "MMLU-Pro": (
        {"question_id": 70, "question": "Q?", "options": [*"abcdefgh", "right", "z"],
         "answer": "I", "answer_index": 8, "category": "math"},
        "right",
    ),
    "lower case": ({"question": "Q?", "options": ["w", "right"], "answer": "b"}, "right"),
    "answer in words": ({"question": "Q?", "options": ["w", "right"], "answer": "right"}, "right"),
}  # fmt: skip


@pytest.mark.parametrize("name", CHOICE_ROWS)
def test_choice_rows_were_refused(tmp_path, name):
    row, right = CHOICE_ROWS[name]
    env = opened("choice", rows_file(tmp_path / "r.jsonl", row), eval_fraction=0)
    (task,) = env.load("train")
    letter = task.reference["answer"]
    assert f"\n{letter}: {right}\n" in task.messages[-1]["content"]
    assert "<answer>" in task.messages[0]["content"]
    assert env.check().failures == {}


def test_the_order_of_gpqas_options_depends_on_the_row_alone(tmp_path):
    base = CHOICE_ROWS["GPQA"][0]
    rows = [base | {"Record ID": f"rec{i}"} for i in range(30)]
    env = opened("choice", rows_file(tmp_path / "r.jsonl", *rows), eval_fraction=0)
    letters = [task.reference["answer"] for task in env.load("train")]
    assert set(letters) == set("ABCD")
    env = opened("choice", rows_file(tmp_path / "r.jsonl", *rows[5:]), eval_fraction=0)
    assert [task.reference["answer"] for task in env.load("train")] == letters[5:]


@pytest.mark.parametrize(
    "options", ["A:yes\nB:no", "**A.** yes\n**B.** no", "- A) yes\n- B) no", "(A) yes\n(B) no"]
)
def test_options_in_other_marks_were_not_found(tmp_path, options):
    row = {"prompt": f"Is it?\n{options}", "answer": "b"}
    env = opened("choice", rows_file(tmp_path / "r.jsonl", row), eval_fraction=0)
    assert env.load("train")[0].reference == {"answer": "B", "options": "AB"}


STDIO = {"inputs": ["1 2\n", "3 4\n", "5 6\n"], "outputs": ["3\n", "7\n", "11\n"]}
CALLS = {"fn_name": "add", "inputs": [[1, 2], [3, 4], [5, 6]], "outputs": [[3], [7], [11]]}
ADD = "def add(a, b):\n    return a + b\n"
PRINT = "a, b = map(int, input().split())\nprint(a + b)\n"
PAIRS = [{"input": i, "output": o} for i, o in zip(*STDIO.values(), strict=True)]
CODE_ROWS = {
    "APPS": (
        {"problem_id": 7, "question": "Add.", "solutions": json.dumps(["print 1", PRINT]),
         "input_output": json.dumps(STDIO), "difficulty": "interview", "starter_code": ""},
        PRINT,
    ),
    "APPS, a function": (
        {"problem_id": 8, "question": "Add.", "solutions": json.dumps([ADD]),
         "input_output": json.dumps(CALLS), "starter_code": "def add(a, b):\n\t"},
        ADD,
    ),
    "TACO, lists of lines": (
        {"question": "Add.", "solutions": [PRINT], "starter_code": "", "time_limit": "2.0 seconds",
         "input_output": json.dumps({"inputs": [["1 2"], ["3 4"]], "outputs": [["3"], ["7"]]})},
        PRINT,
    ),
    "PRIME": (
        {"data_source": "taco", "ability": "code",
         "prompt": [{"role": "system", "content": "S"}, {"role": "user", "content": "Add."}],
         "reward_model": {"style": "rule", "ground_truth": json.dumps(STDIO)},
         "extra_info": {"index": 5, "split": "train"}},
        PRINT,
    ),
    "DeepCoder": (
        {"problem": "Add.", "solutions": [PRINT],
         "tests": json.dumps([p | {"type": "stdin_stdout"} for p in PAIRS])},
        PRINT,
    ),
    "DeepCoder, of LiveCodeBench": (
        {"problem": "Add.", "starter_code": "",
         "tests": [{"input": "1\n2", "output": "3", "testtype": "functional",
                    "metadata": {"func_name": "add"}}]},
        ADD,
    ),
    "open-r1": (
        {"source": "apps", "problem_id": "vcp_1", "problem": "Add.",
         "gold_standard_solution": f"```python\n{PRINT}```",
         "verification_info": {"language": "python", "test_cases": [
             p | {"fn_name": None, "type": "stdin_stdout"} for p in PAIRS]}},
        PRINT,
    ),
    "PrimeIntellect": (
        {"prompt": "Add.", "problem_id": "vcp_2", "gold_standard_solution": PRINT,
         "verification_info": str({"language": "python", "test_cases": PAIRS})},
        PRINT,
    ),
    "open-r1's Codeforces": (
        {"id": "1/A", "description": "Add.", "input_format": "a b", "output_format": "sum",
         "examples": PAIRS[:1], "official_tests": PAIRS, "generated_checker": None},
        PRINT,
    ),
    "CodeContests": (
        {"name": "1_A. Add", "description": "Add.", "time_limit": {"seconds": 2, "nanos": 0},
         "public_tests": {"input": ["1 2\n"], "output": ["3\n"]},
         "private_tests": {"input": ["3 4\n", "5 6\n"], "output": ["7\n", "11\n"]},
         "generated_tests": {"input": [], "output": []},
         "solutions": {"language": [2, 3], "solution": ["int main(){}", PRINT]}},
        PRINT,
    ),
    "the paper's": (
        {"idx": 4, "kind": "code", "dataset": "livecodebench", "answer": "-",
         "prompt": "You are a coding expert.\n\nAdd.", "description": "Add.",
         "tests": json.dumps(STDIO | {"testtype": "stdin", "fn_name": "", "time_limit": 6})},
        PRINT,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CODE_ROWS)
def test_rows_of_inputs_and_outputs_were_refused(tmp_path, judge, name):
    row, right = CODE_ROWS[name]
    ((split, task),) = load_code_tasks(rows_file(tmp_path / "rows.jsonl", row))
    assert split == "train"
    assert "Add." in task.messages[-1]["content"]
    for tests in ("public", "private"):
        assert judge.verdict(task.reference, right, split=tests).solved
        wrong = right.replace("+ b", "- b")
        assert not judge.verdict(task.reference, wrong, split=tests).solved
    assert len(task.reference.public) < len(task.reference.private) or name.endswith("Bench")
    if "solutions" in row or "gold_standard_solution" in row:
        assert task.reference.solution is not None
        assert task.reference.solution.strip() == right.strip()


def test_training_tests_are_hidden_ones_not_those_of_the_statement(tmp_path):
    row = CODE_ROWS["CodeContests"][0]
    ((_, task),) = load_code_tasks(rows_file(tmp_path / "rows.jsonl", row))
    assert task.id == "1_A. Add"
    assert "1 2\n" not in [test.input for test in task.reference.public]


def test_an_output_that_is_a_list_stays_one_where_the_starter_says_so(tmp_path):
    calls = {"fn_name": "f", "inputs": [[1], [2]], "outputs": [[1], [2]]}
    row = CODE_ROWS["APPS, a function"][0] | {
        "input_output": json.dumps(calls),
        "starter_code": "class Solution:\n    def f(self, n: int) -> List[int]:\n",
    }
    ((_, task),) = load_code_tasks(rows_file(tmp_path / "rows.jsonl", row))
    assert [test.output for test in task.reference.private] == [[1], [2]]


def test_the_papers_code_folder_trains_on_its_own_half(tmp_path):
    row = CODE_ROWS["the paper's"][0]
    half = json.dumps({"inputs": ["1 2\n"], "outputs": ["3\n"], "testtype": "stdin"})
    rows_file(tmp_path / "train.json", row | {"tests": half})
    rows_file(tmp_path / "test.json", row)
    env = CodeEnv(schema.CodeEnvConfig(tasks=str(tmp_path)))
    train, held_out = env.load("train")[0], env.load("eval")[0]
    assert train.messages == ({"role": "user", "content": row["prompt"]},)
    assert [len(t.reference.tests(t.reference.judged)) for t in (train, held_out)] == [1, 3]


@pytest.mark.parametrize(
    ("name", "changes", "says"),
    [
        ("APPS", {"input_output": "{"}, "input_output: not JSON"),
        ("APPS", {"input_output": '{"inputs": [], "outputs": []}'}, "0 inputs and 0 outputs"),
        ("APPS", {"input_output": '{"inputs": ["1"], "outputs": []}'}, "1 inputs and 0 outputs"),
        ("APPS", {"input_output": '{"inputs": [1], "outputs": ["1"]}'}, "test 0: expected text"),
        ("open-r1", {"verification_info": {"language": "cpp"}}, "'cpp': only Python is judged"),
        ("open-r1's Codeforces", {"generated_checker": "print(1)"}, "needs a checker"),
        ("CodeContests", {"private_tests": {"input": []}}, "the lists input and output"),
    ],
)
def test_a_row_of_inputs_and_outputs_that_is_wrong_names_its_key(tmp_path, name, changes, says):
    path = rows_file(tmp_path / "rows.jsonl", CODE_ROWS[name][0] | changes)
    with pytest.raises(TaskError, match=r"rows.jsonl:1: ") as error:
        load_code_tasks(path)
    assert says in str(error.value)


# --- the paper's files ----------------------------------------------------------------------


def test_the_papers_science_and_tool_files_read_as_a_folder(tmp_path, shared_data):
    for kind, name in (("choice", "sciknoweval_physics_train"), ("tools", "tooluse_test")):
        rows = (shared_data / f"{name}.json").read_text().splitlines()
        folder = tmp_path / kind
        folder.mkdir()
        (folder / "train.json").write_text("\n".join(rows[:-5]) + "\n")
        (folder / "test.json").write_text("\n".join(rows[-5:]) + "\n")
        env = opened(kind, folder)
        assert [len(env.load(split)) for split in ("train", "eval")] == [len(rows) - 5, 5]
