"""What a model is made of, in words that others may read: its name, its dtype, its licence."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import torch
import yaml
from huggingface_hub import ModelCard
from transformers.utils.hub import cached_file

from gakd.files import last_name, read_json
from gakd.models.loading import config_of
from gakd.models.names import WHEEL_MODEL, hub_id, local_folder, resolve

_FLOATS = (torch.float32, torch.bfloat16, torch.float16)


class Origin(NamedTuple):
    """A model that a student comes from."""

    name: str  # a hub id; of a folder its last name
    on_hub: bool


def origin_of(name: str) -> Origin:
    found = hub_id(name)
    return Origin(last_name(name), False) if found is None else Origin(found, True)


def dtype_of(name: str, trust_remote_code: bool = False) -> torch.dtype:
    """The dtype that a model's configuration names for its weights; fp32 where it names none, or none of a float's."""
    config = config_of(name, trust_remote_code)
    found = config.dtype or config.get_text_config().dtype
    return found if found in _FLOATS else torch.float32


def licence_of(name: str) -> dict[str, str]:
    """`license`, and `license_name` and `license_link` where there are, as the model's own card or config.json has them.

    Empty where neither names one. Of a model on the hub its card is fetched, if it can be.
    """
    folder = local_folder(name)
    card = None if folder is None else folder / "README.md"
    if (card is None or not card.is_file()) and hub_id(name) is not None and name != WHEEL_MODEL:
        with suppress(OSError, ValueError):
            found = cached_file(resolve(name), "README.md", _raise_exceptions_for_missing_entries=False)
            card = None if found is None else Path(found)
    fields = {} if card is None else _fields(card)
    own = None if folder is None else (read_json(folder / "config.json") or {}).get("license")
    if "license" not in fields and isinstance(own, str) and own:
        return {"license": own}
    return fields if "license" in fields else {}


def _fields(card: Path) -> dict[str, str]:
    """What a card's front matter says of the licence; nothing where it cannot be read."""
    try:
        data = ModelCard.load(card, ignore_metadata_errors=True).data.to_dict()
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    names = ("license", "license_name", "license_link")
    return {name: data[name] for name in names if isinstance(data.get(name), str) and data[name]}
