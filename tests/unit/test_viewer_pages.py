"""The viewer's pages as files: under a strict policy, without a word of anybody else's."""

from __future__ import annotations

import asyncio
import re

import httpx
import pytest
from starlette.applications import Starlette

from service.endpoint.access import role_for
from service.endpoint.pages import CONTENT_SECURITY_POLICY, is_viewer_page, mount_viewer

NAMES = ("viewer.css", "main.js", "api.js", "heatmap.js", "icon.svg")


class Client:
    """Asks the app without a network."""

    def __init__(self) -> None:
        self.app = Starlette()
        mount_viewer(self.app)

    def ask(self, method: str, path: str, headers: dict[str, str] | None = None) -> httpx.Response:
        async def send() -> httpx.Response:
            transport = httpx.ASGITransport(self.app)
            async with httpx.AsyncClient(transport=transport, base_url="http://endpoint") as client:
                return await client.request(method, path, headers=headers)

        return asyncio.run(send())

    def get(self, path: str, headers: dict[str, str] | None = None) -> httpx.Response:
        return self.ask("GET", path, headers)


@pytest.fixture(scope="module")
def client() -> Client:
    return Client()


@pytest.mark.parametrize("path", ["/", "/viewer"])
def test_the_root_leads_to_the_viewer_by_a_relative_address(client: Client, path: str) -> None:
    response = client.get(path)
    assert (response.status_code, response.headers["location"]) == (307, "viewer/")


@pytest.mark.parametrize("name", ["", *NAMES])
def test_every_page_comes_with_the_policy_and_a_tag_of_its_content(client: Client, name: str) -> None:
    response = client.get(f"/viewer/{name}")
    assert response.status_code == 200
    headers = response.headers
    assert headers["content-security-policy"] == CONTENT_SECURITY_POLICY
    for rule in ("default-src 'none'", "script-src 'self'", "connect-src 'self'", "frame-ancestors 'none'"):
        assert rule in headers["content-security-policy"].split("; ")
    assert (headers["x-content-type-options"], headers["x-frame-options"]) == ("nosniff", "DENY")
    again = client.get(f"/viewer/{name}", headers={"If-None-Match": headers["etag"]})
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", headers["etag"])
    assert client.get(f"/viewer/{name}", headers={"If-None-Match": '"other"'}).status_code == 200
    assert client.ask("HEAD", f"/viewer/{name}").headers["content-length"] == headers["content-length"]


@pytest.mark.parametrize("name", ["nothing.js", "../pages.py", "%2e%2e/pages.py", "viewer/main.js", "a/%00main.js"])
def test_no_other_file_is_served(client: Client, name: str) -> None:
    assert client.get(f"/viewer/{name}").status_code == 404


def test_pages_name_no_other_server_and_hold_no_inline_code(client: Client) -> None:
    index = client.get("/viewer/").text
    assert not re.search(r"<style|\sstyle=|\son\w+=|javascript:", index)
    assert all('src="' in script for script in re.findall(r"<script[^>]*>", index))
    pages = {name: client.get(f"/viewer/{name}").text for name in linked_from(index, client)}
    assert {"viewer.css", "main.js", "colormap.js"} <= pages.keys()
    for name, text in pages.items():
        addresses = set(re.findall(r"https?://[^\s\"'`)]+", text)) - {"http://www.w3.org/2000/svg"}
        assert not addresses, f"{name} names {addresses}"
        assert not re.search(r"localStorage|sessionStorage|indexedDB|document\.cookie|innerHTML|eval\(", text), name


def linked_from(index: str, client: Client) -> set[str]:
    """Return the names of all files that the page loads, however deep."""
    found, waiting = set(), re.findall(r'(?:src|href)="([\w.]+)"', index)
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += re.findall(r'from "\./([\w.]+)"', client.get(f"/viewer/{name}").text)
    return found


def test_only_the_viewers_paths_are_open_to_all() -> None:
    assert all(is_viewer_page(path) for path in ("/", "/viewer", "/viewer/", "/viewer/main.js"))
    assert role_for("/viewer/main.js") is None
    assert not any(is_viewer_page(path) for path in ("", "/v1/predict", "/viewers", "/metrics", "//viewer/"))
