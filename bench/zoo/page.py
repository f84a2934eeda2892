"""The page: docs/coverage.md from docs/coverage.json, which keeps each model's last result, and from the peers'."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from families import FAMILIES
from result import OUTCOMES, Result

CAUSES_SHOWN = 40
BEYOND_TARGET = (
    "Triton serves", "Triton does not serve", "newest that the target's onnxruntime loads", "served as one tensor",
)  # fmt: skip
"""What refusals say whose cause is the target and not the model."""
_SAID = ("winner", "code", "message", "hint")
_HEAD = """# Coverage

`make zoo` made this page; `make zoo ARGS="--only sklearn --limit 20"` tries a part. A model goes through the real
pipeline (submit, scan, probe, plan, convert, prove, measure, publish) with few measuring rounds, or, where its family
below says so, through the same functions in one process, what checks the plan and what is to be served among them, but
without sandbox, measuring and publishing (`--steps`, and most of the ONNX backend tests, which are models of one
operator). Each model's row is in [coverage.json](coverage.json).

*Runs* leaves out the models that their own runtime does not run; onnxruntime's is a newer one than Triton's. *Carried*
leaves out, of those, what Triton 24.12 has no way to serve: sequences of tensors of several shapes, an answer that is
always empty, models without inputs, operators that came after its onnxruntime and have no older form. *Proven* is
deployed or published unchanged, after parity at sizes that were not traced, or at fixed ones where the family says so;
where a test comes with expected outputs, the reference agreed with them. *No cause* counts failures without a named
cause or with a traceback; like wrong answers, there may be none.
"""


def write(docs: Path, results: Sequence[Result], missing: Mapping[str, str], whole: Collection[str] = ()) -> None:
    """Put ``results`` in the place of what ``docs`` has of the same models, and write both files anew.

    Args:
        missing: Families that could not be tried, and why.
        whole: Families of which all models are among ``results``; what else is kept of them has left the zoo.
    """
    peers = _peers(docs)
    kept = {(result.family, result.name): result for result in _kept(docs) if result.family not in whole}
    kept |= {(result.family, result.name): result for result in results}
    every = [kept[key] for key in sorted(kept)]
    rows = ",\n".join(json.dumps(_row(result, peers), ensure_ascii=False) for result in every)
    (docs / "coverage.json").write_text(f"[\n{rows}\n]\n")
    (docs / "coverage.md").write_text("\n".join(_page(every, missing, peers)) + "\n")


def _page(results: Sequence[Result], missing: Mapping[str, str], peers: Mapping[str, Any]) -> list[str]:
    by_family: dict[str, list[Result]] = defaultdict(list)
    for result in results:
        by_family[result.family].append(result)
    lines = [_HEAD, "| family | tried | runs | proven | of runs | carried | of carried | refused | no cause | wrong |",
             "|---|---|---|---|---|---|---|---|---|---|"]  # fmt: skip
    for family in FAMILIES.values():
        rows = by_family.get(family.id, [])
        if not rows:
            lines.append(f"| {family.title} | – {missing.get(family.id, 'not tried yet')} | | | | | | | | |")
            continue
        count = Counter(row.outcome for row in rows)
        runs = len(rows) - count["original"]
        carried = runs - sum(row.outcome == "refused" and _beyond_target(row) for row in rows)
        lines.append(
            f"| {family.title} | {len(rows)} | {runs} | {count['proven']} | **{_share(count['proven'], runs)}** | "
            f"{carried} | **{_share(count['proven'], carried)}** | {count['refused']} | {count['unnamed']} | "
            f"{count['wrong']} |"
        )
    lines.append("")
    for family in FAMILIES.values():
        rows = by_family.get(family.id, [])
        if rows:
            lines += [f"## {family.title[0].upper()}{family.title[1:]}", ""]
            lines += _ways(rows) + _causes(rows) + _against(family.id, rows, peers)
    days = Counter(row.measured for row in results)
    lines += [f"Tried: {', '.join(f'{days[day]} on {day}' for day in sorted(days))}."]
    return lines


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "–"


def _beyond_target(row: Result) -> bool:
    return any(words in row.message for words in BEYOND_TARGET)


def _ways(rows: Sequence[Result]) -> list[str]:
    fixed = [row.name for row in rows if row.notes.get("fixed")]
    more = [f"Proven at fixed sizes only, which inputs have to be brought to: {', '.join(fixed)}.", ""] if fixed else []
    whole = [row for row in rows if row.way == "pipeline"]
    proven = sum(row.outcome == "proven" for row in whole)
    runs = sum(row.outcome != "original" for row in whole)
    if len(whole) == len(rows):
        return ["All through the whole pipeline.", "", *more]
    if not whole:
        return ["All by the step functions.", "", *more]
    return [f"Through the whole pipeline: {proven} of {runs} that run; the others by the step functions.", "", *more]


def _causes(rows: Iterable[Result]) -> list[str]:
    found: dict[tuple[str, str], list[Result]] = defaultdict(list)
    for row in rows:
        if row.outcome not in ("proven", "original"):
            found[row.outcome, row.cause].append(row)
    if not found:
        return ["Nothing was refused.", ""]
    lines = ["| count | cause | example | what to do |", "|---|---|---|---|"]
    ordered = sorted(found.items(), key=lambda item: (item[0][0] == "refused", -len(item[1])))
    for (outcome, cause), same in ordered[:CAUSES_SHOWN]:
        said = cause if outcome == "refused" else f"{OUTCOMES[outcome]}: {cause}"
        hint = next((row.hint for row in same if row.hint), "")
        lines.append(f"| {len(same)} | {_cell(said)} | {_cell(same[0].name)} | {_cell(hint)} |")
    if len(ordered) > CAUSES_SHOWN:
        lines.append(f"| {sum(len(same) for _, same in ordered[CAUSES_SHOWN:])} | others, see coverage.json | | |")
    return [*lines, ""]


def _against(family: str, rows: Sequence[Result], peers: Mapping[str, Any]) -> list[str]:
    """Return the table of who converts what, over the models that every peer was given too."""
    told = {name: peers[f"{family}/{name}"] for name in (row.name for row in rows) if f"{family}/{name}" in peers}
    strange = [name for name, answers in told.items() if any(answer.get("skip") for answer in answers.values())]
    told = {name: answers for name, answers in told.items() if name not in strange}
    if not told:
        return []
    names = sorted({peer for answers in told.values() for peer in answers})
    # What holds at fixed sizes only is no success as the peers' are counted.
    ours = {row.name for row in rows if row.outcome == "proven" and not row.notes.get("fixed")}
    lines = [f"Beside peers, on the same {len(told)} models; a success is an ONNX file that onnxruntime loads and",
             "whose outputs agree by name with the original's at a batch size or length that was not traced:", "",
             "| | converts | not, and why (count) |", "|---|---|---|",
             f"| Modelium | {sum(name in ours for name in told)} of {len(told)} | |"]  # fmt: skip
    for peer in names:
        answers = [answer[peer] for answer in told.values() if peer in answer]
        failures = Counter(answer["cause"] for answer in answers if not answer["ok"])
        why = "; ".join(f"{cause} ({number})" for cause, number in failures.most_common(4))
        lines.append(f"| {peer} | {sum(answer['ok'] for answer in answers)} of {len(answers)} | {_cell(why)} |")
    if strange:
        lines += ["", f"Left out, as the peers' older transformers has another model or none: {', '.join(strange)}."]
    only_peers = sorted(
        name for name, answers in told.items() if name not in ours and any(answer["ok"] for answer in answers.values())
    )
    if only_peers:
        lines += ["", f"A peer converts, Modelium does not: {', '.join(only_peers)}."]
    return [*lines, ""]


def _peers(docs: Path) -> dict[str, Any]:
    """Return ``family/name`` to what each peer made of it, as peers.py left it beside the page."""
    file = docs / "coverage-peers.json"
    found: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
    return found


def _kept(docs: Path) -> list[Result]:
    file = docs / "coverage.json"
    rows = json.loads(file.read_text()) if file.is_file() else []
    return [
        Result(
            row["family"], row["name"], "", "", row["way"], row["outcome"], measured=row["measured"],
            **{key: row.get(key, "") for key in _SAID},
            notes={"fixed": [row["fixed"]] if "fixed" in row else [], "itself": row.get("itself", "ok")},
        )
        for row in rows
    ]  # fmt: skip


def _row(result: Result, peers: Mapping[str, Any]) -> dict[str, Any]:
    row = {key: getattr(result, key) for key in ("family", "name", "outcome", "way", "measured")}
    row |= {key: value for key in _SAID if (value := getattr(result, key))}
    if result.notes.get("fixed"):
        row["fixed"] = result.notes["fixed"][0]
    if result.outcome == "original":
        row["itself"] = result.notes.get("itself", "")
    told = peers.get(f"{result.family}/{result.name}")
    return row | ({"peers": {peer: answer["ok"] for peer, answer in told.items()}} if told else {})


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")[:300]
