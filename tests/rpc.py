"""Calls to a running server of containerd's API that are refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc
import pytest


def refusal(call: Callable[..., Any], *arguments: Any, **options: Any) -> grpc.StatusCode:
    """Give the status code with which a call ends; one that streams is read to its end."""
    with pytest.raises(grpc.RpcError) as caught:
        answer = call(*arguments, **options)
        if isinstance(answer, grpc.Call) and hasattr(answer, "__iter__"):
            list(answer)
    code = caught.value.code()
    assert isinstance(code, grpc.StatusCode)
    return code
