"""Files of the vault: whole or not there, and not for everybody."""

from __future__ import annotations

import stat
from pathlib import Path

from tracekit.workers.files import private_directory


def test_what_is_made_is_for_the_owner_alone_and_what_is_there_stays(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir(mode=0o755)
    private_directory(shared / "vault" / "2026")
    modes = [stat.S_IMODE(path.stat().st_mode) for path in (shared, shared / "vault", shared / "vault" / "2026")]
    assert modes == [0o755, 0o700, 0o700]
