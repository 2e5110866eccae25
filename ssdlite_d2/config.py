"""Every config key that SSD adds to Detectron2's, with its unit and meaning."""

from typing import Iterable

from detectron2.config import CfgNode as CN
from detectron2.config import get_cfg
from detectron2.data import MetadataCatalog

from .config_file import find_config, get_config_file, merge_file, merge_options
from .errors import InputError

__all__ = ["add_ssd_config", "find_config", "get_config_file", "load_config", "num_classes_of"]

# Keys of MODEL.SSD by their old names. An old name in a config is an error that tells the new one.
RENAMED_KEYS = {
    "IOU_THRESHOLD": "ASSIGNER.IOU_THRESHOLD",
    "BBOX_REG_WEIGHTS": "BOX_CODER.WEIGHTS",
    "LOSS": "CRITERION.NAME",
    "CLS_LOSS_WEIGHT": "CRITERION.CLS_WEIGHT",
    "BOX_LOSS_WEIGHT": "CRITERION.BOX_WEIGHT",
    "SMOOTH_L1_BETA": "CRITERION.SMOOTH_L1_BETA",
    "FOCAL_ALPHA": "CRITERION.FOCAL_ALPHA",
    "FOCAL_GAMMA": "CRITERION.FOCAL_GAMMA",
    "FOCAL_PRIOR": "CRITERION.PRIOR",
    "NEG_POS_RATIO": "CRITERION.NEG_POS_RATIO",
    "SCORE_THRESH_TEST": "POSTPROCESS.SCORE_THRESH",
    "NMS_THRESH_TEST": "POSTPROCESS.NMS_THRESH",
    "TOPK_CANDIDATES_TEST": "POSTPROCESS.TOPK_CANDIDATES",
    "TOPK_PER_CLASS_TEST": "POSTPROCESS.TOPK_PER_CLASS",
    "CLIP_BEFORE_NMS_TEST": "POSTPROCESS.CLIP_BEFORE_NMS",
}


def add_ssd_config(cfg: CN) -> None:
    """Add SSD's keys to a Detectron2 config, with their defaults."""
    _C = cfg

    _C.MODEL.SSD = CN()
    # Foreground classes K. 0: taken from the data sets of the config.
    _C.MODEL.SSD.NUM_CLASSES = 0
    # Feature maps to predict from, finest first, by their backbone names.
    _C.MODEL.SSD.IN_FEATURES = ["c4", "c5", "extra0", "extra1", "extra2", "extra3"]
    # Initialise the predictors anew when MODEL.WEIGHTS was trained for another number of classes
    # or anchors. False: such weights are an error.
    _C.MODEL.SSD.REINIT_HEAD_ON_MISMATCH = False

    # Trunk and extra blocks.
    _C.MODEL.SSD.BACKBONE = CN()
    # Which tensor of MobileNetV2's or V3's stride-16 stage is c4: "block" (its output, 96 or 112
    # channels) or "expansion" (576 or 672 channels inside the block after it, as in the papers).
    _C.MODEL.SSD.BACKBONE.TAP = "block"
    # VGG16: what scales c4, "l2" (L2Norm, as in the paper) or "batch" (the norm of NORM).
    _C.MODEL.SSD.BACKBONE.TAP_NORM = "l2"
    # Padding of strided convolutions: "symmetric", or "same" as TensorFlow pads. (Extra blocks of
    # kind "conv" have their own in EXTRA_CONVS.)
    _C.MODEL.SSD.BACKBONE.PADDING = "symmetric"
    # False: MobileNetV2 and V3 without the 1x1 convolution at their end. c5 then has 320 channels
    # instead of 1280, or 160 instead of 960: enough for a neck, which reduces it anyway.
    _C.MODEL.SSD.BACKBONE.LAST_CONV = True
    # MobileNetV3: half the channels in its last stage.
    _C.MODEL.SSD.BACKBONE.REDUCED_TAIL = False
    # MobileNetV3: squeeze-excite before the activation of the depthwise convolution.
    _C.MODEL.SSD.BACKBONE.SE_BEFORE_ACTIVATION = False
    # The blocks behind the trunk, maps extra0, extra1, ...: "inverted_residual",
    # "inverted_residual_v3", "inverted_residual_hardswish", "depthwise", "sandglass" or "conv"; see
    # modeling/backbone/extras.py.
    _C.MODEL.SSD.BACKBONE.EXTRA_BLOCK = "inverted_residual"
    # Output channels of each.
    _C.MODEL.SSD.BACKBONE.EXTRA_CHANNELS = [512, 256, 256, 64]
    # Width inside each, as a ratio of its inputs ("depthwise": of its outputs).
    _C.MODEL.SSD.BACKBONE.EXTRA_EXPANSION = [0.2, 0.5, 0.5, 0.5]
    # "conv": kernel, stride and padding of each.
    _C.MODEL.SSD.BACKBONE.EXTRA_CONVS = [[3, 2, 1], [3, 2, 1], [3, 1, 0], [3, 1, 0]]

    # The first so many blocks of the trunk keep the weights they are loaded with, norms included.
    _C.MODEL.SSD.BACKBONE.FREEZE_AT = 0
    # All batch norms of the trunk keep their weights and statistics.
    _C.MODEL.SSD.BACKBONE.FREEZE_NORM = False

    # build_ssd_timm_backbone: the trunk's name in timm, such as "mobilenetv4_conv_small".
    _C.MODEL.SSD.BACKBONE.TIMM_NAME = ""

    # A network between backbone and head, by its name in SSD_NECK_REGISTRY: "pan", which makes maps
    # p3 to p6 of c3 to c5; "": none.
    _C.MODEL.SSD.NECK = CN()
    _C.MODEL.SSD.NECK.NAME = ""
    # Backbone maps it takes, finest first, each of half the size of the one before.
    _C.MODEL.SSD.NECK.IN_FEATURES = ["c3", "c4", "c5"]
    # Channels of all its maps, and the side of its depthwise kernels.
    _C.MODEL.SSD.NECK.CHANNELS = 96
    _C.MODEL.SSD.NECK.KERNEL_SIZE = 5
    # "relu6", "relu", "leaky_relu" or "hardswish". ReLU6 is the trunks' own; every runtime computes
    # it with the convolution, and INT8 knows its range from the start.
    _C.MODEL.SSD.NECK.ACTIVATION = "relu6"

    # Predictors, by their name in SSD_HEAD_REGISTRY: "ssd", "ssdlite" or "tower". "": the one of
    # MODEL.META_ARCHITECTURE.
    _C.MODEL.SSD.HEAD = CN()
    _C.MODEL.SSD.HEAD.NAME = ""
    # "ssdlite": a bias in the depthwise convolution, and a plain 1x1 convolution for the last map,
    # both as in the reference SSDLite.
    _C.MODEL.SSD.HEAD.DEPTHWISE_BIAS = True
    _C.MODEL.SSD.HEAD.LAST_1X1 = True
    # "tower": depthwise-separable convolutions before the 1x1 predictors, how many, their channels
    # and the side of their kernels; the activation as NECK has it.
    _C.MODEL.SSD.HEAD.NUM_CONVS = 2
    _C.MODEL.SSD.HEAD.CHANNELS = 96
    _C.MODEL.SSD.HEAD.KERNEL_SIZE = 5
    _C.MODEL.SSD.HEAD.ACTIVATION = "relu6"
    # "tower": one tower each for scores and boxes, instead of one for both.
    _C.MODEL.SSD.HEAD.SEPARATE = False
    # "tower": all maps have the same convolutions, with norms of their own. False: every map has
    # its own, for the same multiply-adds, as in NanoDet-Plus and PicoDet.
    _C.MODEL.SSD.HEAD.SHARED = False

    # MODEL.META_ARCHITECTURE GuidedSSD: a second head, in training only, of plain 3x3 convolutions
    # (shared by maps that are alike). The assigner sees its predictions, and it has its own losses.
    _C.MODEL.SSD.AUXILIARY = CN()
    _C.MODEL.SSD.AUXILIARY.NUM_CONVS = 2
    _C.MODEL.SSD.AUXILIARY.CHANNELS = 96
    # Weight of its losses.
    _C.MODEL.SSD.AUXILIARY.WEIGHT = 1.0
    # Part of SOLVER.MAX_ITER, from the start on, in which it runs.
    _C.MODEL.SSD.AUXILIARY.FRACTION = 0.5

    # Normalisation of trunk, extra blocks and predictors, by Detectron2's names (BN, SyncBN,
    # FrozenBN, GN). SyncBN runs on CPU processes too.
    _C.MODEL.SSD.NORM = "BN"
    _C.MODEL.SSD.NORM_EPS = 1e-5
    # Weight of the newest batch in the running statistics.
    _C.MODEL.SSD.NORM_MOMENTUM = 0.1

    # How boxes are coded, by SSD_BOX_CODER_REGISTRY: "deltas", the paper's shifts and log scales;
    # "distances" of the four sides from the anchor's centre.
    _C.MODEL.SSD.BOX_CODER = CN()
    _C.MODEL.SSD.BOX_CODER.NAME = "deltas"
    # "deltas": weights of dx, dy, dw, dh, the inverse of the paper's variances .1 and .2.
    _C.MODEL.SSD.BOX_CODER.WEIGHTS = (10.0, 10.0, 5.0, 5.0)
    # "distances": a side is a distribution over the bins 0 to BINS (7 in PicoDet); 0: one number.
    _C.MODEL.SSD.BOX_CODER.BINS = 0
    # The distance that the last bin stands for, in sides of the anchor. 1.4 is PicoDet's: 7 strides
    # for cells of 5.
    _C.MODEL.SSD.BOX_CODER.REACH = 1.4

    # Which anchors answer for which ground truth, by SSD_ASSIGNER_REGISTRY. "max_iou": positive at
    # this IoU and above; besides, the best anchor of every ground truth is positive. "atss": at a
    # threshold from the statistics of its nearest anchors. "task_aligned": those that predict it
    # best.
    _C.MODEL.SSD.ASSIGNER = CN()
    _C.MODEL.SSD.ASSIGNER.NAME = "max_iou"
    _C.MODEL.SSD.ASSIGNER.IOU_THRESHOLD = 0.5
    # "atss": nearest cells of each level whose anchors are candidates.
    _C.MODEL.SSD.ASSIGNER.TOPK = 9
    # "task_aligned": anchors of a ground truth, the best by score ** ALPHA * IoU ** BETA.
    _C.MODEL.SSD.ASSIGNER.ALIGNED_TOPK = 13
    _C.MODEL.SSD.ASSIGNER.ALPHA = 1.0
    _C.MODEL.SSD.ASSIGNER.BETA = 6.0
    # "task_aligned": first iterations, in which "atss" decides.
    _C.MODEL.SSD.ASSIGNER.WARMUP_ITERS = 0

    # Losses and scores, by SSD_CRITERION_REGISTRY: "focal" (sigmoid, no background class),
    # "multibox" (softmax over K + 1 classes with hard-negative mining), "quality_focal" or
    # "varifocal" (sigmoid scores that also say how well the box fits).
    _C.MODEL.SSD.CRITERION = CN()
    _C.MODEL.SSD.CRITERION.NAME = "focal"
    _C.MODEL.SSD.CRITERION.CLS_WEIGHT = 1.0
    # Loss of positive anchors' boxes: "smooth_l1" of the box code; "giou", "diou" or "ciou" of the
    # decoded box. "": giou for "quality_focal" and "varifocal", else smooth_l1.
    _C.MODEL.SSD.CRITERION.BOX_LOSS = ""
    _C.MODEL.SSD.CRITERION.BOX_WEIGHT = 1.0
    # Smooth L1 turns from quadratic to linear at this error, in units of the box code.
    _C.MODEL.SSD.CRITERION.SMOOTH_L1_BETA = 1.0
    _C.MODEL.SSD.CRITERION.FOCAL_ALPHA = 0.25
    _C.MODEL.SSD.CRITERION.FOCAL_GAMMA = 2.0
    # Score of every class at the start of training; not "multibox".
    _C.MODEL.SSD.CRITERION.PRIOR = 0.01
    # "quality_focal": power of the distance of score and quality.
    _C.MODEL.SSD.CRITERION.QUALITY_FOCAL_BETA = 2.0
    # "varifocal": weight and power of the score where the target is 0.
    _C.MODEL.SSD.CRITERION.VARIFOCAL_ALPHA = 0.75
    _C.MODEL.SSD.CRITERION.VARIFOCAL_GAMMA = 2.0
    # These two: weight of the distribution focal loss, with BOX_CODER.BINS. PicoDet has 0.5.
    _C.MODEL.SSD.CRITERION.DFL_WEIGHT = 0.25
    # "multibox": mined negatives per positive.
    _C.MODEL.SSD.CRITERION.NEG_POS_RATIO = 3.0

    # Detections, by SSD_POSTPROCESSOR_REGISTRY. "nms": score above, IoU for non-maximum suppression
    # within a class, and how many of the best (anchor, class) candidates of an image enter it.
    # TEST.DETECTIONS_PER_IMAGE limits the result.
    _C.MODEL.SSD.POSTPROCESS = CN()
    _C.MODEL.SSD.POSTPROCESS.NAME = "nms"
    _C.MODEL.SSD.POSTPROCESS.SCORE_THRESH = 0.05
    _C.MODEL.SSD.POSTPROCESS.NMS_THRESH = 0.5
    _C.MODEL.SSD.POSTPROCESS.TOPK_CANDIDATES = 2000
    # The same for each class, as torchvision has it; 0 is no limit. (TensorFlow limits the classes
    # of the result.)
    _C.MODEL.SSD.POSTPROCESS.TOPK_PER_CLASS = 0
    # Suppress across classes: of boxes that overlap the best one stays, whatever their classes.
    _C.MODEL.SSD.POSTPROCESS.ACROSS_CLASSES = False
    # Clip boxes to the image before suppression, as torchvision does, and not only after it.
    _C.MODEL.SSD.POSTPROCESS.CLIP_BEFORE_NMS = False

    for old, new in RENAMED_KEYS.items():
        _C.register_renamed_key(f"MODEL.SSD.{old}", f"MODEL.SSD.{new}")

    # How predictors (the demo, build_predictor) and --eval-only run the network: "eager", as it was
    # trained; "fused", as one frozen graph with the norms folded into the convolutions;
    # "fused_bfloat16", the same with bfloat16 arithmetic.
    _C.MODEL.SSD.INFERENCE = "eager"

    # Quantization-aware training: convolutions round weights and inputs as INT8 does, in train_net,
    # its evaluations included. Checkpoints are those of the float model.
    _C.MODEL.SSD.QAT = False

    # Detectron2's SIZES and ASPECT_RATIOS mean, for SSDAnchorGenerator, one list per feature map:
    # SIZES[i] = [s, t], in pixels of the network input: a square of s, a square of sqrt(s * t) and,
    # for each r of ASPECT_RATIOS[i], a box of s with w / h = r and one with h / w = r.
    # Instead of them: [[w, h], ...] per feature map, in pixels of the network input.
    _C.MODEL.ANCHOR_GENERATOR.BOXES = []
    # Distance of anchor centres, one number (pixels) per feature map. []: input size / map size.
    _C.MODEL.ANCHOR_GENERATOR.STRIDES = []
    # What is clipped to the image: "none", "corners" (the box), "center" (centre, width and
    # height each: the corners may lie outside) or "size" (width and height).
    _C.MODEL.ANCHOR_GENERATOR.CLIP = "none"

    # Network input (height, width) in pixels. Images are stretched to it.
    _C.INPUT.SIZE = (320, 320)
    # How, bilinear both: "half_pixel", by the centres of pixels, as OpenCV and PyTorch resize;
    # "asymmetric", by their corners, as TensorFlow 1 does; "opencv", as half_pixel, in whole grey
    # levels as OpenCV has them.
    _C.INPUT.RESIZE = "half_pixel"

    # Draw a training image's transforms first, then decode and resample no more than they leave.
    # False: one transform after the other, as the paper tells it; boxes are the same.
    _C.INPUT.FAST = True
    # Images of more pixels are refused before they are decoded, as unreadable ones. 0: none.
    _C.INPUT.MAX_PIXELS = 100_000_000
    # An image that cannot be read, or is not of the annotated size, in training: "raise" an error,
    # or "skip" it, with a list at the end and in OUTPUT_DIR/skipped_images.txt.
    _C.INPUT.ON_BAD_IMAGE = "raise"
    # Sizes [[height, width], ...] of which one is drawn for every training batch. []: SIZE. With
    # ANCHOR_GENERATOR.STRIDES [] only. Costs accuracy at one size in networks this small.
    _C.INPUT.MULTI_SCALE = []

    # Detectron2's INPUT.RANDOM_FLIP ("none", "horizontal", "vertical") may also be "both".

    # Photometric distortion in training, each part with this probability.
    _C.INPUT.PHOTOMETRIC = CN()
    _C.INPUT.PHOTOMETRIC.ENABLED = True
    _C.INPUT.PHOTOMETRIC.PROB = 0.5
    _C.INPUT.PHOTOMETRIC.BRIGHTNESS = 32.0  # largest shift, grey levels
    _C.INPUT.PHOTOMETRIC.CONTRAST = (0.5, 1.5)  # range of the factor
    _C.INPUT.PHOTOMETRIC.SATURATION = (0.5, 1.5)  # range of the factor
    _C.INPUT.PHOTOMETRIC.HUE = 18.0  # largest shift, degrees
    _C.INPUT.PHOTOMETRIC.SWAP_CHANNELS = True

    # Placing the image on a larger canvas of MODEL.PIXEL_MEAN.
    _C.INPUT.EXPAND = CN()
    _C.INPUT.EXPAND.PROB = 0.5
    _C.INPUT.EXPAND.RATIO = (1.0, 4.0)  # range of canvas side / image side

    # Crop in which one box overlaps the window by a drawn IoU.
    _C.INPUT.IOU_CROP = CN()
    _C.INPUT.IOU_CROP.ENABLED = True
    # Drawn with equal chance; besides them "whole image" and "any window" are drawn.
    _C.INPUT.IOU_CROP.MIN_IOUS = (0.1, 0.3, 0.5, 0.7, 0.9)
    _C.INPUT.IOU_CROP.SCALE = (0.3, 1.0)  # range of window side / image side
    _C.INPUT.IOU_CROP.ASPECT_RATIO = (0.5, 2.0)  # range of window height / width
    _C.INPUT.IOU_CROP.TRIALS = 50  # windows tried before another IoU is drawn

    # Instead of the canvas and the crop: large-scale jitter, with this range of the image's size
    # over SIZE, its shape kept. Can hurt networks this small.
    _C.INPUT.SCALE_JITTER = CN()
    _C.INPUT.SCALE_JITTER.ENABLED = False
    _C.INPUT.SCALE_JITTER.SCALE = (0.1, 2.0)

    # Chance of a training image made of four. Can hurt networks this small.
    _C.INPUT.MOSAIC = CN()
    _C.INPUT.MOSAIC.PROB = 0.0

    # Probability of Detectron2's RANDOM_FLIP.
    _C.INPUT.FLIP_PROB = 0.5

    # Decoded training images: "none" keeps none, "ram" keeps all, for data sets that fit.
    _C.DATALOADER.CACHE = "none"

    # Crowd regions (COCO's iscrowd) and difficult objects (VOC's) in training: "keep" trains on
    # them, "drop" makes them background, "ignore" makes anchors in them neither right nor wrong.
    _C.DATASETS.CROWD = "drop"
    _C.DATASETS.DIFFICULT = "drop"

    # Data sets of your own, one mapping each: NAME; FORMAT coco, voc, yolo or detectron2, and the
    # keys that it needs (see data/datasets/); optionally CLASSES, a list of names; OTHER_CLASSES,
    # "error" or "drop" for objects of none of them; and LIST, a text file of the images to use, as
    # paths below ROOT. Classes of several training sets are merged by name. Paths are relative to
    # ROOT in $DETECTRON2_DATASETS (default "datasets").
    _C.DATASETS.REGISTER = []

    # "SGD" (with MOMENTUM and NESTEROV) or "AdamW" (with BETAS).
    _C.SOLVER.OPTIMIZER = "SGD"
    _C.SOLVER.BETAS = (0.9, 0.999)
    # Learning rate of the trunk, as a factor of BASE_LR.
    _C.SOLVER.TRUNK_LR_FACTOR = 1.0
    # Weight decay of L2Norm's scales. None: WEIGHT_DECAY. (Detectron2 has WEIGHT_DECAY_NORM for
    # batch norm and the like, and WEIGHT_DECAY_BIAS.)
    _C.SOLVER.WEIGHT_DECAY_L2NORM = None
    # SOLVER.CLIP_GRADIENTS.CLIP_TYPE is, besides Detectron2's "value" and "norm" (of each tensor),
    # "full_model": the norm of all gradients together.

    # Parts that the batch of each process comes in, one forward and backward pass each, for memory.
    # The gradients are those of the whole batch; batch norm sees the parts.
    _C.SOLVER.ACCUMULATE_STEPS = 1
    # Mixed precision, if SOLVER.AMP.ENABLED: "float16", "bfloat16" or "auto", which is float16 on
    # CUDA and bfloat16 on the CPU.
    _C.SOLVER.AMP.DTYPE = "auto"
    # Batches with an infinite or undefined loss or gradient that may be left out before the run
    # stops.
    _C.SOLVER.MAX_SKIPPED_STEPS = 0

    # Length of training in passes over the training images, in the place of MAX_ITER; 0: MAX_ITER.
    # Of the two, the one that is set last holds.
    _C.SOLVER.EPOCHS = 0.0

    # The newest model_<iteration>.pth files that are kept; 0: all.
    _C.SOLVER.KEEP_CHECKPOINTS = 0
    # Save model_best.pth when this result grows, such as "bbox/AP": of the weights or, with
    # MODEL.EMA, of their average, whichever is better. "bbox_EMA/AP": of the average alone. Of
    # several data sets "<data set>/bbox/AP". "": never.
    _C.SOLVER.BEST_METRIC = ""
    # End the training when so many evaluations in a row gave no better BEST_METRIC; 0: never.
    _C.SOLVER.PATIENCE = 0

    # An exponential moving average of the weights, kept in the checkpoints and evaluated beside
    # them.
    _C.MODEL.EMA = CN()
    _C.MODEL.EMA.ENABLED = False
    # Weight of the old average in each iteration; smaller in the first ones, (1 + n) / (10 + n).
    _C.MODEL.EMA.DECAY = 0.999
    # model_final.pth is the average. (model_<iteration>.pth has both; a run resumes from that.)
    _C.MODEL.EMA.FINAL = True

    # Evaluations in the course of a training, in the place of EVAL_PERIOD; 0: EVAL_PERIOD. Of the
    # two, the one that is set last holds. With it, SOLVER.CHECKPOINT_PERIOD is no longer than the
    # time between two, SOLVER.WARMUP_ITERS than a tenth of the run, and ASSIGNER.WARMUP_ITERS than
    # a third.
    _C.TEST.EVALUATIONS = 0
    # Images that each process runs through the network at once in evaluation.
    _C.TEST.IMS_PER_BATCH = 8
    # Write report.html into OUTPUT_DIR when training ends: the model evaluated on the first of
    # DATASETS.TEST, and what is wrong with its detections.
    _C.TEST.REPORT = True
    # Images of each test set that TensorBoard shows with predicted and true boxes.
    _C.TEST.PREVIEW_IMAGES = 4


def num_classes_of(cfg: CN) -> int:
    """MODEL.SSD.NUM_CLASSES; where it is 0, what a config tells without any file being read.

    That are CLASSES of DATASETS.REGISTER and the classes that Detectron2 knows of its own sets.

    Raises:
        InputError: the config does not tell.
    """
    if cfg.MODEL.SSD.NUM_CLASSES:
        return cfg.MODEL.SSD.NUM_CLASSES
    listed = {entry.get("NAME"): entry.get("CLASSES") for entry in cfg.DATASETS.REGISTER}
    names = cfg.DATASETS.TRAIN or cfg.DATASETS.TEST
    classes = [
        listed[name] if name in listed else MetadataCatalog.get(name).get("thing_classes", None)
        for name in names
    ]
    if not classes or None in classes:
        raise InputError(
            "MODEL.SSD.NUM_CLASSES is 0 and the config does not list the classes; "
            "ssdlite_d2.engine.finish_config takes the number from the data sets"
        )
    return len({name for of_set in classes for name in of_set})


def load_config(config_file: str, opts: Iterable[str] = ()) -> CN:
    """A Detectron2 config with SSD's keys, a YAML file and ``KEY VALUE ...`` overrides merged.

    Args:
        config_file: a path, or the name of a config of the package, with or without "configs/".
        opts: alternating keys and values.

    Raises:
        InputError: the file is missing or no YAML of plain values, or a key or value does not fit.
    """
    cfg = get_cfg()
    add_ssd_config(cfg)
    merge_file(cfg, find_config(config_file))
    merge_options(cfg, opts)
    return cfg
