"""The rating page's server: what a rater is shown next, its images, and taking the answers.

Every image reply has the same headers and length, whatever the image; what arm it is of is in no
reply. No name in a request becomes a path: images and items are looked up.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import re
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from utils import rating_answers as asked
from utils.cli import UserError
from utils.rating_shown import Presentation, Rater
from utils.rating_store import OutOfOrderError, Store
from utils.rating_table import ERROR_KINDS
from utils.request_guard import RequestGuard

PAGE_PATH = Path(__file__).parent / "rating_page.html"
LOCAL_HOSTS = ("127.0.0.1", "localhost", "[::1]")
PRELOADED = 2  # positions beyond the next one that may be looked at
_POSITION = re.compile(r"[0-9]{1,6}", re.ASCII)


class RatingServer:
    """A study that is served.

    Attributes:
        store: For reading, by the thread of the event loop: a lookup takes less than a change of
            threads.
    """

    def __init__(self, study_dir: Path, page: bytes) -> None:
        """Open a study.

        Args:
            study_dir: Folder of the study.
            page: The HTML file, the same for everybody.
        """
        self.store = Store.open(study_dir)
        self.page = page
        # Commits wait for the disk: one thread takes them, one after the other.
        self._writing_store = Store.open(study_dir)
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="answers")

    def close(self) -> None:
        """Let the last commit end, and close the files."""
        self._writer.shutdown()
        self._writing_store.close()
        self.store.close()

    def study(self, rater: Rater) -> dict:
        """What the page shows around the images."""
        facts = self.store.facts
        return {
            "title": facts["title"],
            "rater": rater.name,
            "num_items": self.store.num_shown(rater),
            "num_done": self.store.num_done(rater),
            "questions": facts["questions"],
            "diagnoses": facts["diagnoses"],
            "error_kinds": list(ERROR_KINDS),
        }

    def item(self, rater: Rater, position: int) -> dict:
        """One image or pair; what is given already, to be looked at again.

        Raises:
            HTTPException: If there is no such position, or it is too far ahead.
        """
        shown = self.store.presentation(rater, position)
        if shown is None:
            raise HTTPException(404, "no such item")
        if position > self.store.num_done(rater) + PRELOADED:
            raise HTTPException(409, "this item's turn has not come")
        given = self.store.given(shown)
        comment = given.pop(asked.COMMENT, "")
        return {
            "position": position,
            "kind": "pair" if shown.is_pair else "image",
            "images": list(shown.opaque),
            "text": _visible_text(shown),
            "questions": list(shown.questions),
            "answers": asked.page_answers(given) if given else None,
            "comment": comment,
        }

    async def image(self, rater: Rater, opaque: str) -> bytes:
        """A PNG.

        Raises:
            HTTPException: If the rater is shown none of this name.
        """
        path = self.store.image_file(rater, opaque)
        if path is None:
            raise HTTPException(404, "no such image")
        return await asyncio.to_thread(path.read_bytes)

    async def answer(self, rater: Rater, position: int, body: bytes) -> dict:
        """Take the answers of one position; returns when they are on the disk.

        Raises:
            HTTPException: If they are not answers, or it is not the position's turn.
        """
        try:
            given = _parsed(body)
            num_done = await asyncio.get_running_loop().run_in_executor(
                self._writer,
                self._writing_store.record,
                rater,
                position,
                given.get("answers"),
                given.get("comment", ""),
                given.get("seconds"),
            )
        except asked.AnswerError as error:
            raise HTTPException(422, str(error)) from error
        except OutOfOrderError as error:
            raise HTTPException(409, str(error)) from error
        return {"num_done": num_done, "position": position}


def _visible_text(shown: Presentation) -> str | None:
    wanted = any(question in asked.TEXT_QUESTIONS for question in shown.questions)
    return shown.text if wanted else None


def _parsed(body: bytes) -> dict:
    try:
        given = json.loads(body)
    except (ValueError, RecursionError) as error:  # also of bytes that are no UTF-8
        raise asked.AnswerError("the body is no JSON") from error
    if not isinstance(given, dict):
        raise asked.AnswerError("an object is needed")
    return given


def _position(text: str) -> int:
    if not _POSITION.fullmatch(text):
        raise HTTPException(404, "no such item")
    return int(text)


def page_policy(page: bytes) -> str:
    """Content security policy of a page whose scripts and styles are in it: by their hashes."""
    hashes = {
        tag: " ".join(
            f"'sha256-{base64.b64encode(hashlib.sha256(block).digest()).decode()}'"
            for block in re.findall(rb"<%b>(.*?)</%b>" % (tag.encode(), tag.encode()), page, re.S)
        )
        or "'none'"
        for tag in ("script", "style")
    }
    return (
        f"default-src 'none'; script-src {hashes['script']}; style-src {hashes['style']}; "
        "img-src 'self' blob: data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )


def make_app(
    study_dir: Path | str,
    *,
    page_path: Path = PAGE_PATH,
    hosts: Collection[str] | None = LOCAL_HOSTS,
) -> RequestGuard:
    """ASGI application of a study.

    Args:
        study_dir: Folder of the study.
        page_path: The page.
        hosts: Host names by which the server may be called, without port; None: any.

    Raises:
        UserError: If the folder holds no study, or there is no page.
    """
    if not page_path.is_file():
        raise UserError(f"{page_path}: the rating page is missing; the installation is incomplete")
    page = page_path.read_bytes()
    server = RatingServer(Path(study_dir), page)

    @asynccontextmanager
    async def lifespan(app: FastAPI):
        yield
        server.close()

    app = FastAPI(
        lifespan=lifespan, openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False
    )
    _add_routes(app, server)
    _add_errors(app)
    return RequestGuard(
        app,
        find_rater=server.store.rater_by_token,
        content_security_policy=page_policy(page),
        hosts=hosts,
    )


def _add_routes(app: FastAPI, server: RatingServer) -> None:
    @app.get("/")
    async def page() -> Response:
        return Response(server.page, media_type="text/html")

    @app.get("/api/study")
    async def study(request: Request) -> Response:
        return JSONResponse(server.study(request.scope["rater"]))

    @app.get("/api/items/{position}")
    async def item(request: Request, position: str) -> Response:
        return JSONResponse(server.item(request.scope["rater"], _position(position)))

    @app.put("/api/items/{position}")
    async def answer(request: Request, position: str) -> Response:
        rater, body = request.scope["rater"], await request.body()
        return JSONResponse(await server.answer(rater, _position(position), body))

    @app.get("/api/images/{opaque}")
    async def image(request: Request, opaque: str) -> Response:
        data = await server.image(request.scope["rater"], opaque)
        return Response(data, media_type="image/png")


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> Response:
        return JSONResponse({"error": error.detail}, error.status_code, error.headers)

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> Response:
        return JSONResponse({"error": "the server failed; its log tells why"}, 500)
