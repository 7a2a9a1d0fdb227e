"""The errors for model files that are not taken, so that each of them is worded once."""

from __future__ import annotations

from edgeq.errors import UsageError


def damaged(where: str, error: BaseException | str) -> UsageError:
    """The error for a file that ought to be readable and is not."""
    text = error if isinstance(error, str) else gist(error)
    return UsageError(
        f"the file is damaged or cut short ({text})", remedy="copy, download or export the file again", where=where
    )


def carries_code(where: str, what: str) -> UsageError:
    """The error for a file that would run code while it is read."""
    return UsageError(
        f"reading this file would run code that it carries: {what}",
        remedy="export the model with torch.export.save, or pass --trust-pickle if you trust whoever made the file",
        where=where,
    )


def gist(error: BaseException) -> str:
    """An exception in one line."""
    kind = type(error).__name__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return kind
    # TorchScript's interpreter says first that something failed, then where, and last what
    told = lines[-1].removeprefix(f"{kind}: ") if "TorchScript interpreter" in lines[0] else lines[0]
    return f"{kind}: {told[:200]}"
