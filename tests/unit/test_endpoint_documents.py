"""The settings files that the documents show are settings files."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from service.endpoint.settings import ServeSettings

DOCS = Path(__file__).parents[2] / "docs"


def blocks(document: str) -> list[dict[str, object]]:
    return [yaml.safe_load(text) for text in re.findall(r"```yaml\n(.*?)```", (DOCS / document).read_text(), re.S)]


@pytest.mark.parametrize("document", ["endpoint.md", "dicom.md"])
def test_the_settings_in_a_document_are_accepted(document: str) -> None:
    (shown,) = blocks(document)
    ServeSettings.model_validate({"bundles": [{"path": "bundle"}], **shown})


def test_the_endpoints_document_names_every_route() -> None:
    text = (DOCS / "endpoint.md").read_text()
    for route in ("/v1/predict", "/v1/models", "/v2/", "/dicom-web/studies", "/viewer/", "/metrics"):
        assert f"{route}" in text
