"""Where studies come from, and how files become series.

A source is a URL: a folder, an S3 prefix, a zip or tar file, a selection of the Imaging Data Commons, a DICOMweb
server (docs/sources.md). It is listed lazily, its headers are read, and its files are grouped into series. Pixels
are not touched here.
"""

from tomoray.sources.files import BadFile, SeriesListing, SourceFile
from tomoray.sources.grouping import group_dicom, group_volumes, is_volume, read_headers
from tomoray.sources.places import list_series, list_source, read_file, read_head
from tomoray.sources.uploads import read_zip

__all__ = [
    "BadFile",
    "SeriesListing",
    "SourceFile",
    "group_dicom",
    "group_volumes",
    "is_volume",
    "list_series",
    "list_source",
    "read_file",
    "read_head",
    "read_headers",
    "read_zip",
]
