"""Parsing of report pages as a reader sees them."""

import base64
import functools
import io
import pickle
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
from PIL import Image as Pillow

from bids_app.report import group, train

CHARTS = {
    group: ("draw_calibration", "draw_detection", "draw_responses"),
    train: ("draw_curves", "draw_sweeps", "draw_violins"),
}


def drawn_once(draw):
    """Cache the charts of equal data, which take half of the time of writing pages."""
    known = {}

    @functools.wraps(draw)
    def drawn(*data, **more):
        key = pickle.dumps((data, more))
        if key not in known:
            known[key] = draw(*data, **more)
        return known[key]

    return drawn


for _module, _names in CHARTS.items():
    for _name in _names:
        setattr(_module, _name, drawn_once(getattr(_module, _name)))


class Reader(HTMLParser):
    """Parser that collects the visible text of a page, and the links it would fetch."""

    SILENT = ("style", "script", "title", "desc", "head")
    VOID = ("meta", "link", "img", "input", "br", "hr")

    def __init__(self, page):
        super().__init__()
        self.text, self.links, self.tags, self.ids, self._open = [], [], [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.ids += [value for name, value in attrs if name == "id"]
        self.links += [value for name, value in attrs if name.endswith(("href", "src"))]
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self._open.pop()

    def handle_endtag(self, tag):
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data):
        if data.strip() and not set(self._open) & set(self.SILENT):
            self.text.append(" ".join(data.split()))


def text_of(page):
    return " ".join(Reader(page).text)


def section(page, name):
    start = page.index(f'<section id="{name}"')
    return page[start : page.index("</section>", start)]


def cells_of(table):
    """Return the text of the cells of a table, row by row."""
    rows = re.findall(r"<tr.*?</tr>", table, re.S)
    return [
        [" ".join(re.sub(r"<[^>]+>", "", c).split()) for c in re.findall(r"<t[hd].*?</t[hd]>", row)]
        for row in rows
    ]


def tables_in(page):
    return [cells_of(table) for table in re.findall(r"<table.*?</table>", page, re.S)]


def drawings_in(page):
    """List the drawings, and check that each is well-formed and has a text alternative."""
    drawings = re.findall(r'<svg viewBox[^>]*role="img".*?</svg>', page, re.S)
    for drawing in drawings:
        root = ElementTree.fromstring(drawing.replace(' href="', ' data="'))
        named = {child.get("id"): child.text for child in root if child.tag in ("title", "desc")}
        assert set(root.get("aria-labelledby").split()) == set(named)
        assert all(named.values())
    return drawings


def decode(href):
    kind, _, content = href.partition(";base64,")
    assert kind in ("data:image/webp", "data:image/png")
    return np.asarray(Pillow.open(io.BytesIO(base64.b64decode(content))).convert("L"), float)


def rgba(href):
    """Return the colours of a picture, (rows, columns, 4)."""
    content = base64.b64decode(href.partition(",")[2])
    return np.asarray(Pillow.open(io.BytesIO(content)).convert("RGBA"), int)
