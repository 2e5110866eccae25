"""SSD and SSDLite object detectors for Detectron2.

Importing the package adds its models, anchor generator, backbones and the addresses of weights
(``torchvision://``, ``zoo://``) to Detectron2's registries; nothing of Detectron2 is replaced.

    cfg = get_cfg()
    add_ssd_config(cfg)
    cfg.merge_from_file(get_config_file("ssdlite_mnv2.yaml"))

A trained model finds named boxes in three lines:

    import ssdlite_d2
    model = ssdlite_d2.load("output/mine")  # or weights of others, "tf_person"
    found = model.predict("image.jpg", score_threshold=0.5)  # pred_boxes, scores, class_names
"""

import sys
import warnings

from .interrupts import ended_without_traceback, is_program

with warnings.catch_warnings(), ended_without_traceback():
    # Detectron2 does what newer versions of PyTorch advise against
    warnings.filterwarnings("ignore", ".*torch.jit.script.* is deprecated", FutureWarning)
    try:
        import detectron2  # noqa: F401
    except ImportError as error:
        message = (
            f"ssdlite_d2 needs Detectron2 ({error}), which has no release on the package index: in "
            "a checkout of ssdlite_d2 run 'make setup', or see docs/getting-started.md"
        )
        if is_program():
            sys.exit(f"error: {message}")
        raise ImportError(message) from error
    from . import checkpoint, data, modeling  # noqa: F401  registration by import

from .config import add_ssd_config, get_config_file, load_config
from .errors import InputError

__version__ = "0.1.0"
__all__ = ["InputError", "add_ssd_config", "get_config_file", "load", "load_config"]


def load(model, *opts):
    """A trained model, with ``predict(image)``; see ``ssdlite_d2.loading.load``."""
    from .loading import load as load_model  # the engine, which few programs need

    return load_model(model, *opts)
