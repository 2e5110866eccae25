#!/usr/bin/env python
"""Train or evaluate SSD.

python train_net.py --config-file configs/ssdlite_mnv2.yaml --num-gpus 8
python train_net.py --config-file configs/ssdlite_mnv2.yaml --eval-only MODEL.WEIGHTS model.pth
"""

from ssdlite_d2.engine import run_main
from ssdlite_d2.tools.train import train_or_evaluate as main

from detectron2.engine import default_argument_parser  # isort: skip

if __name__ == "__main__":
    run_main(main, default_argument_parser().parse_args())
