"""Detectron2's DefaultTrainer for SSD."""

import contextlib
import logging
import os
import signal
import sys
import weakref
from typing import Any, Dict, List, Optional

import torch
from detectron2.config import CfgNode
from detectron2.data import (
    MetadataCatalog,
    build_detection_test_loader,
)
from detectron2.engine import DefaultTrainer, HookBase, hooks
from detectron2.engine.train_loop import TrainerBase
from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators, LVISEvaluator
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger
from fvcore.nn.precise_bn import get_bn_modules
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from ..checkpoint import SSDCheckpointer, identity_of
from ..data import SSDDatasetMapper, build_train_loader, report_skipped
from ..data.collate import Batch
from ..data.datasets import dataset_errors
from ..data.reader import image_reader
from ..data.workers import outlive_signals
from ..errors import InputError
from ..evaluation import BoxEvaluator, VOCEvaluator, merge_results, report_results
from ..modeling.inference.fused import for_inference
from ..modeling.inference.rounding import round_convolutions
from ..provenance import made_with
from .config_checks import check_batch
from .ema import EMAHook, ModelEMA
from .guards import INTERRUPTED, NonFiniteGuard, StopSignal, WorkerDied, failures_reported
from .hooks import (
    BestCheckpointer,
    EarlyStop,
    OperatingHook,
    PatienceHook,
    PeriodicCheckpointer,
    PreciseBN,
    StopHook,
    checkpoint_name,
    metric_of,
    of_average,
)
from .memory import keep_freed_memory
from .output_dir import lock_folder, set_aside
from .solver import amp_dtype, build_optimizer, check_optimizer_state
from .train_loop import TrainLoop
from .visuals import PlotHook, PreviewHook

logger = logging.getLogger(__name__)


class SSDTrainer(DefaultTrainer):
    """DefaultTrainer with SSD's data, solver, evaluators and checkpoints, on CPU processes too.

    A run that was stopped, at whatever moment, and resumed is the run that was not.
    """

    def __init__(self, cfg: CfgNode):
        """As the parent's, whose data-parallel wrapper and mixed precision work on GPUs only.

        Raises:
            InputError: the config asks for what this machine cannot do.
        """
        TrainerBase.__init__(self)
        if not logging.getLogger("detectron2").isEnabledFor(logging.INFO):
            setup_logger()
        check_batch(cfg, comm.get_world_size())
        cfg = self.auto_scale_workers(cfg, comm.get_world_size())
        keep_freed_memory(cfg)
        model = self.build_model(cfg)
        self.ema = ModelEMA(model, cfg.MODEL.EMA.DECAY) if cfg.MODEL.EMA.ENABLED else None
        optimizer = self.build_optimizer(cfg, model)
        data_loader = self.build_train_loader(cfg)
        model = data_parallel(model)
        self._trainer = TrainLoop(
            model,
            data_loader,
            optimizer,
            guard=NonFiniteGuard(cfg.OUTPUT_DIR, cfg.SOLVER.MAX_SKIPPED_STEPS),
            accumulate=cfg.SOLVER.ACCUMULATE_STEPS,
            amp_dtype=amp_dtype(cfg),
        )
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        averaged = {"ema": self.ema} if self.ema else {}
        self.checkpointer = self.build_checkpointer(
            cfg, model, cfg.OUTPUT_DIR, trainer=weakref.proxy(self), **averaged
        )
        self.checkpointer.identity["images"] = len(data_loader.dataset.dataset)
        self.start_iter = 0
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.cfg = cfg
        self.stop = StopSignal()
        self.best: Optional[BestCheckpointer] = None  # the main process's
        self.register_hooks(self.build_hooks())

    def build_hooks(self) -> List[HookBase]:
        """The parent's in its order, those of ``hooks.py`` in their place."""
        cfg, main = self.cfg, comm.is_main_process()
        solver, period = cfg.SOLVER, cfg.TEST.EVAL_PERIOD
        ema, is_average = self.ema, bool(self.ema and cfg.MODEL.EMA.FINAL)
        checkpoints = PeriodicCheckpointer(
            self.checkpointer,
            solver.CHECKPOINT_PERIOD,
            solver.KEEP_CHECKPOINTS,
            ema.module if is_average else None,
        )
        built = [hooks.IterationTimer(), EMAHook(ema, self.model) if ema else None]
        built += [hooks.LRScheduler(), self._precise_bn()]
        built += [checkpoints if main else None, StopHook(self.stop, self._save_and_exit)]
        built += [hooks.EvalHook(period, self.evaluate)]
        final = OperatingHook(checkpoints, metric_of(cfg, is_average))
        if main:
            models = self._best_models()
            self.best = BestCheckpointer(period, self.checkpointer, models) if models else None
            built += [self.best, final, *self._main_hooks()]
        if solver.PATIENCE and period:
            save = final.save if main else None
            built.append(PatienceHook(period, solver.PATIENCE, self.best, save))
        return built

    def _best_models(self) -> Dict[str, nn.Module]:
        """The weights among which the best are looked for, by metric: as trained, and averaged."""
        metric, raw = self.cfg.SOLVER.BEST_METRIC, getattr(self.model, "module", self.model)
        if not metric or not self.ema:
            return {metric: raw} if metric else {}
        averaged = {of_average(metric): self.ema.module}
        return averaged if metric in averaged else {metric: raw, **averaged}

    def _main_hooks(self) -> List[HookBase]:
        """What only the main process does for people to see."""
        cfg = self.cfg
        built = []
        if cfg.TEST.PREVIEW_IMAGES and cfg.DATASETS.TEST:
            raw = getattr(self.model, "module", self.model)
            built.append(
                PreviewHook(
                    cfg.TEST.EVAL_PERIOD,
                    self.ema.module if self.ema else raw,
                    cfg.DATASETS.TEST,
                    cfg.TEST.PREVIEW_IMAGES,
                    cfg.INPUT.FORMAT,
                    metric_of(cfg, bool(self.ema)),
                    image_reader(cfg),
                )
            )
        writers = hooks.PeriodicWriter(self.build_writers(), period=20)
        return [*built, writers, PlotHook(cfg.OUTPUT_DIR)]

    def _precise_bn(self) -> Optional[HookBase]:
        node = self.cfg.TEST.PRECISE_BN
        if not (node.ENABLED and get_bn_modules(self.model)):
            return None
        cfg = self.cfg.clone()
        cfg.defrost()
        cfg.DATALOADER.NUM_WORKERS = 0  # as the parent
        loader = self.build_train_loader(cfg)
        return PreciseBN(self.cfg.TEST.EVAL_PERIOD, self.model, loader, node.NUM_ITER)

    def evaluate(self) -> Dict:
        """Results on DATASETS.TEST of the weights and of their average, as far as there is one."""
        self._last_eval_results = self.test_averaged(self.cfg, self.model, self.ema)
        return self._last_eval_results

    @classmethod
    def test_averaged(cls, cfg: CfgNode, model: nn.Module, ema: Optional[ModelEMA]) -> Dict:
        """``test`` of a model and of its average, whose tasks are called ``<task>_EMA``."""
        results = cls.test(cfg, model)
        if ema is not None:
            logger.info("Evaluating the moving average of the weights (EMA)")
            results = merge_results(results, cls.test(cfg, ema.module))
        if comm.is_main_process() and results:
            folder = os.path.join(cfg.OUTPUT_DIR, "inference")
            report_results(results, cfg.DATASETS.TEST, folder, made_with(cfg))
        return results

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
        ema = ema if ema and ema.n_averaged else None
        if ema:
            ema.module = for_inference(ema.module, cfg.MODEL.SSD.INFERENCE)
        return cls.test_averaged(cfg, for_inference(model, cfg.MODEL.SSD.INFERENCE), ema)

    def resume_or_load(self, resume: bool = True) -> None:
        """As the parent's.

        Raises:
            InputError: another run writes to OUTPUT_DIR, or the processes do not see the same
                checkpoint.
        """
        lock_folder(self.cfg.OUTPUT_DIR)
        super().resume_or_load(resume)
        starts = comm.all_gather(self.start_iter)
        if len(set(starts)) > 1:
            raise InputError(
                f"OUTPUT_DIR {self.cfg.OUTPUT_DIR} is not the same folder in all processes: they "
                f"would resume at iterations {sorted(set(starts))}"
            )

    def train(self):
        lock_folder(self.cfg.OUTPUT_DIR)
        if self.start_iter == 0:
            set_aside(self.cfg.OUTPUT_DIR)
        with self.stop.listening(), contextlib.suppress(EarlyStop):
            return super().train()

    def run_step(self) -> None:
        with failures_reported(self.cfg.OUTPUT_DIR):
            try:
                super().run_step()
            except WorkerDied:
                if not self.stop.received or comm.get_world_size() > 1:
                    raise
                self._save_and_exit(self.iter - 1, self.stop.received)

    def _save_and_exit(self, iteration: int, number: int) -> None:
        """End after an iteration as if it were the last that time allowed.

        Args:
            number: of the signal. Status 0 for SIGTERM, and 130 for Ctrl-C, as shells have it.
        """
        if iteration >= self.start_iter and comm.is_main_process():
            self.iter = iteration
            self.checkpointer.save(checkpoint_name(iteration), iteration=iteration)
        comm.synchronize()  # a launcher ends the others when the first one ends with another status
        name = signal.Signals(number).name
        logger.info(f"{name}: stopped after iteration {iteration}; --resume goes on from there")
        sys.exit(INTERRUPTED if number == signal.SIGINT else 0)

    def after_step(self) -> None:
        with failures_reported(self.cfg.OUTPUT_DIR):
            super().after_step()

    def after_train(self) -> None:
        if self.cfg.INPUT.ON_BAD_IMAGE == "skip" and comm.is_main_process():
            report_skipped(self.cfg.OUTPUT_DIR)  # before the last evaluation, which may fail
        with failures_reported(self.cfg.OUTPUT_DIR):
            super().after_train()

    def state_dict(self) -> Dict[str, Any]:
        stream = self.data_loader.dataset
        taken = (self.iter + 1 - self.start_iter) * self.cfg.SOLVER.IMS_PER_BATCH
        position = {"seed": stream.seed, "position": stream.position + taken}
        return {**super().state_dict(), "stream": position}

    def load_state_dict(self, state: Dict[str, Any]) -> None:
        """
        Raises:
            InputError: the optimizer's state is of another solver or of other trainable parameters.
        """
        check_optimizer_state(self.optimizer, state["_trainer"]["optimizer"])
        super().load_state_dict(state)
        stream, saved = self.data_loader.dataset, state["stream"]
        stream.seed, stream.position = saved["seed"], saved["position"]

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        model = super().build_model(cfg)
        if cfg.MODEL.SSD.QAT:
            round_convolutions(model)
        return model

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        return build_optimizer(cfg, model)

    @classmethod
    def build_checkpointer(cls, cfg: CfgNode, model: nn.Module, *args, **kwargs) -> SSDCheckpointer:
        reinit = cfg.MODEL.SSD.REINIT_HEAD_ON_MISMATCH
        identity = identity_of(cfg, model)
        return SSDCheckpointer(model, *args, reinit_head=reinit, identity=identity, **kwargs)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> DataLoader:
        return build_train_loader(cfg)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> DataLoader:
        mapper = SSDDatasetMapper(cfg, is_train=False)
        with dataset_errors((dataset_name,)):
            loader = build_detection_test_loader(
                cfg,
                dataset_name,
                mapper=mapper,
                batch_size=cfg.TEST.IMS_PER_BATCH,
                collate_fn=Batch,
            )
        return outlive_signals(loader)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
        """COCO's metrics, and besides VOC's for sets of its 20 classes; LVIS's for LVIS."""
        folder = os.path.join(cfg.OUTPUT_DIR, "inference")
        kind = MetadataCatalog.get(dataset_name).get("evaluator_type")
        if kind == "lvis":
            with dataset_errors((dataset_name,)):
                return LVISEvaluator(dataset_name, ("bbox",), output_dir=folder)
        with dataset_errors((dataset_name,)):
            coco = BoxEvaluator(dataset_name, folder)
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
        device_ids=[torch.cuda.current_device()] if on_gpu else None,
        broadcast_buffers=False,
    )
