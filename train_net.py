#!/usr/bin/env python
"""Train or evaluate SSD.

python train_net.py --config-file configs/ssdlite_mnv2.yaml --num-gpus 8
python train_net.py --config-file configs/ssdlite_mnv2.yaml --eval-only MODEL.WEIGHTS model.pth
"""

from detectron2.engine import default_argument_parser
from detectron2.evaluation import verify_results
from detectron2.utils import comm

from ssdlite_d2.engine import SSDTrainer, run_main, setup


def main(args):
    cfg = setup(args)
    if args.eval_only:
        results = SSDTrainer.evaluate_only(cfg, resume=args.resume)
        if comm.is_main_process():
            verify_results(cfg, results)
        return results

    trainer = SSDTrainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    return trainer.train()


if __name__ == "__main__":
    run_main(main, default_argument_parser().parse_args())
