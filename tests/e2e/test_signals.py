"""What schedulers, terminals and `timeout` send to a run."""

from __future__ import annotations

import signal

import pytest
from test_discovery import model_dir, settings, world  # noqa: F401 - model_dir is a fixture
from test_runs import ENV, config, model, rows  # noqa: F401 - model is a fixture

from sdpo.cli import run as cli
from sdpo.discovery.run import discover_tasks
from sdpo.errors import Terminated
from sdpo.rollouts.collect import Collector
from sdpo.signals import ECHO_S, Signals
from sdpo.training.checkpoint import Checkpoints
from sdpo.training.loop import train
from sdpo.training.run import Run
from sdpo.training.step import Updater

pytestmark = pytest.mark.usefixtures("default_signals")


@pytest.fixture
def default_signals(ctrl_c):
    """As a terminal's child has them, whatever the parent of these tests ignores."""
    numbers = (signal.SIGTERM, signal.SIGUSR1)
    before = [signal.signal(number, signal.SIG_DFL) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


def test_an_ignored_interrupt_stays_ignored_inside_a_step():
    """Under nohup a Ctrl-C of somebody else's ended the run."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with Signals() as signals, signals.undivided():
        signal.raise_signal(signal.SIGINT)


def test_sigterm_saves_like_ctrl_c_and_says_so_to_a_scheduler(model, tmp_path, monkeypatch):  # noqa: F811
    """SLURM, `docker stop` and spot machines lost the work since the last checkpoint."""
    train(config(model, tmp_path / "whole"), env=ENV)
    collect = Run.collect

    def terminated(self, tasks):
        if self.step == 3:
            signal.raise_signal(signal.SIGTERM)
        return collect(self, tasks)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "collect", terminated)
        result = train(config(model, tmp_path / "run"), env=ENV)
    assert (result.finished, result.step, result.exit_status) == (False, 3, 143)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert train(config(model, tmp_path / "run"), env=ENV).exit_status == 0
    assert rows(tmp_path / "run") == rows(tmp_path / "whole")


def test_sigterm_inside_an_update_waits_for_its_end(model, tmp_path, monkeypatch):  # noqa: F811
    step = Updater.step

    def terminated(self, *arguments, **options):
        signal.raise_signal(signal.SIGTERM)
        return step(self, *arguments, **options)

    monkeypatch.setattr(Updater, "step", terminated)
    result = train(config(model, tmp_path / "run"), env=ENV)
    assert (result.step, result.exit_status) == (1, 143)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("place", ["outside", "inside"])
def test_timeout_sends_every_signal_twice_and_lost_the_step(
    model,  # noqa: F811
    tmp_path,
    monkeypatch,
    number,
    place,
):
    """`timeout` signals its child and at the same instant the group the child is in."""
    save, owner, name = Checkpoints.save, *((Run, "collect"), (Updater, "step"))[place == "inside"]
    call = getattr(owner, name)

    def signalled(self, *arguments, **options):
        signal.raise_signal(number)
        signal.raise_signal(number)
        return call(self, *arguments, **options)

    def echoed(self, *arguments, **options):
        signal.raise_signal(number)
        return save(self, *arguments, **options)

    monkeypatch.setattr(owner, name, signalled)
    monkeypatch.setattr(Checkpoints, "save", echoed)
    result = train(config(model, tmp_path / "run"), env=ENV)
    assert (result.finished, result.exit_status) == (False, 128 + number)
    assert Checkpoints(tmp_path / "run", keep=1).steps() == [int(place == "inside")]


def test_a_second_interrupt_much_later_ends_a_save(model, tmp_path, monkeypatch, capsys):  # noqa: F811
    save = Checkpoints.save

    def interrupted(self, step, *arguments, **options):
        if step == 3:
            monkeypatch.setattr("sdpo.signals.ECHO_S", -1.0)
            signal.raise_signal(signal.SIGINT)
        return save(self, step, *arguments, **options)

    def stop(row):
        if row["step"] == 3:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", interrupted)
        result = train(config(model, tmp_path / "run"), env=ENV, on_step=stop)
    assert (result.finished, result.exit_status) == (False, 130)
    assert "continues from the last checkpoint" in " ".join(capsys.readouterr().out.split())
    assert Checkpoints(tmp_path / "run", keep=1).steps() == [2]
    assert ECHO_S > 0


def test_sigusr1_ended_the_run_instead_of_saving_it(model, tmp_path, monkeypatch):  # noqa: F811
    train(config(model, tmp_path / "whole"), env=ENV)
    saves, save = [], Checkpoints.save

    def noted(self, step, *arguments, **options):
        saves.append(step)
        return save(self, step, *arguments, **options)

    def ask(row):
        if row["step"] in (1, 2):
            signal.raise_signal(signal.SIGUSR1)

    monkeypatch.setattr(Checkpoints, "save", noted)
    assert train(config(model, tmp_path / "run"), env=ENV, on_step=ask).finished
    assert saves == [1, 2, 4], "step 2 is saved on schedule and not again"
    assert rows(tmp_path / "run") == rows(tmp_path / "whole")
    assert signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL


def test_an_interrupt_in_an_evaluation_does_not_wait_for_its_end(model, tmp_path, monkeypatch):  # noqa: F811
    """An evaluation may take longer than a scheduler's grace; the step before it is saved."""
    train(config(model, tmp_path / "whole"), env=ENV)
    collect, calls = Collector.collect, []

    def terminated(self, *arguments, **options):
        calls.append(1)
        if len(calls) == 4:  # an evaluation, two steps, and the evaluation after them
            signal.raise_signal(signal.SIGTERM)
        return collect(self, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Collector, "collect", terminated)
        result = train(config(model, tmp_path / "run"), env=ENV)
    assert (result.step, result.exit_status) == (2, 143)
    assert Checkpoints(tmp_path / "run", keep=1).steps() == [2]
    assert len(rows(tmp_path / "run")) == 2, "the row of step 2 waits for its evaluation"
    assert train(config(model, tmp_path / "run"), env=ENV).finished
    assert rows(tmp_path / "run") == rows(tmp_path / "whole")


def test_a_signal_before_the_first_step_is_no_traceback(model, tmp_path, monkeypatch):  # noqa: F811
    def terminated(*arguments, **options):
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr("sdpo.training.opening.check_tasks", terminated)
    monkeypatch.setattr("sdpo.training.opening.check_objective", terminated)
    result = train(config(model, tmp_path / "run"), env=ENV)
    assert (result.finished, result.step, result.exit_status) == (False, 0, 143)


def test_sigterm_ends_a_search_and_says_what_is_finished(model_dir, tmp_path):  # noqa: F811
    whole = discover_tasks(settings(model_dir, tmp_path / "whole"), world())

    def ask(results, line):
        signal.raise_signal(signal.SIGUSR1)
        if len(results) == 5:
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGTERM)

    config = settings(model_dir, tmp_path / "cut")
    with pytest.raises(Terminated, match="5 searches are finished; the same command continues"):
        discover_tasks(config, world(), progress=ask)
    resumed = discover_tasks(config, world())
    assert [r.solved for r in resumed] == [r.solved for r in whole]


@pytest.mark.parametrize(("stop", "status"), [(KeyboardInterrupt, 130), (Terminated, 143)])
def test_a_command_that_a_signal_ends_exits_as_a_shell_expects(monkeypatch, capsys, stop, status):
    def interrupted(*arguments, **options):
        raise stop("interrupted: 2 searches are finished")

    monkeypatch.setattr("sdpo.discovery.run.discover_tasks", interrupted)
    assert cli(["discover", "hard-task"]) == status
    assert "2 searches are finished" in capsys.readouterr().err
