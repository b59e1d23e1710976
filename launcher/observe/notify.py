"""Notices given on: over HTTP, by e-mail, to a program.

Addresses of robots and passwords are read when a notice is sent, and no message of this module has any of them: errors
name the host at most.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import signal
import smtplib
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from contextlib import suppress
from email.message import EmailMessage
from pathlib import Path
from string import Template
from typing import Any
from urllib.parse import quote_plus, urlsplit

from launcher.errors import LauncherError
from launcher.observe.notices import Notice
from launcher.runspec.sections import NotifySpec

# Most bytes of a text, somewhat below what each takes (WeCom 2048, DingTalk 20,000, Feishu 20 kB, Slack 40,000).
_MOST_BYTES = {"wecom": 2000, "dingtalk": 18_000, "feishu": 18_000, "lark": 18_000, "slack": 36_000}
_MOST_ANSWER = 64 << 10


class NotSent(LauncherError):
    """A notice that was not sent. ``again``: another try may succeed."""

    def __init__(self, message: str, *, again: bool = True) -> None:
        super().__init__(message)
        self.again = again


def send(
    target: NotifySpec, notice: Notice, *, environ: Mapping[str, str] = os.environ,
    sleep: Callable[[float], None] = time.sleep,
) -> None:  # fmt: skip
    """Send ``notice`` to ``target``, trying again where that may help. Raises NotSent."""
    for left in reversed(range(target.tries)):
        try:
            _send_once(target, notice, environ)
            return
        except NotSent as error:
            if not error.again or left == 0:
                raise
        sleep(2.0 ** (target.tries - left - 1))


def _send_once(target: NotifySpec, notice: Notice, environ: Mapping[str, str]) -> None:
    if target.to == "command":
        _run(target, notice)
    elif target.to == "email":
        _mail(target, notice, _secret(target, environ))
    else:
        _post(target, notice, _address(target, environ), _secret(target, environ))


def missing_secrets(target: NotifySpec, environ: Mapping[str, str] = os.environ) -> str:
    """Return which address or secret of ``target`` cannot be read now, or ""."""
    try:
        if target.to not in ("email", "command"):
            _address(target, environ)
        _secret(target, environ)
    except NotSent as error:
        return error.message
    return ""


# ------------------------------------------------------------------------------------------------------------ secrets


def _address(target: NotifySpec, environ: Mapping[str, str]) -> str:
    url = target.url or _kept(target.url_env, target.url_file, environ)
    if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname or not url.isprintable():
        raise NotSent(f"{target.url_env or target.url_file} holds no http(s) address", again=False)
    return url


def _secret(target: NotifySpec, environ: Mapping[str, str]) -> str:
    return _kept(target.secret_env, target.secret_file, environ)


def _kept(variable: str | None, file: str | None, environ: Mapping[str, str]) -> str:
    """Return what an environment variable or a file holds; "" where neither is named."""
    if variable is not None:
        if not environ.get(variable):
            raise NotSent(f"the environment variable {variable} is not set", again=False)
        return environ[variable].strip()
    if file is None:
        return ""
    try:
        return Path(file).expanduser().read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise NotSent(f"cannot read {file}: {reason}", again=False) from error


# --------------------------------------------------------------------------------------------------------------- HTTP


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """urllib would follow a redirect with a GET without the notice, and take its 200 for a success."""

    def redirect_request(self, *_args: Any, **_keywords: Any) -> None:
        return None


def _post(target: NotifySpec, notice: Notice, url: str, secret: str) -> None:
    url, body, headers = _message(target, notice, url, secret, time.time())
    request = urllib.request.Request(  # noqa: S310 - _address takes http and https only
        url, json.dumps(body, ensure_ascii=False).encode("utf-8", "replace"),
        {"Content-Type": "application/json; charset=utf-8", "User-Agent": "launcher", **headers},
    )  # fmt: skip
    host = urlsplit(url).hostname
    try:
        with urllib.request.build_opener(_NoRedirect).open(request, timeout=target.timeout_s) as answer:
            _check_answer(target.to, f"{host}", answer.read(_MOST_ANSWER))
    except urllib.error.HTTPError as error:
        error.close()
        again = error.code in (408, 429) or error.code >= 500
        raise NotSent(f"{host} answers HTTP {error.code}", again=again) from None
    except NotSent:
        raise
    # http.client's errors quote the address, which is the secret.
    except Exception as error:
        raise NotSent(f"{host}: {_plain(error)}") from None


def _message(
    target: NotifySpec, notice: Notice, url: str, secret: str, now: float
) -> tuple[str, dict[str, Any], dict[str, str]]:
    """Return address, body and headers of the request."""
    text = _cut(notice, _MOST_BYTES.get(target.to))
    if target.to in ("feishu", "lark"):
        signed = _feishu_signature(secret, int(now)) if secret else {}
        return url, {**signed, "msg_type": "text", "content": {"text": text}}, {}
    if target.to == "dingtalk":
        url += _dingtalk_signature(secret, int(now * 1000), url) if secret else ""
        return url, {"msgtype": "text", "text": {"content": text}}, {}
    if target.to == "wecom":
        return url, {"msgtype": "text", "text": {"content": text}}, {}
    if target.to == "slack":
        # Slack's own three escapes; "<!channel>" in a verdict would call everybody.
        return url, {"text": text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")}, {}
    headers = {"Authorization": f"Bearer {secret}"} if secret else {}
    return url, notice.fields() if target.body is None else filled(target.body, notice), headers


def _feishu_signature(secret: str, seconds: int) -> dict[str, str]:
    """Return the fields that sign a message: HMAC-SHA256 of nothing, keyed by time and secret (custom bot guide)."""
    sign = hmac.new(f"{seconds}\n{secret}".encode(), b"", hashlib.sha256).digest()
    return {"timestamp": str(seconds), "sign": base64.b64encode(sign).decode()}


def _dingtalk_signature(secret: str, milliseconds: int, url: str) -> str:
    """Return the parameters that sign a message: HMAC-SHA256 of time and key (custom robot security settings)."""
    sign = hmac.new(secret.encode(), f"{milliseconds}\n{secret}".encode(), hashlib.sha256).digest()
    start = "&" if urlsplit(url).query else "?"
    return f"{start}timestamp={milliseconds}&sign={quote_plus(base64.b64encode(sign))}"


# Robots answer 200 to what they refuse, with a code that is 0 for what they took.
_CODES = {"feishu": ("code", "StatusCode"), "lark": ("code", "StatusCode"), "dingtalk": ("errcode",),
          "wecom": ("errcode",)}  # fmt: skip


def _check_answer(kind: str, host: str, raw: bytes) -> None:
    if kind not in _CODES:
        return
    try:
        found = json.loads(raw)
        codes = [found[key] for key in _CODES[kind] if key in found]
    except (ValueError, TypeError, RecursionError):
        codes = []
    if not codes:
        raise NotSent(f"{host} answers what no {kind} robot does", again=False)
    if codes[0] != 0:
        raise NotSent(f"{host} refuses it with code {str(codes[0])[:20]}")


def _cut(notice: Notice, most: int | None) -> str:
    raw = notice.text.encode("utf-8", "replace")
    if most is None or len(raw) <= most:
        return raw.decode()
    return f"{raw[:most].decode('utf-8', 'ignore')}\n... (launcher status {notice.job_id})"


def filled(value: Any, notice: Notice) -> Any:
    """Return ``value`` with the placeholders in its texts replaced. It stays data: no text can break out of it."""
    if isinstance(value, str):
        return Template(value).safe_substitute(notice.fields())
    if isinstance(value, dict):
        return {key: filled(item, notice) for key, item in value.items()}
    return [filled(item, notice) for item in value] if isinstance(value, list | tuple) else value


# ------------------------------------------------------------------------------------------------- e-mail and programs


def _mail(target: NotifySpec, notice: Notice, password: str) -> None:
    host, _, port = str(target.smtp).partition(":")
    try:
        with _mail_server(target, host, int(port) if port else 0) as server:
            if target.user:
                server.login(target.user, password)
            refused = server.send_message(_letter(target, notice))
    # Texts of these errors may quote what was sent.
    except smtplib.SMTPResponseException as error:
        raise NotSent(f"{host} answers SMTP {error.smtp_code}", again=400 <= error.smtp_code < 500) from None
    except (OSError, smtplib.SMTPException) as error:
        raise NotSent(f"{host}: {_plain(error)}") from None
    if refused:
        raise NotSent(f"{host} refuses {len(refused)} of {len(target.recipients)} recipients", again=False)


def _mail_server(target: NotifySpec, host: str, port: int) -> smtplib.SMTP:
    if target.tls == "ssl":
        return smtplib.SMTP_SSL(host, port or 465, timeout=target.timeout_s, context=ssl.create_default_context())
    server = smtplib.SMTP(host, port or 587, timeout=target.timeout_s)
    try:
        if target.tls == "starttls":
            server.starttls(context=ssl.create_default_context())
    except (OSError, smtplib.SMTPException):
        server.close()
        raise
    return server


def _letter(target: NotifySpec, notice: Notice) -> EmailMessage:
    letter = EmailMessage()
    letter["Subject"], letter["From"] = notice.title, str(target.sender)
    letter["To"] = ", ".join(target.recipients)
    letter.set_content(f"{notice.text}\n\n{notice.host}:{notice.folder}\n".encode("utf-8", "replace").decode())
    return letter


def _plain(error: Exception) -> str:
    """Return the reason without anything that was sent."""
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(reason, TimeoutError):
        return "timed out"
    known = isinstance(reason, OSError) and not isinstance(reason, smtplib.SMTPException) and reason.strerror
    return str(known or type(reason).__name__)


def _run(target: NotifySpec, notice: Notice) -> None:
    program = target.command[0]
    try:
        child = subprocess.Popen(
            tuple(filled(target.command, notice)), stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "an argument no program can take"
        raise NotSent(f"cannot run {program}: {reason}", again=False) from error
    try:
        child.communicate(json.dumps(notice.fields(), ensure_ascii=False).encode("utf-8", "replace"), target.timeout_s)
    except subprocess.TimeoutExpired:
        # It is not collected yet, so the group is still its own.
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        raise NotSent(f"{program} took longer than {target.timeout_s:g} s") from None
    if child.returncode:
        raise NotSent(f"{program} ended with {child.returncode}")
