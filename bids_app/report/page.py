"""From values to a page of HTML, by the templates in ``data/report``."""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

TEMPLATES: Final = Path(__file__).parents[1] / "data" / "report"


def render(template: str, values: Mapping[str, object]) -> str:
    """Fill in a template.

    Parameters
    ----------
    template : str
        A file in ``data/report``.
    values : dict
        What it asks for; all text is escaped.

    Returns
    -------
    str
        A page that needs no other file: the style sheet is inside.
    """
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style = Markup((TEMPLATES / "style.css").read_text(encoding="utf-8"))
    return environment.get_template(template).render(style=style, **values)
