"""What a run says of how far it is."""

import io
import logging
import re
import sys

import pytest

from dada.training.progress import Progress

VALUES = {"loss": 2.3456, "loss_fass": 5.0, "fass/closed": 0.625, "fass/covered": 0.25, "loss_seg_src_main": 1.0}


class Terminal(io.StringIO):
    def isatty(self):
        return True


def terminal(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("COLUMNS", "200")
    return sys.stderr


@pytest.mark.parametrize("name, stop", [("a_name_that_is_much_longer_than_any_bar_could_hold_seed1", 90000), ("demo_seed1", 300)])
def test_the_bar_fits_80_columns_and_says_loss_closed_covered_rate_and_time_left(monkeypatch, caplog, name, stop):
    shown = terminal(monkeypatch)
    with Progress(name, 0, stop) as progress:
        progress._bar.mininterval = 0
        for done in range(1, 4):
            progress.show(done, VALUES)
    lines = re.split(r"[\r\n]+", shown.getvalue().strip())
    assert max(map(len, lines)) < 80 and caplog.text == ""
    assert re.search(rf"seed1 3/{stop} .*loss 2.35 closed 62% covered 25% .*(it/s|s/it) [\d:]+ left$", lines[-1])


@pytest.mark.parametrize("stop, told", [(25, [10, 20, 25]), (2000, [100, 200])])
def test_redirected_output_is_a_line_now_and_then(monkeypatch, caplog, stop, told):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with caplog.at_level(logging.INFO), Progress("run", 0, stop) as progress:
        for done in range(1, min(stop, 250) + 1):
            progress.show(done, {"loss": 1.5})
    assert sys.stderr.getvalue() == ""
    assert [record.getMessage().split(":")[0] for record in caplog.records] == [f"run {done} of {stop}" for done in told]
    assert "loss 1.5, 0.00 s/it, 00:00 left" in caplog.text


def test_processes_that_are_told_to_be_quiet_say_nothing(monkeypatch, caplog):
    shown = terminal(monkeypatch)
    with caplog.at_level(logging.INFO), Progress("run", 0, 10, quiet=True) as progress:
        progress.show(10, VALUES)
    assert shown.getvalue() == "" and caplog.text == ""
