"""Registries of the detector's exchangeable parts.

Each part is chosen by NAME of its node ``MODEL.SSD.<key>`` and built from the config, as
Detectron2's own parts are. Register yours with ``@SSD_ASSIGNER_REGISTRY.register()`` and name it in
a config; nothing else has to change.
"""

from typing import Any, Callable, Optional

from detectron2.config import CfgNode
from detectron2.utils.registry import Registry

from ..errors import one_of


class PartRegistry(Registry):
    """Detectron2's Registry that knows the config node of its parts and builds them.

    An entry may have a name of its own; by default it is the class's.
    """

    def __init__(self, name: str, key: str):
        """
        Args:
            key: of the parts' node, ``MODEL.SSD.<key>``.
        """
        super().__init__(name)
        self.key = key

    def register(self, obj: Any = None, *, name: Optional[str] = None) -> Callable:
        def add(part: Any) -> Any:
            self._do_register(name or part.__name__, part)
            return part

        return add if obj is None else add(obj)

    def build(self, cfg: CfgNode, *args: Any, name: str = "", **kwargs: Any) -> Any:
        """The part that the config names, ``part(cfg, ...)``.

        Args:
            name: instead of the config's.

        Raises:
            InputError: there is no part of this name.
        """
        name = name or cfg.MODEL.SSD[self.key].NAME
        known = sorted(key for key, _ in self)
        return self.get(one_of(f"MODEL.SSD.{self.key}.NAME", name, known))(cfg, *args, **kwargs)


# (cfg, bottom_up: Backbone) -> Backbone
SSD_NECK_REGISTRY = PartRegistry("SSD_NECK", "NECK")
# (cfg, input_shape: List[ShapeSpec], num_anchors, num_scores, code_size, score_prior) -> nn.Module
SSD_HEAD_REGISTRY = PartRegistry("SSD_HEAD", "HEAD")
# (cfg) -> box_coders.BoxCoder
SSD_BOX_CODER_REGISTRY = PartRegistry("SSD_BOX_CODER", "BOX_CODER")
# (cfg, num_classes) -> assigners.Assigner
SSD_ASSIGNER_REGISTRY = PartRegistry("SSD_ASSIGNER", "ASSIGNER")
# (cfg, num_classes) -> criteria.Criterion
SSD_CRITERION_REGISTRY = PartRegistry("SSD_CRITERION", "CRITERION")
# (cfg) -> postprocessing.Postprocessor
SSD_POSTPROCESSOR_REGISTRY = PartRegistry("SSD_POSTPROCESSOR", "POSTPROCESS")
