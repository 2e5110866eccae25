from .checkpointer import SSDCheckpointer, numbered_checkpoints
from .torchvision_weights import TorchvisionHandler

__all__ = ["SSDCheckpointer", "TorchvisionHandler", "numbered_checkpoints"]
