from .checkpointer import SSDCheckpointer
from .torchvision_weights import TorchvisionHandler

__all__ = ["SSDCheckpointer", "TorchvisionHandler"]
