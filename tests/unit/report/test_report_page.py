import re

import pytest
from synthetic_run import ATTACK, make_run

from sdpo.report import credit_page, write_report
from sdpo.rollouts.credit import read_credit


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    return write_report([make_run(tmp_path_factory.mktemp("one") / "run", steps=30)])


def test_the_report_is_one_file_that_names_no_address(report):
    text = report.read_text()
    assert report.name == "report.html"
    assert ATTACK not in text
    assert "default-src 'none'" in text
    assert not re.search(r"""(?:src|href)=["']?(?:https?:)?//""", text)


def test_equal_runs_give_equal_reports(tmp_path):
    run = make_run(tmp_path / "run", steps=3)
    first = write_report([run]).read_bytes()
    assert write_report([run], tmp_path / "other" / "again.html").read_bytes() == first


def test_a_page_of_one_attempt_holds_hostile_text_safely(tmp_path):
    credit = next(read_credit(make_run(tmp_path / "run", steps=1)))
    page = credit_page(credit, title="<b>")
    assert "</script><script>document" not in page
    assert "<!-- <img" not in page
    assert "<title>&lt;b&gt;</title>" in page


@pytest.mark.slow
def test_two_hundred_steps_stay_below_ten_megabytes(tmp_path):
    run = make_run(tmp_path / "run", steps=200, tasks=8, group_size=8, length=250)
    assert write_report([run]).stat().st_size < 10_000_000
