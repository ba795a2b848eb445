"""SQL verdicts: every category, what feedback says and what it never says."""

from __future__ import annotations

import pytest
from sql_rows import COUNT, SHOP, row, write_rows

from sdpo.envs.sql.formats import SqlReference
from sdpo.envs.sql.judge import SqlJudge, same_rows
from sdpo.errors import TaskError
from sdpo.sandbox import open_sandbox

PEOPLE = "Table stf_ppl has the columns lbl, yrs, pay."


ENDLESS = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x FROM c)"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shop")
    write_rows(folder, row())
    return folder


@pytest.fixture(scope="module")
def opened(folder):
    files = [folder / "shop.sqlite"]
    with open_sandbox("auto", width=2, preload=("sqlite3",), readable=files) as sandbox:
        yield sandbox


@pytest.fixture(scope="module")
def judge(opened):
    return SqlJudge(opened, time_limit_s=0.5, max_rows=50)


def reference(folder, query=COUNT, database="shop.sqlite", *, order_matters=False):
    return SqlReference(database=folder / database, query=query, order_matters=order_matters)


@pytest.mark.parametrize("database", ["shop.sqlite", "shop.sql"])
@pytest.mark.parametrize(
    "text",
    [
        COUNT,
        COUNT + ";",
        f"  {COUNT.lower()}  ;  -- that is all",
        f"Here it is:\n```sql\n{COUNT}\n```\nDone.",
        f"```\n{COUNT}\n```",
        f"```SQLite\n{COUNT};\n```",
        f"<think>SELECT 1</think>{COUNT}",
        "SELECT 2",
        "WITH old AS (SELECT 1 FROM stf_ppl WHERE yrs > 40) SELECT COUNT(*) FROM old",
        "VALUES (2)",
        "SELECT 2.0",
    ],
)
def test_same_rows_are_right(judge, folder, text, database):
    verdict = judge.verdict(reference(folder, database=database), text)
    assert (verdict.solved, verdict.reward, verdict.feedback) == (True, 1.0, None)
    assert verdict.info["category"] == "accepted"


@pytest.mark.parametrize(
    ("text", "category", "feedback"),
    [
        ("SELECT COUNT(*) FROM staff", "no_such_table", f"{PEOPLE}\nno such table: staff."),
        ("SELECT age FROM stf_ppl", "no_such_column", f"{PEOPLE}\nno such column: age."),
        ("SELECT LEN(lbl) FROM stf_ppl", "no_such_function", f"{PEOPLE}\nno such function: LEN."),
        ("SELECT COUNT(* FROM stf_ppl", "syntax_error", f'{PEOPLE}\nnear "FROM": syntax error.'),
        ("SELECT 'a", "syntax_error", f'{PEOPLE}\nunrecognized token: "\'a".'),
        (
            "SELECT yrs FROM stf_ppl a JOIN stf_ppl b",
            "ambiguous_column",
            f"{PEOPLE}\nambiguous column name: yrs.",
        ),
        ("SELECT MAX(yrs, MIN(yrs)) FROM stf_ppl GROUP BY MIN(yrs)", "query_error", PEOPLE),
        (
            "SELECT COUNT(*) FROM stf_ppl",
            "wrong_rows",
            f"{PEOPLE}\nThe query ran and returned 1 row, as expected, but not the right values.",
        ),
        (
            "SELECT yrs FROM stf_ppl",
            "wrong_rows",
            f"{PEOPLE}\nThe query ran and returned 3 rows; 1 was expected.",
        ),
        (
            "SELECT yrs, pay FROM stf_ppl",
            "wrong_rows",
            f"{PEOPLE}\nThe query ran and returned 2 columns; 1 was expected.",
        ),
    ],
)
def test_each_mistake_has_its_category_and_the_correction_comes_first(
    judge, folder, text, category, feedback
):
    verdict = judge.verdict(reference(folder), text)
    assert (verdict.solved, verdict.reward, verdict.info["category"]) == (False, 0.0, category)
    assert verdict.feedback is not None
    assert verdict.feedback.startswith(feedback)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "   ",
        "I do not know.",
        "The query is SELECT 2",
        "```sql\n```",
        "```sql\n-- nothing\n```",
        "```sql\nSELECT 2",
        "```python\nprint(2)\n```",
        "SELECT 2; SELECT 2",
        f"{COUNT}; This counts them.",
    ],
)
def test_an_answer_that_is_not_one_query_is_told_the_form(judge, folder, text):
    verdict = judge.verdict(reference(folder), text)
    assert (verdict.solved, verdict.info["category"]) == (False, "incorrect_format")
    assert verdict.feedback == "Answer with one SQL query only, nothing before or after it."


def test_a_cut_answer_is_truncated_even_where_its_beginning_would_run(judge, folder):
    verdict = judge.verdict(reference(folder), COUNT, is_truncated=True)
    assert (verdict.solved, verdict.info["category"]) == (False, "truncated")
    assert "cut off" in verdict.feedback


def test_a_complete_block_counts_although_the_answer_was_cut_after_it(judge, folder):
    text = f"```sql\n{COUNT}\n```\nThis query"
    assert judge.verdict(reference(folder), text, is_truncated=True).solved


@pytest.mark.parametrize(
    ("query", "what"),
    [
        ("DELETE FROM stf_ppl", "DELETE"),
        ("INSERT INTO stf_ppl VALUES ('x', 1, 2)", "INSERT"),
        ("UPDATE stf_ppl SET yrs = 0", "UPDATE"),
        ("WITH x AS (SELECT 1) INSERT INTO stf_ppl SELECT 'a', 1, 2 FROM x", "INSERT"),
        ("CREATE TABLE evil (x)", None),
        ("CREATE TEMP TABLE evil (x)", None),
        ("CREATE VIRTUAL TABLE evil USING fts5(x)", None),
        ("DROP TABLE stf_ppl", None),
        ("ALTER TABLE stf_ppl ADD COLUMN x", None),
        ("ATTACH '/etc/passwd' AS p", "ATTACH"),
        ("DETACH main", "DETACH"),
        ("PRAGMA writable_schema = 1", "PRAGMA"),
        ("PRAGMA query_only = 0", "PRAGMA"),
        ("PRAGMA table_info(stf_ppl)", "PRAGMA"),
        ("VACUUM INTO '/tmp/stolen'", "ATTACH"),
        ("BEGIN", "TRANSACTION"),
        ("SAVEPOINT s", "SAVEPOINT"),
        ("ANALYZE", None),
        ("SELECT load_extension('/lib/evil.so')", "load_extension"),
        ("SELECT * FROM pragma_table_info('stf_ppl')", None),
        ("SELECT fts3_tokenizer('simple')", "fts3_tokenizer"),
    ],
)
def test_anything_but_reading_is_refused(judge, folder, query, what):
    verdict = judge.verdict(reference(folder), query)
    assert verdict.info["category"] == "refused", verdict.feedback
    assert "can only be read" in verdict.feedback
    assert what is None or what in verdict.feedback
    assert judge.verdict(reference(folder), COUNT).solved


@pytest.mark.parametrize(
    ("query", "category"),
    [
        (f"{ENDLESS} SELECT COUNT(*) FROM c", "time_limit"),
        (f"{ENDLESS} SELECT x FROM c", "row_limit"),
        ("SELECT COUNT(*) FROM " + ", ".join(f"stf_ppl t{i}" for i in range(30)), "time_limit"),
        ("SELECT * FROM stf_ppl a, stf_ppl b, stf_ppl c, stf_ppl d", "row_limit"),
        ("SELECT zeroblob(2000000000)", "query_error"),
        ("SELECT printf('%.*c', 2000000000, 'x')", None),
        ("SELECT replace(hex(zeroblob(100000)), '0', hex(zeroblob(100000)))", "query_error"),
        ("SELECT hex(zeroblob(7000000))", "output_limit"),
        ("SELECT " + "(" * 2000 + "1" + ")" * 2000, "query_error"),
        ("SELECT 1" + " UNION SELECT 1" * 1000, "query_error"),
        ("SELECT " + "1," * 60_000 + "1", "query_error"),
    ],
)  # fmt: skip
def test_bombs_end_by_limits_and_the_next_query_runs(judge, folder, query, category):
    verdict = judge.verdict(reference(folder), query)
    assert not verdict.solved
    assert category in (None, verdict.info["category"]), verdict.feedback
    assert judge.verdict(reference(folder), COUNT).solved


def test_rows_that_fill_the_memory_end_by_its_limit(opened, folder):
    judge = SqlJudge(opened, time_limit_s=20.0)
    bomb = (
        "WITH RECURSIVE c(x) AS (SELECT zeroblob(16000000) UNION ALL SELECT zeroblob(16000000) "
        "FROM c LIMIT 1000) SELECT x FROM c"
    )
    assert judge.verdict(reference(folder), bomb).info["category"] == "memory_limit"
    assert judge.verdict(reference(folder), COUNT).solved


def test_attempts_leave_nothing_behind_for_the_next_one(judge, folder):
    for query in ("CREATE TEMP TABLE stf_tmp (x)", "PRAGMA case_sensitive_like = 1", "BEGIN"):
        judge.verdict(reference(folder), query)
    assert (
        judge.verdict(reference(folder), "SELECT * FROM stf_tmp").info["category"]
        == "no_such_table"
    )
    assert judge.verdict(reference(folder), "SELECT 2 WHERE 'A' LIKE 'a'").solved


def test_a_database_on_disk_is_the_same_bytes_after_hostile_queries(judge, folder):
    before = (folder / "shop.sqlite").read_bytes()
    for query in ("DELETE FROM stf_ppl", "DROP TABLE stf_ppl", "VACUUM", "PRAGMA user_version = 7"):
        judge.verdict(reference(folder), query)
    assert (folder / "shop.sqlite").read_bytes() == before
    assert sorted(path.name for path in folder.iterdir()) == [
        "rows.jsonl",
        "shop.sql",
        "shop.sqlite",
    ]


@pytest.mark.parametrize("query", ["SELECT readfile('/etc/passwd')", "SELECT writefile('x', 'y')"])
def test_files_cannot_be_reached_by_functions(judge, folder, query):
    assert not judge.verdict(reference(folder), query).solved


# --- order ---------------------------------------------------------------------------------------


def test_order_counts_only_where_the_question_asks_for_one(judge, folder):
    right = "SELECT lbl FROM stf_ppl ORDER BY pay DESC"
    other = "SELECT lbl FROM stf_ppl ORDER BY pay"
    assert judge.verdict(reference(folder, right), other).solved
    verdict = judge.verdict(reference(folder, right, order_matters=True), other)
    assert verdict.info["category"] == "wrong_order"
    assert verdict.feedback.endswith("The query returned the right rows in the wrong order.")
    assert judge.verdict(reference(folder, right, order_matters=True), right).solved


@pytest.mark.parametrize(
    ("got", "right", "is_same"),
    [
        ([(1,), (2,)], [(2,), (1,)], True),
        ([(1,), (1,), (2,)], [(1,), (2,), (2,)], False),
        ([(1, 2)], [(2, 1)], False),
        ([(None,), ("a",), (1,), (b"x",)], [(b"x",), (1,), ("a",), (None,)], True),
        ([(0.1 + 0.2,), (None,)], [(None,), (0.3,)], True),
        ([(0.31,)], [(0.3,)], False),
        ([("1",)], [(1,)], False),
        ([(1.0,)], [(1,)], True),
        ([(1,)], [(1.0,)], True),
        ([("x",)], [(b"x",)], False),
        ([(None,)], [(0,)], False),
        ([(float("inf"),)], [(float("inf"),)], True),
    ],
)
def test_rows_are_a_bag_of_typed_values(got, right, is_same):
    assert same_rows(got, right, order_matters=False) is is_same


# --- hints ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hints", "query", "feedback"),
    [
        ("none", "SELECT COUNT(*) FROM staff", "no such table: staff."),
        ("columns", "SELECT COUNT(*) FROM staff", "no such table: staff."),
        ("columns", "SELECT age FROM STF_PPL", f"{PEOPLE}\nno such column: age."),
        (
            "columns",
            "SELECT x FROM stf_grp",
            "Table stf_grp has the columns grp, boss.\nno such column: x.",
        ),
        ("tables_and_columns", "SELECT COUNT(*) FROM staff", f"{PEOPLE}\nno such table: staff."),
        ("tables_and_columns", "SELECT x FROM stf_grp", f"{PEOPLE}\nno such column: x."),
    ],
)
def test_hints_say_what_they_are_named_for(opened, folder, hints, query, feedback):
    judge = SqlJudge(opened, hints=hints)
    assert judge.verdict(reference(folder), query).feedback == feedback


def test_feedback_of_a_join_names_both_tables_and_no_others(judge, folder):
    right = "SELECT COUNT(*) FROM stf_ppl JOIN stf_grp ON boss = lbl"
    text = judge.verdict(reference(folder, right), "SELECT x FROM y").feedback
    assert text == f"{PEOPLE}\nTable stf_grp has the columns grp, boss.\nno such table: y."


def test_feedback_never_holds_the_right_query_nor_its_rows(judge, folder):
    right = "SELECT lbl, pay FROM stf_ppl WHERE pay > 15"
    for text in ("SELECT 1", "SELECT lbl FROM stf_ppl", "SELECT a FROM b", "no", "DELETE FROM b"):
        feedback = judge.verdict(reference(folder, right), text).feedback
        for secret in ("SELECT lbl", "15", "Bob", "Cleo", "20.25", "30.0", "WHERE"):
            assert secret not in feedback


def test_feedback_quotes_a_hostile_name_harmlessly(judge, folder):
    text = judge.verdict(reference(folder), 'SELECT 1 FROM "<|im_end|>\u202e"').feedback
    assert "<|im_end|>" not in text
    assert "\u202e" not in text


def test_feedback_keeps_the_problem_when_a_table_has_hundreds_of_columns(opened, tmp_path):
    columns = ", ".join(f"column_number_{i} INTEGER" for i in range(300))
    path = tmp_path / "wide.sql"
    path.write_text(f"CREATE TABLE wide ({columns});")
    wide = SqlReference(database=path, query="SELECT COUNT(*) FROM wide", order_matters=False)
    judge = SqlJudge(opened, max_feedback_chars=300)
    text = judge.verdict(wide, "SELECT missing FROM wide").feedback
    assert len(text) <= 300
    assert text.startswith("Table wide has the columns column_number_0")
    assert text.endswith("no such column: missing.")


def test_names_with_spaces_are_quoted_as_a_query_must_write_them(opened, tmp_path):
    path = tmp_path / "odd.sql"
    path.write_text('CREATE TABLE "free meals" ("Count (K-12)" INTEGER, plain INTEGER);')
    odd = SqlReference(database=path, query='SELECT 1 FROM "free meals"', order_matters=False)
    text = SqlJudge(opened).verdict(odd, "SELECT x FROM y").feedback
    assert text.startswith('Table "free meals" has the columns "Count (K-12)", plain.')


# --- databases that do not open ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("broken.sqlite", b"this is not a database at all" * 100, "file is not a database"),
        ("broken.sql", b"CREATE TABLE t (x);\nINSERT INTO nowhere VALUES (1);", "no such table"),
        ("latin.sql", b"-- caf\xe9", "cannot read the script"),
        ("endless.sql", b"CREATE TABLE t AS WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x+1 "
         b"FROM c) SELECT COUNT(*) FROM c;", "time limit"),
        ("large.sql", b"CREATE TABLE t AS SELECT zeroblob(3000000) AS x;", "too large"),
    ],
)  # fmt: skip
def test_a_database_that_cannot_be_used_is_an_error_with_its_path(tmp_path, name, content, says):
    path = tmp_path / name
    path.write_bytes(content)
    broken = SqlReference(database=path, query="SELECT 1", order_matters=False)
    with (
        open_sandbox("auto", width=1, preload=("sqlite3",), readable=[path]) as sandbox,
        pytest.raises(TaskError, match=says) as caught,
    ):
        SqlJudge(sandbox).verdict(broken, "SELECT 1")
    assert str(path) in str(caught.value)


def test_a_task_whose_own_query_fails_is_an_error_not_a_verdict(judge, folder):
    with pytest.raises(TaskError, match=r"no such column: nope.*sdpo check"):
        judge.verdict(reference(folder, "SELECT nope FROM stf_ppl"), COUNT)


def test_text_that_is_not_utf8_is_read_all_the_same(opened, tmp_path):
    path = tmp_path / "old.sql"
    path.write_text("CREATE TABLE t (x TEXT); INSERT INTO t VALUES (CAST(x'636166e9' AS TEXT));")
    old = SqlReference(database=path, query="SELECT x FROM t", order_matters=False)
    assert SqlJudge(opened).verdict(old, "SELECT x FROM t").solved


@pytest.mark.parametrize("can_read", [True, False])
def test_where_the_sandbox_opens_no_files_small_databases_are_sent_along(folder, can_read):
    class Blind:
        def __init__(self, sandbox):
            self.sandbox, self.can_read, self.sent = sandbox, can_read, []

        def run(self, program, inputs, limits):
            self.sent.append(inputs[0])
            return self.sandbox.run(program, inputs, limits)

    with open_sandbox(
        "auto", width=1, preload=("sqlite3",), readable=[folder / "shop.sqlite"]
    ) as sandbox:
        blind = Blind(sandbox)
        assert SqlJudge(blind).verdict(reference(folder), COUNT).solved
        path, data = blind.sent[-1][:2]
        assert (path is None, data is None) == (not can_read, can_read)


def test_the_shop_script_and_file_are_the_same_database(judge, folder):
    tables = {"stf_ppl": ("lbl", "yrs", "pay"), "stf_grp": ("grp", "boss")}
    assert judge.tables(folder / "shop.sql") == judge.tables(folder / "shop.sqlite") == tables
    assert SHOP.count("CREATE TABLE") == len(tables)
