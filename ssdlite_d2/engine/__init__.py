from .launch import run_main
from .setup import setup
from .trainer import SSDTrainer

__all__ = ["SSDTrainer", "run_main", "setup"]
