"""Reading a test's database beside the program."""

from __future__ import annotations

from typing import Any, LiteralString

from tracekit.postgres import Pool


async def rows(pool: Pool, statement: LiteralString, *parameters: Any) -> list[tuple[Any, ...]]:
    async with pool.connection() as connection:
        return await (await connection.execute(statement, parameters)).fetchall()


async def value(pool: Pool, statement: LiteralString, *parameters: Any) -> Any:
    """The first column of the only row."""
    [row] = await rows(pool, statement, *parameters)
    return row[0]


async def outcomes(pool: Pool, task_id: str) -> list[str]:
    """How the attempts of a task ended, in order."""
    found = await rows(
        pool,
        "SELECT data->>'outcome' FROM tracekit.events WHERE task_id = %s AND kind = 'attempt.ended' ORDER BY seq",
        task_id,
    )
    return [row[0] for row in found]


async def state(pool: Pool, task_id: str) -> str:
    """`ready`, `running`, `parked`, `scheduled`, or how the task ended."""
    return str(
        await value(
            pool,
            "SELECT coalesce(q.state, t.state) FROM tracekit.tasks AS t LEFT JOIN tracekit.queue AS q"
            " ON q.task_id = t.id WHERE t.id = %s",
            task_id,
        )
    )
