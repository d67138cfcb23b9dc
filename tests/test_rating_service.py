"""Running the rating server: addresses, proxies, connections that never become a request."""

import socket
import subprocess
import sys
import time

import httpx
import pytest
import rating_clinic as clinic

import rate_images
from utils.cli import UserError
from utils.rating_service import serve_study

IMPATIENT = "from utils import rating_service; rating_service.HEAD_SECONDS = 0.4"


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("service")
    real = clinic.write_real_set(folder / "real", 8)
    synthetic = clinic.write_synthetic_set(folder / "gan", 8)
    return clinic.create_study(folder / "study", real, synthetic, "--num_images", "2")


def refused_tokens(url: str, address: str, count: int, **headers: str) -> list[int]:
    """Replies to forged tokens; 20 may be tried at once."""
    headers = {"X-Forwarded-For": address, **clinic.bearer("A" * 43), **headers}
    with httpx.Client(base_url=url, headers=headers) as client:
        return [client.get("/api/study").status_code for _ in range(count)]


def test_without_a_proxy_nobody_chooses_the_address_they_are_counted_by(study, tmp_path):
    with clinic.running_server(study, tmp_path / "log") as (_, url):
        assert refused_tokens(url, "192.0.2.1", 21)[20] == 429
        assert 429 in refused_tokens(url, "192.0.2.2", 4)


def test_behind_a_proxy_its_clients_are_counted_apart_and_its_name_is_known(study, tmp_path):
    flags = ["--public_url", "https://ratings.example.org"]
    with clinic.running_server(study, tmp_path / "log", *flags) as (_, url):
        public = {"Host": "ratings.example.org"}
        assert refused_tokens(url, "192.0.2.1", 21, **public)[20] == 429
        assert refused_tokens(url, "192.0.2.2", 4, **public) == [401] * 4
        assert httpx.get(url, headers={"Host": "other.example.org"}).status_code == 421
        assert httpx.get(url, headers=public).status_code == 200


def test_links_name_the_address_that_raters_reach(study, tmp_path):
    flags = ["--show_links", "--public_url", "https://ratings.example.org"]
    with clinic.running_server(study, tmp_path / "log", *flags):
        log = (tmp_path / "log").read_text()
    for rater, token in clinic.tokens(study).items():
        assert f"{rater}: https://ratings.example.org/#{token}" in log


def test_a_server_that_others_can_reach_tells_that_it_speaks_plainly(study, tmp_path):
    with clinic.running_server(study, tmp_path / "log", "--host", "0.0.0.0") as (_, url):
        port = httpx.URL(url).port
        reply = httpx.get(f"http://127.0.0.1:{port}", headers={"Host": "clinic.example"})
        assert reply.status_code == 200
        assert "cross the network unencrypted" in (tmp_path / "log").read_text()


def test_a_port_in_use_and_an_address_elsewhere_are_named(study):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        for flags, named in (
            (["--port", port], f"--port {port}: is in use"),
            (["--host", "192.0.2.1"], "--host 192.0.2.1"),
            (["--host", "no.such.name.invalid"], "--host no.such.name.invalid"),
        ):
            args = rate_images.parse_args(["serve", "--study_dir", str(study), *flags])
            with pytest.raises(UserError, match=named):
                serve_study(args)


def test_a_folder_without_study_ends_in_one_line(tmp_path):
    command = [sys.executable, str(clinic.ROOT / "rate_images.py"), "serve", "--study_dir"]
    done = subprocess.run([*command, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == f"error: {tmp_path}: no study, for it lacks ratings.sqlite; make one " + (
        "with create\n"
    )


def test_connections_that_never_become_a_request_are_given_up(study, tmp_path):
    with clinic.running_server(study, tmp_path / "log", setting=IMPATIENT) as (_, url):
        port = httpx.URL(url).port
        begin = time.monotonic()
        assert silent_until_closed(port, b"", every_s=5)
        assert silent_until_closed(port, b"GET / HTTP/1.1\r\nX: " + b"y" * 100, every_s=0.05)
        assert time.monotonic() - begin < 4
        # Who has been served once may think for longer than that.
        with httpx.Client(base_url=url) as client:
            client.get("/")
            (connection,) = client._transport._pool.connections
            time.sleep(1)
            client.get("/")
            assert client._transport._pool.connections == [connection]


def test_too_many_connections_cost_the_newest_and_not_the_raters(study, tmp_path):
    few = "from utils import rating_service; rating_service.MAX_CONNECTIONS = 5"
    with clinic.running_server(study, tmp_path / "log", setting=few) as (_, url):
        headers = clinic.bearer(clinic.tokens(study)["Dr A"])
        with httpx.Client(base_url=url, headers=headers) as rater:
            assert rater.get("/api/study").status_code == 200
            address = ("127.0.0.1", httpx.URL(url).port)
            idle = [socket.create_connection(address, timeout=3) for _ in range(12)]
            assert rater.get("/api/study").status_code == 200
            assert [connection.recv(1) for connection in idle[5:]] == [b""] * 7
            assert rater.get("/api/study").status_code == 200
            for connection in idle:
                connection.close()


def silent_until_closed(port: int, request: bytes, *, every_s: float) -> bool:
    """Send byte by byte; whether the server hangs up without a reply."""
    with socket.create_connection(("127.0.0.1", port), timeout=every_s) as connection:
        for byte in request or b"":
            connection.sendall(bytes([byte]))
            try:
                return connection.recv(1) == b""
            except TimeoutError:
                continue
            except (ConnectionResetError, BrokenPipeError):
                return True
        return connection.recv(1) == b""
