from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).resolve().parent
version = next(
    line.split('"')[1]
    for line in (here / "ssdlite_d2" / "__init__.py").read_text().splitlines()
    if line.startswith("__version__")
)

setup(
    name="ssdlite-d2",
    version=version,
    description="SSD and SSDLite object detectors for Detectron2",
    long_description=(here / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    keywords="object detection, SSD, SSDLite, Detectron2, PyTorch, ONNX",
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Operating System :: MacOS",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3 :: Only",
        *(f"Programming Language :: Python :: 3.{minor}" for minor in range(10, 14)),
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Scientific/Engineering :: Image Recognition",
    ],
    python_requires=">=3.10",
    packages=[*find_packages(include=["ssdlite_d2", "ssdlite_d2.*"]), "ssdlite_d2.configs"],
    package_dir={"ssdlite_d2.configs": "configs"},
    package_data={
        "ssdlite_d2.configs": ["*.yaml", "*/*.yaml"],
        "ssdlite_d2.tools.report": ["*.css", "*.js"],
        "ssdlite_d2.export.bundled": ["web/*", "detect.cpp"],
    },
    entry_points={"console_scripts": ["ssdlite = ssdlite_d2.tools.cli:main"]},
    # Detectron2 has no release on the package index: see README.md, "Install".
    install_requires=[
        "fvcore",
        "iopath>=0.1.7,<0.1.10",
        "matplotlib",
        "numpy",
        "opencv-python>=4.11",
        "pillow",
        "pycocotools",
        "pyyaml",
        "tabulate",
        "torch>=2.4",  # fused optimizers on the CPU
        "torchvision>=0.19",
        "tqdm",
    ],
    # eval is faster, lvis is for LVIS, timm has more trunks, supervision takes detections; the
    # others are runtimes to export to. litert and executorch each want an environment of their own.
    extras_require={
        "eval": ["faster-coco-eval"],
        "lvis": ["lvis"],
        "timm": ["timm>=1.0"],
        "supervision": ["supervision"],
        "onnx": ["onnx>=1.16", "onnxruntime>=1.22"],
        "openvino": ["onnx>=1.16", "openvino>=2024.6", "nncf>=2.14"],
        "ncnn": ["ncnn", "pnnx"],
        "coreml": ["coremltools>=8"],
        "litert": ["litert-torch"],
        "executorch": ["executorch"],
    },
)
