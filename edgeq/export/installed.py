"""Which versions of the packages that convert a model are installed: a conversion depends on them."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def installed(*packages: str) -> dict[str, str]:
    """By package its version; empty where it is missing, which the conversion itself tells, and what to install."""
    return {package: _version(package) for package in packages}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
