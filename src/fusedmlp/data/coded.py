"""Texts as the numbers of words: columns of few different texts, for tables larger than memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np

MISSING_CODE = -1
"""Stands for a missing value."""


class CodedColumn:
    """A column of texts. It is indexed as an array of objects of shape (m,); a missing value is None.

    Parameters
    ----------
    codes : array of int, shape (m,)
        Numbers of words, or `MISSING_CODE`; possibly memory-mapped.
    words : sequence of str
    """

    dtype = np.dtype(object)
    ndim = 1

    def __init__(self, codes: np.ndarray, words: Iterable[str]) -> None:
        self.codes, self.words = codes, tuple(words)
        self._objects = np.array([*self.words, None], dtype=object)  # the last one is that of MISSING_CODE

    @property
    def shape(self) -> tuple[int]:
        """(m,)."""
        return (len(self.codes),)

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, rows: Any) -> Any:
        return self._objects[self.codes[rows]]

    def take(self, rows: slice | np.ndarray) -> CodedColumn:
        """Some of the rows."""
        return CodedColumn(self.codes[rows], self.words)

    def different(self) -> tuple[list[str], np.ndarray]:
        """(the different texts, in order; the place of each row's text among them). No value is missing."""
        found = np.flatnonzero(np.bincount(self.codes, minlength=1)).tolist()
        words = sorted(self.words[code] for code in found)
        place = {word: number for number, word in enumerate(words)}
        return words, np.array([place.get(word, -1) for word in self.words], np.intp)[self.codes]

    def looked_up(self, values: np.ndarray, rows: slice | np.ndarray = slice(None)) -> np.ndarray:
        """The value of each row's word, the last of the values for a missing one."""
        return values[self.codes[rows]]


class CodedTable:
    """Columns of texts. It is indexed as an array of objects of shape (m, k) is.

    Parameters
    ----------
    codes : array of int, shape (m, k)
        As those of `CodedColumn`.
    words : sequence of sequences of str
        The words of each column.
    """

    dtype = np.dtype(object)
    ndim = 2

    def __init__(self, codes: np.ndarray, words: Iterable[Iterable[str]]) -> None:
        self.codes = codes
        self.columns = [CodedColumn(codes[:, place], each) for place, each in enumerate(words)]

    @property
    def shape(self) -> tuple[int, int]:
        """(m, k)."""
        return self.codes.shape[0], self.codes.shape[1]

    def __len__(self) -> int:
        return len(self.codes)

    def select(self, places: list[int]) -> CodedTable:
        """Some of the columns."""
        return CodedTable(self.codes[:, places], [self.columns[place].words for place in places])

    def __getitem__(self, rows: Any) -> Any:
        if isinstance(rows, tuple):
            rows, place = rows
            return self.columns[place][rows]
        codes = self.codes[rows]
        out = np.empty(codes.shape, dtype=object)
        for place, column in enumerate(self.columns):
            out[:, place] = column._objects[codes[:, place]]
        return out


Texts = np.ndarray | CodedTable
"""Columns of texts, in memory or not."""
Target = np.ndarray | CodedColumn
"""A target as it was read, in memory or not."""


def counts_of(texts: Texts, place: int, rows: slice | np.ndarray) -> Counter[str | None]:
    """How often each text, or None, occurs in some rows of a column."""
    if not isinstance(texts, CodedTable):
        return Counter(texts[rows, place].tolist())
    column = texts.columns[place]
    counts = np.bincount(column.codes[rows] - MISSING_CODE, minlength=1)
    found = np.flatnonzero(counts) + MISSING_CODE
    return Counter({column._objects[code]: int(counts[code - MISSING_CODE]) for code in found.tolist()})


def places_of(texts: Texts, place: int, rows: slice | np.ndarray, known: dict[str | None, int]) -> np.ndarray:
    """The place of each text of a column among those that are known; -1 for any other."""
    if isinstance(texts, CodedTable):
        column = texts.columns[place]
        return column.looked_up(np.array([known.get(word, -1) for word in (*column.words, None)]), rows)
    values = texts[rows, place].tolist()
    return np.fromiter((known.get(value, -1) for value in values), np.intp, len(values))
