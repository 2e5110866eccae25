"""The formats a model can be exported to, and what each can do."""

import contextlib
import importlib.util
import warnings
from pathlib import Path
from typing import Callable, Dict, Iterator, NamedTuple, Tuple

import torch
from torch import Tensor, nn

from ..errors import InputError, one_of
from .litert import halve_weights


class Job(NamedTuple):
    """What a format's writer gets.

    Attributes:
        module: an ExportedSSD or WithNMS.
        image: an example input, uint8.
        path: the model file to write; files beside it are the format's own affair.
        precision: of the weights, ``fp32`` or ``fp16``.
        dynamic_batch: whether the number of images is left open.
        dynamic_size: whether the size of the images is left open.
        outputs: names of the outputs.
    """

    module: nn.Module
    image: Tensor
    path: Path
    precision: str
    dynamic_batch: bool
    dynamic_size: bool
    outputs: Tuple[str, ...]


class Format(NamedTuple):
    """One format.

    Attributes:
        file: name of the model file.
        modules: what has to be importable to write and to check it.
        extra: the package's extra that installs them.
        write: writes a Job's file.
        precisions: those it has.
        dynamic: whether batch and image size may be left open, and NMS be inside.
        channels_last: whether images go in as (N, H, W, 3).
        runs_here: whether the runtime can be run to check it.
    """

    file: str
    modules: Tuple[str, ...]
    extra: str
    write: Callable[[Job], None]
    precisions: Tuple[str, ...] = ("fp32",)
    dynamic: bool = False
    channels_last: bool = True
    runs_here: bool = True

    def require(self) -> None:
        """
        Raises:
            InputError: a package is missing.
        """
        missing = [name for name in self.modules if not importlib.util.find_spec(name)]
        if missing:
            raise InputError(
                f"{', '.join(missing)} is not installed: pip install 'ssdlite-d2[{self.extra}]'"
            )


@contextlib.contextmanager
def tracing() -> Iterator[None]:
    """Without gradients, and without warnings that sizes become constants: they are meant to."""
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def trace(job: Job) -> torch.jit.ScriptModule:
    """The module's graph for the example, its constants folded in."""
    with tracing():
        return torch.jit.freeze(torch.jit.trace(job.module, job.image, check_trace=False))


def write_torchscript(job: Job) -> None:
    """Runs with PyTorch, from Python or C++."""
    trace(job).save(str(job.path))


def write_onnx(job: Job) -> None:
    """By torch.onnx's graph tracer, which needs no other package than onnx.

    Its successor (``dynamo=True``) gives the same graph in five times the time, and knows no
    operator of our own for suppression.
    """
    axes = {0: "batch"} if job.dynamic_batch else {}
    image = {**axes, **({1: "height", 2: "width"} if job.dynamic_size else {})}
    with tracing():
        torch.onnx.export(
            job.module,
            (job.image,),
            str(job.path),
            dynamo=False,
            opset_version=17,
            input_names=["image"],
            output_names=list(job.outputs),
            dynamic_axes={"image": image, **{name: axes for name in job.outputs}},
        )
    if job.precision == "fp16":
        _halve_weights(job.path)


def _halve_weights(path: Path) -> None:
    """Store an ONNX model's large constants as float16; a Cast gives them back as float32.

    The runtime casts them once, at loading: the file is half as large, the arithmetic float32.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    model = onnx.load(str(path))
    casts = []
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT and len(tensor.raw_data) > 1024:
            name = tensor.name
            half = numpy_helper.to_array(tensor).astype("float16")
            tensor.CopyFrom(numpy_helper.from_array(half, f"{name}_fp16"))
            casts.append(helper.make_node("Cast", [tensor.name], [name], to=TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.save(model, str(path))


def write_openvino(job: Job) -> None:
    """By way of ONNX; ``fp16`` is that of the weights."""
    import openvino

    onnx_path = job.path.with_suffix(".onnx")
    write_onnx(job._replace(path=onnx_path, precision="fp32"))
    save_openvino(openvino.convert_model(str(onnx_path)), job.path, job.precision == "fp16")
    onnx_path.unlink()


def save_openvino(model, path: Path, compress_to_fp16: bool = False) -> None:
    """Write an openvino.Model; its text without the indentation, a fifth of it."""
    import openvino

    openvino.save_model(model, str(path), compress_to_fp16)
    path.write_text("".join(line.strip() for line in path.read_text().splitlines()))


def write_coreml(job: Job) -> None:
    """An ML program that takes an image; Core ML images are (N, 3, H, W) inside."""
    import coremltools

    precision = coremltools.precision.FLOAT16 if job.precision == "fp16" else None
    model = coremltools.convert(
        trace(job._replace(image=job.image.float())),
        inputs=[coremltools.ImageType(name="image", shape=job.image.shape)],
        outputs=[coremltools.TensorType(name=name) for name in job.outputs],
        compute_precision=precision or coremltools.precision.FLOAT32,
        minimum_deployment_target=coremltools.target.iOS15,
        convert_to="mlprogram",
    )
    model.save(str(job.path))


def write_ncnn(job: Job) -> None:
    """By pnnx, from TorchScript; ncnn knows no uint8, so images go in as float, (3, H, W)."""
    import pnnx

    source = job.path.with_name("source.pt")
    example = job.image.float()
    with tracing():
        torch.jit.trace(job.module, example, check_trace=False).save(str(source))
    pnnx.convert(
        str(source),
        (example,),
        ncnnparam=str(job.path),
        ncnnbin=str(job.path.with_suffix(".bin")),
        fp16=job.precision == "fp16",
    )
    keep = {job.path.name, job.path.with_suffix(".bin").name}
    for file in job.path.parent.glob("*"):
        if file.name not in keep and (file.name.startswith("source") or "pnnx" in file.name):
            file.unlink()


def write_litert(job: Job) -> None:
    """For LiteRT, formerly TensorFlow Lite."""
    import litert_torch

    litert_torch.progress.console.quiet = True
    module = _Named(job.module, (*job.outputs, "codes", "boxes_as_codes")).eval()
    # litert-torch 0.10.0 takes weights for equal whose contiguous copies had one address by turns
    module.to(memory_format=torch.contiguous_format)
    content = litert_torch.convert(module, sample_kwargs={"image": job.image}).model_content()
    if job.precision == "fp16":
        content = halve_weights(content)
    job.path.write_bytes(content)


class _Named(nn.Module):
    """Names a module's outputs, as many as it has.

    Images become float before they are transposed: the converter then drops the transposition.
    """

    def __init__(self, module: nn.Module, names: Tuple[str, ...]):
        super().__init__()
        self.module, self.names = module, names

    def forward(self, image: Tensor) -> Dict[str, Tensor]:
        return dict(zip(self.names, self.module(image.float())))


def write_executorch(job: Job) -> None:
    """For ExecuTorch, with the XNNPACK kernels."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    # XNNPACK lays tensors out itself and refuses weights in another layout
    module = job.module.to(memory_format=torch.contiguous_format)
    program = torch.export.export(module, (job.image,))
    lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
    job.path.write_bytes(lowered.to_executorch().buffer)


FORMATS: Dict[str, Format] = {
    "onnx": Format(
        "model.onnx",
        ("onnx", "onnxruntime"),
        "onnx",
        write_onnx,
        precisions=("fp32", "fp16", "int8"),
        dynamic=True,
    ),
    "openvino": Format(
        "model.xml",
        ("openvino", "onnx"),
        "openvino",
        write_openvino,
        precisions=("fp32", "fp16", "int8"),
        dynamic=True,
    ),
    "web": Format(
        "model.onnx",
        ("onnx", "onnxruntime"),
        "onnx",
        write_onnx,
        precisions=("fp32", "fp16", "int8"),
    ),
    "torchscript": Format("model.ts", (), "torch", write_torchscript, dynamic=True),
    "coreml": Format(
        "model.mlpackage",
        ("coremltools",),
        "coreml",
        write_coreml,
        precisions=("fp32", "fp16"),
        channels_last=False,
        runs_here=False,
    ),
    "ncnn": Format(
        "model.param",
        ("ncnn", "pnnx"),
        "ncnn",
        write_ncnn,
        precisions=("fp32", "fp16"),
        channels_last=False,
    ),
    "litert": Format(
        "model.tflite",
        ("litert_torch",),
        "litert",
        write_litert,
        precisions=("fp32", "fp16", "int8"),
    ),
    "executorch": Format("model.pte", ("executorch",), "executorch", write_executorch),
}


def find_format(name: str) -> Format:
    """
    Raises:
        InputError: there is no such format.
    """
    return FORMATS[one_of("--format", name, FORMATS)]
