"""zcfs: a directory of database files, mounted at the speed of its disk."""

__version__ = "0.1.0"
