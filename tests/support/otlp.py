"""A real OTLP receiver, as a process of its own: `python -m tests.support.otlp --dir DIR [--port 0] [--grpc-port 0]`.

It takes http/protobuf at /v1/traces and /v1/logs and gRPC on a second port, and appends each span as a JSON line to
DIR/spans.jsonl, each log record to DIR/logs.jsonl.
`POST /control` decides how it answers from then on; `GET /wait` blocks until so much has arrived, so that no test needs
to sleep. The class `OtlpReceiver` starts one and talks to it.
"""

from __future__ import annotations

import argparse
import gzip
import itertools
import json
import os
import subprocess
import sys
import threading
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import grpc  # type: ignore[import-untyped]
import httpx
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest, ExportLogsServiceResponse
from opentelemetry.proto.collector.logs.v1.logs_service_pb2_grpc import (
    LogsServiceServicer,
    add_LogsServiceServicer_to_server,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import (
    TraceServiceServicer,
    add_TraceServiceServicer_to_server,
)

from tests.support.processes import PATIENCE

ANSWERS = {
    "ok": "takes everything",
    "reject": "takes a batch, and says that it did not keep its first span",
    "unavailable": "503 with nothing kept",
    "refuse-large": "400 for a batch of more than one span, which it will never take",
    "refuse-named": "400 for a batch with a span of the name `poison`",
    "refuse": "400 for everything, as a server does that is no collector",
    "hang": "keeps nothing and does not answer until the answer is changed",
    "keep-and-hang": "keeps the spans and does not answer until the answer is changed",
}


class Receiver:
    """What has arrived, and how to answer."""

    def __init__(self, directory: Path) -> None:
        self.file = (directory / "spans.jsonl").open("a", buffering=1)
        self.log_file = (directory / "logs.jsonl").open("a", buffering=1)
        self.changed = threading.Condition()
        self.answer = "ok"
        self.requests = 0
        self.spans = 0
        self.logs = 0
        self.known: set[tuple[str, str]] = set()

    def take(self, request: ExportTraceServiceRequest, headers: Mapping[str, str]) -> tuple[int, int]:
        """Keeps a batch as the answer of the time says; HTTP's status and the number of rejected spans."""
        lines = list(decode(request, headers))
        with self.changed:
            answer = self.answer
            poisoned = any(line["name"] == "poison" for line in lines)
            status, rejected = 200, 0
            if answer in ("unavailable", "hang"):
                status = 503
            elif (
                answer == "refuse"
                or (answer == "refuse-large" and len(lines) > 1)
                or (answer == "refuse-named" and poisoned)
            ):
                status = 400
            else:
                if answer == "reject":
                    lines, rejected = lines[1:], min(1, len(lines))
                for line in lines:
                    self.file.write(json.dumps(line) + "\n")
                self.spans += len(lines)
                self.known |= {(line["trace_id"], line["span_id"]) for line in lines}
            self.requests += 1
            self.changed.notify_all()
            if answer in ("hang", "keep-and-hang"):
                self.changed.wait_for(lambda: self.answer != answer)
            return status, rejected

    def take_logs(self, request: ExportLogsServiceRequest) -> int:
        """Keeps a batch of log records, or nothing of it while the answer is `unavailable`; HTTP's status."""
        with self.changed:
            if self.answer == "unavailable":
                return 503
            for line in decode_logs(request):
                self.log_file.write(json.dumps(line) + "\n")
                self.logs += 1
            self.changed.notify_all()
            return 200

    def control(self, answer: str) -> None:
        if answer not in ANSWERS:
            raise ValueError(answer)
        with self.changed:
            self.answer = answer
            self.changed.notify_all()

    def wait(self, spans: int, distinct: int, requests: int, logs: int, timeout: float) -> dict[str, Any]:
        with self.changed:
            arrived = self.changed.wait_for(
                lambda: (
                    self.spans >= spans
                    and len(self.known) >= distinct
                    and self.requests >= requests
                    and self.logs >= logs
                ),
                timeout,
            )
            return {
                "arrived": arrived, "spans": self.spans, "distinct": len(self.known), "requests": self.requests,
                "logs": self.logs,
            }  # fmt: skip


def decode(request: ExportTraceServiceRequest, headers: Mapping[str, str]) -> Iterable[dict[str, Any]]:
    """Each span of a request, in plain data: ids in hex, times in nanoseconds, enums as numbers."""
    for of_resource in request.resource_spans:
        for of_scope in of_resource.scope_spans:
            for span in of_scope.spans:
                yield {
                    "trace_id": span.trace_id.hex(),
                    "span_id": span.span_id.hex(),
                    "parent_span_id": span.parent_span_id.hex(),
                    "trace_state": span.trace_state,
                    "flags": span.flags,
                    "name": span.name,
                    "kind": span.kind,
                    "start_time": span.start_time_unix_nano,
                    "end_time": span.end_time_unix_nano,
                    "attributes": plain(span.attributes),
                    "events": [
                        {"name": event.name, "time": event.time_unix_nano, "attributes": plain(event.attributes)}
                        for event in span.events
                    ],
                    "links": [
                        {
                            "trace_id": link.trace_id.hex(),
                            "span_id": link.span_id.hex(),
                            "attributes": plain(link.attributes),
                        }
                        for link in span.links
                    ],
                    "status": {"code": span.status.code, "message": span.status.message},
                    "resource": plain(of_resource.resource.attributes),
                    "scope": {"name": of_scope.scope.name, "version": of_scope.scope.version},
                    "request_headers": dict(headers),
                }


def decode_logs(request: ExportLogsServiceRequest) -> Iterable[dict[str, Any]]:
    """Each log record of a request, in plain data."""
    for of_resource in request.resource_logs:
        for of_scope in of_resource.scope_logs:
            for record in of_scope.log_records:
                yield {
                    "trace_id": record.trace_id.hex(),
                    "span_id": record.span_id.hex(),
                    "time": record.time_unix_nano,
                    "severity": record.severity_text,
                    "severity_number": record.severity_number,
                    "body": record.body.string_value,
                    "attributes": plain(record.attributes),
                    "resource": plain(of_resource.resource.attributes),
                }


def plain(attributes: Iterable[Any]) -> dict[str, Any]:
    return {attribute.key: _value(attribute.value) for attribute in attributes}


def _value(value: Any) -> Any:
    match value.WhichOneof("value"):
        case None:
            return None
        case "array_value":
            return [_value(inner) for inner in value.array_value.values]
        case "kvlist_value":
            return plain(value.kvlist_value.values)
        case "bytes_value":
            return value.bytes_value.hex()
        case kind:
            return getattr(value, kind)


class _Handler(BaseHTTPRequestHandler):
    disable_nagle_algorithm = True  # else what follows the head of an answer waits to be acknowledged
    protocol_version = "HTTP/1.1"
    receiver: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/control":
            self.receiver.control(json.loads(body)["answer"])
            return self._say(200, b"{}")
        if self.path not in ("/v1/traces", "/v1/logs") or self.headers["Content-Type"] != "application/x-protobuf":
            return self._say(404, b"")
        match self.headers["Content-Encoding"]:
            case "gzip":
                body = gzip.decompress(body)
            case "deflate":
                body = zlib.decompress(body)
        if self.path == "/v1/logs":
            status = self.receiver.take_logs(ExportLogsServiceRequest.FromString(body))
            return self._say(status, ExportLogsServiceResponse().SerializeToString() if status == 200 else b"")
        headers = {name.lower(): value for name, value in self.headers.items()}
        status, rejected = self.receiver.take(ExportTraceServiceRequest.FromString(body), headers)
        return self._say(status, response(rejected).SerializeToString() if status == 200 else b"")

    def do_GET(self) -> None:
        query = dict(parse_qsl(urlsplit(self.path).query))
        least = {name: int(query.get(name, 0)) for name in ("spans", "distinct", "requests", "logs")}
        found = self.receiver.wait(**least, timeout=float(query["timeout"]))
        self._say(200, json.dumps(found).encode())

    def _say(self, status: int, body: bytes) -> None:
        try:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
        except OSError:
            self.close_connection = True  # a sender that was killed

    def log_message(self, *_: Any) -> None:
        pass


class _Service(TraceServiceServicer):
    def __init__(self, receiver: Receiver) -> None:
        self.receiver = receiver

    def Export(self, request: ExportTraceServiceRequest, context: Any) -> ExportTraceServiceResponse:
        status, rejected = self.receiver.take(request, dict(context.invocation_metadata()))
        match status:
            case 503:
                context.abort(grpc.StatusCode.UNAVAILABLE, "told to be unavailable")
            case 400:
                context.abort(grpc.StatusCode.INVALID_ARGUMENT, "told to refuse")
        return response(rejected)


class _LogsService(LogsServiceServicer):
    def __init__(self, receiver: Receiver) -> None:
        self.receiver = receiver

    def Export(self, request: ExportLogsServiceRequest, context: Any) -> ExportLogsServiceResponse:
        if self.receiver.take_logs(request) == 503:
            context.abort(grpc.StatusCode.UNAVAILABLE, "told to be unavailable")
        return ExportLogsServiceResponse()


def response(rejected: int) -> ExportTraceServiceResponse:
    answer = ExportTraceServiceResponse()
    if rejected:
        answer.partial_success.rejected_spans = rejected
        answer.partial_success.error_message = "told to reject"
    return answer


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--dir", type=Path, required=True)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--grpc-port", type=int, default=0)
    options = parser.parse_args()
    receiver = Receiver(options.dir)
    _Handler.receiver = receiver
    http = ThreadingHTTPServer(("127.0.0.1", options.port), _Handler)
    rpc = grpc.server(ThreadPoolExecutor(16))
    add_TraceServiceServicer_to_server(_Service(receiver), rpc)  # type: ignore[no-untyped-call]
    add_LogsServiceServicer_to_server(_LogsService(receiver), rpc)  # type: ignore[no-untyped-call]
    grpc_port = rpc.add_insecure_port(f"127.0.0.1:{options.grpc_port}")
    rpc.start()
    print(json.dumps({"port": http.server_port, "grpc_port": grpc_port}), flush=True)
    # Whoever started it holds its standard input: it ends with them, however they end.
    threading.Thread(target=http.serve_forever, daemon=True).start()
    sys.stdin.read()
    os._exit(0)


class OtlpReceiver:
    """A receiver process, from `with` to its end. `start` after `stop` gives the same ports and keeps the spans."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.port = 0
        self.grpc_port = 0
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> OtlpReceiver:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def endpoint(self) -> str:
        """For `OTEL_EXPORTER_OTLP_ENDPOINT` with http/protobuf."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def grpc_endpoint(self) -> str:
        """For `OTEL_EXPORTER_OTLP_ENDPOINT` with grpc."""
        return f"http://127.0.0.1:{self.grpc_port}"

    def environment(self, protocol: str = "http/protobuf") -> dict[str, str]:
        """The variables that lead to it. What is slow here is not taken for a failure, and sent twice."""
        return {
            "OTEL_EXPORTER_OTLP_ENDPOINT": self.grpc_endpoint if protocol == "grpc" else self.endpoint,
            "OTEL_EXPORTER_OTLP_PROTOCOL": protocol,
            "OTEL_EXPORTER_OTLP_TIMEOUT": "60",
        }

    def start(self) -> None:
        ports = ["--port", str(self.port), "--grpc-port", str(self.grpc_port)]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.otlp", "--dir", str(self.directory), *ports],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        )
        assert self._process.stdout is not None
        ready = json.loads(self._process.stdout.readline())
        self.port, self.grpc_port = ready["port"], ready["grpc_port"]

    def stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()

    def answer(self, answer: str) -> None:
        """How it answers from now on; a key of `ANSWERS`."""
        httpx.post(f"{self.endpoint}/control", json={"answer": answer}, timeout=PATIENCE).raise_for_status()

    def wait(self, *, spans: int = 0, distinct: int = 0, requests: int = 0, logs: int = 0) -> None:
        """Blocks until so many spans, so many different ones and so many log records are kept and so many requests with
        spans were received, since it was started.
        """
        query = {"spans": spans, "distinct": distinct, "requests": requests, "logs": logs, "timeout": PATIENCE}
        found = httpx.get(f"{self.endpoint}/wait", params=query, timeout=PATIENCE + 10).raise_for_status().json()
        assert found["arrived"], f"after {PATIENCE:g} s only {found}"

    def spans(self) -> list[dict[str, Any]]:
        """Every span that was kept, in the order of arrival."""
        file = self.directory / "spans.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def logs(self) -> list[dict[str, Any]]:
        """Every log record that was kept, in the order of arrival."""
        file = self.directory / "logs.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def times_received(self) -> Counter[tuple[str, str]]:
        """How often each (trace_id, span_id) was kept."""
        return Counter((span["trace_id"], span["span_id"]) for span in self.spans())

    def by_trace(self) -> dict[str, list[dict[str, Any]]]:
        """The spans of each trace, by when they began."""
        ordered = sorted(self.spans(), key=lambda span: (span["trace_id"], span["start_time"]))
        return {trace: list(spans) for trace, spans in itertools.groupby(ordered, key=lambda span: span["trace_id"])}


if __name__ == "__main__":
    main()
