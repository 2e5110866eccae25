"""Detectron2's DefaultTrainer for SSD."""

import logging
import os
import sys
import weakref

import torch
from detectron2.config import CfgNode
from detectron2.data import (
    MetadataCatalog,
    build_detection_test_loader,
)
from detectron2.engine import AMPTrainer, DefaultTrainer, SimpleTrainer
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
        optimizer = self.build_optimizer(cfg, model)
        data_loader = self.build_train_loader(cfg)
        model = data_parallel(model)
        trainer_class = AMPTrainer if cfg.SOLVER.AMP.ENABLED else SimpleTrainer
        self._trainer = trainer_class(model, data_loader, optimizer)
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = self.build_checkpointer(
            cfg, model, cfg.OUTPUT_DIR, trainer=weakref.proxy(self)
        )
        self.start_iter = 0
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.cfg = cfg
        self.register_hooks(self.build_hooks())

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
