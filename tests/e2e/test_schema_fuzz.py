"""Schemathesis fuzzes every route of the OpenAPI schema, valid and invalid; seeded, so that each run is the same."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import load_all_checks, not_a_server_error

EXAMPLES = 6
"""Of each route, valid and invalid each."""

load_all_checks()
CONFORMS = tuple(
    schemathesis.checks.CHECKS.get_one(name)
    for name in ("status_code_conformance", "content_type_conformance", "response_schema_conformance")
)


@pytest.fixture(scope="module")
def endpoint(serve_module: Any, tiny_bundle: Path) -> Any:
    return serve_module(tiny_bundle, settings={"repository_control": True})


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
def test_no_request_of_the_schema_finds_a_fault(endpoint: Any, slice_jpeg: bytes, mode: GenerationMode) -> None:
    with endpoint.client() as client, requests.Session() as session:
        before = client.post("/v1/predict", content=slice_jpeg).content
        schema = schemathesis.openapi.from_dict(client.get("/openapi.json").json())
        operations = [found.ok() for found in schema.get_all_operations()]
        assert {"/v1/predict", "/v2/models/{name}/infer", "/metrics"} <= {one.path for one in operations}
        for operation in operations:
            if not operation.path.endswith("/unload"):
                fuzz(operation, mode, endpoint.url, session)
        assert endpoint.process.poll() is None
        assert client.post("/v1/predict", content=slice_jpeg).content == before


def fuzz(operation: Any, mode: GenerationMode, url: str, session: requests.Session) -> None:
    @settings(
        max_examples=EXAMPLES,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def ask(case: Any) -> None:
        answer = case.call(base_url=url, session=session)
        case.validate_response(answer, checks=[not_a_server_error, *CONFORMS])
        if answer.status_code >= 400:
            told = answer.json()
            assert set(told) == {"error"} and len(told["error"]) >= 10

    with suppress(Unsatisfiable):  # nothing of a route without parameters can be invalid
        ask()
