"""Results of the stages of a plan, kept by the content of what they were made from.

What is not whole is never a result, and a failure to keep or to read one ends no run.
"""

from edgeq.cache.cache import Cache, cached, open_cache, recalled
from edgeq.cache.contents import Freed, Usage, clear, describe
from edgeq.cache.entry import Entry, Json, content_key, from_list, read_folder, to_list, write_folder

__all__ = [
    "Cache",
    "Entry",
    "Freed",
    "Json",
    "Usage",
    "cached",
    "clear",
    "content_key",
    "describe",
    "from_list",
    "open_cache",
    "read_folder",
    "recalled",
    "to_list",
    "write_folder",
]
