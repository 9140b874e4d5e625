"""YAML where a key that comes twice is an error and does not silently win over the first."""

from __future__ import annotations

from collections import Counter
from typing import Any

from reprolib.errors import InvalidInput, RecordError


def load(text: str, name: str) -> Any:
    """What the file ``name`` says.

    Raises:
        RecordError: it is no YAML, or nothing here can read it.
        InvalidInput: a key comes twice.
    """
    try:
        import yaml
    except ModuleNotFoundError as error:
        raise RecordError(f"reading {name} needs the package: pip install pyyaml") from error

    class Loader(yaml.SafeLoader):
        """With a constructor of its own."""

    def mapping(loader: yaml.SafeLoader, node: yaml.MappingNode) -> dict[Any, Any]:
        names = Counter(str(key.value) for key, _ in node.value)
        twice = [key for key, count in names.items() if count > 1]
        if twice:
            raise InvalidInput(f"{name}: {twice[0]!r} comes twice in what begins on line {node.start_mark.line + 1}")
        return loader.construct_mapping(node, deep=True)

    Loader.add_constructor("tag:yaml.org,2002:map", mapping)
    try:
        return yaml.load(text, Loader)
    except yaml.YAMLError as error:
        raise RecordError(f"{name} is no YAML: {error}") from error
