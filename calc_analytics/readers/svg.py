"""A drawing of matplotlib as an `svg` element for a page: paths and texts, in the colours of the page's style sheet.

Colours are CSS variables (`var(--web)`), so one drawing serves light, dark and paper. There is no style attribute, no
font and no date in it: the same numbers give the same bytes, and a strict Content-Security-Policy allows it.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from html import escape
from io import BytesIO
from xml.etree import ElementTree

from matplotlib.figure import Figure

# The names of the style sheet's colours, and what stands for each of them while matplotlib draws.
COLOURS = ("text", "muted", "line", "web", "api", "external", "unknown", "p50", "p95", "p99", "heat", "ratio")
DRAWN = {name: f"#0000{n + 16:02x}" for n, name in enumerate(COLOURS)}
_NAMES = {colour: name for name, colour in DRAWN.items()}
_SVG = "{http://www.w3.org/2000/svg}"


@dataclass(frozen=True)
class Size:
    """A form of a figure, in units of about one pixel; at most so many labels fit below."""

    name: str
    width: int
    height: int
    labels: int


def as_html(figure: Figure, size: Size, name: str, title: str, words: str) -> str:
    """The figure's paths and texts as an `svg` element for a page, coordinates to a tenth of a pixel."""
    file = BytesIO()
    figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    drawn = "".join(_elements(ElementTree.fromstring(file.getvalue())))
    about = "".join(
        f'<{tag} id="{name}-{size.name}-{tag}">{escape(said)}</{tag}>'
        for tag, said in (("title", title), ("desc", words))
    )
    box = f'viewBox="0 0 {size.width} {size.height}" width="{size.width}" height="{size.height}"'
    labels = f'aria-labelledby="{name}-{size.name}-title {name}-{size.name}-desc"'
    return f'<svg class="{size.name}" {box} role="img" {labels}>{about}{drawn}</svg>'


def _elements(root: ElementTree.Element) -> Iterator[str]:
    for each in root.iter():
        style = dict(re.findall(r"([\w-]+): ([^;]+)", each.get("style", "")))
        if each.tag == f"{_SVG}path" and not _is_invisible(style):
            shape = re.sub(r"\s+", " ", re.sub(r"-?\d+\.\d+", _to_tenth, each.get("d", ""))).strip()
            yield f'<path d="{shape}"{_attributes(style)}/>'
        elif each.tag == f"{_SVG}text" and each.text:
            place = "".join(f' {name}="{_tenth(each.get(name, "0"))}"' for name in ("x", "y"))
            yield f"<text{place}{_attributes(style)}>{escape(each.text)}</text>"


def _is_invisible(style: Mapping[str, str]) -> bool:
    """Whether neither area nor line has a colour: the frames that are turned off."""
    return style.get("fill") == "none" and "stroke" not in style


def _attributes(style: Mapping[str, str]) -> str:
    """The style as attributes of its own, in the page's colours."""
    found = {name: style[name] for name in ("fill-opacity", "stroke-width", "text-anchor") if name in style}
    for name in ("fill", "stroke"):
        colour = style.get(name, "none" if name == "fill" and "stroke" in style else "")
        if colour:
            found[name] = f"var(--{_NAMES[colour]})" if colour in _NAMES else colour
    return "".join(f' {name}="{value}"' for name, value in sorted(found.items()))


def _to_tenth(found: re.Match[str]) -> str:
    return _tenth(found.group())


def _tenth(number: str) -> str:
    return f"{float(number):.1f}".removesuffix(".0")
