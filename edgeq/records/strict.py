"""Documents that edgeq writes and people edit: nothing unknown in them, and no text that a file cannot hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from edgeq.errors import UsageError
from edgeq.visible import writable

Document = TypeVar("Document", bound=BaseModel)


class Strict(BaseModel):
    """A document, or a part of one."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    _writable = model_validator(mode="before")(writable)


def validated(kind: type[Document], content: Any, path: Path) -> Document:
    """A document from what its file holds.

    Raises:
        UsageError: something in it is wrong; names the first place.
    """
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        problem = error.errors()[0]
        place = ".".join(str(part) for part in problem["loc"])
        raise UsageError(f"{place}: {problem['msg']}", where=str(path), remedy="correct this place") from error
