"""Text to batches: sources, prompts, windows, collation.

Imports `models`, the leaves and `types`.
"""

from typing import TYPE_CHECKING

from gakd.lazy import lazily

if TYPE_CHECKING:
    from gakd.data.alignment import Aligned, align
    from gakd.data.collation import collate
    from gakd.data.config import DataConfig
    from gakd.data.dates import fixed_date
    from gakd.data.ends import end_ids, end_of_text
    from gakd.data.examples import Encoder, Example, encode
    from gakd.data.formats import row_from
    from gakd.data.load import Data, load_data, load_split, spread
    from gakd.data.prompts import render
    from gakd.data.rows import DataError, Message, Row
    from gakd.data.sources import load_rows
    from gakd.data.splits import Split
    from gakd.data.windows import Windows, padding_share, split_window

__getattr__, __dir__ = lazily(__name__, __file__)

__all__ = [
    "Aligned",
    "Data",
    "DataConfig",
    "DataError",
    "Encoder",
    "Example",
    "Message",
    "Row",
    "Split",
    "Windows",
    "align",
    "collate",
    "encode",
    "end_ids",
    "end_of_text",
    "fixed_date",
    "load_data",
    "load_rows",
    "load_split",
    "padding_share",
    "render",
    "row_from",
    "split_window",
    "spread",
]
