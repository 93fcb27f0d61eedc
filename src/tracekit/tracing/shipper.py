"""Ships the rows of `tracekit.spans` to an OTLP collector: each once, in order, none lost (T6).

Many processes may run a shipper on one database; one of them ships. What the collector has taken is passed by the
cursor; a process that dies between the two repeats at most the one batch that was under way.
"""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

import psycopg
import structlog
from opentelemetry.instrumentation.utils import suppress_instrumentation
from opentelemetry.sdk.resources import SERVICE_INSTANCE_ID, SERVICE_NAME, Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

import tracekit
from tracekit import instruments
from tracekit.errors import TracekitError
from tracekit.postgres import connect
from tracekit.tracing.otlp import Answer, AnsweringExporter, Collector
from tracekit.tracing.rows import readable_span
from tracekit.tracing.shipping import Shipment, Turn

log = structlog.get_logger()

T = TypeVar("T")


class DeliveryError(TracekitError):
    """The collector did not take a batch. It stays, and is tried again."""


class SpanShipper:
    """Ships until told to stop. Without a collector it does nothing, and the rows wait for one.

    It has a connection of its own to `dsn`, which may lead through a pooler. `resource` is what spans of the skeleton
    are said to come from; its `service.instance.id` is left out, because they are the whole installation's.

    A batch has at most `batch_rows` rows, and about `batch_bytes` bytes: collectors take 4 MiB at once over gRPC.
    `interval`: seconds between looks when nobody calls `wake`. `backoff`: seconds before the first and, doubling, at
    most before a later retry; less up to half, by chance. `database_timeout`: seconds for any step in the database.
    `delivery_timeout`: seconds for a batch, should the exporter's own time-out (`OTEL_EXPORTER_OTLP_TIMEOUT`) not hold.
    `grace`: seconds that a stop waits for the batch under way, which otherwise goes out once more, and then for rows
    that are still ready.
    """

    def __init__(
        self,
        dsn: str,
        collector: Collector | None,
        *,
        resource: Resource | None = None,
        batch_rows: int = 512,
        batch_bytes: int = 2 * 1024 * 1024,
        interval: float = 2.0,
        backoff: tuple[float, float] = (1.0, 60.0),
        database_timeout: float = 15.0,
        delivery_timeout: float = 60.0,
        grace: float = 3.0,
    ) -> None:
        self._dsn = dsn
        self._collector = collector
        self._resource = _of_installation(resource or Resource.create({SERVICE_NAME: "tracekit"}))
        self._scope = InstrumentationScope("tracekit", tracekit.__version__)
        self._batch_rows = batch_rows
        self._batch_bytes = batch_bytes
        self._interval = interval
        self._backoff = backoff
        self._database_timeout = database_timeout
        self._delivery_timeout = delivery_timeout
        self._grace = grace
        self._limit = batch_rows
        self._exporter: AnsweringExporter | None = None
        self._connection: psycopg.AsyncConnection[Any] | None = None
        self._woken = asyncio.Event()
        self._in_a_row = 0
        self.shipped = 0
        """Spans that this process has shipped."""
        self.rejected = 0
        """Spans among those that the collector did not keep."""
        self.failures = 0
        """Batches that failed, in this process, whether the collector or the database was at fault."""
        self.last_error = ""
        """What the last failure was; empty after a success."""

    def wake(self) -> None:
        """There are new rows. From the event loop's thread; during a backoff it has no effect."""
        self._woken.set()

    async def run(self, stop: asyncio.Event) -> None:
        """Ships until `stop` is set; raises nothing that time may mend."""
        if self._collector is None:
            log.info("shipper.idle", why="no collector is configured; spans stay in PostgreSQL")
            await stop.wait()
            return
        try:
            while not stop.is_set():
                self._woken.clear()
                try:
                    passed = await self._ship(stop)
                except (TracekitError, psycopg.Error, TimeoutError, OSError) as error:
                    await self._wait(stop, self._failed(error))
                else:
                    if not passed:
                        await self._wait(stop, self._interval, None if passed is None else self._woken)
            await self._ship_the_rest(stop)
        finally:
            await self.close()

    async def ship_once(self) -> int:
        """Ships one batch; how many spans it had, 0 where nothing is ready or another process ships.

        Raises DeliveryError, psycopg.Error, TimeoutError or a TracekitError of `connect`.
        """
        return await self._ship(asyncio.Event()) or 0

    async def close(self) -> None:
        """Closes the connections. `run` does it by itself."""
        await self._disconnect()
        exporter, self._exporter = self._exporter, None
        if exporter:
            exporter.shutdown()

    async def _ship_the_rest(self, stop: asyncio.Event) -> None:
        """What ended last is shipped by whoever ended it, where that is possible at once."""
        if self._in_a_row:
            return
        with suppress(TracekitError, psycopg.Error, TimeoutError, OSError):
            async with asyncio.timeout(self._grace):
                while await self._ship(stop):
                    pass

    async def _ship(self, stop: asyncio.Event) -> int | None:
        """Ships one batch; how many spans it had, or None while another process ships."""
        if self._collector is None:
            return 0
        try:
            turn = await self._turn()
            if turn is None:
                return None
            answer = None
            while shipment := await turn.next(self._limit, self._batch_bytes):
                answer = await self._deliver(shipment, stop)
                if answer:
                    break
            await turn.commit(shipment)
        except BaseException:
            # Which ends the turn: perhaps another process reaches the collector.
            await self._disconnect()
            raise
        if shipment is None or answer is None:
            return 0
        self._succeeded(shipment, answer)
        return len(shipment.rows)

    async def _turn(self) -> Turn | None:
        if self._connection is None:
            async with asyncio.timeout(self._database_timeout):
                # Nothing is prepared by name, so that a pooler in transaction mode may stand in between.
                self._connection = await connect(self._dsn, name="tracekit shipper", transaction_pooler=True)
        # In a turn the collector may be asked twice without a word to the database between.
        idle = 2 * self._delivery_timeout + self._database_timeout
        return await Turn.begin(self._connection, step_timeout=self._database_timeout, idle=idle)

    async def _deliver(self, shipment: Shipment, stop: asyncio.Event) -> Answer | None:
        """The collector's answer once it has dealt with the batch; None if a smaller batch is to be tried. Raises
        DeliveryError if the same batch is to be tried later.
        """
        taken, answer = await self._send(self._readable(shipment), stop)
        if taken:
            return answer
        refusal = f"the collector did not take {len(shipment.rows)} spans: {answer.status} {answer.message}".rstrip()
        if not answer.permanent:
            raise DeliveryError(refusal)
        # It will never take this batch. Halve it until what is at fault is alone.
        if shipment.sources > 1:
            self._limit = shipment.sources // 2
            return None
        # What refuses an empty batch as well is no collector at all, and no reason to give up a span.
        if not (await self._send([], stop))[0]:
            raise DeliveryError(refusal)
        return await self._deliver_singly(shipment, answer, stop)

    async def _deliver_singly(self, shipment: Shipment, refused: Answer, stop: asyncio.Event) -> Answer:
        """The spans of one row of the record, of which the collector takes some and some never."""
        rejected = 0
        for row in shipment.rows:
            alone = Shipment([row], shipment.end, 1)
            taken, answer = (
                (False, refused) if len(shipment.rows) == 1 else await self._send(self._readable(alone), stop)
            )
            if not taken and not answer.permanent:
                raise DeliveryError(f"the collector did not take a span: {answer.status} {answer.message}".rstrip())
            if not taken:
                rejected += 1
                log.error("shipper.refused", status=answer.status, trace_id=row.trace_id, span_id=row.span_id)
        return Answer(refused.status, rejected=rejected, message=refused.message)

    def _readable(self, shipment: Shipment) -> list[ReadableSpan]:
        spans = []
        for row in shipment.rows:
            try:
                spans.append(readable_span(row, self._resource, self._scope))
            except (ValueError, TypeError, KeyError) as error:
                self.rejected += 1
                log.error("shipper.unreadable", trace_id=row.trace_id, span_id=row.span_id, error=repr(error))
        return spans

    async def _send(self, spans: list[ReadableSpan], stop: asyncio.Event) -> tuple[bool, Answer]:
        assert self._collector is not None
        exporter = self._exporter = self._exporter or self._collector.exporter()
        sending = _in_daemon_thread(lambda: _export(exporter, spans))
        stopping = asyncio.create_task(stop.wait())
        either: set[asyncio.Future[Any]] = {sending, stopping}
        try:
            await asyncio.wait(either, timeout=self._delivery_timeout, return_when=asyncio.FIRST_COMPLETED)
            if stopping.done() and not sending.done():
                await asyncio.wait({sending}, timeout=self._grace)
        finally:
            stopping.cancel()
        if not sending.done():
            exporter.shutdown()
            self._exporter = None
            raise DeliveryError("given up while a batch was under way; it will go out again")
        return sending.result()

    def _succeeded(self, shipment: Shipment, answer: Answer) -> None:
        count = len(shipment.rows)
        if self._in_a_row:
            log.info("shipper.recovered", failures=self._in_a_row)
        self._in_a_row = 0
        self.last_error = ""
        self._limit = min(self._limit * 2, self._batch_rows)
        self.shipped += count
        if answer.rejected:
            self.rejected += answer.rejected
            log.warning("shipper.rejected", rejected=answer.rejected, of=count, answer=answer.message)

    def _failed(self, error: Exception) -> float:
        """Counts a failure; seconds to wait before the next try."""
        self.failures += 1
        self._in_a_row += 1
        instruments.SPAN_EXPORT_FAILURES.inc()
        self.last_error = str(error) or type(error).__name__
        # One line when it begins; the exporter logs each try.
        if self._in_a_row == 1:
            log.warning("shipper.failing", error=self.last_error)
        first, most = self._backoff
        return random.uniform(0.5, 1.0) * float(min(first * 2 ** min(self._in_a_row - 1, 32), most))

    async def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()

    @staticmethod
    async def _wait(stop: asyncio.Event, seconds: float, sooner: asyncio.Event | None = None) -> None:
        waiting = [asyncio.create_task(event.wait()) for event in (stop, sooner) if event is not None]
        try:
            await asyncio.wait(waiting, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in waiting:
                task.cancel()


def _of_installation(resource: Resource) -> Resource:
    kept = {name: value for name, value in resource.attributes.items() if name != SERVICE_INSTANCE_ID}
    return Resource(kept, resource.schema_url)


def _export(exporter: AnsweringExporter, spans: list[ReadableSpan]) -> tuple[bool, Answer]:
    with suppress_instrumentation():
        return exporter.export(spans) is SpanExportResult.SUCCESS, exporter.answer


def _in_daemon_thread(function: Callable[[], T]) -> asyncio.Future[T]:
    """Runs a blocking function. Not `asyncio.to_thread`: the end of a program waits for the threads of that one, and a
    collector that hangs would hold it up.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]

    def work() -> None:
        result, failure = None, None
        try:
            result = function()
        except BaseException as error:
            failure = error
        with suppress(RuntimeError):  # the loop may be closed by now
            loop.call_soon_threadsafe(settle, result, failure)

    threading.Thread(target=work, name="tracekit-shipper", daemon=True).start()
    return future
