"""Links to decide: signed, bound to one plan and round, and expiring (P5)."""

from __future__ import annotations

import base64
import stat
import threading
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracekit.config import ConfigError, GuardianSettings, Settings
from tracekit.ids import new_task_id, new_trace_id
from tracekit.workers.approvals import DECISIONS, Approval, ApprovalRefused, Decision, approval_key, in_utc
from tracekit.workers.links import links, load_secret, sign, verify
from tracekit.workers.plan import Plan, Step, plan_hash

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
LATER = NOW + timedelta(hours=1)
SECRET = b"0123456789abcdef"
PLAN = Plan(steps=(Step(capability="note.write", arguments={"path": "a.md", "text": "a"}),))


def approval(round: int = 1, plan: Plan = PLAN, task_id: str = "") -> Approval:
    task, digest = task_id or new_task_id(), plan_hash(plan)
    return Approval(
        task_id=task,
        trace_id=new_trace_id(),
        key=approval_key(task, digest, round),
        plan_hash=digest,
        plan=plan.model_dump(mode="json"),
        requester="renee",
        intent="write it down",
        urgent=False,
        opened_at=NOW,
        deadline=LATER,
        round=round,
    )


@given(st.integers(1, 2**32 - 1), st.sampled_from(DECISIONS), st.binary(min_size=16, max_size=64))
def test_what_was_signed_is_what_is_read(round: int, decision: Decision, secret: bytes) -> None:
    signed = approval(round)
    claimed = verify(secret, sign(secret, signed, decision, expires_at=LATER), now=NOW)
    assert (claimed.task_id, claimed.key, claimed.plan_hash) == (signed.task_id, signed.key, signed.plan_hash)
    assert (claimed.decision, claimed.expires_at) == (decision, LATER)


@given(st.data())
def test_one_character_changed_is_refused(data: st.DataObject) -> None:
    token = sign(SECRET, approval(), "approve", expires_at=LATER)
    place = data.draw(st.integers(0, len(token) - 1))
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    other = data.draw(st.sampled_from([letter for letter in alphabet if letter != token[place]]))
    with pytest.raises(ApprovalRefused, match="not valid"):
        verify(SECRET, token[:place] + other + token[place + 1 :], now=NOW)


@given(st.text(max_size=300) | st.binary(max_size=200).map(lambda raw: base64.urlsafe_b64encode(raw).decode()))
def test_anything_else_is_refused(token: str) -> None:
    with pytest.raises(ApprovalRefused, match="not valid"):
        verify(SECRET, token, now=NOW)


def test_another_secret_forges_nothing() -> None:
    token = sign(b"another secret!!", approval(), "approve", expires_at=LATER)
    with pytest.raises(ApprovalRefused, match="not valid"):
        verify(SECRET, token, now=NOW)


def test_it_expires() -> None:
    token = sign(SECRET, approval(), "approve", expires_at=LATER)
    assert verify(SECRET, token, now=LATER - timedelta(seconds=1)).decision == "approve"
    with pytest.raises(ApprovalRefused, match="expired at 2026-11-23 13:00 UTC"):
        verify(SECRET, token, now=LATER)


def test_a_time_is_told_in_utc_whatever_zone_it_was_read_in() -> None:
    assert in_utc(NOW.astimezone(timezone(timedelta(hours=2)))) == in_utc(NOW) == "2026-11-23 12:00 UTC"


def test_a_key_of_another_plan_is_not_signed() -> None:
    bound = approval()
    loose = Approval(**{name: getattr(bound, name) for name in bound.__slots__} | {"key": "approval:x:y:1"})
    with pytest.raises(ValueError, match="its own plan"):
        sign(SECRET, loose, "approve", expires_at=LATER)


def test_links_are_short_and_need_no_quoting(tmp_path: Path) -> None:
    made = links(Settings(home=tmp_path), SECRET, approval())
    assert list(made) == list(DECISIONS)
    for url in made.values():
        assert url.startswith("http://127.0.0.1:8420/approvals/")
        assert len(url) < 200
        assert set(url.rpartition("/")[2]) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")


def test_the_hash_follows_every_part_of_the_plan() -> None:
    step = PLAN.steps[0]
    others = [
        Plan(steps=(step, step)),
        Plan(steps=(step,), reason="another"),
        Plan(steps=(step.model_copy(update={"destructive": True}),)),
        Plan(steps=(step.model_copy(update={"arguments": {"path": "a.md", "text": "b"}}),)),
        Plan(steps=(step.model_copy(update={"expect": {"sha256": "0"}}),)),
    ]
    assert len({plan_hash(plan) for plan in [PLAN, *others]}) == len(others) + 1
    # As it comes back from the database, it is the same plan.
    assert plan_hash(Plan.model_validate_json(PLAN.model_dump_json())) == plan_hash(PLAN)


def test_the_secret_is_made_once_and_private(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path / "home")
    found: list[bytes] = []
    threads = [threading.Thread(target=lambda: found.append(load_secret(settings))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(found)) == 1
    assert len(found[0]) == 32
    [file] = (tmp_path / "home").iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_secret_that_others_can_read_or_that_is_damaged_is_refused(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    load_secret(settings)
    file = tmp_path / "approval.key"
    file.chmod(0o644)
    with pytest.raises(ConfigError, match="others can read"):
        load_secret(settings)
    file.chmod(0o600)
    file.write_bytes(b"short")
    with pytest.raises(ConfigError, match="damaged"):
        load_secret(settings)


def test_a_configured_secret_is_used_and_must_be_long_enough(tmp_path: Path) -> None:
    def configured(text: str) -> Settings:
        return Settings(home=tmp_path, guardian=GuardianSettings.model_validate({"approval_secret": text}))

    assert load_secret(configured("sixteen letters!")) == b"sixteen letters!"
    with pytest.raises(ConfigError) as refused:
        load_secret(configured("tiny-secret"))
    assert "tiny-secret" not in str(refused.value)
    assert list(tmp_path.iterdir()) == []
