from collections import Counter

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from dada.dataset.sample import Sample, collate
from dada.dataset.sampler import Draw, StepSampler, mixed_seed, seeded, step_loader


class Noise(Dataset):
    """Each sample is its draw and one random number, as an augmentation would take it."""

    def __len__(self):
        return 5

    def __getitem__(self, draw):
        with seeded(3, *draw):
            image = torch.rand(3, 2, 2)
        return Sample(image, None, None, str(tuple(draw)), (2, 2))


def test_a_resumed_run_draws_what_the_uninterrupted_one_draws():
    whole = list(StepSampler(7, 3, seed=5, stop_step=40))
    assert len(whole) == 40
    for start in (1, 2, 13, 39, 40):
        resumed = StepSampler(7, 3, seed=5, start_step=start, stop_step=40)
        assert list(resumed) == whole[start:]
        assert len(resumed) == 40 - start


@pytest.mark.parametrize("batch_size", [1, 3, 20])
def test_every_sample_passes_once_an_epoch(batch_size):
    draws = [draw for batch in StepSampler(7, batch_size, seed=1, stop_step=70) for draw in batch]
    orders = [tuple(draw.index for draw in draws[at : at + 7]) for at in range(0, len(draws) - 6, 7)]
    assert all(sorted(order) == list(range(7)) for order in orders)
    assert len(set(orders)) > len(orders) // 2  # a new order each epoch


def test_draws_carry_their_step_and_slot():
    batches = list(StepSampler(4, 2, seed=1, start_step=3, stop_step=5))
    assert [[(draw.step, draw.slot) for draw in batch] for batch in batches] == [[(3, 0), (3, 1)], [(4, 0), (4, 1)]]


def test_order_follows_seed_and_stream_and_nothing_else():
    def order(seed, stream):
        return [draw.index for batch in StepSampler(50, 1, seed, stop_step=50, stream=stream) for draw in batch]

    first = order(1, "source")
    torch.manual_seed(99)
    assert order(1, "source") == first
    assert order(2, "source") != first
    assert order(1, "target") != first


def test_first_draws_are_spread_evenly_over_the_samples():
    first = Counter(next(iter(StepSampler(4, 1, seed, stop_step=1)))[0].index for seed in range(400))
    assert all(60 <= first[index] <= 140 for index in range(4))


def test_seeded_leaves_the_global_generator_as_it_was():
    torch.manual_seed(0)
    want = torch.rand(3)
    torch.manual_seed(0)
    with seeded(1, 2):
        inside = torch.rand(3)
    torch.testing.assert_close(torch.rand(3), want, rtol=0, atol=0)
    with seeded(1, 2):
        assert torch.equal(torch.rand(3), inside)
    with pytest.raises(RuntimeError), seeded(1):
        raise RuntimeError
    torch.manual_seed(0)
    assert torch.equal(torch.rand(3), want)


def test_mixed_seeds_of_neighbouring_numbers_differ():
    seeds = {mixed_seed(a, name, b) for a in range(20) for b in range(20) for name in ("source", "target")}
    assert len(seeds) == 800
    assert mixed_seed(-1) == mixed_seed(-1)


def test_batches_are_the_same_with_and_without_workers():
    def batches(num_workers):
        return list(step_loader(Noise(), 2, seed=4, start_step=1, stop_step=7, num_workers=num_workers))

    alone, with_workers = batches(0), batches(2)
    assert [batch.name for batch in alone] == [batch.name for batch in with_workers]
    assert all(torch.equal(a.image, b.image) for a, b in zip(alone, with_workers))
    assert alone[0].image.shape == (2, 3, 2, 2)


def test_a_loader_takes_nothing_from_the_global_generator():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    list(step_loader(Noise(), 2, seed=4, stop_step=2))
    assert torch.equal(torch.get_rng_state(), before)


def test_one_sample_augmented_at_two_steps_differs():
    dataset = Noise()
    assert not torch.equal(dataset[Draw(0, 0, 0)].image, dataset[Draw(0, 1, 0)].image)


def sample(name="a", size=(2, 3), label=True):
    return Sample(torch.zeros(3, *size), torch.zeros(size, dtype=torch.int64) if label else None, None, name, size)


def test_collate_stacks_and_keeps_none():
    batch = collate([sample("a"), sample("b")])
    assert batch.image.shape == (2, 3, 2, 3) and batch.label.shape == (2, 2, 3)
    assert batch.depth is None and batch.view is None
    assert batch.name == ["a", "b"] and batch.size == [(2, 3), (2, 3)]
    assert batch.to("cpu").name == ["a", "b"]
    assert batch.to("meta").label.device.type == "meta"


def test_collate_names_what_does_not_fit():
    with pytest.raises(ValueError, match=r"a \(3, 2, 3\), b \(3, 4, 3\).*crop"):
        collate([sample("a"), sample("b", (4, 3))])
    with pytest.raises(ValueError, match="1 of 2 samples.*no label.*'b'"):
        collate([sample("a"), sample("b", label=False)])


def test_default_loader_order_works_on_plain_indices():
    names = [batch.name for batch in DataLoader([sample("a"), sample("b")], batch_size=1, collate_fn=collate)]
    assert names == [["a"], ["b"]]
