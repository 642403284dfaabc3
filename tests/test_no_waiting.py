"""What a training step computes never has the host wait for a GPU: nothing asks for a value.

Tensors on the device "meta" have shapes and no values. Whoever asks for one is refused, so that a step which passes there asks
for none. It needs no compiler, and sees less than test_fake_cuda.py: neither copies to the device nor what happens inside the
project's own operators.
"""

import numpy as np
import pytest
import torch
from tiny import random_batch, trainer_without_values

from dada.dataset import SegmentationDataset
from dada.domain_adaptation import losses
from dada.domain_adaptation.objectives import METHODS
from dada.label_sets import label_set

META = torch.device("meta")


@pytest.mark.parametrize("question", [lambda x: bool(x.any()), lambda x: x.tolist(), lambda x: x.nonzero(), torch.unique])
def test_the_stand_in_for_a_gpu_refuses_to_tell_values(question):
    with pytest.raises((RuntimeError, NotImplementedError)):
        question(torch.zeros(3, device=META))


@pytest.mark.parametrize("method", METHODS)
def test_no_term_of_any_method_asks_for_a_value(method, monkeypatch):
    trainer = trainer_without_values(method, monkeypatch)
    step = trainer.step(random_batch(num_classes=7).to(META), random_batch(num_classes=7, seed=1).to(META))
    trainer.backward(step, 0, check=False)
    for moved in trainer.optimizers:
        moved.step()


# ---- what the losses do instead


@pytest.mark.parametrize("seen", [(), (3,), (0, 1, 4), (0, 1, 2, 3, 4)])
def test_lovasz_is_the_same_where_it_does_not_ask_which_classes_there_are(seen, monkeypatch):
    labels = torch.full((2, 6, 7), 255)
    for number, k in enumerate(seen):
        labels[:, number] = k

    def value_and_gradient():
        logits = torch.randn(2, 5, 6, 7, generator=torch.Generator().manual_seed(0)).requires_grad_()
        loss = losses.lovasz_softmax(logits.softmax(dim=1), labels)
        loss.backward()
        return torch.cat([loss.detach()[None], logits.grad.flatten()])

    wanted = value_and_gradient()
    monkeypatch.setattr(losses, "_host_knows", lambda x: False)
    torch.testing.assert_close(value_and_gradient(), wanted)
    assert len(seen) == 0 or wanted.abs().sum() > 0


def test_what_the_losses_do_not_check_there_every_dataset_has_checked():
    id_map = np.full(256, 255, dtype=np.uint8)
    id_map[[7, 8]] = 0, 16
    with pytest.raises(ValueError, match="id map gives train ids 16, but there are 16 classes; expected 0 to 15"):
        SegmentationDataset("X", [], classes=label_set(16), id_map=id_map, defined_ids=id_map < 255, transform=None)
