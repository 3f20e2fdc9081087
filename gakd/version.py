"""Which gakd this is."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("gakd")
except PackageNotFoundError:  # a checkout on the path, installed nowhere
    __version__ = "0+unknown"
