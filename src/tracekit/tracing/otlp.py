"""The collector that the standard variables name, and the SDK's exporters to it.

Read are `OTEL_EXPORTER_OTLP_[TRACES_]ENDPOINT`, `..._PROTOCOL` (`http/protobuf`, the default, or `grpc`),
`OTEL_TRACES_EXPORTER` (`otlp`, `none`) and `OTEL_SDK_DISABLED`; headers, time-outs, compression and certificates are
the exporters' own matter. The SDK's exporters tell success from failure only, so here they also remember what the
collector answered: a batch it will never take must be told from one that it cannot take now, and it may reject single
spans of a batch that it takes.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import grpc  # type: ignore[import-untyped]
import requests
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcSpanExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpSpanExporter
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExportResult

from tracekit.errors import TracekitError

OtlpProtocol = Literal["http/protobuf", "grpc"]


class CollectorError(TracekitError):
    """The variables that name the collector cannot be used."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the collector said to the last batch."""

    status: str
    """HTTP's status, gRPC's name of one, or `unreachable`."""
    permanent: bool = False
    """It will never take these spans: sending them again is in vain (OTLP, "Failures")."""
    rejected: int = 0
    """Spans that it did not keep of a batch that it took ("Partial Success")."""
    message: str = ""


UNREACHABLE = Answer("unreachable")


class AnsweringExporter(Protocol):
    """One of the SDK's exporters; `answer` is the collector's to the last batch."""

    answer: Answer

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Blocks for at most the exporter's time-out (`OTEL_EXPORTER_OTLP_TIMEOUT`, 10 s)."""

    def shutdown(self) -> None:
        """Ends what is under way, as far as the transport can."""


@dataclass(frozen=True, slots=True)
class Collector:
    """Where spans go. `endpoint` is for people; the exporters read the variables themselves."""

    protocol: OtlpProtocol
    endpoint: str

    def exporter(self) -> _HttpExporter | _GrpcExporter:
        """A new exporter to it, of one thread at a time."""
        return _GrpcExporter() if self.protocol == "grpc" else _HttpExporter()


def collector_from_environment() -> Collector | None:
    """The collector, or None where none is configured. Raises CollectorError for what is not supported."""
    if _first("OTEL_SDK_DISABLED").lower() == "true":
        return None
    exporters = _exporters("OTEL_TRACES_EXPORTER")
    if "none" in exporters:
        return None
    endpoint = _first("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
    if not endpoint and not exporters:
        return None
    protocol = _protocol("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL")
    return Collector(protocol, endpoint or f"http://localhost:{4317 if protocol == 'grpc' else 4318}")


def logs_protocol_from_environment() -> OtlpProtocol | None:
    """How log lines go to the collector, None unless `OTEL_LOGS_EXPORTER` asks for it. Traces alone do not: many a
    collector takes no logs. Raises CollectorError for what is not supported.
    """
    if _first("OTEL_SDK_DISABLED").lower() == "true" or "otlp" not in _exporters("OTEL_LOGS_EXPORTER"):
        return None
    return _protocol("OTEL_EXPORTER_OTLP_LOGS_PROTOCOL")


def _exporters(variable: str) -> list[str]:
    """The exporters that a variable names; `none` among them: no other counts."""
    exporters = [name.strip() for name in _first(variable).split(",") if name.strip()]
    unknown = sorted(set(exporters) - {"otlp", "none"})
    if unknown:
        raise CollectorError(f"{variable}={','.join(unknown)} is not supported", hint="Use otlp or none.")
    return ["none"] if "none" in exporters else exporters


def _protocol(variable: str) -> OtlpProtocol:
    """The protocol of one signal, or the one of all."""
    match _first(variable, "OTEL_EXPORTER_OTLP_PROTOCOL"):
        case "" | "http/protobuf":
            return "http/protobuf"
        case "grpc":
            return "grpc"
        case other:
            raise CollectorError(f"the OTLP protocol {other} is not supported", hint="Use http/protobuf or grpc.")


def _first(*variables: str) -> str:
    return next((value for name in variables if (value := os.environ.get(name, "").strip())), "")


# The request itself is at fault. 401, 403 and 404 are not among these: they end when the configuration is mended.
_PERMANENT_HTTP = frozenset({400, 413, 422})


class _HttpExporter(HttpSpanExporter):
    def __init__(self) -> None:
        self.answer = UNREACHABLE
        session = requests.Session()
        session.hooks["response"].append(self._heard)
        super().__init__(session=session)

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.answer = UNREACHABLE
        return super().export(spans)

    def _heard(self, response: requests.Response, *_: Any, **__: Any) -> None:
        partial = ExportTraceServiceResponse()
        if response.ok:
            try:
                partial.ParseFromString(response.content)
            except DecodeError:
                partial.Clear()  # not every collector that says 200 sends a message along
        self.answer = Answer(
            str(response.status_code),
            permanent=response.status_code in _PERMANENT_HTTP,
            rejected=partial.partial_success.rejected_spans,
            message=partial.partial_success.error_message or ("" if response.ok else str(response.reason)),
        )


class _GrpcExporter(GrpcSpanExporter):
    def __init__(self) -> None:
        self.answer = UNREACHABLE
        super().__init__()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.answer = UNREACHABLE
        return super().export(spans)

    def _initialize_channel_and_stub(self) -> None:
        super()._initialize_channel_and_stub()  # type: ignore[no-untyped-call]
        self._client: Any = _ListeningStub(self._client, self)


class _ListeningStub:
    """The trace service's stub, which tells the exporter what was answered."""

    def __init__(self, stub: Any, exporter: _GrpcExporter) -> None:
        self._stub = stub
        self._exporter = exporter

    def Export(self, **call: Any) -> ExportTraceServiceResponse:
        try:
            response: ExportTraceServiceResponse = self._stub.Export(**call)
        except grpc.RpcError as error:
            code, details = error.code(), error.details() or ""
            too_large = code is grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than max" in details
            self._exporter.answer = Answer(
                code.name, permanent=too_large or code is grpc.StatusCode.INVALID_ARGUMENT, message=details
            )
            raise
        partial = response.partial_success
        self._exporter.answer = Answer("OK", rejected=partial.rejected_spans, message=partial.error_message)
        return response
