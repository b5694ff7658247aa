"""Covariates of people, such as age, sex and scanner: numeric coding, and adjustment of images.

The change of uptake with the covariates is estimated at each voxel from controls, and removed
from everyone's images before they are compared. This is our addition to Zotova et al. (2021).
"""

import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

RIDGE = 1.0  # ridge penalty: slopes shrink as if by one control 1 SD from the mean; our choice
FEWEST_BESIDE = 3  # controls beyond one per number: one for the mean, two for the deviation
FEW_LEVELS = 3  # of any text; more need two controls for each; our choice
FEW_NUMBERS = 0.25  # different whole numbers per control, up to which they may be codes; our choice
AGE = re.compile(r"(?i)age(?![a-z])(?!.*(month|week|day))")  # names of columns of ages in years
OLDEST = 120.0  # years; nobody has lived much longer
MISSING_CODES = re.compile(r"-[1789]|-?(77|88|99|777|888|999|[789]{4})(\.0)?")  # our choice
Cell = float | str
Description = dict[str, dict[str, object]]  # covariate → coding of its cells as numbers
Rows = NDArray[np.float64]  # (people, numbers)


def describe_covariates(controls: Mapping[str, Sequence[Cell]]) -> Description:
    """Describe how the cells of each covariate are coded as numbers.

    Parameters
    ----------
    controls : mapping
        Covariate → its cells, one per control: numbers or texts.

    Returns
    -------
    dict
        For numbers: ``mean``, ``sd``, ``low`` and ``high``. For text: ``levels``, in alphabetical
        order, and their ``shares``.

    Raises
    ------
    ValueError
        If a covariate is the same in all controls, or there are none; if numbers and texts are
        mixed, as in ``45`` and ``90+``; or if texts differ only by case, or most are unique, as
        numbers with a decimal comma.

    Examples
    --------
    >>> describe_covariates({"sex": ["F", "M", "M", "F"]})
    {'sex': {'levels': ['F', 'M'], 'shares': [0.5, 0.5]}}
    """
    description: Description = {}
    for name, cells in controls.items():
        if not cells:
            raise ValueError(f"no usable control has a value of {name}")
        if len(set(cells)) < 2:
            raise ValueError(f"{name} is the same in all controls")
        numbers = [cell for cell in cells if isinstance(cell, float)]
        if len(numbers) == len(cells):
            description[name] = {
                "mean": float(np.mean(numbers)),
                "sd": float(np.std(numbers, ddof=1)),
                "low": min(numbers),
                "high": max(numbers),
            }
        else:
            texts = [cell for cell in cells if isinstance(cell, str)]
            levels = sorted(set(texts))
            _refuse_odd_texts(name, levels, texts, len(cells))
            shares = [texts.count(level) / len(texts) for level in levels]
            description[name] = {"levels": levels, "shares": shares}
    return description


def _refuse_odd_texts(
    name: str, levels: Sequence[str], texts: Sequence[str], controls: int
) -> None:
    """Check that texts are levels of a covariate, not numbers written in other ways."""
    if len(texts) < controls:
        raise ValueError(
            f"{name} is {levels[0]!r:.40} in some controls, and a number in others (if numbers are "
            "codes, list them under Levels in participants.json)"
        )
    spelled = {level.casefold(): level for level in levels}
    for level in levels:
        if spelled[level.casefold()] != level:
            raise ValueError(f"{name} is {level!r:.40} and {spelled[level.casefold()]!r:.40}")
    if len(levels) > max(FEW_LEVELS, controls / 2):
        raise ValueError(
            f"{name} has {len(levels)} different texts in {controls} controls, such as "
            f"{levels[0]!r:.40}"
        )


def encode(cells: Mapping[str, Cell], description: Description) -> list[float]:
    """Return the covariates of a person as numbers, each of which has a mean of 0 in controls.

    A numeric covariate becomes one number, in SD of the controls. A text covariate becomes one
    number fewer than it has levels: an indicator of the level minus its share among controls.

    Raises
    ------
    ValueError
        If a cell is not a number although those of controls are, or is a level that no control has.

    Examples
    --------
    >>> known = {"age": {"mean": 50.0, "sd": 10.0}}
    >>> known["sex"] = {"levels": ["F", "M"], "shares": [0.5, 0.5]}
    >>> encode({"age": 70.0, "sex": "M"}, known)
    [2.0, 0.5]
    """
    numbers = []
    for name, coding in description.items():
        cell = cells[name]
        if "levels" not in coding:
            if not isinstance(cell, float):
                raise ValueError(f"{name} is {cell!r:.40}, but is a number in controls")
            numbers.append((cell - _number(coding["mean"])) / _number(coding["sd"]))
            continue
        levels, shares = _list(coding["levels"]), _list(coding["shares"])
        text = text_of(cell)
        if text not in levels:
            raise ValueError(f"no control has {name} {text!r:.40}")
        pairs = list(zip(levels, shares, strict=True))[1:]
        numbers += [float(level == text) - _number(share) for level, share in pairs]
    return numbers


def text_of(cell: Cell) -> str:
    """Return a cell as a text: a number without trailing zeros, such as ``2``."""
    return cell if isinstance(cell, str) else f"{cell:.15g}"


def _number(value: object) -> float:
    if not isinstance(value, int | float):
        raise ValueError(f"{value!r:.40} is not a number")
    return float(value)


def _list(value: object) -> list[object]:
    if not isinstance(value, list | tuple):
        raise ValueError(f"{value!r:.40} is not a list")
    return list(value)


def describe_doubtful_numbers(controls: Mapping[str, Sequence[Cell]]) -> list[str]:
    """Describe which numbers of controls may be codes, such as those of scanners.

    Two codes need no remark: a quantity with two values is adjusted for like two levels.

    Examples
    --------
    >>> describe_doubtful_numbers({"site": [1.0, 2.0, 3.0, 3.0], "age": [20.5, 40.0, 31.0, 55.0]})
    ['site has 3 different numbers in 4 controls, and counts as a quantity']
    """
    sentences = []
    for name, cells in controls.items():
        numbers = {cell for cell in cells if isinstance(cell, float) and cell.is_integer()}
        whole = numbers == set(cells)
        if whole and 2 < len(numbers) <= max(FEW_LEVELS, FEW_NUMBERS * len(cells)):
            sentences.append(
                f"{name} has {len(numbers)} different numbers in {len(cells)} controls, and counts "
                "as a quantity"
            )
    return sentences


def describe_single_levels(controls: Mapping[str, Sequence[Cell]]) -> list[str]:
    """Describe the levels that only one control has: of texts, and of numbers with two values.

    The ridge penalty halves the estimate of such an effect.

    Examples
    --------
    >>> describe_single_levels({"sex": ["F", "M", "M"], "site": [1.0, 2.0, 2.0], "age": [1.0, 2.0]})
    ["sex is 'F' in only one control", 'site is 1 in only one control']
    """
    sentences = []
    for name, cells in controls.items():
        texts = [text_of(cell) for cell in cells]
        are_levels = isinstance(cells[0], str) or len({*texts}) == 2 < len(texts)
        single = [level for level in sorted({*texts}) if texts.count(level) == 1]
        if are_levels and single:
            shown = " or ".join(f"{x!r:.40}" if isinstance(cells[0], str) else x for x in single)
            sentences.append(f"{name} is {shown} in only one control{' each' * (len(single) > 1)}")
    return sentences


def is_in_years(name: str, numbers: Sequence[float]) -> bool:
    """Return whether a column, by its name and most numbers of controls, has ages in years.

    Examples
    --------
    >>> is_in_years("Age_at_scan", [71.5, 999.0, 20.0]), is_in_years("age", [340.0, 511.0])
    (True, False)
    >>> is_in_years("agent", [1.0, 2.0])
    False
    """
    return bool(numbers) and AGE.match(name) is not None and is_age(float(np.median(numbers)))


def is_age(number: float) -> bool:
    """Return whether a number can be an age in years, unlike 999 or -1 for unknown."""
    return 0 <= number <= OLDEST


def missing_code(numbers: Sequence[float]) -> float | None:
    """Return a number that may be a code for a missing value, such as 999 among scores; or None.

    It is written like one, and is further from all others than these are from one another.

    Parameters
    ----------
    numbers : sequence of float
        Values of a quantity, one per person.

    Examples
    --------
    >>> missing_code([12.0, 999.0, 30.0]), missing_code([12.0, 99.0, 70.0])
    (999.0, None)
    """
    for code in sorted({one for one in numbers if MISSING_CODES.fullmatch(f"{one:.15g}")}):
        others = [one for one in numbers if one != code]
        spread = max(others, default=code) - min(others, default=code)
        if spread and not min(others) - spread <= code <= max(others) + spread:
            return code
    return None


def unseen_levels(rows: Rows, description: Mapping[str, Mapping[str, object]]) -> list[str]:
    """List the levels of text covariates that none of some people has.

    For a quantity that is the same in all of them, that is any other value.

    Parameters
    ----------
    rows : ndarray, (people, numbers)
        Their covariates, coded by :func:`encode`.
    description : mapping
        Coding of the covariates.

    Examples
    --------
    >>> known = {"sex": {"levels": ["F", "M"], "shares": [0.5, 0.5]}}
    >>> unseen_levels(np.array([[0.5], [0.5]]), known)
    ["sex 'F'"]
    >>> unseen_levels(np.array([[0.5], [0.5]]), {"age": {"mean": 50.0, "sd": 10.0}})
    ['another age than 55']
    """
    unseen, place = list[str](), 0
    for name, coding in description.items():
        if "levels" not in coding:
            numbers = {*rows[:, place].tolist()}
            values = [_number(coding["mean"]) + _number(coding["sd"]) * x for x in numbers]
            unseen += [f"another {name} than {values[0]:g}"] if len(values) == 1 else []
            place += 1
            continue
        levels = _list(coding["levels"])
        others = rows[:, place : place + len(levels) - 1] > 0  # indicators of all but the first
        place += others.shape[1]
        seen = [bool((~others.any(axis=1)).any()), *(bool(column.any()) for column in others.T)]
        unseen += [f"{name} {x!r:.40}" for x, s in zip(levels, seen, strict=True) if not s]
    return unseen


def beyond_controls(cells: Mapping[str, Cell], description: Description) -> list[str]:
    """Describe which numeric covariates of a person lie outside the range of the controls."""
    sentences = []
    for name, coding in description.items():
        cell = cells[name]
        if isinstance(cell, float) and "low" in coding:
            low, high = _number(coding["low"]), _number(coding["high"])
            if not low <= cell <= high:
                sentences.append(
                    f"{name} {cell:g} is outside the range of the controls, {low:g} to {high:g}"
                )
    return sentences


def fit_slopes(people: Iterable[NDArray[np.floating]], rows: Rows) -> NDArray[np.float32]:
    """Estimate how values change with covariates, by ridge regression at each voxel.

    See Hoerl & Kennard (1970), Technometrics 12:55-67; the intercept is not penalised. Only one
    person's values are in memory at a time.

    Parameters
    ----------
    people : iterable of ndarray, (V,)
        Values of each control; NaN where unknown.
    rows : ndarray, (controls, numbers)
        Covariates coded by :func:`encode`.

    Returns
    -------
    ndarray, (numbers, V)
        Change of the value per unit of each number; 0 where no control has a value.
    """
    size = rows.shape[1]
    counts, sums, means, products, squares = (np.zeros(()) for _ in range(5))
    for values, row in zip(people, rows, strict=True):
        known = ~np.isnan(values)
        filled, column = np.where(known, values, 0).astype(np.float64), row[:, np.newaxis]
        counts = counts + known
        sums = sums + filled
        means = means + column * known
        products = products + column * filled
        squares = squares + np.outer(row, row)[..., np.newaxis] * known
    means = means / np.maximum(counts, 1)
    matrix = squares - counts * means[:, np.newaxis] * means[np.newaxis]
    matrix = np.moveaxis(matrix, -1, 0) + RIDGE * np.eye(size)
    right = np.moveaxis(products - means * sums, -1, 0)
    return np.linalg.solve(matrix, right[..., np.newaxis])[..., 0].T.astype(np.float32)


def adjust(
    values: NDArray[np.floating], row: Sequence[float] | Rows, slopes: NDArray[np.floating]
) -> NDArray[np.float32]:
    """Remove the effect of a person's covariates from values.

    The result is what would be expected if the covariates were at the controls' mean.

    Parameters
    ----------
    values : ndarray, (...)
        Values of the person.
    row : sequence of float, (numbers,)
        Covariates coded by :func:`encode`.
    slopes : ndarray, (numbers, ...)
        Result of :func:`fit_slopes`.
    """
    return (values - np.tensordot(np.asarray(row), slopes, 1)).astype(np.float32)


def leverage_of(row: Sequence[float] | Rows, rows: Rows) -> float:
    """Return the leverage of a person's covariates: how far they are from those of the controls.

    This is the variance of a prediction at these covariates, relative to that of a control's value,
    without the 1/n of the mean.
    """
    centre = rows.mean(axis=0)
    away = np.asarray(row) - centre
    matrix = (rows - centre).T @ (rows - centre) + RIDGE * np.eye(rows.shape[1])
    return float(away @ np.linalg.solve(matrix, away))
