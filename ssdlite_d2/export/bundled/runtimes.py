"""The runtimes and devices that models of bundles run on."""

import os
from typing import NamedTuple

import numpy as np


class PredictError(ValueError):
    """Something given is wrong; the message is one line."""


def first_line(error):
    """What an error says, in one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


# onnxruntime's execution providers, their options, and the package that has them
PROVIDERS = {
    "cpu": ("CPUExecutionProvider", {}, "onnxruntime"),
    "cuda": ("CUDAExecutionProvider", {}, "onnxruntime-gpu"),
    "tensorrt": ("TensorrtExecutionProvider", {}, "onnxruntime-gpu"),
    "openvino:GPU": ("OpenVINOExecutionProvider", {"device_type": "GPU"}, "onnxruntime-openvino"),
    "openvino:NPU": ("OpenVINOExecutionProvider", {"device_type": "NPU"}, "onnxruntime-openvino"),
    "coreml": ("CoreMLExecutionProvider", {}, "onnxruntime (on macOS)"),
}


def open_onnx(path, spec, threads, precision, device):
    """onnxruntime; what a device cannot compute is left to the processor."""
    import onnxruntime

    provider, settings, package = PROVIDERS[device]
    if provider not in onnxruntime.get_available_providers():
        raise PredictError(f"--device {device}: onnxruntime has no {provider}; install {package}")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    # threads that spin for work take it from whatever else runs: twice the time on a busy machine
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    providers = [(provider, settings)]
    if device != "cpu":
        providers.append("CPUExecutionProvider")
    session = onnxruntime.InferenceSession(str(path), options, providers)
    if session.get_providers()[0] != provider:  # a library or a driver of it is missing
        raise PredictError(f"--device {device}: {provider} of {package} does not start here")
    name = session.get_inputs()[0].name
    return lambda images: session.run(None, {name: images})


DRIVERS = {"GPU": "intel-opencl-icd", "NPU": "intel-driver-compiler-npu"}  # packages of Linux


def open_openvino(path, spec, threads, precision, device):
    """OpenVINO; bf16 is much faster where the processor has it, and less exact."""
    import openvino

    core, name = openvino.Core(), device.rpartition(":")[2].upper()
    if not any(x.partition(".")[0] == name for x in core.available_devices):
        found = ", ".join(core.available_devices)
        raise PredictError(f"--device {device}: OpenVINO finds {found}; install {DRIVERS[name]}")
    options = {"PERFORMANCE_HINT": "LATENCY"}
    if precision or name != "NPU":  # which has no float32
        hint = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}[precision or "fp32"]
        options["INFERENCE_PRECISION_HINT"] = hint
    if threads and name == "CPU":
        options["INFERENCE_NUM_THREADS"] = threads
    compiled = core.compile_model(str(path), name, options)
    request = compiled.create_infer_request()
    ports = list(compiled.outputs)

    def run(images):
        results = request.infer({0: images}, share_inputs=True)
        return [results[port] for port in ports]

    return run


def open_torchscript(path, spec, threads, precision, device):
    """PyTorch alone, without the package that trained the model."""
    import torch

    if spec["layout"] == "nms":
        import torchvision  # noqa: F401  has the operator
    if device == "cuda" and not torch.cuda.is_available():
        raise PredictError(f"--device cuda: torch {torch.__version__} finds no GPU of NVIDIA")
    if threads:
        torch.set_num_threads(threads)
    module = torch.jit.load(str(path), map_location=device)

    def run(images):
        with torch.inference_mode():
            return [x.cpu().numpy() for x in module(torch.from_numpy(images).to(device))]

    return run


def open_ncnn(path, spec, threads, precision, device):
    """ncnn; images go in one by one."""
    import ncnn

    network = ncnn.Net()
    network.opt.use_fp16_packed = network.opt.use_fp16_storage = precision == "fp16"
    network.opt.use_fp16_arithmetic = network.opt.use_bf16_storage = False
    if threads:
        network.opt.num_threads = threads
    network.load_param(str(path))
    network.load_model(str(path.with_suffix(".bin")))

    def run(images):
        results = []
        for image in images:
            extractor = network.create_extractor()
            planes = np.ascontiguousarray(image.transpose(2, 0, 1), dtype=np.float32)
            extractor.input("in0", ncnn.Mat(planes))
            results.append([np.array(extractor.extract(name)[1]) for name in ("out0", "out1")])
        return [np.stack(outputs) for outputs in zip(*results)]

    return run


def open_litert(path, spec, threads, precision, device):
    """LiteRT (TensorFlow Lite)."""
    from ai_edge_litert.interpreter import Interpreter

    threads = threads or os.cpu_count()
    if spec["layout"] == "detection-postprocess" and threads < len(spec["classes"]):
        threads = 1  # in 2.3.0 its operator loses class T with T threads, when there are more
    interpreter = Interpreter(model_path=str(path), num_threads=threads)
    interpreter.allocate_tensors()
    image = interpreter.get_input_details()[0]["index"]
    ends = [end["index"] for end in interpreter.get_output_details()[: len(spec["outputs"])]]

    def run(images):
        interpreter.set_tensor(image, images)
        interpreter.invoke()
        return [interpreter.get_tensor(end) for end in ends]

    return run


def open_executorch(path, spec, threads, precision, device):
    """ExecuTorch's runtime."""
    import torch
    from executorch.runtime import Runtime

    method = Runtime.get().load_program(str(path)).load_method("forward")
    return lambda images: [x.numpy() for x in method.execute([torch.from_numpy(images)])]


def open_coreml(path, spec, threads, precision, device):
    """Core ML, which runs on Apple's systems only; images go in one by one."""
    import coremltools
    from PIL import Image

    units = {"coreml": "ALL", "cpu": "CPU_ONLY"}[device]
    model = coremltools.models.MLModel(
        str(path), compute_units=getattr(coremltools.ComputeUnit, units)
    )

    def run(images):
        results = [model.predict({"image": Image.fromarray(image)}) for image in images]
        return [np.concatenate([r[name] for r in results]) for name in ("boxes", "scores")]

    return run


class Runtime(NamedTuple):
    """One runtime.

    Attributes:
        open: (model file, model.json, threads, precision, device) to a function from a batch of
            images to the list of the model's outputs.
        package: that has it.
        devices: those it knows; the first one is the usual.
        auto: those that ``auto`` tries, best first. TensorRT is not tried: it takes minutes to
            build its engine.
    """

    open: callable
    package: str
    devices: tuple = ("cpu",)
    auto: tuple = ("cpu",)


RUNTIMES = {
    "onnx": Runtime(open_onnx, "onnxruntime", tuple(PROVIDERS), ("cuda", "coreml", "cpu")),
    "openvino": Runtime(
        open_openvino,
        "openvino",
        ("cpu", "openvino:GPU", "openvino:NPU"),
        ("openvino:GPU", "openvino:NPU", "cpu"),
    ),
    "web": Runtime(open_onnx, "onnxruntime"),  # the same file, outside a browser
    "torchscript": Runtime(open_torchscript, "torch", ("cpu", "cuda"), ("cuda", "cpu")),
    "ncnn": Runtime(open_ncnn, "ncnn"),
    "litert": Runtime(open_litert, "ai-edge-litert"),
    "executorch": Runtime(open_executorch, "executorch"),
    "coreml": Runtime(open_coreml, "coremltools", ("coreml", "cpu"), ("coreml",)),
}


def open_runtime(path, spec, threads=0, precision=None, device=None):
    """A model in its runtime.

    Returns:
        a function from a batch of images to the list of the model's outputs, and the device.

    Raises:
        PredictError: the runtime or the device is not there, or the file is damaged.
    """
    runtime = RUNTIMES[spec["format"]]
    known = (*runtime.devices, "auto")
    if device is not None and device not in known:
        raise PredictError(
            f"--device {device} is not for {spec['format']}; it is one of {', '.join(known)}"
        )
    *first, last = runtime.auto if device == "auto" else (device or runtime.devices[0],)
    for name in first:
        try:
            return runtime.open(path, spec, threads, precision, name), name
        except Exception:  # not there, or it cannot run this model
            continue
    try:
        return runtime.open(path, spec, threads, precision, last), last
    except PredictError:
        raise
    except ImportError as error:
        package = runtime.package
        raise PredictError(
            f"{path.name} needs {package}: pip install {package} ({error})"
        ) from error
    except Exception as error:  # each runtime has its own kinds
        raise PredictError(f"{path} cannot be opened: {first_line(error)}") from error
