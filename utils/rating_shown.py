"""What a study shows to whom: raters, images, and one image or pair in a rater's order."""

from __future__ import annotations

from dataclasses import dataclass, replace

from utils.rating_table import Answer


@dataclass(frozen=True)
class Rater:
    """Who rates.

    Attributes:
        id: Number in the study.
        name: As it was given.
        active: Whether there is a token that lets them in.
    """

    id: int
    name: str
    active: bool


@dataclass(frozen=True)
class StudyImage:
    """An image of the study.

    Attributes:
        id: Number in the study, from 0.
        file: Name in the study's folder ``images``; random.
        arm: ``real``, or the synthetic set's name.
        label: Diagnosis; empty if unknown.
        text: Finding or report; empty if there is none.
        source: Data set and name of the file it was made from.
    """

    id: int
    file: str
    arm: str
    label: str
    text: str
    source: str

    @property
    def export_name(self) -> str:
        """What tables of answers call the image, relative to an export folder."""
        return f"images/{self.id:06d}.png"


@dataclass(frozen=True)
class Presentation:
    """One image, or a pair, at a place in a rater's order.

    Attributes:
        id: Number in the study.
        position: Place in the order, from 0.
        item: Number of the image or pair, the same for all raters and for the repeat.
        is_repeat: Whether the rater has seen it before.
        swapped: Of a pair: whether the item's second image is shown on the left.
        text: What agreement and preference refer to.
        questions: To be answered.
        images: One, or the left and the right.
        opaque: Names under which the rater gets them.
    """

    id: int
    position: int
    item: int
    is_repeat: bool
    swapped: bool
    text: str
    questions: tuple[str, ...]
    images: tuple[StudyImage, ...]
    opaque: tuple[str, ...]

    @property
    def is_pair(self) -> bool:
        """Whether two images are compared."""
        return len(self.images) == 2

    def with_second(self, image: StudyImage, opaque: str) -> Presentation:
        """The same with an image on the right."""
        return replace(self, images=(*self.images, image), opaque=(*self.opaque, opaque))

    def answer(
        self, rater: str, question: str, value: str, seconds: float, answered_at: str
    ) -> Answer:
        """An answer as a row of the table, where sides are images again."""
        own, *others = reversed(self.images) if self.swapped else self.images
        if question == "preference" and value != "tie":
            own_side = "right" if self.swapped else "left"
            value = "image" if value == own_side else "other"
        return Answer(
            rater=rater,
            item=self.item,
            is_repeat=self.is_repeat,
            position=self.position,
            question=question,
            value=value,
            image=own.export_name,
            arm=own.arm,
            label=own.label,
            text=self.text,
            other_image=others[0].export_name if others else "",
            other_arm=others[0].arm if others else "",
            seconds=seconds,
            answered_at=answered_at,
        )
