"""The SQL environment: rows, Spider and BIRD folders, prompts, the built-in company."""

from __future__ import annotations

import json
import threading

import pytest
from sql_rows import COUNT, SHOP, config_of, env_of, make_database, row, write_rows

from sdpo.config import schema
from sdpo.envs.base import Closing, Env
from sdpo.envs.opening import open_env
from sdpo.envs.sql import SqlEnv
from sdpo.errors import TaskError
from sdpo.records import Rollout

REQUEST = " Answer with one SQL query only."


def attempt(task, text):
    return Rollout(
        task_id=task.id, index=0, prompt_ids=(1,), completion_ids=(2,), sampler_logprobs=(0.0,),
        text=text, truncated=False, policy_version=0,
    )  # fmt: skip


def write_json(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows))


# --- prompts -------------------------------------------------------------------------------------


def test_two_worked_examples_of_another_database_come_first(tmp_path):
    (task,) = env_of(tmp_path).load("train")
    roles = [message["role"] for message in task.messages]
    assert roles == ["user", "assistant", "user", "assistant", "user"]
    assert task.messages[1]["content"] == "SELECT COUNT(*) FROM books WHERE pages > 100"
    assert task.messages[-1]["content"] == "How many employees are older than 40?" + REQUEST


def test_hidden_tables_are_nowhere_in_the_prompt(tmp_path):
    (task,) = env_of(tmp_path).load("train")
    assert not any("stf" in message["content"] for message in task.messages)


def test_shown_tables_stand_before_every_question_and_examples_show_their_own(tmp_path):
    env = env_of(tmp_path, tables="shown")
    (task,) = env.load("train")
    env.close()
    assert task.messages[-1]["content"] == (
        "Tables:\nstf_ppl(lbl, yrs, pay)\nstf_grp(grp, boss)\n\n"
        "How many employees are older than 40?" + REQUEST
    )
    assert task.messages[0]["content"].startswith("Tables:\nbooks(title, genre, pages)\n\nHow")
    assert task.messages[1] == {
        "role": "assistant", "content": "SELECT COUNT(*) FROM books WHERE pages > 100",
    }  # fmt: skip


def test_without_worked_examples_the_question_stands_alone(tmp_path):
    (task,) = env_of(tmp_path, worked_examples=False).load("train")
    assert len(task.messages) == 1


@pytest.mark.parametrize(
    ("evidence", "uses", "content"),
    [
        ("old means above 40", True, "Who?\nEvidence: old means above 40\n" + REQUEST.strip()),
        ("old means above 40", False, "Who?" + REQUEST),
        ("", True, "Who?" + REQUEST),
        (None, True, "Who?" + REQUEST),
    ],
)
def test_evidence_follows_the_question_when_it_is_used(tmp_path, evidence, uses, content):
    env = env_of(tmp_path, row(question="Who?", evidence=evidence), evidence=uses)
    assert env.load("train")[0].messages[-1]["content"] == content


# --- rows ----------------------------------------------------------------------------------------


def test_rows_without_an_id_get_one_from_question_and_database(tmp_path):
    rows = [row(question=question, id=None) for question in ("A?", "B?")]
    make_database(tmp_path / "other.sqlite")
    env = env_of(tmp_path, *rows, row(question="A?", id=None, database="other.sqlite"))
    assert len({task.id for task in env.load("train")}) == 3


def test_the_same_question_twice_is_an_error(tmp_path):
    with pytest.raises(TaskError, match="already the id of"):
        env_of(tmp_path, row(id=None), row(id=None)).load("train")


def test_rows_keep_the_split_of_their_file(tmp_path):
    env = env_of(tmp_path, row(id="a", split="train"), row(id="b", split="test"))
    assert [task.id for task in env.load("train")] == ["a"]
    assert [task.id for task in env.load("eval")] == ["b"]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"question": ""}, "rows.jsonl:1: question"),
        ({"query": None}, "rows.jsonl:1: query"),
        ({"database": "other.sqlite"}, "other.sqlite does not exist"),
        ({"database": "notes.txt"}, "none of .sqlite, .sqlite3, .db, .sql"),
        ({"database": None, "db_id": None}, "rows.jsonl:1: database"),
        ({"order_matters": "yes"}, "expected true or false"),
        ({"evidence": 3}, "rows.jsonl:1: evidence"),
        ({"split": "half"}, "rows.jsonl:1: split"),
    ],
)
def test_a_wrong_row_is_an_error_with_file_line_and_key(tmp_path, changes, says):
    with pytest.raises(TaskError, match=says):
        env_of(tmp_path, row(**changes)).load("train")


def test_a_missing_file_says_what_can_be_given(tmp_path):
    with pytest.raises(TaskError, match="does not exist; give company"):
        SqlEnv(schema.SqlEnvConfig(tasks=str(tmp_path / "no.jsonl"))).load("train")


def test_a_folder_without_questions_says_which_files_are_looked_for(tmp_path):
    with pytest.raises(TaskError, match=r"has none of train\.json, train_spider\.json"):
        SqlEnv(schema.SqlEnvConfig(tasks=str(tmp_path))).load("train")


def test_a_database_name_that_leaves_the_folder_is_refused(tmp_path):
    odd = row(db_id="../../etc")
    del odd["database"]
    with pytest.raises(TaskError, match="is not the name of a folder"):
        env_of(tmp_path, odd).load("train")


# --- Spider and BIRD -----------------------------------------------------------------------------


def spider(folder):
    """A folder as Spider is downloaded."""
    make_database(folder / "database" / "shop" / "shop.sqlite")
    extra = {"db_id": "shop", "query_toks": ["SELECT"], "sql": {"from": {}}}
    names = {"question": "Name them.", "query": "SELECT lbl FROM stf_ppl ORDER BY pay"}
    write_json(folder / "train_spider.json", [{"question": "A?", "query": COUNT} | extra])
    write_json(folder / "train_others.json", [{"question": "A?", "query": COUNT} | extra])
    write_json(folder / "dev.json", [names | extra, {"question": "B?", "query": COUNT} | extra])
    write_json(folder / "tables.json", [{"db_id": "shop"}])
    return folder


def bird(folder):
    """A folder as BIRD's two archives unpack beside each other."""
    rows = [{"question_id": 0, "db_id": "shop", "question": "Old ones?", "evidence": "old: > 40",
             "SQL": "SELECT lbl FROM stf_ppl WHERE yrs > 40 ORDER BY pay",
             "difficulty": "simple"}]  # fmt: skip
    make_database(folder / "train" / "train_databases" / "shop" / "shop.sqlite")
    make_database(folder / "dev" / "dev_databases" / "shop" / "shop.sqlite")
    write_json(folder / "train" / "train.json", rows)
    write_json(folder / "dev" / "dev.json", rows)
    write_json(folder / "dev" / "dev_tables.json", [])
    return folder


def test_spider_is_read_as_downloaded(tmp_path):
    env = SqlEnv(config_of(spider(tmp_path)))
    assert [task.id for task in env.load("train")] == ["train_spider-1", "train_others-1"]
    ordered, plain = env.load("eval")
    assert (ordered.id, ordered.reference.order_matters) == ("dev-1", True)
    assert (plain.id, plain.reference.order_matters) == ("dev-2", False)
    assert ordered.metadata["family"] == "shop"
    report = env.check()
    env.close()
    assert (report.num_tasks, dict(report.failures)) == (4, {})


def test_bird_is_read_as_downloaded_with_its_evidence(tmp_path):
    env = SqlEnv(config_of(bird(tmp_path)))
    (train,), (held_out,) = env.load("train"), env.load("eval")
    assert (train.id, held_out.id) == ("train-1", "dev-1")
    assert "Evidence: old: > 40" in train.messages[-1]["content"]
    assert not train.reference.order_matters
    assert train.reference.database.parent.parent.name == "train_databases"
    assert env.judge(train, attempt(train, "SELECT lbl FROM stf_ppl WHERE yrs > 40")).solved
    env.close()


@pytest.mark.parametrize("inner", ["train", "dev"])
def test_one_of_birds_two_folders_is_split_by_fraction(tmp_path, inner):
    env = SqlEnv(config_of(bird(tmp_path) / inner))
    assert [task.id for task in env.load("train")] == [f"{inner}-1"]


def test_one_file_of_spider_finds_its_databases(tmp_path):
    env = SqlEnv(config_of(spider(tmp_path) / "dev.json"))
    assert len(env.load("train")) == 2


def test_a_folder_whose_databases_were_not_unpacked_says_where_they_belong(tmp_path):
    write_json(tmp_path / "dev.json", [{"db_id": "shop", "question": "A?", "query": COUNT}])
    with pytest.raises(TaskError, match=r"no shop/shop.sqlite in database"):
        SqlEnv(config_of(tmp_path)).load("train")


# --- check, life and threads ---------------------------------------------------------------------


def test_check_names_queries_that_fail_and_those_that_prove_nothing(tmp_path):
    env = env_of(
        tmp_path,
        row(id="good"),
        row(id="broken", query="SELECT nope FROM stf_ppl"),
        row(id="empty", query="SELECT lbl FROM stf_ppl WHERE yrs > 99"),
        row(id="writes", query="DELETE FROM stf_ppl"),
        row(id="huge", query="SELECT 1 FROM stf_ppl a, stf_ppl b"),
        max_rows=5,
    )
    report = env.check()
    env.close()
    assert report.num_tasks == 5
    assert dict(report.failures) == {
        "broken": "its query fails: no such column: nope",
        "empty": "its query returns no rows, so that any query without rows is right",
        "writes": "its query fails: DELETE",
        "huge": "its query fails: row limit",
    }


def test_an_environment_that_was_closed_opens_again(tmp_path):
    env = env_of(tmp_path)
    (task,) = env.load("train")
    assert isinstance(env, Closing)
    for _ in range(2):
        assert env.judge(task, attempt(task, COUNT)).solved
        env.close()


def test_attempts_judged_at_once_do_not_mix_up_their_databases(tmp_path):
    other = SHOP.replace("45", "20")
    make_database(tmp_path / "young.sqlite", other)
    env = env_of(tmp_path, row(id="old"), row(id="young", database="young.sqlite"))
    old, young = env.load("train")
    wrong = []

    def judge(number):
        task, right = ((old, "SELECT 2"), (young, "SELECT 0"))[number % 2]
        if not env.judge(task, attempt(task, right)).solved:
            wrong.append(number)

    threads = [threading.Thread(target=judge, args=(i,)) for i in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    env.close()
    assert not wrong


def test_unprotected_judging_gives_the_same_verdicts_and_warns(tmp_path):
    env = env_of(tmp_path, sandbox="none")
    (task,) = env.load("train")
    with pytest.warns(UserWarning, match="sandbox = none"):
        assert env.judge(task, attempt(task, COUNT)).solved
    assert env.judge(task, attempt(task, "DELETE FROM stf_ppl")).info["category"] == "refused"
    env.close()


# --- company -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def company():
    env = open_env(schema.SqlEnvConfig())
    assert isinstance(env, SqlEnv)
    yield env
    env.close()


def test_company_is_an_environment_whose_queries_run(company):
    assert isinstance(company, Env)
    report = company.check()
    assert report.num_tasks >= 120
    assert dict(report.failures) == {}


def test_company_holds_out_questions_and_shares_names(company):
    train, held_out = company.load("train"), company.load("eval")
    assert len(train) >= 80
    assert len(held_out) >= 32
    questions = [task.messages[-1]["content"] for task in (*train, *held_out)]
    assert len(set(questions)) == len(questions)

    def names(tasks):
        tables = company._open().tables
        known = {n for task in tasks for n in tables(task.reference.database)}
        known |= {
            c for task in tasks for cs in tables(task.reference.database).values() for c in cs
        }
        return {n for n in known if any(n in task.reference.query for task in tasks)}

    assert names(held_out) <= names(train)


def test_no_name_of_company_is_in_a_prompt(company):
    tables = company._open().tables(company.load("train")[0].reference.database)
    names = [*tables, *(column for columns in tables.values() for column in columns)]
    assert len(tables) >= 3
    for task in (*company.load("train"), *company.load("eval")):
        for message in task.messages:
            assert not [name for name in names if name in message["content"]]


def test_company_is_told_by_feedback_what_no_attempt_can_guess(company):
    task = next(t for t in company.load("train") if "hr_employees" in t.reference.query)
    verdict = company.judge(task, attempt(task, "SELECT COUNT(*) FROM employees"))
    assert verdict.info["category"] == "no_such_table"
    assert verdict.feedback == (
        "Table hr_employees has the columns emp_name, emp_team, emp_year, emp_salary.\n"
        "no such table: employees."
    )


def test_feedback_on_company_never_holds_the_right_query(company):
    for task in company.load("eval"):
        for text in ("SELECT COUNT(*) FROM employees", "SELECT NULL", "what?"):
            feedback = company.judge(task, attempt(task, text)).feedback
            assert feedback is not None
            assert task.reference.query not in feedback
            assert "SELECT" not in feedback


def test_a_task_file_may_hold_a_path_relative_to_itself(tmp_path, monkeypatch):
    path = write_rows(tmp_path, row())
    monkeypatch.chdir("/")
    env = SqlEnv(config_of(path))
    assert env.load("train")[0].reference.database == (tmp_path / "shop.sql").resolve()
