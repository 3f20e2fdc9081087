"""The tables of a run: table.md."""

from __future__ import annotations

from typing import Any

from tests.gpu.token_part import FLOOR

Cells = list[str]


def markdown(results: dict[str, Any]) -> str:
    found, parts = results["machine"], results["parts"]
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    lines = [
        "# One run on one card",
        f"{found['card']}, {_gb(found['memory'])}, driver {found['driver']}, CUDA {found['cuda']}; {versions}. "
        f"gakd {results['commit']}.",
        *(
            ["**Dry run: tiny sizes on a CPU. It shows that everything runs, not how fast.**"]
            if results["dry_run"]
            else []
        ),
        _table(
            ["part", "came to", "seconds"],
            [[name, part["status"], _number(part["seconds"])] for name, part in parts.items()],
        ),
    ]
    sections = {"tests": _tests, "token": _tokens, "step": _steps, "generation": _generations}
    for name, section in sections.items():
        if name in parts:
            lines += section(parts[name]["rows"])
    return "\n\n".join(lines) + "\n"


def _tests(rows: list[dict[str, Any]]) -> list[str]:
    failed = [[row["test"], row["error"]] for row in rows if "error" in row and "test" in row]
    passed = sum("error" not in row and "left_out" not in row for row in rows)
    reasons: dict[str, int] = {}
    for row in rows:
        if "left_out" in row:
            reasons[row["left_out"]] = reasons.get(row["left_out"], 0) + 1
    skipped = [f"{count} left out: {reason}." for reason, count in reasons.items()]
    return [
        "## Tests",
        " ".join([f"{passed} passed, {len(failed)} failed.", *skipped]),
        *([_table(["test", "error"], failed)] if failed else []),
    ]


def _tokens(rows: list[dict[str, Any]]) -> list[str]:
    lines = [
        "## Token pass",
        "Time of one forward and backward (times the four necessary products), TFLOP/s of those four, "
        "GB beyond inputs and gradients.",
    ]
    groups: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for row in rows:
        if "numbers" in row:
            groups.setdefault((row["numbers"], row["width"]), []).append(row)
    for (kind, width), own in groups.items():
        names = list(dict.fromkeys(row["way"] for row in own))
        divergences = list(dict.fromkeys(row["divergence"] for row in own))
        at = {(row["way"], row["divergence"]): row for row in own}
        cells = [[name, *(_token_cell(at.get((name, divergence))) for divergence in divergences)] for name in names]
        lines += [f"### {kind}, H = {width:,}", _table(["way", *divergences], cells)]
    return lines


def _token_cell(row: dict[str, Any] | None) -> str:
    if row is None or "ms" not in row:
        return _why(row)
    ratio = "" if row["way"] == FLOOR else f" ({row['to_floor']:.2f})"
    memory = f"<br>{_gb(row['peak_bytes'])}" if row.get("peak_bytes") is not None else ""
    return f"{row['ms']:.1f} ms{ratio}<br>{row['tflops']:.4g} TFLOP/s{memory}"


def _steps(rows: list[dict[str, Any]]) -> list[str]:
    cells = [
        [
            row["layers"],
            _number(row["ms_micro_batch"]),
            _number(row["tokens_per_second"]),
            _share(row["mfu"]),
            _number(row["tflops"]),
            _gb(row["peak_bytes"]),
        ]
        if "ms" in row
        else [row.get("layers", ""), _why(row), "", "", "", ""]
        for row in rows
    ]
    models = next((f"{row['student']} from {row['teacher']}" for row in rows if "student" in row), "")
    return [
        "## Whole step",
        f"{models}, recipes/gakd.py's objective and game.",
        _table(["layers", "ms a micro-batch", "tokens/s", "of bf16 peak", "TFLOP/s", "peak"], cells),
    ]


def _generations(rows: list[dict[str, Any]]) -> list[str]:
    cells = [
        [
            row["weights"],
            str(row["prompts"]),
            _number(row["ms_token"]),
            _number(row["tokens_per_second"]),
            _gb(row["peak_bytes"]),
        ]
        if "ms" in row
        else [row.get("weights", ""), str(row.get("prompts", "")), _why(row), "", ""]
        for row in rows
    ]
    return [
        "## Generation",
        _table(["weights", "prompts", "ms a token of all", "tokens/s", "peak beyond weights"], cells),
    ]


def _why(row: dict[str, Any] | None) -> str:
    return "–" if row is None else str(row.get("left_out") or row.get("error") or "–").replace("|", "/")


def _table(names: Cells, rows: list[Cells]) -> str:
    lines = [names, ["---"] * len(names), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _share(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}%"


def _gb(value: float | None) -> str:
    return "–" if value is None else f"{value / 1e9:.2f} GB"
