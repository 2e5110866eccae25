"""The endless stream of training samples, which a run can take up again at any place."""

import itertools
import math
import random
from typing import Iterator

import numpy as np
import torch
from detectron2.utils import comm
from torch.utils.data import Dataset, IterableDataset, Sampler, get_worker_info


class TrainingStream(IterableDataset):
    """Samples in the order of a sampler, each with random draws of its own.

    Which sample is the n-th of the job, and how it is augmented, follow from the seed and n alone:
    not from the number of processes or loader workers, nor from where the run was stopped and taken
    up again.

    Takes the place of Detectron2's ToIterableDataset, with the samplers of Detectron2.

    Attributes:
        seed: of the order and of the draws.
        position: samples that the whole job has taken before the first one of this stream.
    """

    def __init__(self, dataset: Dataset, sampler: Sampler, batch_size: int, seed: int):
        """
        Args:
            dataset: with an item for each index; its randomness comes from the global generators
                of ``random``, numpy and torch.
            sampler: one of Detectron2's: endless, and for this process every n-th index of the job.
            batch_size: of this process; a loader worker makes whole batches.
        """
        self.dataset = dataset
        self.sampler = sampler
        self.batch_size = batch_size
        self.position = 0
        self.seed = seed
        self._rank, self._world = comm.get_rank(), comm.get_world_size()

    @property
    def seed(self) -> int:
        return self._seed

    @seed.setter
    def seed(self, seed: int) -> None:
        self._seed = self.sampler._seed = seed

    def __iter__(self) -> Iterator:
        worker = get_worker_info()
        number, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        first = math.ceil(self.position / self._world)
        for n, index in itertools.islice(enumerate(self.sampler), first, None):
            if (n - first) // self.batch_size % workers == number:
                seed_generators(self.seed, n * self._world + self._rank)
                yield self.dataset[index]


def seed_generators(*words: int) -> None:
    """Seed the generators of ``random``, numpy and torch with numbers from 0 to 2^64 - 1."""
    state = np.random.SeedSequence(words).generate_state(4)  # 32 bits each
    random.seed(int(state[0]))
    np.random.seed(state[1])
    torch.manual_seed(int(state[2]) << 32 | int(state[3]))
