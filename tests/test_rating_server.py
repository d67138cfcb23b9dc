"""The rating server: what raters get, what others do not, and what a kill leaves."""

import asyncio
import json
import random
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
import rating_clinic as clinic

from utils import request_guard
from utils.rate_limits import MAX_KEYS, RateLimit
from utils.rating_links import add_raters
from utils.rating_server import make_app, page_policy
from utils.rating_store import Store
from utils.request_guard import MAX_BODY_BYTES, RequestGuard

HOSTILE_TEXT = (
    "'; DROP TABLE answers; --\n\"\\ \u202e\U0001f9ff <script>alert(1)</script> {{7*7}} %s"
)
FORGED = "A" * 43
LEAKS = ("Traceback", "/tmp", "rating_server", "sqlite", ".py", "ratings.", "File ")


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sets")
    return clinic.write_real_set(folder / "real", 24), clinic.write_synthetic_set(
        folder / "gan", 24
    )


@pytest.fixture
def study(tmp_path, sets):
    return clinic.create_study(tmp_path / "study", *sets)


@pytest.fixture
def page(tmp_path):
    path = tmp_path / "page.html"
    path.write_text("<!doctype html><style>b {}</style><script>1</script>", encoding="utf-8")
    return path


class Client:
    """Requests to the application in this process, one event loop for all of them."""

    def __init__(self, study_dir, page_path=None) -> None:
        options = {"page_path": page_path} if page_path else {}
        self.app = make_app(study_dir, **options)
        self.tokens = clinic.tokens(study_dir)
        self._loop = asyncio.new_event_loop()

    def request(self, method, path, *, rater="Dr A", token=None, **options):
        headers = clinic.bearer(token or self.tokens[rater]) | options.pop("headers", {})
        return self._loop.run_until_complete(self._request(method, path, headers, options))

    async def _request(self, method, path, headers, options):
        transport = httpx.ASGITransport(self.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            return await client.request(method, path, headers=headers, **options)

    def item(self, position, **who) -> dict:
        return self.request("GET", f"/api/items/{position}", **who).json()

    def answer(self, position, comment="", **who):
        body = {"answers": clinic.answers_to(self.item(position, **who)), "seconds": 1.5}
        return self.request(
            "PUT", f"/api/items/{position}", json=body | {"comment": comment}, **who
        )


@pytest.fixture
def client(study, page):
    return Client(study, page)


def stored(study) -> dict:
    """Every answer of the database by rater, position and question; each must be there once."""
    with Store.open(study) as store:
        rows = store.answers()
    by_key = {(row.rater, row.position, row.question): row.value for row in rows}
    assert len(by_key) == len(rows)
    return by_key


def test_a_rater_gets_the_study_its_items_and_their_images(client):
    about = client.request("GET", "/api/study").json()
    assert about == {
        "title": "Image rating",
        "rater": "Dr A",
        "num_items": 13,  # 4 of each arm and 4 pairs, and a tenth of them again
        "num_done": 0,
        "questions": list(clinic.ALL_QUESTIONS),
        "diagnoses": ["drusen", "normal"],
        "error_kinds": ["omission", "commission", "context", "artifact"],
    }
    item = client.item(0)
    assert set(item) == {
        "position", "kind", "images", "text", "questions", "answers", "comment"
    }  # fmt: skip
    assert (item["position"], item["answers"], item["comment"]) == (0, None, "")
    for name in item["images"]:
        reply = client.request("GET", f"/api/images/{name}")
        assert reply.headers["content-type"] == "image/png"
        assert reply.content.startswith(b"\x89PNG")


def test_an_answer_is_kept_and_comes_back(client, study):
    reply = client.answer(0, comment="blurred")
    assert (reply.status_code, reply.json()) == (200, {"num_done": 1, "position": 0})
    item = client.item(0)
    assert (item["answers"], item["comment"]) == (clinic.answers_to(item), "blurred")
    assert {position for _, position, _ in stored(study)} == {0}


def test_an_answer_replaced_stands_once(client, study):
    for comment in ("first", "second", ""):
        assert client.answer(0, comment).json()["num_done"] == 1
    assert "comment" not in {question for _, _, question in stored(study)}
    with Store.open(study) as store:
        values = store.rows("SELECT new_value FROM changes WHERE question = 'comment' ORDER BY id")
    assert values == [("first",), ("second",), (None,)]


def test_two_items_ahead_may_be_looked_at_and_none_answered(client, study):
    assert [client.request("GET", f"/api/items/{n}").status_code for n in (2, 3, 13)] == [
        200,
        409,
        404,
    ]
    assert client.answer(1).status_code == 409
    client.answer(0)
    assert client.request("GET", "/api/items/3").status_code == 200
    assert {position for _, position, _ in stored(study)} == {0}


def test_a_rater_who_comes_back_goes_on(study, page):
    before = Client(study, page)
    names = [before.item(0)["images"], before.answer(0).json(), before.item(1)["images"]]
    after = Client(study, page)
    assert after.request("GET", "/api/study").json()["num_done"] == 1
    assert [after.item(0)["images"], {"num_done": 1, "position": 0}, after.item(1)["images"]] == (
        names
    )


@pytest.mark.parametrize(
    "change",
    [
        {"answers": {}},
        {"answers": None},
        {"answers": [["turing", "real"]]},
        {"comment": "y" * 2001},
        {"comment": 7},
        {"seconds": -1},
        {"seconds": "3"},
        {"seconds": None},
    ],
)
def test_incomplete_answers_are_refused_in_words(client, study, change):
    body = {"answers": clinic.answers_to(client.item(0)), "comment": "", "seconds": 1}
    reply = client.request("PUT", "/api/items/0", json=body | change)
    assert reply.status_code == 422 and reply.json()["error"]
    assert stored(study) == {}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"x"',
        b"\xff\xfe{}",
        b"[" * 16_000,
        b'{"answers":' * 1_400,
        b'{"a":' + b"9" * 10_000 + b"}",
        b'{"seconds": NaN, "answers": {}}',
        b'{"comment": "\\ud800", "answers": {"turing": "real"}, "seconds": 1}',
    ],
)
def test_what_is_no_json_of_answers_is_refused(client, study, body):
    reply = client.request("PUT", "/api/items/0", content=body)
    assert reply.status_code == 422 and reply.json()["error"]
    assert stored(study) == {}


def test_half_characters_in_a_comment_are_refused(client, study):
    answers = json.dumps(clinic.answers_to(client.item(0)))
    body = f'{{"answers": {answers}, "seconds": 1, "comment": "\\ud800"}}'
    assert client.request("PUT", "/api/items/0", content=body).status_code == 422
    assert stored(study) == {}


def test_sql_and_markup_in_comments_and_names_are_text(study, page):
    with Store.open(study) as store:
        add_raters(store, [HOSTILE_TEXT])
    client = Client(study, page)
    who = {"rater": HOSTILE_TEXT}
    assert client.request("GET", "/api/study", **who).json()["rater"] == HOSTILE_TEXT
    assert client.answer(0, comment=HOSTILE_TEXT, **who).status_code == 200
    assert client.item(0, **who)["comment"] == HOSTILE_TEXT
    assert stored(study)[HOSTILE_TEXT, 0, "comment"] == HOSTILE_TEXT


@pytest.mark.parametrize(
    "authorization",
    [
        "",
        "Bearer",
        "Bearer ",
        "Bearer " + FORGED,
        "Bearer {token} ",
        "Bearer {token}A",
        "Bearer {short}",
        "bearer {token}",
        "Basic {token}",
        "{token}",
        "Bearer {swapped}",
        "Bearer ' OR 1=1 --",
        "Bearer \u00e9\u00ff",
    ],
)
def test_forged_tokens_open_nothing(client, authorization):
    token = client.tokens["Dr A"]
    text = authorization.format(token=token, short=token[:-1], swapped=token[::-1])
    for path in ("/api/study", "/api/items/0", "/api/images/x"):
        reply = client.request("GET", path, headers={"Authorization": text.encode("latin-1")})
        assert reply.status_code == 401
        assert reply.json() == {"error": "this link is not valid; ask for a new one"}


def test_a_rater_locked_out_gets_no_further(client, study):
    assert client.request("GET", "/api/study").status_code == 200
    with Store.open(study) as store:
        store.revoke("Dr A")
    assert client.request("GET", "/api/study").status_code == 401
    assert client.request("GET", "/api/study", rater="Dr B").status_code == 200


def test_images_of_another_rater_are_not_there(client):
    (name, *_) = client.item(0)["images"]
    assert client.request("GET", f"/api/images/{name}").status_code == 200
    assert client.request("GET", f"/api/images/{name}", rater="Dr B").status_code == 404


TRAVERSALS = [
    "../ratings.sqlite",
    "..%2fratings.sqlite",
    "..%252f..%252fratings.sqlite",
    "%2e%2e%2fratings.sqlite",
    "%2e%2e/%2e%2e/etc/passwd",
    "..\\ratings.sqlite",
    "..%5cratings.sqlite",
    "%c0%ae%c0%ae%c0%afratings.sqlite",
    "/etc/passwd",
    "%2fetc%2fpasswd",
    "....//ratings.sqlite",
    "x.png%00.jpg",
    "tokens.json",
    "file:///etc/passwd",
    "'%20OR%201=1--",
    "%F0%9F%A7%BF",
    "x" * 4000,
]


@pytest.mark.parametrize("where", ["/api/images/", "/api/items/", "/", "/api/"])
def test_no_path_can_be_asked_for(client, study, where):
    (file, *_) = (study / "images").iterdir()
    for name in [*TRAVERSALS, file.name, f"..%2fimages%2f{file.name}"]:
        reply = client.request("GET", where + name)
        assert reply.status_code == 404, (where, name)
        assert set(reply.json()) == {"error"}
        assert not any(leak in reply.text for leak in LEAKS)


@pytest.mark.parametrize("position", ["-1", "0x1", "1e1", " 1", "+1", "٣", "9" * 40, "1.0", "0;"])
def test_positions_that_are_no_number_are_not_there(client, position):
    for method in ("GET", "PUT"):
        body = {"json": {}} if method == "PUT" else {}
        assert client.request(method, f"/api/items/{position}", **body).status_code == 404


def test_other_methods_and_routes_are_refused_without_telling_more(client):
    for method in ("POST", "DELETE", "PATCH", "TRACE", "OPTIONS", "HEAD", "BREW"):
        for path in ("/", "/api/study", "/api/items/0", "/api/images/x"):
            reply = client.request(method, path)
            assert reply.status_code == 405
            assert not any(leak in reply.text for leak in LEAKS)
    for path in ("/docs", "/redoc", "/openapi.json", "/study.json", "/api", "/api/study/"):
        assert client.request("GET", path).status_code == 404


def test_every_reply_has_the_headers_that_keep_it_from_harm(client, study):
    (study / "images").rename(study / "hidden")  # the server's own failure: its images are gone
    (name, *_) = client.item(0)["images"]
    with pytest.raises(FileNotFoundError):  # it is for the log; the reply is looked at below
        client.request("GET", f"/api/images/{name}")
    replies = [client.request("GET", path) for path in ("/", "/api/study", "/api/items/0", "/no")]
    replies.append(client.request("GET", "/api/study", token=FORGED))
    replies.append(client.request("PUT", "/api/items/0", content=b"x" * 20_000))
    assert [reply.status_code for reply in replies] == [200, 200, 200, 404, 401, 413]
    for reply in replies:
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert reply.headers["referrer-policy"] == "no-referrer"
        assert reply.headers["cache-control"] == "no-store"
        assert "frame-ancestors 'none'" in reply.headers["content-security-policy"]
        assert "default-src 'none'" in reply.headers["content-security-policy"]
        assert not {"server", "set-cookie", "x-powered-by"} & set(reply.headers)


def test_the_policy_allows_the_pages_own_script_and_no_other():
    policy = page_policy(b"<style>b {}</style>\n<script>1</script>")
    # openssl dgst -sha256 -binary | base64, of "1" and of "b {}"
    assert "script-src 'sha256-a4ayc/80/OGda4BO/1o/V0etpOqiLx1JwB5S3beHW0s=';" in policy
    assert "style-src 'sha256-" in policy and "unsafe" not in policy
    assert "script-src 'none'; style-src 'none';" in page_policy(b"<p>nothing</p>")


def test_a_body_is_cut_off_while_it_comes(client, study):
    sent = []

    async def endless():
        for _ in range(1000):
            sent.append(1)
            yield b" " * 1024

    for body in (b"x" * (MAX_BODY_BYTES + 1), endless()):
        reply = client.request("PUT", "/api/items/0", content=body)
        assert reply.status_code == 413 and reply.headers["connection"] == "close"
    assert len(sent) <= 18
    # A declared length is refused before anything is read.
    reply = client.request("PUT", "/api/items/0", headers={"Content-Length": "9" * 30})
    assert reply.status_code == 413
    exactly = b'{"answers": {}}'.ljust(MAX_BODY_BYTES)
    assert client.request("PUT", "/api/items/0", content=exactly).status_code == 422


def test_a_body_that_does_not_come_is_not_waited_for(client, monkeypatch):
    monkeypatch.setattr(request_guard, "BODY_SECONDS", 0.05)

    async def stalled():
        yield b"{"
        await asyncio.sleep(5)
        yield b"}"

    begin = time.monotonic()
    assert client.request("PUT", "/api/items/0", content=stalled()).status_code == 408
    assert time.monotonic() - begin < 2


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "", "127.0.0.1@evil.example", "[::2]:80"]
)
def test_a_name_pointed_to_this_machine_gets_nothing(client, host):
    for path in ("/", "/api/study"):
        assert client.request("GET", path, headers={"Host": host}).status_code == 421
    for own in ("127.0.0.1:8000", "localhost", "LOCALHOST:1", "[::1]:8000"):
        assert client.request("GET", "/api/study", headers={"Host": own}).status_code == 200


def test_a_limit_lets_a_burst_pass_and_then_so_many_a_second():
    now = [0.0]
    limit = RateLimit(per_second=2, burst=3, clock=lambda: now[0])
    assert [limit.wait("a") for _ in range(4)] == [0, 0, 0, 0.5]
    assert limit.wait("b") == 0
    now[0] = 0.25
    assert limit.wait("a") == 0.25
    now[0] = 0.5
    assert [limit.wait("a"), limit.wait("a")] == [0, 0.5]
    for key in range(2 * MAX_KEYS):
        limit.wait(key)
    assert len(limit._levels) == MAX_KEYS


def test_guesses_of_tokens_are_limited_and_raters_are_not(client, monkeypatch):
    monkeypatch.setattr(request_guard, "PAUSE_SECONDS", 0.0)
    replies = [client.request("GET", "/api/study", token=FORGED) for _ in range(40)]
    statuses = [reply.status_code for reply in replies]
    assert statuses[:20] == [401] * 20 and statuses[-1] == 429
    assert int(replies[-1].headers["retry-after"]) >= 1
    assert client.request("GET", "/api/study").status_code == 200  # from the same address
    assert client.request("GET", "/").status_code == 200


def test_a_rater_who_floods_is_limited_and_others_are_not(client, monkeypatch):
    monkeypatch.setattr(request_guard, "PAUSE_SECONDS", 0.0)
    guard: RequestGuard = client.app
    guard._of_rater = RateLimit(per_second=0.01, burst=5)
    statuses = [client.request("GET", "/api/study").status_code for _ in range(6)]
    assert statuses == [200] * 5 + [429]
    assert client.request("GET", "/api/study", rater="Dr B").status_code == 200


def test_the_log_holds_no_token_and_no_line_of_a_strangers_making(client, capsys):
    token = client.tokens["Dr A"]
    client.request("GET", f"/api/study?token={token}")
    client.request("GET", "/x%0d%0a12:00:00 ratings: rater 1 PUT", token=FORGED)
    log = capsys.readouterr().err
    assert "rater 1 GET '/api/study' 200" in log
    assert token not in log and FORGED not in log
    assert log.count("\n") == 2


def test_two_raters_at_once_have_each_their_own_answers(study, tmp_path):
    with clinic.running_server(study, tmp_path / "log") as (_, url), ThreadPoolExecutor(2) as pool:
        everything = [
            pool.submit(answer_all, url, token) for token in clinic.tokens(study).values()
        ]
        assert [one.result() for one in everything] == [13, 13]
    found = stored(study)
    assert {(rater, position) for rater, position, _ in found} == {
        (rater, position) for rater in ("Dr A", "Dr B") for position in range(13)
    }


def answer_all(url, token, acknowledged=None) -> int:
    """Rate to the end, as the page does; notes what the server took. Returns how many are done."""
    acknowledged = [] if acknowledged is None else acknowledged
    with httpx.Client(base_url=url, headers=clinic.bearer(token), timeout=30) as client:
        about = client.get("/api/study").json()
        for position in range(about["num_done"], about["num_items"]):
            item = client.get(f"/api/items/{position}").json()
            for name in item["images"]:
                assert client.get(f"/api/images/{name}").status_code == 200
            comment = f"{position} {random.random()}"
            body = {"answers": clinic.answers_to(item), "comment": comment, "seconds": 1}
            assert client.put(f"/api/items/{position}", json=body).status_code == 200
            acknowledged.append((position, comment))
        return client.get("/api/study").json()["num_done"]


def test_a_server_killed_while_answers_come_loses_none_that_it_acknowledged(tmp_path, sets):
    study = clinic.create_study(tmp_path / "study", *sets, "--num_images", "24", "--num_pairs", "8")
    acknowledged = {name: [] for name in clinic.tokens(study)}
    kills = 0
    for aim in (5, 25, 45):
        with clinic.running_server(study, tmp_path / "log") as (process, url):
            workers = [
                threading.Thread(target=rate_until_cut_off, args=(url, token, acknowledged[name]))
                for name, token in clinic.tokens(study).items()
            ]
            for worker in workers:
                worker.start()
            while sum(map(len, acknowledged.values())) < aim:
                assert all(worker.is_alive() for worker in workers)
                time.sleep(0.001)
            process.send_signal(signal.SIGKILL)
            assert process.wait() == -signal.SIGKILL
            for worker in workers:
                worker.join()
            kills += 1
        found = stored(study)
        for name, taken in acknowledged.items():
            for position, comment in taken:
                assert found[name, position, "comment"] == comment
            unacknowledged = {p for rater, p, _ in found if rater == name} - {p for p, _ in taken}
            assert len(unacknowledged) <= kills  # a reply that the kill cut off
    with Store.open(study) as store:
        in_all = sum(map(store.num_shown, store.raters()))
    assert sum(map(len, acknowledged.values())) < in_all  # it was killed in the middle


def rate_until_cut_off(url, token, acknowledged) -> None:
    try:
        answer_all(url, token, acknowledged)
    except httpx.TransportError:
        return


def test_a_signal_ends_the_server_with_its_last_answers_told(study, tmp_path):
    for number in (signal.SIGTERM, signal.SIGINT):
        with clinic.running_server(study, tmp_path / "log") as (process, url):
            token = clinic.tokens(study)["Dr A"]
            with httpx.Client(base_url=url, headers=clinic.bearer(token)) as idle:
                idle.get("/api/study")
                process.send_signal(number)
                told = json.loads(process.stdout.read())
            assert process.wait(timeout=10) == 0
            assert told["raters"][0] == {"rater": "Dr A", "done": 0, "shown": 13}
            assert "Traceback" not in (tmp_path / "log").read_text()


RAW_REQUESTS = [
    b"\x00\xff\x16\x03\x01 garbage\r\n\r\n",
    b"GET " + b"/x" * 20_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"y" * 400_000 + b"\r\n\r\n",
    b"PUT /api/items/0 HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n",
    b"PUT /api/items/0 HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n",
    b"GET /../../etc/passwd HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET http://evil.example/ HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET / HTTP/x\r\nHost: localhost\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nHost: localhost\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
]


def test_bytes_that_are_no_request_of_ours_get_no_more_than_a_refusal(study, tmp_path):
    with clinic.running_server(study, tmp_path / "log") as (process, url):
        port = httpx.URL(url).port
        for request in RAW_REQUESTS:
            reply = exchange(port, request)
            assert reply.split(b" ", 2)[1][:1] == b"4" if reply else True, request[:40]
            assert not any(leak.encode() in reply for leak in LEAKS)
        token = clinic.tokens(study)["Dr A"]
        reply = exchange(port, chunked_flood(token))
        assert b" 413 " in reply.split(b"\r\n")[0]
        assert answer_all(url, token) == 13 and process.poll() is None
        assert "Traceback" not in (tmp_path / "log").read_text()


def chunked_flood(token: str) -> bytes:
    head = f"PUT /api/items/0 HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n"
    return (
        head.encode()
        + b"Transfer-Encoding: chunked\r\n\r\n"
        + b"400\r\n%b\r\n" % (b"x" * 1024) * 20
    )


def exchange(port: int, request: bytes) -> bytes:
    """Send bytes; what comes back until the server closes or falls silent."""
    reply = b""
    with socket.create_connection(("127.0.0.1", port), timeout=2) as connection:
        try:
            connection.sendall(request)
            while block := connection.recv(65536):
                reply += block
                if b"\r\n\r\n" in reply:
                    break
        except (ConnectionResetError, BrokenPipeError, TimeoutError):
            pass
    return reply
