"""Private registries of AWS (ECR): who this machine is for AWS, as a password for twelve hours.

The helper ``docker-credential-ecr-login`` is asked if it is on PATH, else boto3 if it is installed (``lamella[ecr]``), which
finds AWS's own credentials: the environment, profiles, single sign-on, the roles of instances, containers and pods. These are
never sent to the registry: AWS's API gives the password in exchange (GetAuthorizationToken). It is renewed in good time, because
a registry answers 403 to one that has ended.

Public images (public.ecr.aws) need no credentials.
"""

from __future__ import annotations

import base64
import binascii
import re
import time
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any, NamedTuple

import msgspec

from lamella.errors import LamellaError, PermissionDenied, Unauthenticated, Unavailable
from lamella.registry import helpers
from lamella.registry.credentials import Credential, from_helper

HELPER = "ecr-login"
RENEW_BEFORE = 900.0
"""Seconds before its end at which a password is not used any more."""
HELPER_SECONDS = 3600.0
"""Seconds after which the helper is asked again: it does not say when its password ends, and renews that after half its time."""

_DOMAIN = re.compile(
    r"[0-9]{12}\.dkr(?P<form>[.-])ecr(?P<fips>-fips)?\.(?P<region>[a-z0-9][a-z0-9-]{0,30})\."
    r"(?:amazonaws\.(?:com(?:\.cn)?|eu)|on\.(?:aws|amazonwebservices\.com\.cn|amazonwebservices\.eu)"
    r"|c2s\.ic\.gov|sc2s\.sgov\.gov|cloud\.adc-e\.uk|csp\.hci\.ic\.gov)\Z",
    re.IGNORECASE,
)
_EXPIRED = frozenset({"ExpiredToken", "ExpiredTokenException", "RequestExpired"})


class Place(NamedTuple):
    """Where AWS's API for a registry is: the region, and whether over the endpoints of FIPS 140 and of IPv6."""

    region: str
    fips: bool
    dual_stack: bool


def parse_domain(domain: str) -> Place | None:
    """Read ``ACCOUNT.dkr.ecr[-fips].REGION.amazonaws.com`` and its kin, ``dkr-ecr`` for IPv6 too; None for any other."""
    match = _DOMAIN.match(domain)
    if match is None:
        return None
    return Place(match["region"].lower(), match["fips"] is not None, match["form"] == "-")


class Ecr:
    """Gives the credentials for private registries of AWS, and keeps a password while it is good."""

    def __init__(self, *, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._kept: dict[Place, Credential] = {}

    def find(self, domain: str) -> Credential | None:
        """Give the credentials for ``domain``, None if it is no private registry of AWS, which lets nobody in without.

        Errors: Unauthenticated when this machine is nobody for AWS, PermissionDenied when it may not ask, Unavailable when
        AWS does not answer.
        """
        place = parse_domain(domain)
        if place is None:
            return None
        problem = f"{helpers.program(HELPER)} is not on PATH"
        if helpers.is_there(HELPER):
            try:
                found = from_helper(HELPER, domain)
                if found:
                    return msgspec.structs.replace(found, good_until=self._clock() + HELPER_SECONDS)
                problem = f"{helpers.program(HELPER)} has none"
            except LamellaError as error:
                problem = error.message
        if find_spec("boto3") is None:
            raise Unauthenticated(
                f"{domain} is a private registry of AWS, and no credentials for it are here ({problem})",
                hint=f"Install lamella[ecr] or {helpers.program(HELPER)}, or log in: "
                f"aws ecr get-login-password --region {place.region} | lamella login -u AWS --password-stdin {domain}",
            )
        kept = self._kept.get(place)
        if kept is None or kept.good_until <= self._clock():
            kept = self._kept[place] = _ask(place)
        return kept


def _ask(place: Place) -> Credential:
    """Get a password from AWS's API."""
    boto3, config, botocore = (
        import_module(name) for name in ("boto3", "botocore.config", "botocore.exceptions")
    )
    settings = config.Config(
        use_fips_endpoint=place.fips or None,
        use_dualstack_endpoint=place.dual_stack or None,
        connect_timeout=10,
        read_timeout=20,
    )
    try:
        client = boto3.session.Session().client("ecr", region_name=place.region, config=settings)
        (data,) = client.get_authorization_token()["authorizationData"]
        username, _, password = base64.b64decode(data["authorizationToken"]).decode().partition(":")
        good_until = data["expiresAt"].timestamp() - RENEW_BEFORE
        return Credential(username=username, password=password, source="AWS", good_until=good_until)
    except botocore.ClientError as error:
        raise _refused(error.response.get("Error", {}).get("Code", ""), place) from None
    except (botocore.HTTPClientError, botocore.ConnectionError, botocore.InvalidRegionError) as error:
        raise Unavailable(
            f"AWS's API for registries in {place.region} does not answer ({type(error).__name__})",
            hint="Check the region in the registry's name, and this machine's network.",
        ) from None
    except botocore.BotoCoreError as error:
        raise Unauthenticated(
            f"AWS knows nobody here ({type(error).__name__})",
            hint="Say who you are: AWS_PROFILE, AWS_ACCESS_KEY_ID with AWS_SECRET_ACCESS_KEY, aws sso login, a role.",
        ) from None
    except (KeyError, ValueError, TypeError, AttributeError, binascii.Error):
        raise Unavailable(f"AWS's API for registries in {place.region} answers with something else") from None


def _refused(code: Any, place: Place) -> LamellaError:
    code = code if isinstance(code, str) and code.isalnum() else "an unknown error"
    if code in _EXPIRED:
        return Unauthenticated(
            f"the credentials for AWS have expired ({code})", hint="Renew them: aws sso login."
        )
    if code.startswith("AccessDenied"):
        return PermissionDenied(
            f"AWS refuses access to the registries in {place.region} ({code})",
            hint="Who you are for AWS needs the permission ecr:GetAuthorizationToken.",
        )
    return Unauthenticated(
        f"AWS refuses the credentials for the registries in {place.region} ({code})",
        hint="Look who you are for AWS: aws sts get-caller-identity.",
    )
