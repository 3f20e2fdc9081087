"""What an adversary refuses: parts that are none, widths that differ, and answers that would be broadcast."""

from __future__ import annotations

from torch import Tensor, nn

from gakd.errors import kind_of

ASKED = {
    "game": ("student", "discriminator", "penalties"),
    "readout": ("needs_log_normalizers", "student_map", "live", "detached", "squared_norm", "flush"),
}


def check_parts(discriminator: object, game: object, readout: object) -> None:
    """TypeError for a part that lacks what its protocol asks for."""
    if not isinstance(discriminator, nn.Module):
        raise TypeError(f"a discriminator is a module of rows and mask, got {kind_of(discriminator)}")
    for role, part in (("game", game), ("readout", readout)):
        missing = [name for name in ASKED[role] if name not in dir(part)]
        if missing or isinstance(part, type):
            lacks = f", which lacks {', '.join(missing)}" if missing else ""
            raise TypeError(f"Adversarial(discriminator, game, readout): as its {role} got {kind_of(part)}{lacks}")


def agree_on_width(discriminator: nn.Module, readout: nn.Module | object) -> None:
    """A readout whose width was left open takes the discriminator's `readout_width`; ValueError where the two differ.

    Nothing is known of parts that do not say their width.
    """
    wanted, given = getattr(discriminator, "readout_width", None), getattr(readout, "width", None)
    if wanted is None or given is None or wanted == given:
        return
    if not getattr(readout, "width_is_open", False):
        raise ValueError(
            f"{type(discriminator).__name__} reads rows of width {wanted}, {type(readout).__name__} gives {given}: build both "
            f"with one width"
        )
    readout.draw(wanted)  # type: ignore[union-attr,operator]


def one_each(values_B: Tensor, sequences: int, whose: str) -> Tensor:
    """The values themselves; ValueError for a shape that would be broadcast."""
    if values_B.shape != (sequences,):
        raise ValueError(f"{whose} must return one number a sequence, ({sequences},), got {tuple(values_B.shape)}")
    return values_B
