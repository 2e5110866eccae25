#!/usr/bin/env python
"""Serve the page of this folder: python serve.py, then open http://localhost:8000.

Any static server does; this one also sends the headers that let WebAssembly use several threads.
Needs nothing but Python. A phone opens the camera on pages of https only.
"""

import argparse
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Handler(SimpleHTTPRequestHandler):
    """Files of a folder, to an isolated page."""

    extensions_map = {
        **SimpleHTTPRequestHandler.extensions_map,
        ".js": "text/javascript",
        ".mjs": "text/javascript",
        ".wasm": "application/wasm",
    }

    def end_headers(self):
        self.send_header("Cross-Origin-Opener-Policy", "same-origin")
        self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        self.send_header("Cross-Origin-Resource-Policy", "same-origin")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Cache-Control", "no-cache")
        super().end_headers()


def main():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 serves the network, too")
    parser.add_argument("--port", type=int, default=8000, help="0 takes a free one")
    args = parser.parse_args()
    handler = partial(Handler, directory=str(Path(__file__).parent))
    with ThreadingHTTPServer((args.host, args.port), handler) as server:
        host = "localhost" if args.host == "127.0.0.1" else args.host
        print(f"http://{host}:{server.server_port}", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            pass


if __name__ == "__main__":
    main()
