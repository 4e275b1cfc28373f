"""Python's reader of TOML, under one name whatever the version: `tomllib` came with 3.11, before it is `tomli`."""

import sys

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["tomllib"]
