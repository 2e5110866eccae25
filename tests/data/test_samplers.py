"""The stream of training samples."""

import random

import numpy as np
import torch
from detectron2.data.samplers import TrainingSampler
from torch.utils.data import DataLoader

from ssdlite_d2.data.samplers import TrainingStream


class Draws:
    """Ten samples, each with what the three generators give."""

    def __len__(self):
        return 10

    def __getitem__(self, index):
        return index, random.random(), np.random.uniform(), torch.rand(()).item()


def stream(position=0, rank=0, world=1, seed=7):
    sampler = TrainingSampler(10, seed=0)
    sampler._rank, sampler._world_size = rank, world
    made = TrainingStream(Draws(), sampler, batch_size=2, seed=seed)
    made.position, made._rank, made._world = position, rank, world
    return made


def take(dataset, batches, workers=0):
    loader = DataLoader(dataset, batch_size=2, num_workers=workers, collate_fn=list)
    return [batch for batch, _ in zip(loader, range(batches))]


def test_batches_are_the_same_with_any_number_of_workers():
    alone = take(stream(), 12)
    assert take(stream(), 12, workers=2) == alone
    assert len({draw for batch in alone for _, draw, _, _ in batch}) == 24  # no draw comes twice


def test_stream_goes_on_at_its_position():
    assert take(stream(position=14), 5, workers=2) == take(stream(), 12)[7:]


def test_processes_share_the_samples_of_one():
    alone = take(stream(), 6)
    two = [take(stream(rank=rank, world=2), 3) for rank in range(2)]
    for i in range(3):
        together = sorted(two[0][i] + two[1][i])
        assert together == sorted(alone[2 * i] + alone[2 * i + 1])


def test_another_seed_draws_another_order():
    order = [[index for batch in take(stream(seed=s), 5) for index, *_ in batch] for s in (1, 2)]
    assert sorted(order[0]) == sorted(order[1]) == list(range(10))
    assert order[0] != order[1]
