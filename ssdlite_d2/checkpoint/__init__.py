from .checkpointer import SSDCheckpointer, numbered_checkpoints
from .reading import read_weights
from .torchvision_weights import TorchvisionHandler

__all__ = ["SSDCheckpointer", "TorchvisionHandler", "numbered_checkpoints", "read_weights"]
