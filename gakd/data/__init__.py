"""Text to batches: sources, prompts, windows, collation."""

from gakd.data.alignment import Aligned, align
from gakd.data.collate import collate
from gakd.data.load import Data, DataConfig, load_data, load_split
from gakd.data.prompts import Example, encode, render
from gakd.data.rows import DataError, Message, Row
from gakd.data.sources import Split, load_rows
from gakd.data.windows import Windows, padding_share, split_window

__all__ = [
    "Aligned",
    "Data",
    "DataConfig",
    "DataError",
    "Example",
    "Message",
    "Row",
    "Split",
    "Windows",
    "align",
    "collate",
    "encode",
    "load_data",
    "load_rows",
    "load_split",
    "padding_share",
    "render",
    "split_window",
]
