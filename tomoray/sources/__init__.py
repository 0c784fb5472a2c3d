"""Where studies come from.

A source is a URL: a folder, an S3 prefix, a zip or tar file, a selection of the Imaging Data Commons, a DICOMweb
server (docs/sources.md). Here it is listed, lazily, and its files are read; what they are is found out elsewhere.
"""

from tomoray.sources.files import SeriesListing, SourceFile
from tomoray.sources.places import list_series, list_source, read_file, read_head

__all__ = [
    "SeriesListing",
    "SourceFile",
    "list_series",
    "list_source",
    "read_file",
    "read_head",
]
