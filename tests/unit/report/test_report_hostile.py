from __future__ import annotations

import re
from collections.abc import Callable
from html.parser import HTMLParser
from types import ModuleType

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modelium import report
from modelium.report import numbers
from modelium.report.svg import element, text
from schemas.account import JobAccount
from schemas.descriptor import KnownBy, TensorSpec

TAGS = frozenset(
    """a b body circle code dd desc details div dl dt figcaption figure footer h1 h2 h3 head header html i li line link
    main meta nav ol p path pre rect section small span style summary svg table tbody td text th thead title tr ul
    """.split()  # noqa: SIM905 - forty names read better as a text
)
ATTRIBUTES = frozenset(
    """aria-current aria-label aria-labelledby charset class colspan content cx cy d height href http-equiv id lang name
    r rel role rx scope tabindex text-anchor title viewbox width x x1 x2 y y1 y2
    """.split()  # noqa: SIM905
)


class Skeleton(HTMLParser):
    """The elements and attribute names of a page, and every address in it."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, tuple[str, ...]]] = []
        self.addresses: list[str] = []
        self.comments = 0
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, tuple(name for name, _ in attrs)))
        self.addresses += [value or "" for name, value in attrs if name in ("href", "src", "xlink:href", "action")]

    def handle_endtag(self, tag: str) -> None:
        self.tags.append((f"/{tag}", ()))

    def handle_comment(self, data: str) -> None:
        self.comments += 1


def test_a_page_full_of_attacks_holds_only_known_elements_and_attributes(hostile: JobAccount) -> None:
    skeleton = Skeleton(report.render(hostile))
    assert {tag.removeprefix("/") for tag, _ in skeleton.tags} <= TAGS
    assert {name for _, names in skeleton.tags for name in names} <= ATTRIBUTES
    assert all(a.startswith(("#", "data:image/svg+xml,%3Csvg")) for a in skeleton.addresses)
    assert skeleton.comments == 0


def test_a_page_full_of_attacks_has_the_very_elements_of_a_page_of_harmless_texts(
    accounts: ModuleType, attacks: ModuleType, hostile: JobAccount
) -> None:
    harmless = report.render(attacks.hostile(accounts.minilm(), attacks.HARMLESS))
    drawn = report.render(hostile)
    # Long names are drawn smaller; nothing else may follow from a text.
    assert Skeleton(drawn).tags == Skeleton(harmless.replace("<h1 title", '<h1 class="long" title')).tags


def test_template_syntax_in_a_name_is_shown_and_not_computed(hostile: JobAccount) -> None:
    html = report.render(hostile)
    assert "{{7*7}}{% raw %}" in html


def test_no_control_or_reordering_character_reaches_the_page(hostile: JobAccount) -> None:
    html = report.render(hostile)
    assert not {c for c in html if not numbers._is_visible(c, True)}
    assert "\\u202efdp" in html


@given(name=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=60))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_name_changes_the_elements_of_a_page(accounts: ModuleType, name: str) -> None:
    def drawn(text: str) -> list[tuple[str, tuple[str, ...]]]:
        account: JobAccount = accounts.needs_input()
        assert account.descriptor is not None
        tensor = TensorSpec(name=text, dtype="float32", shape=(text, 3), known_by=KnownBy.PROBE)
        descriptor = account.descriptor.model_copy(
            update={"inputs": (tensor,), "labels": (text,), "operators": {text: 1}, "license": text, "notes": (text,)}
        )
        job = account.job.model_copy(update={"name": "n" + text})
        return Skeleton(
            report.render(account.model_copy(update={"job": job, "descriptor": descriptor}))
            .replace('<h1 class="long"', "<h1")
        ).tags  # fmt: skip

    assert drawn(name) == drawn("plain")


@given(content=st.text(max_size=40), value=st.text(max_size=40))
def test_svg_text_and_attributes_never_break_out(content: str, value: str) -> None:
    skeleton = Skeleton(f"<svg>{text(0, 1.5, content, value)}{element('rect', width=value)}</svg>")
    assert [tag for tag, _ in skeleton.tags] == ["svg", "text", "/text", "rect", "/rect", "/svg"]
    assert [names for tag, names in skeleton.tags if tag == "rect"] == [("width",)]


@pytest.mark.browser
@pytest.mark.parametrize("policy", [True, False], ids=["with the policy", "escaping alone"])
def test_a_browser_runs_nothing_of_a_hostile_model(
    hostile: JobAccount, dump_dom: Callable[[str], str], policy: bool
) -> None:
    html = report.render(hostile)
    if not policy:
        html = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", html)
    dom = dump_dom(html)
    title = re.search(r"<title>(.*?)</title>", dom, flags=re.DOTALL)
    assert title is not None
    # document.title = "owned" would have rewritten this element.
    assert title.group(1).startswith("&lt;script&gt;document.title='owned'&lt;/script&gt;&lt;/title&gt;")
    assert "<script" not in dom
    assert "<img" not in dom


@pytest.mark.browser
def test_the_policy_stops_a_script_that_got_into_the_page_all_the_same(
    accounts: ModuleType, dump_dom: Callable[[str], str]
) -> None:
    script = "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
    html = report.render(accounts.minilm()).replace("</main>", f"{script}</main>")
    assert "<title>all-minilm-l6-v2" in dump_dom(html)
    without = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", html)
    assert "<title>owned" in dump_dom(without)
