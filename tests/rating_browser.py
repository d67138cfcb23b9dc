"""A study with its server as a process of its own, and raters at the keyboard of a real browser."""

from pathlib import Path

import numpy as np
from rating_clinic import (
    LABELS,
    create_study,
    running_server,
    tokens,
    write_real_set,
    write_synthetic_set,
)

INERT_TEXT = "<img src=x onerror=document.title='run'><script>document.title='run'</script>"
IMAGE_QUESTIONS = ("turing", "quality", "diagnosis", "agreement", "errors")
KEYS = {
    "turing": {"real": "r", "synthetic": "s"},
    "diagnosis": {name: str(number) for number, name in enumerate(["unsure", *sorted(LABELS)])},
    "errors": {"omission": "o", "commission": "c", "context": "x", "artifact": "a", "none": "n"},
    "preference": {"left": "f", "right": "j", "tie": "t"},
}


def make_study(
    folder: Path, *flags: str, num_images: int, questions: list[str], raters: list[str]
) -> Path:
    """A study of two arms, each text of which tries to be HTML."""
    arms = {"real": write_real_set, "synthetic": write_synthetic_set}
    for name, write_set in arms.items():
        table = write_set(folder / name, num_images) / "metadata.csv"
        text = table.read_text(encoding="utf-8").replace(", kind", f" {INERT_TEXT}, kind")
        table.write_text(text, encoding="utf-8")
    argv = ["--num_images", str(num_images), "--questions", *questions, "--raters", *raters, *flags]
    return create_study(folder / "study", folder / "real", folder / "synthetic", *argv)


class ServedStudy:
    """The server of a study, which can be killed and started anew at the same address."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tokens = tokens(folder)
        self._port = "0"  # a free one, at first
        self.start()

    def start(self) -> None:
        """Start the process, and wait until it answers."""
        log_path = self.folder.parent / "server.log"
        self._running = running_server(self.folder, log_path, "--port", self._port)
        _, self.url = self._running.__enter__()
        self._port = self.url.rpartition(":")[2]

    def kill(self) -> None:
        """SIGKILL: no chance to write anything any more."""
        self._running.__exit__(None, None, None)

    def link(self, rater: str) -> str:
        return f"{self.url}/#{self.tokens[rater]}"

    def answers(self, rater: str) -> dict[tuple[int, str], str]:
        """Stored answers by position and question; a double one fails."""
        from utils.rating_store import answers

        own = [answer for answer in answers(self.folder) if answer.rater == rater]
        found = {(answer.position, answer.question): answer.value for answer in own}
        assert len(found) == len(own)
        return found


def draw_answers(rng: np.random.Generator) -> dict[str, str]:
    """Answers to the questions on one image, as the table stores them."""
    return {
        "turing": str(rng.choice(["real", "synthetic"])),
        "quality": str(rng.integers(1, 6)),
        "diagnosis": str(rng.choice([*LABELS, "unsure"])),
        "agreement": str(rng.integers(1, 6)),
        "errors": str(rng.choice(["none", "omission", "commission;artifact", "context"])),
    }


class RaterAtPage:
    """Somebody who rates by the keyboard."""

    def __init__(self, page) -> None:
        self.page = page

    def open(self, link: str, button: str = "Begin") -> None:
        """Open the personal link, and go on to the image whose turn it is."""
        self.page.goto(link)
        self.page.get_by_role("button", name=button).wait_for()
        self.page.keyboard.press("Enter")
        self.page.locator("#rating").wait_for()

    def press(self, *keys: str) -> None:
        for key in keys:
            self.page.keyboard.press(key)

    def answer(self, answers: dict[str, str]) -> None:
        """Type the answers to all questions of the item, in the order in which they are asked."""
        for question, value in answers.items():
            for part in value.split(";"):
                self.press(KEYS.get(question, {}).get(part, part))

    def go_on(self) -> None:
        """Press Enter, and wait for the next image or the end."""
        before = self.place()
        self.press("Enter")
        self.page.wait_for_function(
            "before => document.getElementById('rating').hidden || "
            "document.getElementById('count').textContent !== before",
            arg=before,
        )

    def place(self) -> str:
        return self.page.locator("#count").inner_text()

    def wait_at(self, number: int) -> None:
        """Wait for the image of this number, from 1."""
        self.page.wait_for_function(
            "start => document.getElementById('count').textContent.startsWith(start)",
            arg=f"{number} of ",
        )

    def chosen(self) -> list[str]:
        """Labels of the buttons that are chosen."""
        return self.page.locator(".choice[aria-pressed=true] > span").all_inner_texts()

    def picture(self) -> str:
        """The pixels on the screen, once the asked redrawing is done."""
        return self.page.evaluate(
            "() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => "
            "done(document.querySelector('.pane canvas').toDataURL()))))"
        )
