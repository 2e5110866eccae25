"""From a trained checkpoint to a bundle that runs without PyTorch and Detectron2."""

from .bundle import export_bundle
from .formats import FORMATS, find_format
from .graph import ExportedSSD, WithNMS
from .options import ExportOptions

__all__ = ["FORMATS", "ExportOptions", "ExportedSSD", "WithNMS", "export_bundle", "find_format"]
