"""A figure that a notebook shows, and that nothing else keeps."""

from __future__ import annotations

import io

from matplotlib.figure import Figure

SCREEN_DPI = 70


class ShownFigure(Figure):
    """A matplotlib figure outside pyplot: no window, no global list that would keep it, and gone with its last name.

    Notebooks show a plain one as a picture only after pyplot has been imported; this one says itself how it looks.
    """

    def png(self, dpi: float) -> bytes:
        """The picture, at so many dots per inch."""
        drawn = io.BytesIO()
        self.savefig(drawn, format="png", dpi=dpi)
        return drawn.getvalue()

    def _repr_png_(self) -> bytes:
        return self.png(SCREEN_DPI)
