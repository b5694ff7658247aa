"""Example reports of the documentation."""

import importlib.util
import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"
LARGEST = 4_000_000  # bytes of all pages; they are in every copy of the project
MACHINE = re.compile(r"[\s\"'=](/(?:tmp|home|root|work|Users)/[\w.-]+)")


def loaded():
    spec = importlib.util.spec_from_file_location("example", DOCS / "example.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


example = loaded()


def test_they_are_small():
    sizes = [path.stat().st_size for path in example.FOLDER.iterdir()]
    assert len(sizes) == len(example.PAGES)
    assert sum(sizes) < LARGEST


@pytest.mark.parametrize("name", example.PAGES)
def test_no_link_and_no_path_leads_out_of_them(name):
    page = (example.FOLDER / name).read_text(encoding="utf-8")
    links = re.findall(r'<a href="([^"#:]+)"', page)
    assert links
    assert all((example.FOLDER / link).is_file() for link in links)
    assert MACHINE.findall(page) == []


@pytest.mark.parametrize("page", ["index.md", "reading-reports.md"])
def test_they_are_linked(page):
    links = re.findall(r"\]\((example/[^)]+)\)", (DOCS / page).read_text(encoding="utf-8"))
    assert sorted(set(links)) == sorted(f"example/{name}" for name in example.PAGES)


def test_pages_are_copied_without_what_leads_out_of_them(tmp_path):
    out, folder = tmp_path / "demo" / "out", tmp_path / "example"
    out.mkdir(parents=True)
    links = ("sub-patient01.html", "sub-patient02.html", "group.html", "#methods")
    text = "".join(f'<a href="{link}">{link}</a>' for link in links)
    for name in example.PAGES:
        (out / name).write_text(f"{text}<code>mri2pet {out}</code>", encoding="utf-8")
    example.copy_pages(out, folder)
    assert sorted(path.name for path in folder.iterdir()) == sorted(example.PAGES)
    kept = (folder / "group.html").read_text(encoding="utf-8")
    assert re.findall('href="([^"]+)"', kept) == ["sub-patient01.html", "group.html", "#methods"]
    assert "</a>sub-patient02.html<a" in kept
    assert "<code>mri2pet demo/out</code>" in kept
