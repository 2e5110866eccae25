from .anchors import SSDAnchorGenerator
from .assigners import (
    Assigner,
    Assignment,
    ATSSAssigner,
    MaxIoUAssigner,
    SSDMatcher,
    TaskAlignedAssigner,
)
from .backbone import PAN, SSDBackbone
from .box_coders import BoxCoder, DeltaCoder, DistanceCoder
from .criteria import (
    Criterion,
    FocalCriterion,
    MultiBoxCriterion,
    QualityFocalCriterion,
    VarifocalCriterion,
)
from .guided import GuidedSSD
from .head import SSDHead, SSDLiteHead
from .parts import (
    SSD_ASSIGNER_REGISTRY,
    SSD_BOX_CODER_REGISTRY,
    SSD_CRITERION_REGISTRY,
    SSD_HEAD_REGISTRY,
    SSD_NECK_REGISTRY,
    SSD_POSTPROCESSOR_REGISTRY,
)
from .postprocessing import Postprocessor
from .resize import InputResize
from .ssd import SSD, SSDLite
from .tower_head import TowerHead

__all__ = [
    "PAN",
    "VarifocalCriterion",
    "QualityFocalCriterion",
    "DistanceCoder",
    "TaskAlignedAssigner",
    "ATSSAssigner",
    "SSD",
    "SSD_ASSIGNER_REGISTRY",
    "SSD_BOX_CODER_REGISTRY",
    "SSD_CRITERION_REGISTRY",
    "SSD_HEAD_REGISTRY",
    "SSD_NECK_REGISTRY",
    "SSD_POSTPROCESSOR_REGISTRY",
    "Assigner",
    "Assignment",
    "BoxCoder",
    "Criterion",
    "DeltaCoder",
    "FocalCriterion",
    "GuidedSSD",
    "InputResize",
    "MaxIoUAssigner",
    "MultiBoxCriterion",
    "Postprocessor",
    "SSDAnchorGenerator",
    "SSDBackbone",
    "SSDHead",
    "SSDLite",
    "SSDLiteHead",
    "SSDMatcher",
    "TowerHead",
]
