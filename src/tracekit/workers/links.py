"""Links to decide: what a notification's buttons carry (P5).

A link names the task, the plan's hash, the round of asking and one decision, under an HMAC: it works for that plan, in
that round, until the deadline.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
import secrets
import struct
from datetime import UTC, datetime

from ulid import ULID

from tracekit.config import ConfigError, Settings
from tracekit.workers.approvals import (
    DECISIONS,
    Approval,
    ApprovalRefused,
    Claimed,
    Decision,
    approval_key,
    in_utc,
)
from tracekit.workers.files import private_directory, write_whole

_LEAST_SECRET = 16


class LinkExpired(ApprovalRefused):
    """The link was good, and its time is over."""


def load_secret(settings: Settings) -> bytes:
    """The key of the links' HMAC: the configured one, or one that is made once and kept, readable by this user alone.

    Processes on several machines need a configured one, or each refuses the others' links. Raises `ConfigError`.
    """
    configured = settings.guardian.approval_secret.get_secret_value()
    if configured:
        if len(configured) < _LEAST_SECRET:
            raise ConfigError(
                f"guardian.approval_secret must have at least {_LEAST_SECRET} characters",
                hint="leave it empty and one is made",
            )
        return configured.encode()
    path = settings.data_home / "approval.key"
    try:
        if not path.exists():
            private_directory(path.parent)
            write_whole(path, secrets.token_bytes(32), mode=0o600, replace=False)
        if path.stat().st_mode & 0o077:
            raise ConfigError(f"others can read {path}", hint=f"make it private: chmod 600 {path}; or delete it")
        secret = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot keep the key of the approval links in {path}: {error.strerror}") from None
    if len(secret) < _LEAST_SECRET:
        raise ConfigError(f"{path} is damaged", hint="delete it: a new one is made, and open links stop working")
    return secret


_VERSION = 1
_FIELDS = struct.Struct(">B16s32sIBQ")
"""Version, task, hash of the plan, round, decision, expiry in seconds since 1970."""
_MAC = hashlib.sha256().digest_size
_TOKEN = re.compile(r"[A-Za-z0-9_-]{1,200}")
_CONTEXT = b"tracekit approval link\x00"


def sign(secret: bytes, approval: Approval, decision: Decision, *, expires_at: datetime) -> str:
    """A token that lets its bearer take `decision` on exactly this plan, in this round, until `expires_at`.

    Compact and URL-safe. It works once: the first decision of a round counts, and the next round has another key.
    """
    if approval.key != approval_key(approval.task_id, approval.plan_hash, approval.round):
        raise ValueError("the approval's key is not the key of its own plan and round")
    body = _FIELDS.pack(
        _VERSION,
        ULID.from_str(approval.task_id).bytes,
        bytes.fromhex(approval.plan_hash),
        approval.round,
        DECISIONS.index(decision),
        int(expires_at.timestamp()),
    )
    return base64.urlsafe_b64encode(body + _mac(secret, body)).rstrip(b"=").decode()


def verify(secret: bytes, token: str, *, now: datetime) -> Claimed:
    """What a token says. Raises `LinkExpired`, or `ApprovalRefused` where it is malformed or forged."""
    unusable = ApprovalRefused("this link is not valid: it is incomplete, or was not made here")
    if not _TOKEN.fullmatch(token):
        raise unusable
    try:
        raw = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
    except (binascii.Error, ValueError):
        raise unusable from None
    body, mac = raw[: _FIELDS.size], raw[_FIELDS.size :]
    # One token has one spelling: base64 leaves bits over, which a decoder would ignore.
    if len(raw) != _FIELDS.size + _MAC or base64.urlsafe_b64encode(raw).rstrip(b"=").decode() != token:
        raise unusable
    if not hmac.compare_digest(mac, _mac(secret, body)):
        raise unusable
    version, task, plan, round, decision, expiry = _FIELDS.unpack(body)
    if version != _VERSION or decision >= len(DECISIONS):
        raise unusable
    expires_at = datetime.fromtimestamp(expiry, UTC)
    if now >= expires_at:
        raise LinkExpired(f"this link expired at {in_utc(expires_at)}; the plan was not executed")
    task_id, plan_hash = str(ULID.from_bytes(task)), plan.hex()
    return Claimed(task_id, approval_key(task_id, plan_hash, round), plan_hash, DECISIONS[decision], expires_at)


def _mac(secret: bytes, body: bytes) -> bytes:
    return hmac.digest(secret, _CONTEXT + body, "sha256")


def links(settings: Settings, secret: bytes, approval: Approval) -> dict[Decision, str]:
    """The address of each decision. Opening one changes nothing: it shows the plan and asks."""
    return {
        decision: f"{settings.public_url}/approvals/{sign(secret, approval, decision, expires_at=approval.deadline)}"
        for decision in DECISIONS
    }
