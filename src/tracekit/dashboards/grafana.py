"""Sending the dashboards to a Grafana, by its HTTP API
(https://grafana.com/docs/grafana/latest/developers/http_api/dashboard/, …/folder/).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, Self
from urllib.parse import quote, urlsplit

import httpx

from tracekit.errors import TracekitError

TIMEOUT_S = 20.0

_SUCH_AS = "such as https://grafana.example.org or http://localhost:3000"

_OURS = ("id", "version")
"""What Grafana counts for itself in a dashboard that it keeps."""

Status = Literal["created", "updated", "unchanged"]


class GrafanaError(TracekitError):
    """Grafana cannot be reached, or refuses."""


@dataclass(frozen=True, slots=True)
class Pushed:
    """What became, or with a dry run would become, of a folder or a dashboard."""

    kind: Literal["folder", "dashboard"]
    uid: str
    title: str
    status: Status
    url: str = ""


class Grafana:
    """A Grafana and a token for it: of a service account that may write folders and dashboards."""

    def __init__(self, url: str, token: str, *, dry_run: bool = False) -> None:
        try:
            address = urlsplit(url)
            _ = address.port
        except ValueError:
            raise GrafanaError("the URL cannot be read", hint=_SUCH_AS) from None
        if address.scheme not in ("http", "https") or not address.hostname or address.query or address.fragment:
            shown = "the URL" if address.username or address.query else address.geturl()
            raise GrafanaError(f"{shown} is no address of a Grafana", hint=_SUCH_AS)
        if address.username or address.password:
            raise GrafanaError("the URL has a credential in it, which would be shown", hint="give a token instead")
        self.url = url.rstrip("/")
        self.dry_run = dry_run
        self._token = token
        self._http = httpx.Client(
            base_url=self.url, headers={"Authorization": f"Bearer {token}"}, timeout=TIMEOUT_S, follow_redirects=False
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._http.close()

    def push(self, dashboards: Mapping[str, Mapping[str, Any]], folder: str) -> list[Pushed]:
        """Bring the folder and the dashboards there; what is there as it should be is left alone, so that Grafana's
        list of versions shows changes. Raises `GrafanaError`.
        """
        pushed = [self._folder(folder)]
        for data in dashboards.values():
            pushed.append(self._dashboard(data, folder))
        return pushed

    def _folder(self, uid: str) -> Pushed:
        found = self._ask("GET", f"/api/folders/{quote(uid, safe='')}", or_none=True)
        if found is not None:
            return Pushed("folder", uid, str(found.get("title", uid)), "unchanged", self._at(found))
        if self.dry_run:
            return Pushed("folder", uid, uid, "created")
        made = self._ask("POST", "/api/folders", {"uid": uid, "title": uid})
        return Pushed("folder", uid, uid, "created", self._at(made or {}))

    def _dashboard(self, data: Mapping[str, Any], folder: str) -> Pushed:
        uid, title = str(data["uid"]), str(data["title"])
        found = self._ask("GET", f"/api/dashboards/uid/{uid}", or_none=True)
        status: Status = "created"
        if found is not None:
            meta = found.get("meta", {})
            kept = {name: value for name, value in found.get("dashboard", {}).items() if name not in _OURS}
            if kept == data and meta.get("folderUid") == folder:
                return Pushed("dashboard", uid, title, "unchanged", self._at(meta))
            status = "updated"
        if self.dry_run:
            return Pushed("dashboard", uid, title, status)
        body = {"dashboard": {**data, "id": None}, "folderUid": folder, "overwrite": True, "message": "tracekit"}
        made = self._ask("POST", "/api/dashboards/db", body)
        return Pushed("dashboard", uid, title, status, self._at(made or {}))

    def _at(self, answer: Mapping[str, Any]) -> str:
        path = str(answer.get("url", ""))
        address = urlsplit(self.url)
        # A Grafana below a path says it with its own addresses.
        return f"{address.scheme}://{address.netloc}{path}" if path.startswith("/") else path

    def _ask(self, method: str, path: str, body: object = None, *, or_none: bool = False) -> dict[str, Any] | None:
        """The answer; None for a 404 where that is one."""
        try:
            response = self._http.request(method, path, json=body) if body else self._http.request(method, path)
        except httpx.HTTPError as error:
            raise GrafanaError(
                f"{self.url} cannot be reached: {type(error).__name__}: {error}", hint="is that Grafana's address?"
            ) from None
        try:
            answer = response.json()
        except ValueError:
            answer = None
        if response.is_success and isinstance(answer, dict):
            return answer
        # Not found in Grafana's own words: another server's 404 is a page.
        if response.status_code == 404 and or_none and isinstance(answer, dict) and "message" in answer:
            return None
        raise self._refused(response.status_code, answer if isinstance(answer, dict) else None, path)

    def _refused(self, status: int, answer: Mapping[str, Any] | None, path: str) -> GrafanaError:
        said = f": {answer['message']}".replace(self._token, "…") if answer and answer.get("message") else ""
        if answer is None or status in (404, 405):
            return GrafanaError(f"{self.url}{path} answered {status}, which is not Grafana's API",
                                hint="give the address of Grafana itself, with its path if it has one")  # fmt: skip
        match status:
            case 401:
                hint = "the token is not (or no longer) valid: make one for a service account, under Administration"
            case 403:
                hint = "the token's service account needs the role Editor, or folders:create and dashboards:write"
            case 412:
                hint = {
                    "name-exists": "another dashboard of the folder has this title: rename or delete it",
                    "version-mismatch": "somebody saved it at the same moment: try again",
                    "plugin-dashboard": "a plugin owns it: delete that first",
                }.get(str(answer.get("status")), "somebody else changed it: try again")
            case 400 if "provision" in said.lower():
                hint = "Grafana has it from a mounted file: there is nothing to push, or unmount the file first"
            case _:
                hint = "Grafana's log says more"
        return GrafanaError(f"Grafana refused with {status}{said}", hint=hint)
