from .launch import run_main
from .predictor import build_predictor
from .setup import finish_config, setup
from .trainer import SSDTrainer

__all__ = ["SSDTrainer", "build_predictor", "finish_config", "run_main", "setup"]
