"""Copy reports of the demo to docs/example, without links and paths that point outside.

Usage: ``make docs-example`` or ``python docs/example.py demo/out``.
"""

import re
import sys
from pathlib import Path

PAGES = ("sub-patient01.html", "group.html")
FOLDER = Path(__file__).parent / "example"
OVERVIEW = ' · <a href="participants.html">All participants</a>'
LINK = re.compile(r'<a href="([^"#:]+\.html)">(.*?)</a>', re.DOTALL)


def copy_pages(output_dir: Path, folder: Path) -> None:
    """Copy the pages of a demo.

    Parameters
    ----------
    output_dir : Path
        Derivative dataset written by ``make demo``: ``demo/out``.
    folder : Path
        Folder for the pages, in which links to other pages are removed, and paths begin with
        ``demo``.
    """
    folder.mkdir(exist_ok=True)
    demo = output_dir.resolve().parent
    for name in PAGES:
        page = (output_dir / name).read_text(encoding="utf-8").replace(str(demo), "demo")
        page = page.replace(OVERVIEW, "")
        kept = LINK.sub(lambda found: found[0] if found[1] in PAGES else found[2], page)
        (folder / name).write_text(kept, encoding="utf-8")


if __name__ == "__main__":
    copy_pages(Path(sys.argv[1]), FOLDER)
