"""The model card of a student: what it is, what it was made of and how, how good it is, and how to repeat it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from jinja2 import Environment, PackageLoader, StrictUndefined

from gakd.evaluation.evaluation import Evaluation
from gakd.evaluation.plots import read_series
from gakd.evaluation.report import METRICS, Metric, rounded
from gakd.files import read_json, write_whole
from gakd.run.about import About

CARD = "README.md"
_PUBLISHED = {"rouge_l": "rouge", "exact_match": "exact_match"}  # what the hub calls them


def write_card(exported: Path, about: About, evaluations: Mapping[str, Evaluation], measured: str) -> Path:
    """Write `README.md` into an exported student's folder, which lies in its run's.

    `evaluations` are those before and after training, and the teacher's where there is one; `measured` says on what.
    """
    name = (about.push_to_hub or exported.resolve().parent.name).rpartition("/")[2]
    shown = [m for m in METRICS if any(getattr(one, m.field) is not None for one in evaluations.values())]
    # Not by `ModelCard.from_template`, whose blocks would leave empty lines within the tables.
    environment = Environment(
        loader=PackageLoader("gakd.evaluation", "."), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    text = environment.get_template("card.md").render(
        name=name,
        about=about,
        trained=_trained(exported.parent / "metrics.csv", about),
        dtype=str((read_json(exported / "config.json") or {}).get("dtype", "")),
        is_chat=about.template in (None, "chat") and (exported / "chat_template.jinja").exists(),
        columns=list(evaluations),
        rows=[(_label(m), [_cell(one, m) for one in evaluations.values()]) for m in shown],
        measured=measured,
        licence=about.licence.get("license_name") or about.licence.get("license"),
        link=about.licence.get("license_link"),
        code=_code,
    )
    card = ModelCard(f"---\n{_metadata(name, about, evaluations['after'])}\n---\n\n{text.rstrip()}\n")
    write_whole(exported / CARD, str(card))
    return exported / CARD


def _metadata(name: str, about: About, after: Evaluation) -> ModelCardData:
    base, data = about.base, about.dataset
    results = [
        EvalResult(
            "text-generation", data.name, data.name, _PUBLISHED.get(metric.field, metric.field),
            float(rounded(value, metric.decimals)), dataset_split="test", metric_name=_label(metric),
        )
        for metric in METRICS
        if data is not None and metric.better is not None and (value := getattr(after, metric.field)) is not None
    ]  # fmt: skip
    return ModelCardData(
        base_model=base.name if base is not None and base.on_hub else None,
        datasets=data.name.partition(":")[0] if data is not None and data.on_hub else None,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["distillation", "gakd", *([about.recipe] if about.recipe not in (None, "gakd") else [])],
        model_name=name if results else None,
        eval_results=results or None,
        license=about.licence.get("license"),
        license_name=about.licence.get("license_name"),
        license_link=about.licence.get("license_link"),
    )


def _trained(metrics: Path, about: About) -> str | None:
    """How long, by a run's metrics."""
    with suppress(OSError, ValueError, KeyError):
        steps, tokens = read_series(metrics)["tokens"]
        of = "" if about.batch_size is None else f" of {about.batch_size:,} sequences"
        return f"{int(steps[-1]):,} optimizer steps{of}; {sum(tokens):,.0f} tokens of responses"
    return None


def _label(metric: Metric) -> str:
    return f"{metric.title} ({metric.unit})"


def _cell(evaluation: Evaluation, metric: Metric) -> str:
    value = getattr(evaluation, metric.field)
    return "–" if value is None else rounded(value, metric.decimals)


def _code(text: str) -> str:
    """A word in a cell of a table, as it is."""
    shown = text.replace("`", "").replace("|", "\\|")
    return f"`{shown}`"
