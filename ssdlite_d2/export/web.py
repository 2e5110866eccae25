"""The page of a bundle that detects in a browser, by onnxruntime-web."""

import base64
import hashlib
import shutil
from pathlib import Path
from typing import Dict, Optional

from ..errors import InputError
from ..files import read_regular

PAGE = Path(__file__).parent / "bundled" / "web"
PACKAGE = "onnxruntime-web@1.30.0"  # of npm; MIT
CDN = "https://cdn.jsdelivr.net"
ADDRESS = f"{CDN}/npm/{PACKAGE}/dist/"
# The files that each device needs: the runtime, WebAssembly's loader and WebAssembly.
DEVICES = {
    "wasm": ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm"),
    "webgpu": (
        "ort.webgpu.min.mjs",
        "ort-wasm-simd-threaded.asyncify.mjs",
        "ort-wasm-simd-threaded.asyncify.wasm",
    ),
}
# sha256 of the package's files, as browsers compare them
INTEGRITY = {
    "ort.wasm.min.mjs": "sha256-IZ5qH8ipk4Jo0Y78o8kdMQvS9KWbvRN0TfWyt/xs7js=",
    "ort-wasm-simd-threaded.mjs": "sha256-4T9/lPxRtMpysS+use6V9Kzm37yJObxxiqvcCifEKZs=",
    "ort-wasm-simd-threaded.wasm": "sha256-M5jBDQfSKb2Rs2RUjhMODlGo5XBLiMfAg+u+t4hC3uI=",
    "ort.webgpu.min.mjs": "sha256-Pf//cYEbwTo6PZWRxXyl7lc1uPXz6veJUQsCuwQK46A=",
    "ort-wasm-simd-threaded.asyncify.mjs": "sha256-PRyFmVNku2QzAvxv2Hegw7pa5yQBgV4PJIKKU9kZHig=",
    "ort-wasm-simd-threaded.asyncify.wasm": "sha256-OfnwiU1HiABIftn32+kmGEmNsyDPVcjj2Jrf+NzmWNo=",
}


def digest_of(content: bytes) -> str:
    """An integrity attribute."""
    return "sha256-" + base64.b64encode(hashlib.sha256(content).digest()).decode()


def check_runtime(folder: Path) -> None:
    """
    Raises:
        InputError: the folder lacks a file of the runtime, or has another version's.
    """
    for name, digest in INTEGRITY.items():
        try:
            content = read_regular(folder / name)
        except OSError as error:
            raise InputError(
                f"--runtime: {folder / name} cannot be read; the folder is dist of npm's {PACKAGE}"
            ) from error
        if digest_of(content) != digest:
            raise InputError(f"--runtime: {folder / name} is not the file of npm's {PACKAGE}")


def write_page(folder: Path, runtime: Optional[str]) -> Dict:
    """Write the page into a bundle's folder, and the runtime beside it when there is one.

    Args:
        runtime: a folder with the runtime's files; None takes them from a public CDN.

    Returns:
        dict: what model.json says of the runtime.
    """
    for path in PAGE.iterdir():
        if path.is_file():
            shutil.copyfile(path, folder / path.name)
    if runtime is not None:
        (folder / "runtime").mkdir()
        for name in INTEGRITY:
            shutil.copyfile(Path(runtime) / name, folder / "runtime" / name)
        index = folder / "index.html"
        index.write_text(index.read_text().replace(f" {CDN}", ""))  # the page connects to no other
    return {
        "package": PACKAGE,
        "address": "runtime/" if runtime is not None else ADDRESS,
        "devices": DEVICES,
        "integrity": INTEGRITY,
    }
