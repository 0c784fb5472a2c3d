"""What requests ask for: an operation, of a model, on an input. Checked here, so that the rest trusts it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

from serving.messages import Explanation

Operation = Literal["segment", "classify", "detect"]
SentKind = Literal["zip", "nifti"]

Uid = Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+)*$", max_length=64)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Reference(_Strict):
    """A scan that lies in an archive which the server may read."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"scan_id": "c46d9a3b0f7e2d815a6c", "archive": "s3://research/archive"}]},
    )

    scan_id: Name
    archive: Annotated[
        str | None, Field(max_length=1024, description="may be left out where the server reads one archive only")
    ] = None


class S3Prefix(_Strict):
    """The DICOM files of one study below a prefix that the server may read."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"s3": "s3://incoming/studies/0017/"}]})

    s3: Annotated[str, Field(pattern=r"^s3://[^/@:?#]+/.+", max_length=1024)]


class DicomWebStudy(_Strict):
    """A study on a DICOMweb server that the server knows by name; a series of it where it holds several scans."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"dicomweb": "pacs", "study": "1.2.840.1.17", "series": "1.2.840.1.17.2"}]}
    )

    dicomweb: Name
    study: Uid
    series: Uid | None = None


class Sent(_Strict):
    """The study itself, kept beside the queue until the job ends. Only the gateway writes this."""

    sent: SentKind
    size_bytes: int


_KINDS: dict[str, type[BaseModel]] = {"scan_id": Reference, "s3": S3Prefix, "dicomweb": DicomWebStudy, "sent": Sent}


def _kind(value: Any) -> str | None:
    """Which input a mapping is, by the one key that only this kind has."""
    there = value if isinstance(value, dict) else getattr(value, "model_fields_set", ())
    return next((key for key in _KINDS if key in there), None)


_OneOf = Discriminator(
    _kind, custom_error_type="input", custom_error_message="wanted scan_id, s3, or dicomweb with study"
)
Input = Annotated[
    Annotated[Reference, Tag("scan_id")] | Annotated[S3Prefix, Tag("s3")] | Annotated[DicomWebStudy, Tag("dicomweb")],
    _OneOf,
]
AcceptedInput = Annotated[
    Annotated[Reference, Tag("scan_id")]
    | Annotated[S3Prefix, Tag("s3")]
    | Annotated[DicomWebStudy, Tag("dicomweb")]
    | Annotated[Sent, Tag("sent")],
    _OneOf,
]


class Ask(_Strict):
    """One thing wanted of one model."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"input": {"scan_id": "c46d9a3b0f7e2d815a6c"}, "explain": "uncertainty"}]}
    )

    input: Input
    model: Annotated[Name | None, Field(description="a name of /v1/models; the first by default")] = None
    explain: Annotated[Explanation | None, Field(description="a map of what the finding rests on")] = None
    destination: Annotated[Name | None, Field(description="where the server also stores the result")] = None


class JobAsk(Ask):
    """An `Ask` that is queued."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"operation": "segment", "input": {"scan_id": "c46d9a3b0f7e2d815a6c"}}]}
    )

    operation: Operation


class Accepted(_Strict):
    """A checked request: names stand for things that are there, and that the caller may use."""

    operation: Operation
    model: str
    input: AcceptedInput
    explain: Explanation | None = None
    destination: str | None = None


def input_schema(kind: type[BaseModel]) -> dict[str, Any]:
    """A body's schema for OpenAPI, without references to elsewhere."""
    schema = kind.model_json_schema()
    definitions = schema.pop("$defs", {})

    def resolve(part: Any) -> Any:
        if isinstance(part, dict):
            if "$ref" in part:
                return resolve(definitions[part["$ref"].rpartition("/")[2]])
            return {key: resolve(value) for key, value in part.items()}
        return [resolve(value) for value in part] if isinstance(part, list) else part

    resolved: dict[str, Any] = resolve(schema)
    return resolved
