"""Where the historian put its note about a task."""

from __future__ import annotations

from tracekit.workers.substrate import Substrate


async def vault_note(substrate: Substrate, task_id: str) -> str | None:
    """The path of the task's note in the vault, or None where there is none."""
    async with substrate.queue.connection() as connection:
        cursor = await connection.execute(
            "SELECT e.result->>'path' FROM tracekit.effects AS e"
            " JOIN tracekit.hops AS h ON (h.task_id, h.hop) = (e.task_id, e.hop)"
            " WHERE e.task_id = %s AND h.mode = 'historian' AND e.finished_at IS NOT NULL"
            "   AND e.result->>'path' IS NOT NULL ORDER BY e.finished_at DESC LIMIT 1",
            [task_id],
        )
        row = await cursor.fetchone()
    return str(substrate.settings.vault_dir / row[0]) if row else None
