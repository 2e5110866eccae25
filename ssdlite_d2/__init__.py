"""SSD and SSDLite object detectors for Detectron2.

Importing the package adds its models, anchor generator, backbones and the addresses of weights
(``torchvision://``, ``zoo://``) to Detectron2's registries; nothing of Detectron2 is replaced.

    instances = ssdlite_d2.load("tf_person").predict(cv2.imread(file), 0.5)["instances"]

    cfg = get_cfg()
    add_ssd_config(cfg)
    cfg.merge_from_file(get_config_file("ssdlite_mnv2.yaml"))
"""

try:
    import detectron2  # noqa: F401
except ImportError as error:
    raise ImportError(
        "ssdlite_d2 needs Detectron2, which has no release on the package index. In a checkout of "
        "ssdlite_d2 run 'make setup', or see "
        "https://detectron2.readthedocs.io/tutorials/install.html"
    ) from error

from . import checkpoint, data, modeling  # noqa: F401  registration by import
from .config import add_ssd_config, get_config_file, load_config
from .errors import InputError

__version__ = "0.1.0"
__all__ = ["InputError", "add_ssd_config", "get_config_file", "load", "load_config"]


def load(name: str, *opts):
    """A detector with weights that others have trained; see ``engine.predictor.load_zoo``."""
    from .engine.predictor import load_zoo  # trainer and evaluators come with it

    return load_zoo(name, *opts)
