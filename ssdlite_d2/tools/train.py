"""Train a detector: on a folder of one's own data, or by a config as train_net.py does.

ssdlite train DATA [--model NAME] [--output DIR] [KEY VALUE ...]
ssdlite train --config-file FILE [KEY VALUE ...]
"""

import argparse
import logging
import sys
from typing import List, Type

import torch
from detectron2.config import CfgNode
from detectron2.engine import default_argument_parser
from detectron2.evaluation import verify_results
from detectron2.utils import comm

from ..engine import SSDTrainer, run_main, setup
from ..engine.console import ConsoleTrainer
from ..errors import InputError
from ..evaluation.report import judge_fit
from .own_data import output_of, write_own_config
from .program import one_line_errors, split_options

logger = logging.getLogger(__name__)


def train_or_evaluate(args: argparse.Namespace, trainer_class: Type[SSDTrainer] = SSDTrainer):
    """What every process of a job does.

    Args:
        args: Detectron2's command-line arguments.
    """
    cfg = setup(args)
    if args.eval_only:
        on_train = getattr(args, "on_train", False)
        results = trainer_class.evaluate_only(with_train(cfg) if on_train else cfg, args.resume)
        if comm.is_main_process():
            if on_train:
                pair = (results[names[0]] for names in (cfg.DATASETS.TRAIN, cfg.DATASETS.TEST))
                verdict = judge_fit(*(tasks["bbox"]["AP50"] for tasks in pair))
                logger.info(verdict)
                print(verdict)
            verify_results(cfg, results)
        return results

    trainer = trainer_class(cfg)
    trainer.resume_or_load(resume=args.resume)
    results = trainer.train()
    if cfg.TEST.REPORT and cfg.DATASETS.TEST:
        main = comm.is_main_process()
        if comm.get_world_size() > 1:  # the first process evaluates for the report, without others
            torch.distributed.destroy_process_group()
        if main:
            write_report(cfg.OUTPUT_DIR)
    return results


def with_train(cfg: CfgNode) -> CfgNode:
    """The config, evaluating on the first training set as well.

    Raises:
        InputError: there is no such set, or it is a test set.
    """
    cfg, train, test = cfg.clone(), cfg.DATASETS.TRAIN[:1], cfg.DATASETS.TEST
    if not train or not test or train[0] in test:
        raise InputError(f"--on-train: DATASETS.TRAIN is {train} and DATASETS.TEST {test}")
    cfg.defrost()
    cfg.DATASETS.TEST = (*test, *train)
    cfg.freeze()
    return cfg


def write_report(folder: str) -> None:
    """The report on a training that has ended well, which it still has when this fails."""
    from .report.__main__ import report

    try:
        report([folder])
    except Exception:
        logger.exception(f"No report; try again with: ssdlite report {folder}")


def _with_console(args: argparse.Namespace):
    """The same, with few lines on the console; the log has all of them."""
    args.console = logging.WARNING
    return train_or_evaluate(args, ConsoleTrainer)


def get_parser() -> argparse.ArgumentParser:
    parser = default_argument_parser(epilog=__doc__.split("\n\n")[-1])
    parser.add_argument(
        "--model", metavar="NAME", help="a config of the package (`ssdlite models`), with DATA"
    )
    parser.add_argument(
        "--on-train", action="store_true", help="with eval: on the training set as well"
    )
    parser.add_argument(
        "--output", metavar="DIR", help="where all goes, with DATA (default: output/<its name>)"
    )
    return parser


def parse(words: List[str]) -> argparse.Namespace:
    """Arguments; ``data`` is the folder or file, "" with --config-file.

    Raises:
        InputError: neither is there, or both.
    """
    parser = get_parser()
    data = words.pop(0) if words and not words[0].startswith("-") else ""
    flags, pairs = split_options(words)
    args = parser.parse_args([*flags, *pairs])
    if not data and not args.config_file and args.opts:
        data = args.opts.pop(0)
    if bool(data) == bool(args.config_file):
        raise InputError(
            "give DATA, a folder or annotation file of your own, or --config-file FILE"
        )
    if args.config_file and (args.model or args.output):
        raise InputError(
            "--model and --output go with DATA; with --config-file set the keys, such as OUTPUT_DIR"
        )
    args.data = data
    return args


def main() -> None:
    with one_line_errors():
        args = parse(sys.argv[1:])
        if args.data:
            keys = dict(zip(args.opts[::2], args.opts[1::2]))
            output = args.output or keys.get("OUTPUT_DIR") or output_of(args.data)
            args.config_file = write_own_config(args.data, output, args.model, args.opts)
    run_main(_with_console, args)


if __name__ == "__main__":
    main()
