"""Reordering the output channels of predictors: channel = anchor * columns + column."""

from typing import Sequence

from torch import Tensor


def take_columns(value: Tensor, columns: int, order: Sequence[int]) -> Tensor:
    """Keep and order the columns (classes or box coordinates) of every anchor's outputs.

    Args:
        value: (A * columns, ...) weight or bias.
        order: columns of the source, in the order of the result.

    Returns:
        (A * len(order), ...).
    """
    per_anchor = value.reshape(-1, columns, *value.shape[1:])
    return per_anchor[:, list(order)].reshape(-1, *value.shape[1:])


def background_last(num_classes: int) -> Sequence[int]:
    """Order that moves column 0, the background, behind the K classes."""
    return [*range(1, num_classes + 1), 0]
