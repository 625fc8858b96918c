"""Many rendered rows in little memory: their token ids lie in two flat arrays, not in two arrays for each row."""

from abc import abstractmethod
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, Generic, Self, TypeVar, cast, overload

import numpy as np
from numpy.typing import NDArray

from lorikeet_run.tokens import TokenRow, Tokens

R = TypeVar("R", bound=TokenRow)

NOTHING: Final = Tokens(np.empty(0, np.int32), np.empty(0, np.int32))
"""What a row without its tokens has in their place."""


class _Made(Sequence[R]):
    """Rows that are made when they are taken."""

    @abstractmethod
    def _row(self, number: int) -> R:
        """Return the row of this number, counted from 0."""

    @overload
    def __getitem__(self, place: int) -> R: ...
    @overload
    def __getitem__(self, place: slice) -> list[R]: ...
    def __getitem__(self, place: int | slice) -> R | list[R]:
        found = range(len(self))[place]
        return self._row(found) if isinstance(found, int) else [self._row(number) for number in found]


@dataclass(frozen=True, eq=False)
class Flat:
    """The arrays of many rows, as `Rows` has them."""

    input_ids: NDArray[np.int32]
    labels: NDArray[np.int32]
    ends: NDArray[np.int64]
    trained: NDArray[np.int64]


class Rows(_Made[R]):
    """Rows of one kind: 8 bytes for each token, and 24 for each row of sft.

    The arrays of a row that is taken are a look into the flat ones; while one is held, no row can be added.
    """

    def __init__(self) -> None:
        self._ids, self._labels = array("i"), array("i")
        self._ends = array("q", [0])
        self._trained = array("q")
        self._frames: list[R] = []
        """The rows without their tokens; those of sft are one object."""

    def append(self, row: R) -> None:
        """Add a row."""
        for part in row.parts:
            self._ids.frombytes(part.input_ids.tobytes())
            self._labels.frombytes(part.labels.tobytes())
            self._ends.append(len(self._ids))
        self._trained.append(row.trained)
        self._frames.append(cast(R, row.of([NOTHING] * len(row.parts))))

    def extend(self, flat: "Flat", frames: Sequence[R]) -> None:
        """Add rows that were taken apart: their arrays, and the rows without tokens."""
        begin = len(self._ids)
        self._ids.frombytes(flat.input_ids.tobytes())
        self._labels.frombytes(flat.labels.tobytes())
        self._ends.frombytes((flat.ends[1:] + begin).tobytes())
        self._trained.frombytes(flat.trained.tobytes())
        self._frames.extend(frames)

    def __len__(self) -> int:
        return len(self._frames)

    @property
    def flat(self) -> "Flat":
        """The arrays of all rows."""
        return Flat(self.input_ids, self.labels, self.ends, self.trained)

    @property
    def frames(self) -> Sequence[R]:
        """The rows without their tokens."""
        return self._frames

    def _row(self, number: int) -> R:
        frame, ids, labels = self._frames[number], self.input_ids, self.labels
        count = len(frame.parts)
        ends = self._ends[number * count : (number + 1) * count + 1]
        parts = [Tokens(ids[begin:end], labels[begin:end]) for begin, end in pairwise(ends)]
        return cast(R, frame.of(parts))

    @property
    def input_ids(self) -> NDArray[np.int32]:
        """Those of all rows, one after the other."""
        return np.asarray(self._ids, np.int32)

    @property
    def labels(self) -> NDArray[np.int32]:
        """Those of all rows, one after the other."""
        return np.asarray(self._labels, np.int32)

    @property
    def ends(self) -> NDArray[np.int64]:
        """A 0, and where each part of each row ends in them."""
        return np.asarray(self._ends, np.int64)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each row: of its longest part."""
        parts = np.diff(self.ends)
        lengths: NDArray[np.int64] = parts.reshape(len(self), -1).max(axis=1) if len(self) else parts
        return lengths

    @property
    def trained(self) -> NDArray[np.int64]:
        """Tokens of each row that the loss counts."""
        return np.asarray(self._trained, np.int64)


@dataclass(frozen=True, eq=False)
class Epoch(_Made[R], Generic[R]):
    """What is seen in one pass: rows of some sources, some of them perhaps several times."""

    sources: Sequence[Rows[R]]
    chosen: NDArray[np.int64]
    """Which they are, (rows, 2): the number of a source, and that of a row in it."""

    @classmethod
    def of(cls, sources: Sequence[Rows[R]], chosen: Sequence[tuple[int, int]]) -> Self:
        """Return what `mix` has chosen."""
        return cls(sources, np.array(chosen, np.int64).reshape(-1, 2))

    def __len__(self) -> int:
        return len(self.chosen)

    def _row(self, number: int) -> R:
        source, place = map(int, self.chosen[number])
        return self.sources[source][place]

    @property
    def places(self) -> NDArray[np.int64]:
        """Which they are of the rows of all sources, one source after the other."""
        begins = np.cumsum([0, *map(len, self.sources)])
        places: NDArray[np.int64] = begins[self.chosen[:, 0]] + self.chosen[:, 1]
        return places

    @property
    def trained(self) -> int:
        """Tokens that the loss counts."""
        return int(np.concatenate([rows.trained for rows in self.sources])[self.places].sum())
