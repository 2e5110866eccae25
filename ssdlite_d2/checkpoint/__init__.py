from .checkpointer import SSDCheckpointer, numbered_checkpoints
from .identity import identity_of
from .reading import read_weights
from .timm_weights import PackageHandler, TimmHandler
from .torchvision_weights import TorchvisionHandler
from .zoo import ZOO, ZooHandler

__all__ = [
    "ZOO",
    "PackageHandler",
    "SSDCheckpointer",
    "TimmHandler",
    "TorchvisionHandler",
    "ZooHandler",
    "identity_of",
    "numbered_checkpoints",
    "read_weights",
]
