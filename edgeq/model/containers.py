"""How values lie in containers, as PyTorch writes it down: read only where the containers are plain ones."""

from __future__ import annotations

import json

from edgeq.model.expressions import QUOTABLE

_CONTAINERS = {None, "builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict"}


def is_container(text: str) -> bool:
    """Whether a text describes how values lie in plain containers: PyTorch may read it then."""
    try:
        _, tree = json.loads(text)
        pending = [tree]
        while pending:
            node = pending.pop()
            if node["type"] not in _CONTAINERS:
                return False
            for name in json.loads(node["context"] or "null") or []:
                plain = isinstance(name, str) and QUOTABLE.fullmatch(name) is not None and "'" not in name
                if not plain and not isinstance(name, int):
                    return False
            pending.extend(node["children_spec"])
    except (ValueError, TypeError, KeyError, RecursionError):
        return False
    return True
