"""Detectron2's DefaultTrainer for SSD."""

import logging
import os
import sys
import weakref
from typing import Dict, List, Optional

import torch
from detectron2.config import CfgNode
from detectron2.data import (
    MetadataCatalog,
    build_detection_test_loader,
)
from detectron2.engine import AMPTrainer, DefaultTrainer, HookBase, SimpleTrainer, hooks
from detectron2.engine.train_loop import TrainerBase
from detectron2.evaluation import (
    COCOEvaluator,
    DatasetEvaluator,
    DatasetEvaluators,
    LVISEvaluator,
)
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ..checkpoint import SSDCheckpointer
from ..data import SSDDatasetMapper, build_train_loader, report_skipped
from ..data.datasets import dataset_errors
from ..errors import InputError
from ..evaluation import VOCEvaluator
from .ema import EMAHook, ModelEMA, merge_results
from .hooks import PeriodicCheckpointer

logger = logging.getLogger(__name__)


class SSDTrainer(DefaultTrainer):
    """DefaultTrainer with SSD's mapper, evaluators and checkpointer, on CPU processes too."""

    def __init__(self, cfg: CfgNode):
        """As the parent's, whose data-parallel wrapper works on GPUs only.

        Raises:
            InputError: the config asks for what this machine cannot do.
        """
        TrainerBase.__init__(self)
        if cfg.SOLVER.AMP.ENABLED and not torch.cuda.is_available():
            raise InputError("SOLVER.AMP.ENABLED needs CUDA; set it to False on this machine")
        if not logging.getLogger("detectron2").isEnabledFor(logging.INFO):
            setup_logger()
        cfg = self.auto_scale_workers(cfg, comm.get_world_size())
        model = self.build_model(cfg)
        self.ema = ModelEMA(model, cfg.MODEL.EMA.DECAY) if cfg.MODEL.EMA.ENABLED else None
        optimizer = self.build_optimizer(cfg, model)
        data_loader = self.build_train_loader(cfg)
        model = data_parallel(model)
        trainer_class = AMPTrainer if cfg.SOLVER.AMP.ENABLED else SimpleTrainer
        self._trainer = trainer_class(model, data_loader, optimizer)
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = self.build_checkpointer(
            cfg, model, cfg.OUTPUT_DIR, trainer=weakref.proxy(self), **self._averaged()
        )
        self.start_iter = 0
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.cfg = cfg
        self.register_hooks(self.build_hooks())

    def _averaged(self) -> Dict[str, ModelEMA]:
        return {"ema": self.ema} if self.ema else {}

    def build_hooks(self) -> List[HookBase]:
        """The parent's, with the averaged weights updated, saved and evaluated."""
        built = super().build_hooks()
        if self.ema is None:
            return built
        final = self.ema.module if self.cfg.MODEL.EMA.FINAL else None
        period = self.cfg.SOLVER.CHECKPOINT_PERIOD
        for i, hook in enumerate(built):
            if isinstance(hook, hooks.PeriodicCheckpointer):
                built[i] = PeriodicCheckpointer(self.checkpointer, period, final)
            elif isinstance(hook, hooks.EvalHook):
                built[i] = hooks.EvalHook(self.cfg.TEST.EVAL_PERIOD, self.evaluate)
        return [built[0], EMAHook(self.ema, self.model), *built[1:]]

    def evaluate(self) -> Dict:
        """Results on DATASETS.TEST of the weights and of their average, as far as there is one."""
        self._last_eval_results = self.test_averaged(self.cfg, self.model, self.ema)
        return self._last_eval_results

    @classmethod
    def test_averaged(cls, cfg: CfgNode, model: nn.Module, ema: Optional[ModelEMA]) -> Dict:
        """``test`` of a model and of its average, whose tasks are called ``<task>_EMA``."""
        results = cls.test(cfg, model)
        if ema is None:
            return results
        logger.info("Evaluating the moving average of the weights (EMA)")
        return merge_results(results, cls.test(cfg, ema.module))

    @classmethod
    def evaluate_only(cls, cfg: CfgNode, resume: bool = False) -> Dict:
        """Results of MODEL.WEIGHTS, or of the last checkpoint of OUTPUT_DIR, without training.

        With MODEL.EMA.ENABLED also those of the average that the file has.
        """
        model = cls.build_model(cfg)
        averaged = {"ema": ModelEMA(model)} if cfg.MODEL.EMA.ENABLED else {}
        checkpointer = cls.build_checkpointer(cfg, model, cfg.OUTPUT_DIR, **averaged)
        last = resume and checkpointer.has_checkpoint()
        checkpointer.load(checkpointer.get_checkpoint_file() if last else cfg.MODEL.WEIGHTS)
        ema = averaged.get("ema")
        return cls.test_averaged(cfg, model, ema if ema and ema.n_averaged else None)

    def run_step(self) -> None:
        try:
            super().run_step()
        except InputError as error:
            # A bad file is the user's to mend: one line, not the traceback of the training loop.
            sys.exit(f"error: {error}")

    def after_train(self) -> None:
        super().after_train()
        if self.cfg.INPUT.ON_BAD_IMAGE == "skip" and comm.is_main_process():
            report_skipped(self.cfg.OUTPUT_DIR)

    @classmethod
    def build_checkpointer(cls, cfg: CfgNode, model: nn.Module, *args, **kwargs) -> SSDCheckpointer:
        reinit = cfg.MODEL.SSD.REINIT_HEAD_ON_MISMATCH
        return SSDCheckpointer(model, *args, reinit_head=reinit, **kwargs)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode):
        return build_train_loader(cfg)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str):
        mapper = SSDDatasetMapper(cfg, is_train=False)
        with dataset_errors((dataset_name,)):
            return build_detection_test_loader(cfg, dataset_name, mapper=mapper)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
        """COCO's metrics, and besides VOC's for sets of its 20 classes; LVIS's for LVIS."""
        folder = os.path.join(cfg.OUTPUT_DIR, "inference")
        kind = MetadataCatalog.get(dataset_name).get("evaluator_type")
        if kind == "lvis":
            with dataset_errors((dataset_name,)):
                return LVISEvaluator(dataset_name, ("bbox",), output_dir=folder)
        with dataset_errors((dataset_name,)):
            coco = COCOEvaluator(
                dataset_name, ("bbox",), output_dir=folder, allow_cached_coco=False
            )
        if kind != "pascal_voc":
            return coco
        return DatasetEvaluators([coco, VOCEvaluator(dataset_name)])


def data_parallel(model: nn.Module) -> nn.Module:
    """The model in DistributedDataParallel when the job has several processes."""
    if comm.get_world_size() == 1:
        return model
    on_gpu = next(model.parameters()).is_cuda
    return DistributedDataParallel(
        model,
        device_ids=[comm.get_local_rank()] if on_gpu else None,
        broadcast_buffers=False,
    )
