"""What training shows in TensorBoard."""

import threading

import numpy as np
import pytest
import torch
from tiny import TinyNetwork, random_batch

from dada.config import cfg, cfg_from_list
from dada.domain_adaptation.association_term import association_term
from dada.domain_adaptation.step import Notes, Step
from dada.label_sets import label_set
from dada.normalization import TORCHVISION_RGB
from dada.training import drawing as log_figures
from dada.training.monitor import Monitor


class CountingNetwork(TinyNetwork):
    calls = 0

    def forward(self, image):
        self.calls += 1
        return super().forward(image)


@pytest.fixture
def step():
    step = Step(CountingNetwork(16), random_batch(seed=1), random_batch(seed=2))
    _ = step.source_outputs  # computed, as the losses leave it
    return step


def optimizer():
    parameters = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    return torch.optim.SGD([{"params": p, "lr": lr} for p, lr in zip(parameters, (0.1, 0.5))])


def events(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(folder)).Reload()


def test_scalars_carry_loss_names_and_the_rate_of_every_group(tmp_path):
    with Monitor(tmp_path / "logs", cfg, TORCHVISION_RGB, label_set(16)) as monitor:
        for iteration in (0, 1):
            monitor.scalars(iteration, {"loss_x": 2.0 + iteration}, optimizer())
    written = events(tmp_path / "logs")
    assert set(written.Tags()["scalars"]) == {"data/loss_x", "lr/group_0", "lr/group_1"}
    assert [(e.step, e.value) for e in written.Scalars("data/loss_x")] == [(0, 2.0), (1, 3.0)]
    assert written.Scalars("lr/group_1")[0].value == 0.5


def test_pictures_come_once_a_period_of_what_is_computed_already(tmp_path, step):
    cfg_from_list(["TRAIN.TENSORBOARD_VIZRATE=2"])
    with Monitor(tmp_path / "logs", cfg, TORCHVISION_RGB, label_set(16)) as monitor:
        for iteration in range(4):
            monitor.pictures(iteration, step, Notes())
    assert step._network.calls == 1  # drawing runs no network, which would move batch norm
    written = events(tmp_path / "logs")
    assert set(written.Tags()["images"]) == {"Image - S", "Prediction - S", "Entropy - S", "Confusion - S"}
    assert written.Tags()["histograms"] == ["Confidence - S"]
    assert [e.step for e in written.Images("Image - S")] == [1, 3]


def test_pictures_of_both_domains_where_both_are_computed(tmp_path, step):
    cfg_from_list(["TRAIN.TENSORBOARD_VIZRATE=1"])
    _ = step.target_outputs
    with Monitor(tmp_path / "logs", cfg, TORCHVISION_RGB, label_set(16)) as monitor:
        monitor.pictures(0, step, Notes())
    assert {"Image - T", "Prediction - T", "Entropy - T"} < set(events(tmp_path / "logs").Tags()["images"])


def test_followed_cycles_are_drawn(tmp_path, step):
    _ = step.target_outputs
    notes = association_term("fass", 16, aggregate=True, alpha=0.5)(step).notes
    calls = step._network.calls
    cfg_from_list(["TRAIN.TENSORBOARD_VIZRATE=1"])
    with Monitor(tmp_path / "logs", cfg, TORCHVISION_RGB, label_set(16)) as monitor:
        monitor.pictures(0, step, notes)
    assert step._network.calls == calls
    written = events(tmp_path / "logs")
    assert [tag for tag in written.Tags()["images"] if "Cycles" in tag] == ["Cycles - fass"]
    image = written.Images("Cycles - fass")[0]
    assert image.width > image.height > 100


def test_pictures_are_drawn_beside_the_training_and_all_are_there_at_its_end(tmp_path, step, monkeypatch):
    threads = []
    blank = np.zeros((2, 2, 3), np.uint8)
    monkeypatch.setattr(log_figures, "as_pixels", lambda figure: threads.append(threading.current_thread()) or blank)
    cfg_from_list(["TRAIN.TENSORBOARD_VIZRATE=1"])
    with Monitor(tmp_path / "logs", cfg, TORCHVISION_RGB, label_set(16)) as monitor:
        for iteration in range(10):  # more than may wait
            monitor.pictures(iteration, step, Notes())
    assert [e.step for e in events(tmp_path / "logs").Images("Confusion - S")][-1] == 9
    assert len(threads) == 10 and threading.main_thread() not in threads


def test_a_picture_that_cannot_be_drawn_does_not_end_the_run(tmp_path, step, monkeypatch, caplog):
    monkeypatch.setattr(log_figures, "as_pixels", lambda figure: 1 / 0)
    cfg_from_list(["TRAIN.TENSORBOARD_VIZRATE=1"])
    with Monitor(tmp_path / "logs", cfg, TORCHVISION_RGB, label_set(16)) as monitor:
        monitor.pictures(3, step, Notes())
    assert "picture 'Confusion - S' of iteration 3 could not be drawn" in caplog.text


def test_without_folder_nothing_is_written(tmp_path, monkeypatch, step):
    monkeypatch.chdir(tmp_path)
    cfg_from_list(["TRAIN.TENSORBOARD_VIZRATE=1"])
    with Monitor(None, cfg, TORCHVISION_RGB, label_set(16)) as monitor:
        monitor.scalars(0, {"loss_x": 1.0}, optimizer())
        monitor.pictures(0, step, Notes())
    assert list(tmp_path.iterdir()) == []


def test_the_folder_appears_with_the_first_thing_written(tmp_path):
    with Monitor(tmp_path / "logs", cfg, TORCHVISION_RGB, label_set(16)):
        assert not (tmp_path / "logs").exists()
    assert not (tmp_path / "logs").exists()


def test_what_terms_note_for_each_class_is_shown_by_name_but_not_for_classes_that_are_absent(tmp_path, step):
    rates = torch.full((16,), torch.nan)
    rates[[0, 10]] = torch.tensor([0.5, 0.25])
    with Monitor(tmp_path / "logs", cfg, TORCHVISION_RGB, label_set(16)) as monitor:
        for iteration in range(cfg.TRAIN.TENSORBOARD_VIZRATE):
            monitor.by_class(iteration, step, Notes(by_class={"fass/closed": rates}))
    written = events(tmp_path / "logs")
    names = label_set(16).names
    closed = {tag: written.Scalars(tag)[0].value for tag in written.Tags()["scalars"] if "fass/closed" in tag}
    assert closed == {f"classes/fass/closed/{names[0]}": 0.5, f"classes/fass/closed/{names[10]}": 0.25}
    predicted = [written.Scalars(f"classes/source/predicted/{name}")[0].value for name in names]
    assert sum(predicted) == pytest.approx(1)
