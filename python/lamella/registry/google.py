"""Registries of Google Cloud (``gcr.io``, ``*.gcr.io``, ``*-docker.pkg.dev``): who this machine is there, as an access token.

The first of these that has one: the environment (GOOGLE_OAUTH_ACCESS_TOKEN, CLOUDSDK_AUTH_ACCESS_TOKEN), the helpers
``docker-credential-gcloud`` and ``docker-credential-gcr`` if they are on PATH, and application default credentials if
google-auth is installed (``lamella[google]``). Many images there are public: without a token the registry is asked all the same.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lamella.errors import LamellaError
from lamella.registry import helpers
from lamella.registry.credentials import Credential, from_helper

HELPERS = ("gcloud", "gcr")
VARIABLES = ("GOOGLE_OAUTH_ACCESS_TOKEN", "CLOUDSDK_AUTH_ACCESS_TOKEN")
USER = "oauth2accesstoken"
"""Google's user name for an access token as the password."""
_SCOPE = "https://www.googleapis.com/auth/cloud-platform"
_DOMAIN = re.compile(r"(?:(?:[a-z0-9-]+\.)?gcr\.io|[a-z0-9-]+-docker\.pkg\.dev)\Z", re.IGNORECASE)


def is_google(domain: str) -> bool:
    """Say whether a registry is one of Google Cloud's."""
    return _DOMAIN.match(domain) is not None


class Google:
    """Gives the credentials for registries of Google Cloud. ``note`` is told what stood in the way, without secrets."""

    def __init__(self, note: Callable[[str], None]) -> None:
        self._note = note
        self._default: Any = None

    def find(self, domain: str) -> Credential | None:
        """Give the credentials for ``domain``, None if it is another's or this machine has none."""
        if not is_google(domain):
            return None
        for variable in VARIABLES:
            token = os.environ.get(variable)
            if token:
                return Credential(username=USER, password=token.strip(), source=f"${variable}")
        for helper in HELPERS:
            with_helper = self._ask(helper, domain) if helpers.is_there(helper) else None
            if with_helper:
                return with_helper
        return self._application_default() if _has_application_default() else None

    def _ask(self, helper: str, domain: str) -> Credential | None:
        try:
            return from_helper(helper, domain)
        except LamellaError as error:
            self._note(error.message)
            return None

    def _application_default(self) -> Credential | None:
        """Get a token as Google's libraries do; they keep it while it is good (an hour)."""
        auth, requests = import_module("google.auth"), import_module("google.auth.transport.requests")
        try:
            if self._default is None:
                self._default, _ = auth.default(scopes=[_SCOPE])
            if not self._default.valid:
                self._default.refresh(requests.Request())
        except auth.exceptions.GoogleAuthError as error:
            self._note(f"Google's application default credentials give no token ({type(error).__name__})")
            return None
        return Credential(
            username=USER, password=self._default.token, source="Google's application default credentials"
        )


def _has_application_default() -> bool:
    """Say whether it is worth looking: elsewhere Google's library waits seconds for a metadata server that is not there."""
    if find_spec("google") is None or find_spec("google.auth") is None:
        return False
    if any(
        os.environ.get(name) for name in ("GOOGLE_APPLICATION_CREDENTIALS", "GCE_METADATA_HOST", "K_SERVICE")
    ):
        return True
    configured = os.environ.get("CLOUDSDK_CONFIG")
    with suppress(OSError, RuntimeError):
        folder = Path(configured) if configured else Path.home() / ".config" / "gcloud"
        if (folder / "application_default_credentials.json").exists():
            return True
    with suppress(OSError):
        return Path("/sys/class/dmi/id/product_name").read_text().startswith("Google")
    return False
