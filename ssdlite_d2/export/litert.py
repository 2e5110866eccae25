"""LiteRT: INT8, and the operator that decodes and suppresses inside the model."""

import functools
import os
import re
from pathlib import Path
from typing import Dict, List, Sequence, Tuple

import numpy as np
import torch
from torch import Tensor, nn

from ..modeling import SSD, DeltaCoder
from .graph import ExportedSSD
from .spec import Spec

CONVOLUTIONS = ("CONV_2D", "DEPTHWISE_CONV_2D")
OPERATOR = "TFLite_Detection_PostProcess"


class OperatorInputs(nn.Module):
    """An ExportedSSD that gives, besides its boxes and scores, what the operator takes.

    The operator decodes Detectron2's deltas, in the order y, x, h, w and without their greatest
    scale. For another box code, or boxes that are clipped before suppression, the box itself is
    the code: the shift and log scale of an anchor that is the whole image.
    """

    def __init__(self, detector: ExportedSSD):
        super().__init__()
        self.detector = detector
        coder = detector.model.box2box_transform
        self.clip = detector.model.postprocessor.options()["clip_before_nms"]
        self.decoded = self.clip or not isinstance(coder, DeltaCoder)
        self.scales = [1.0] * 4 if self.decoded else [coder.weights[i] for i in (1, 0, 3, 2)]
        height, width = detector.input_size
        self.register_buffer("size", torch.tensor([width, height, width, height]))
        self.eval()

    def forward(self, image: Tensor) -> Tuple[Tensor, ...]:
        """
        Returns:
            boxes (N, R, 4), scores (N, R, K), the box codes in the operator's order, or (N, R, D)
            when it does not know them, and then the boxes (N, R, 4) as codes.
        """
        scores, codes = self.detector.codes(image.permute(0, 3, 1, 2))
        boxes = self.detector.model.box2box_transform.decode_all(codes, self.detector.anchors)
        if self.decoded:
            return boxes, scores, codes, self.as_codes(boxes / self.size)
        return boxes, scores, torch.cat([codes[..., i : i + 1] for i in (1, 0, 3, 2)], dim=-1)

    def as_codes(self, boxes: Tensor) -> Tensor:
        """Boxes in parts of the image as logs of their sides; one without area keeps a little."""
        boxes = boxes.clamp(0, 1) if self.clip else boxes
        x0, y0, x1, y1 = (boxes[..., i : i + 1] for i in range(4))
        sides = torch.cat((y1 - y0, x1 - x0), dim=-1).clamp(min=1e-5).log()
        return torch.cat(((y0 + y1) / 2, (x0 + x1) / 2, sides), dim=-1)

    def anchors(self) -> np.ndarray:
        """The operator's anchors (R, 4): ycenter, xcenter, height, width, in parts of the image."""
        boxes = self.detector.anchors / self.size
        if self.decoded:
            boxes = boxes.new_tensor([-0.5, -0.5, 0.5, 0.5]).expand_as(boxes)
        center, sides = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
        return torch.cat((center.flip(1), sides.flip(1)), dim=1).numpy()


def finish_operator(folder: Path, spec: Spec, module: OperatorInputs) -> None:
    """Let the operator take the codes and scores of a written, and perhaps quantized, model."""
    from flatbuffers import flexbuffers

    graph = Graph((folder / spec.file).read_bytes())
    limits = spec.detections
    rows = limits["max_detections"]
    builder = flexbuffers.Builder()
    with builder.Map():
        builder.Int("max_detections", rows)
        builder.Int("max_classes_per_detection", 1)
        builder.Int("detections_per_class", rows)
        builder.Bool("use_regular_nms", True)
        builder.Int("num_classes", len(spec.classes))
        builder.Float("nms_score_threshold", limits["score_threshold"])
        builder.Float("nms_iou_threshold", limits["nms_threshold"])
        for name, scale in zip(("y_scale", "x_scale", "h_scale", "w_scale"), module.scales):
            builder.Float(name, scale)
    codes, scores = graph.outputs[-1], graph.outputs[1]
    anchors = graph.add_tensor("anchors", module.anchors())
    shapes = ((1, rows, 4), (1, rows), (1, rows), (1,))
    results = [graph.add_tensor(name, shape=shape) for name, shape in zip(spec.outputs, shapes)]
    graph.add_operator(OPERATOR, [codes, scores, anchors], results, bytes(builder.Finish()))
    graph.set_outputs(dict(zip(spec.outputs, results)))
    graph.save(folder / spec.file)


def halve_weights(content: bytes) -> bytes:
    """A float model's file with float16 weights of convolutions; arithmetic stays in float32."""
    from ai_edge_quantizer import qtyping, quantizer

    weights = qtyping.TensorQuantizationConfig(16, dtype=qtyping.TensorDataType.FLOAT)
    halving = quantizer.Quantizer(content)
    for kind in CONVOLUTIONS:
        halving.update_quantization_recipe(
            ".*",
            qtyping.TFLOperationName(kind),
            qtyping.OpQuantizationConfig(
                weight_tensor_config=weights, compute_precision=qtyping.ComputePrecision.FLOAT
            ),
            quantizer.AlgorithmName.FLOAT_CASTING,
        )
    return halving.quantize(enable_progress_report=False).quantized_model


class LitertQuantizer:
    """Google's static quantization of a LiteRT model: per-channel weights.

    With box codes among the outputs all that comes before them and the scores is quantized, else
    all that comes before a convolution: decoding stays in float.
    """

    def __init__(self, model: Path, images: Sequence[np.ndarray], work: Path, network: SSD):
        """
        Args:
            network: the PyTorch model, whose convolutions have names.
        """
        self.source = model.read_bytes()
        graph = Graph(self.source)
        operators = graph.graph.operators
        convolutions = [o for o in operators if graph.kind(o) in CONVOLUTIONS]
        names = convolution_names(network)
        if len(names) != len(convolutions):  # nothing says which is which
            names = [f"convolution {i}" for i in range(len(convolutions))]
        self.tensors = dict(zip(names, (graph.name(o.outputs[0]) for o in convolutions)))
        ends = (
            graph.outputs[1:3] if len(graph.outputs) > 2 else [o.outputs[0] for o in convolutions]
        )
        integer = graph.ancestors(ends)
        self.decoding = [graph.name(o.outputs[0]) for o, x in zip(operators, integer) if not x]
        start = [{"image": images[0]}]
        self.ranges = self._quantizer([]).calibrate({"serving_default": start})
        self._widen(images)

    def _widen(self, images: Sequence[np.ndarray]) -> None:
        """Take the smallest and largest values of all images: with the quantizer's own means of
        them scores differ more from PyTorch's (0.0082 for 0.0074, 30 training images of BCCD)."""
        from ai_edge_litert.interpreter import Interpreter

        interpreter = Interpreter(
            model_content=self.source, num_threads=1, experimental_preserve_all_tensors=True
        )
        interpreter.allocate_tensors()
        (image,) = (end["index"] for end in interpreter.get_input_details())
        details = [t for t in interpreter.get_tensor_details() if t["name"] in self.ranges]
        for pixels in images:
            interpreter.set_tensor(image, pixels)
            interpreter.invoke()
            for detail in details:
                values, limits = (
                    interpreter.get_tensor(detail["index"]),
                    self.ranges[detail["name"]],
                )
                if "min" in limits and np.size(limits["min"]) == 1:
                    limits["min"] = np.minimum(limits["min"], values.min())
                    limits["max"] = np.maximum(limits["max"], values.max())

    def convolutions(self) -> List[str]:
        return list(self.tensors)

    def write(self, path: Path, float_layers: Sequence[str]) -> None:
        quantizer = self._quantizer([self.tensors[name] for name in float_layers])
        result = quantizer.quantize(self.ranges, enable_progress_report=False)
        graph = Graph(bytes(result.quantized_model))
        graph.integer_input()
        graph.strip()
        graph.save(path)

    def _quantizer(self, left_out: Sequence[str]):
        from ai_edge_quantizer.qtyping import TFLOperationName
        from ai_edge_quantizer.quantizer import AlgorithmName, Quantizer

        every, keep = TFLOperationName.ALL_SUPPORTED, AlgorithmName.NO_QUANTIZE
        quantizer = Quantizer(self.source)
        quantizer.add_static_config(".*", every, activation_num_bits=8, weight_num_bits=8)
        for end in (TFLOperationName.INPUT, TFLOperationName.OUTPUT):
            quantizer.update_quantization_recipe(".*", end, algorithm_key=keep)
        for name in (*self.decoding, *left_out):
            regex = f"^{re.escape(name)};$"
            quantizer.update_quantization_recipe(regex, every, algorithm_key=keep)
        return quantizer


@torch.no_grad()
def convolution_names(network: SSD) -> List[str]:
    """Names of a model's convolutions in the order of their calls, like those of ONNX's nodes:
    ``/model/head/cls_score.0/3/Conv``."""
    called, hooks = [], []
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d):
            path = re.sub(r"([a-z]\w*)/(\d+)(?=/)", r"\1.\2", f"{name.replace('.', '/')}/")
            record = functools.partial(lambda path, *_: called.append(path), path)
            hooks.append(module.register_forward_hook(record))
    network.raw_outputs(torch.zeros(1, 3, *network.input_size))
    for hook in hooks:
        hook.remove()
    return [f"/model/{path}Conv" for path in called]


class Graph:
    """A .tflite file's only graph, by the classes of its schema."""

    def __init__(self, content: bytes):
        from ai_edge_litert.tools import flatbuffer_utils

        self.tools = flatbuffer_utils
        self.model = flatbuffer_utils.read_model_from_bytearray(content)
        (self.graph,) = self.model.subgraphs

    @property
    def outputs(self) -> List[int]:
        return self.graph.outputs

    def kind(self, operator) -> str:
        """``CONV_2D`` and so on."""
        return self.tools.opcode_to_name(self.model, operator.opcodeIndex)

    def name(self, tensor: int) -> str:
        return self.graph.tensors[tensor].name.decode()

    def ancestors(self, tensors: Sequence[int]) -> List[bool]:
        """Of each operator, whether it comes before one of the tensors."""
        needed, found = set(tensors), []
        for operator in reversed(self.graph.operators):
            found.append(not needed.isdisjoint(operator.outputs))
            needed.update(operator.inputs if found[-1] else ())
        return found[::-1]

    def add_tensor(self, name: str, values: np.ndarray = None, shape: Sequence[int] = ()) -> int:
        """A float32 tensor; one without values is computed."""
        schema = self.tools.schema_fb
        tensor = schema.TensorT(name=name.encode(), type=schema.TensorType.FLOAT32)
        tensor.shape, tensor.buffer = list(shape), 0
        if values is not None:
            tensor.shape, tensor.buffer = list(values.shape), len(self.model.buffers)
            content = np.frombuffer(values.astype("<f4").tobytes(), np.uint8)
            self.model.buffers.append(schema.BufferT(data=content))
        self.graph.tensors.append(tensor)
        return len(self.graph.tensors) - 1

    def add_code(self, kind: str, custom: bool = False) -> int:
        """The index of a kind of operator."""
        schema = self.tools.schema_fb
        code = schema.OperatorCodeT(version=1)
        code.builtinCode = getattr(schema.BuiltinOperator, "CUSTOM" if custom else kind)
        code.deprecatedBuiltinCode = min(code.builtinCode, 127)
        code.customCode = kind.encode() if custom else None
        self.model.operatorCodes.append(code)
        return len(self.model.operatorCodes) - 1

    def add_operator(self, kind: str, inputs: List[int], outputs: List[int], options: bytes):
        """A custom operator at the end."""
        self.graph.operators.append(
            self.tools.schema_fb.OperatorT(
                opcodeIndex=self.add_code(kind, custom=True),
                inputs=inputs,
                outputs=outputs,
                customOptions=np.frombuffer(options, np.uint8),
            )
        )

    def set_outputs(self, names: Dict[str, int]) -> None:
        """Make tensors the outputs, and drop what is not needed for them."""
        schema = self.tools.schema_fb
        self.graph.outputs = list(names.values())
        (signature,) = self.model.signatureDefs
        signature.outputs = [
            schema.TensorMapT(name=name.encode(), tensorIndex=i) for name, i in names.items()
        ]
        needed = self.ancestors(self.graph.outputs)
        self.graph.operators = [o for o, keep in zip(self.graph.operators, needed) if keep]
        self.drop_tensors()

    def drop_tensors(self) -> None:
        """Drop tensors and buffers that nothing refers to."""
        (signature,), operators = self.model.signatureDefs, self.graph.operators
        lists = [x for o in operators for x in (o.inputs, o.outputs)]
        lists += [self.graph.inputs, self.graph.outputs]
        kept = sorted({i for indices in lists for i in indices if i >= 0})
        place = {-1: -1, **{old: new for new, old in enumerate(kept)}}
        for indices in lists:
            indices[:] = [place[i] for i in indices]
        for end in (*signature.inputs, *signature.outputs):
            end.tensorIndex = place[end.tensorIndex]
        self.graph.tensors = [self.graph.tensors[i] for i in kept]
        for i in set(range(len(self.model.buffers))) - {t.buffer for t in self.graph.tensors}:
            self.model.buffers[i].data = None

    def integer_input(self) -> None:
        """Let uint8 images become int8 at once: converted to float in between they take longer."""
        schema = self.tools.schema_fb
        operators = self.graph.operators
        (image,) = self.graph.inputs
        cast = next(o for o in operators if image in o.inputs)
        users = [o for o in operators if cast.outputs[0] in o.inputs]
        if [self.kind(o) for o in (cast, *users)] == ["CAST", "QUANTIZE"]:
            cast.opcodeIndex, cast.outputs = users[0].opcodeIndex, users[0].outputs
            cast.builtinOptionsType, cast.builtinOptions = 0, None
            operators.remove(users[0])
            plain = schema.QuantizationParametersT(scale=[1.0], zeroPoint=[0])
            self.graph.tensors[image].quantization = plain
            self.drop_tensors()

    def strip(self) -> None:
        """Drop what takes a tenth of an INT8 file and that no runtime needs: the names of inner
        tensors, ranges beside scales, and equal lists of zero points (``save``)."""
        ends = {*self.graph.inputs, *self.graph.outputs}
        for i, tensor in enumerate(self.graph.tensors):
            tensor.name = tensor.name if i in ends else b""
            if tensor.quantization is not None and tensor.quantization.scale is not None:
                tensor.quantization.min = tensor.quantization.max = None
                tensor.quantization.zeroPoint = np.array(tensor.quantization.zeroPoint, np.int64)

    def save(self, path: Path) -> None:
        """Write the file anew: a runtime may have the old one open."""
        builder = _builder()
        builder.Finish(self.model.Pack(builder), file_identifier=b"TFL3")
        work = path.with_suffix(".new")
        work.write_bytes(builder.Output())
        os.replace(work, path)


def _builder():
    """A flatbuffers.Builder that writes equal arrays once."""
    import flatbuffers

    class Builder(flatbuffers.Builder):
        shared: Dict[Tuple[str, bytes], int] = {}

        def CreateNumpyVector(self, x: np.ndarray) -> int:
            key = (x.dtype.str, x.tobytes())
            if key not in self.shared:
                self.shared[key] = super().CreateNumpyVector(x)
            return self.shared[key]

    return Builder(1 << 20)
