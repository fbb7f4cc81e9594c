"""Pages without scripts: a folder's `page.html` and `page.css`, and the policy that lets a browser load nothing else.

Every value is escaped by the template, and a name that is not given is an error.
"""

import base64
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup


@dataclass(frozen=True)
class Page:
    """A page; its files are read when they are first needed."""

    folder: Path
    filters: Mapping[str, Callable[..., Any]] = field(default_factory=dict)
    functions: Mapping[str, Callable[..., Any]] = field(default_factory=dict)

    def render(self, **values: Any) -> str:
        """The page with these values."""
        return self._template.render(**values, style=Markup(self._style))

    @cached_property
    def policy(self) -> str:
        """Its Content-Security-Policy: its own style and pictures within it, and nothing else."""
        digest = base64.b64encode(hashlib.sha256(self._style.encode()).digest()).decode()
        return f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; base-uri 'none'; form-action 'none'"

    def headers(self) -> dict[str, str]:
        """What the page is served with: it is not stored, and no other page frames it."""
        return {
            "Content-Security-Policy": f"{self.policy}; frame-ancestors 'none'",
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "Cache-Control": "no-store",
        }

    @cached_property
    def _style(self) -> str:
        return (self.folder / "page.css").read_text(encoding="utf-8")

    @cached_property
    def _template(self) -> Template:
        environment = Environment(
            loader=FileSystemLoader(self.folder),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        environment.filters.update(self.filters)
        environment.globals.update(self.functions)
        return environment.get_template("page.html")
