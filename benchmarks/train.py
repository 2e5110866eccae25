"""Time of a training step beside that of the bare network, and of torchvision's SSDLite.

The whole step is preprocessing, forward, matching, losses, backward and update; the bare step is
forward, backward from the network's outputs, and update. Both have the same weights and images.
torchvision's step has its own network; it is compared per multiply-add. Loading data is not timed.
"""

import argparse
from typing import Callable, Dict, List

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models.detection import ssdlite320_mobilenet_v3_large

from ssdlite_d2.config import load_config
from ssdlite_d2.engine.guards import NonFiniteGuard
from ssdlite_d2.engine.memory import keep_freed_memory
from ssdlite_d2.engine.solver import amp_dtype, build_optimizer
from ssdlite_d2.engine.train_loop import TrainLoop
from ssdlite_d2.tools.benchmark import timing


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config-file", default="ssdlite_mnv2.yaml", metavar="FILE")
    parser.add_argument("--batch", type=int, default=8, help="images (default: 8)")
    parser.add_argument("--boxes", type=int, default=8, help="boxes in each (default: 8)")
    parser.add_argument("--rounds", type=int, default=10, help="timed rounds (default: 10)")
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], help="KEY VALUE pairs")


def run(args: argparse.Namespace) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    cfg = load_config(args.config_file, ["MODEL.DEVICE", device, *args.opts])
    cfg.MODEL.WEIGHTS, cfg.MODEL.SSD.NUM_CLASSES = "", cfg.MODEL.SSD.NUM_CLASSES or 80
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = ()
    keep_freed_memory(cfg)  # as in training, and for all sides
    torch.manual_seed(0)
    model = build_model(cfg)
    batch = make_batch(args.batch, args.boxes, model.input_size, model.num_classes)
    with EventStorage():
        sides = {
            "bare network": bare_step(cfg, model, batch),
            "ssdlite_d2": whole_step(cfg, model, batch),
        }
        other = torchvision_model(cfg)
        sides["torchvision"] = torchvision_step(other, batch, device)
        madds = {name: multiply_adds(model, batch) for name in list(sides)[:2]}
        madds["torchvision"] = multiply_adds(other, batch)
        seconds = timing.alternate(synchronized(sides, device), args.rounds, warmup=3)
    median = {name: float(sorted(values)[len(values) // 2]) for name, values in seconds.items()}
    bare = median["bare network"]
    rows = [
        {
            "step": name,
            "ms": 1000 * value,
            "over bare": f"{value / bare - 1:+.1%}",
            "G madds": madds[name] / 1e9,
            "ms / G madds": 1e12 * value / madds[name],
        }
        for name, value in median.items()
    ]
    timing.report(f"Training step, batch {args.batch}, {cfg.INPUT.SIZE}", rows, args.json)


def make_batch(images: int, boxes: int, size, classes: int) -> List[Dict]:
    """Noise of the network's size with random boxes."""
    height, width = size
    batch = []
    for _ in range(images):
        sides = torch.rand(boxes, 2) * 0.5 + 0.05
        corner = torch.rand(boxes, 2) * (1 - sides)
        corners = torch.cat((corner, corner + sides), dim=1)
        instances = Instances(size)
        instances.gt_boxes = Boxes(corners * torch.tensor([width, height] * 2))
        instances.gt_classes = torch.randint(0, classes, (boxes,))
        image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8)
        batch.append({"image": image, "instances": instances})
    return batch


def whole_step(cfg: CfgNode, model: nn.Module, batch: List[Dict]) -> Callable[[], None]:
    """What the trainer does with a batch."""

    class Stream:
        seed = 0

    class Loader:
        dataset = Stream

        def __iter__(self):
            while True:
                yield [{**image} for image in batch]

    optimizer = build_optimizer(cfg, model)
    guard = NonFiniteGuard(cfg.OUTPUT_DIR)
    loop = TrainLoop(model, Loader(), optimizer, guard=guard, amp_dtype=amp_dtype(cfg))
    return loop.run_step


def bare_step(cfg: CfgNode, model: nn.Module, batch: List[Dict]) -> Callable[[], None]:
    """The network alone, from normalised images to gradients of the sum of its outputs."""
    optimizer = build_optimizer(cfg, model)
    with torch.no_grad():
        images = model.preprocess_image(batch).tensor

    def step() -> None:
        optimizer.zero_grad()
        predictions = model.head(model.feature_maps(images))
        sum(x.mean() for maps in predictions for x in maps).backward()
        optimizer.step()

    return step


def torchvision_model(cfg: CfgNode) -> nn.Module:
    model = ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=91)
    return model.to(cfg.MODEL.DEVICE).train()


def torchvision_step(model: nn.Module, batch: List[Dict], device: str) -> Callable[[], None]:
    """torchvision's reference step: its losses, SGD."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, weight_decay=4e-5)
    images = [image["image"].float().div(255).to(device) for image in batch]
    targets = [
        {
            "boxes": image["instances"].gt_boxes.tensor.to(device),
            "labels": image["instances"].gt_classes.to(device) + 1,
        }
        for image in batch
    ]

    def step() -> None:
        optimizer.zero_grad()
        sum(model(images, targets).values()).backward()
        optimizer.step()

    return step


def multiply_adds(model: nn.Module, batch: List[Dict]) -> int:
    """Of convolutions and linear layers, for one batch forward."""
    image = batch[0]["image"].float().div(255).to(next(model.parameters()).device)
    model.eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        if hasattr(model, "raw_outputs"):
            model.raw_outputs(image[None])
        else:
            model([image])
    model.train()
    return counter.get_total_flops() // 2 * len(batch)


def synchronized(sides: Dict[str, Callable], device: str) -> Dict[str, Callable]:
    """The sides, each of which waits for the device at its end."""
    if device == "cpu":
        return sides

    def waiting(step: Callable) -> Callable:
        def call() -> None:
            step()
            torch.cuda.synchronize()

        return call

    return {name: waiting(step) for name, step in sides.items()}
