"""SVG elements as markup in which every text and attribute value is escaped."""

from __future__ import annotations

from markupsafe import Markup, escape

from modelium.report.numbers import visible

Value = str | int | float


def element(tag: str, *children: str | Markup, **attributes: Value | None) -> Markup:
    """Return one element. Text is escaped unless it is Markup; attributes that are None are left out.

    ``class_`` becomes ``class`` and other underscores hyphens. There is no ``style``: the page's content policy
    forbids inline styles, so looks come from classes.
    """
    written = Markup("").join(
        Markup(' {}="{}"').format(key.rstrip("_").replace("_", "-"), _value(value))
        for key, value in attributes.items()
        if value is not None
    )
    inside = Markup("").join(child if isinstance(child, Markup) else escape(visible(child)) for child in children)
    return Markup("<{0}{1}>{2}</{0}>").format(Markup(tag), written, inside)


def picture(key: str, title: str, description: str, *children: Markup, **attributes: Value | None) -> Markup:
    """Return an ``svg`` that a screen reader announces by title and description; ``key`` is unique on the page."""
    return element(
        "svg",
        element("title", title, id=f"{key}-title"),
        element("desc", description, id=f"{key}-desc"),
        *children,
        role="img",
        aria_labelledby=f"{key}-title {key}-desc",
        **attributes,
    )


def text(x: Value, y: float, content: str, class_: str, anchor: str | None = None, tip: str = "") -> Markup:
    """Return one line of text, with ``tip`` shown when the pointer rests on it."""
    hint = (element("title", tip),) if tip else ()
    return element("text", *hint, content, x=x, y=y, class_=class_, text_anchor=anchor)


def share(fraction: float) -> str:
    """Return ``fraction`` of the drawing's width, kept inside it."""
    return f"{min(1.0, max(0.0, fraction)) * 100:.2f}%"


def _value(value: Value) -> str:
    if isinstance(value, str):
        return visible(value, lines=False)
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
