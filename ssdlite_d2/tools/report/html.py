"""Parts of an HTML page that needs no other file. All text is escaped here."""

import base64
import hashlib
import html
from pathlib import Path
from typing import Any, Iterable, List, Sequence, Tuple

import cv2
import numpy as np

from ...evaluation.operating import BoxTable

LARGEST_SIDE = 640  # pixels of an image on the page
HERE = Path(__file__).parent


class Raw(str):
    """HTML, which is not escaped again."""


def text(value: Any) -> str:
    """A value as HTML: numbers with one digit behind the point, a dash for what is not known."""
    if isinstance(value, Raw):
        return value
    if value is None or isinstance(value, (float, np.floating)) and not np.isfinite(value):
        return "–"
    if isinstance(value, (float, np.floating)):
        return f"{value:.1f}"
    return html.escape(f"{value:,}" if isinstance(value, (int, np.integer)) else str(value))


def table(
    heads: Sequence[str], rows: Iterable[Sequence], label: str, sortable: bool = False
) -> str:
    """Rows below a head; wider than the screen it scrolls, by keyboard too."""
    kind = ' class="sortable"' if sortable else ""
    button = '<button type="button">{}</button>' if sortable else "{}"
    head = "".join(f'<th scope="col">{button.format(text(name))}</th>' for name in heads)
    body = "".join("<tr>" + "".join(map(_cell, row)) + "</tr>\n" for row in rows)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{text(label)}"><table{kind}>'
        f"<thead><tr>{head}</tr></thead><tbody>\n{body}</tbody></table></div>"
    )


def _cell(value: Any) -> str:
    words = isinstance(value, str) and not isinstance(value, Raw) and not value[:1].isdigit()
    return f"<td{' class=text' if words else ''}>{text(value)}</td>"


def section(name: str, title: str, *parts: str) -> str:
    return (
        f'<section id="{name}"><h2>{text(title)}</h2>\n'
        + "\n".join(filter(None, parts))
        + "</section>\n"
    )


def paragraph(words: str, kind: str = "") -> str:
    return f'<p class="{kind}">{text(words)}</p>' if kind else f"<p>{text(words)}</p>"


def facts(pairs: Iterable[Tuple[str, Any]]) -> str:
    items = (f"<li>{text(name)} <b>{text(value)}</b></li>" for name, value in pairs)
    return f'<ul class="figures">{"".join(items)}</ul>'


def bar(value: float, largest: float) -> Raw:
    """A number with a bar beside it."""
    share = max(0.0, value / largest) if largest > 0 else 0.0
    return Raw(f'{text(value)}<span class="bar" style="width:{6 * share:.2f}rem"></span>')


class Box:
    """A box to draw: its outcome (right, wrong or missed), what is written beside it, and more."""

    def __init__(self, xywh: Sequence[float], outcome: str, written: str = "", title: str = ""):
        self.xywh, self.outcome, self.written, self.title = xywh, outcome, written, title


def image(pixels: np.ndarray, boxes: Sequence[Box], caption: str, label: str) -> str:
    """A figure of an image with its boxes.

    Args:
        pixels: BGR (h, w, 3); larger ones are reduced.
        label: tells those what it shows who cannot see it.
    """
    height, width = pixels.shape[:2]
    scale = min(1.0, LARGEST_SIDE / max(height, width))
    if scale < 1:
        pixels = cv2.resize(pixels, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    data = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, 75])[1]
    size = max(width, height) / 34
    drawn = "".join(_drawn(box, size, width) for box in boxes)
    return (
        f'<figure><svg viewBox="0 0 {width} {height}" role="img" aria-label="{text(label)}" '
        f'font-size="{size:.1f}"><image width="{width}" height="{height}" '
        f'href="data:image/jpeg;base64,{base64.b64encode(data).decode()}"/>{drawn}</svg>'
        f"<figcaption>{text(caption)}</figcaption></figure>\n"
    )


def _drawn(box: Box, size: float, width: int) -> str:
    """A box, and its words above it, within an image of some width."""
    x, y, w, h = box.xywh
    title = f"<title>{text(box.title)}</title>" if box.title else ""
    drawn = f'<rect class="{box.outcome}" x="{x:.1f}" y="{y:.1f}" width="{w:.1f}" height="{h:.1f}">'
    drawn += f"{title}</rect>"
    if box.written:
        up = y - 0.3 * size if y > 1.3 * size else y + size
        at, anchor = (x + 1, "start") if x < 0.6 * width else (x + w, "end")
        drawn += (
            f'<text x="{at:.1f}" y="{up:.1f}" text-anchor="{anchor}">{text(box.written)}</text>'
        )
    return drawn


def page(title: str, sections: Sequence[str], top: str) -> str:
    """The whole file. Its policy lets it load nothing, and run one script."""
    script = (HERE / "page.js").read_text("utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; "
    policy += f"form-action 'none'; script-src 'sha256-{digest}'"
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{text(title)}</title><style>\n{(HERE / 'style.css').read_text('utf-8')}</style>"
        f"</head><body>\n<header><h1>{text(title)}</h1>\n{top}\n</header>\n<main>\n"
        + "".join(sections)
        + f"</main><script>{script}</script></body></html>\n"
    )


def rows_of(table: BoxTable, image_number: int) -> List[int]:
    """Rows of a table that belong to an image."""
    place = table.of_image(image_number)
    return list(range(place.start, place.stop))
