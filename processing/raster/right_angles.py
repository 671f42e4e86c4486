"""Right angles for the outline of a traced mask: walls are fitted to it, and corners are where they meet.

Plain geometry in a plane whose unit is the metre on the ground; polygons are WKB, which shapely and QGIS
both read.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

# Walls of an object with right angles point in two directions; of a round one in all (0: no direction, 1: two).
_LEAST_DIRECTION = 0.35
# A wall within this angle of the object's direction gets it; farther ones only where they hardly move.
_SNAP_ANGLE = math.radians(12.0)
# Corners of a traced mask are this much off, in steps of its outline (pixels of the raster).
_NOISE_STEPS = 1.5
_SAME_POINT_M = 1e-9
# An oblique wall is at least this long, in tolerances.
_LEAST_OBLIQUE = 4.0
# Bounds of the tolerance that is taken from the mask itself, as parts of the square root of its area.
_LEAST_TOLERANCE, _MOST_TOLERANCE = 0.02, 0.08

FloatArray = npt.NDArray[np.float64]


def rings_from_wkb(wkb: bytes) -> list[FloatArray]:
    """Rings of a polygon (little-endian WKB, two dimensions), the outline first.

    Each is (n, 2), x and y, without the end that repeats the start.
    """
    (n_rings,) = struct.unpack_from("<I", wkb, 5)  # after byte order and type
    rings, offset = [], 9
    for _ in range(n_rings):
        (n_points,) = struct.unpack_from("<I", wkb, offset)
        points = np.frombuffer(wkb, "<f8", 2 * n_points, offset + 4).reshape(-1, 2)
        rings.append(points[:-1])
        offset += 4 + points.nbytes
    return rings


def rings_to_wkb(rings: Iterable[FloatArray]) -> bytes:
    """The polygon of rings as `rings_from_wkb` returns them."""
    closed = [np.concatenate([ring, ring[:1]]) for ring in rings]
    wkb = struct.pack("<BII", 1, 3, len(closed))
    return wkb + b"".join(struct.pack("<I", len(ring)) + ring.astype("<f8").tobytes() for ring in closed)


def from_a_corner(rings: Iterable[FloatArray]) -> list[FloatArray]:
    """Let rings start at their point farthest from the middle: simplification never removes the start."""
    firsts = [(ring, int(np.hypot(*(ring - ring.mean(axis=0)).T).argmax())) for ring in rings]
    return [np.roll(ring, -first, axis=0) for ring, first in firsts]


def own_tolerance_m(outline: FloatArray, area_m2: float) -> float:
    """The tolerance that the ring of a traced mask asks for: what its steps are off, within reason for its size."""
    steps_m = np.hypot(*(np.roll(outline, -1, axis=0) - outline).T)
    size_m = math.sqrt(area_m2)
    noise_m = _NOISE_STEPS * float(np.percentile(steps_m, 10))
    return min(max(noise_m, _LEAST_TOLERANCE * size_m), _MOST_TOLERANCE * size_m)


def regular_rings(
    simplified: list[FloatArray], traced: list[FloatArray], *, tolerance_m: float
) -> list[FloatArray] | None:
    """Rings with right angles, the outline first; None where the object has no two directions, or too few walls.

    `traced`: rings with points all along the walls, so that a long straight stretch counts as much as a ragged one;
    `simplified`: what is left of their points. A hole that has no right angles keeps its simplified outline.
    """
    kept = [_kept(ring, traced) for ring in simplified]
    direction = _direction(kept)
    if direction is None:
        return None
    regular = [_regular_ring(ring, positions, direction, tolerance_m) for ring, positions in kept]
    if regular[0] is None:
        return None
    return [ring[positions] if found is None else found for found, (ring, positions) in zip(regular, kept, strict=True)]


def _kept(corners: FloatArray, rings: list[FloatArray]) -> tuple[FloatArray, npt.NDArray[np.intp]]:
    """Return the ring, (n, 2), that a simplified one was made of, and the positions of the corners that are left."""
    for ring in rings:
        distances = np.hypot(*(ring[None] - corners[:, None]).transpose(2, 0, 1))
        positions = distances.argmin(axis=1)
        if (distances[np.arange(len(corners)), positions] < _SAME_POINT_M).all():
            return ring, np.roll(positions, -int(positions.argmin()))
    return corners, np.arange(len(corners))  # repaired: its corners are what there is


def _direction(kept: list[tuple[FloatArray, npt.NDArray[np.intp]]]) -> float | None:
    """Return the direction of the walls (radians, to a quarter turn), None where they have none in common.

    The mean of the walls' own directions on the circle of quarter turns, weighted by their length squared: long walls
    know the direction best. A minimum rotated rectangle would follow a single bay.
    """
    total, weight = 0j, 0.0
    for ring, positions in kept:
        for wall in _walls(ring, positions):
            length, angle = _length_and_angle(wall)
            total += length**2 * np.exp(4j * angle)
            weight += length**2
    if weight == 0 or abs(total) / weight < _LEAST_DIRECTION:
        return None
    return float(np.angle(total)) / 4


def _walls(ring: FloatArray, positions: npt.NDArray[np.intp]) -> list[FloatArray]:
    """Return the points, (n, 2), of each stretch between two corners."""
    ends = [*positions[1:], positions[0] + len(ring)]
    doubled = np.concatenate([ring, ring])
    return [doubled[start : end + 1] for start, end in zip(positions, ends, strict=True)]


def _length_and_angle(wall: FloatArray) -> tuple[float, float]:
    """Length between the ends, and the direction of the line through all points (total least squares)."""
    chord = wall[-1] - wall[0]
    length = float(np.hypot(*chord))
    if len(wall) < 4:
        return length, float(np.arctan2(chord[1], chord[0]))
    # Without the ends, which are often cut off at a slant.
    inner = wall[1:-1] - wall[1:-1].mean(axis=0)
    xx, yy, xy = (inner[:, 0] ** 2).sum(), (inner[:, 1] ** 2).sum(), (inner[:, 0] * inner[:, 1]).sum()
    return length, float(0.5 * np.arctan2(2 * xy, xx - yy))


@dataclass
class _Line:
    """A wall: `axis` 0 along x, 1 along y, None oblique; it goes through `point` along `along`."""

    axis: int | None
    point: FloatArray
    along: FloatArray
    length: float

    def joined(self, other: _Line) -> _Line:
        share = self.length / max(1e-12, self.length + other.length)
        point = share * self.point + (1 - share) * other.point
        return _Line(self.axis, point, self.along, self.length + other.length)


def _regular_ring(
    ring: FloatArray, positions: npt.NDArray[np.intp], direction: float, tolerance_m: float
) -> FloatArray | None:
    """Return corners, (n, 2), at right angles, None where fewer than four walls are left."""
    cos, sin = math.cos(direction), math.sin(direction)
    turn = np.array([[cos, -sin], [sin, cos]])  # rows (x, y) @ turn: to the object's own axes
    lines = [_line(wall @ turn, tolerance_m) for wall in _walls(ring, positions)]
    lines = _joined_parallel(lines, tolerance_m)
    while len(lines) >= 4:
        corners = _meeting_points(lines)
        if corners is None:
            return None
        lengths = np.hypot(*(np.roll(corners, -1, axis=0) - corners).T)
        # A short oblique wall is a corner that the mask rounds off.
        least = [tolerance_m * (1.0 if line.axis is not None else _LEAST_OBLIQUE) for line in lines]
        shortest = int((lengths - least).argmin())
        if lengths[shortest] >= least[shortest]:
            turned_back: FloatArray = corners @ turn.T
            return turned_back
        del lines[shortest]
        lines = _joined_parallel(lines, tolerance_m)
    return None


def _line(wall: FloatArray, tolerance_m: float) -> _Line:
    length, angle = _length_and_angle(wall)
    axis = round(angle / (math.pi / 2)) % 2
    off = abs((angle + math.pi / 4) % (math.pi / 2) - math.pi / 4)
    middle = wall.mean(axis=0)
    if off > _SNAP_ANGLE and length / 2 * math.sin(off) > 2 * tolerance_m:
        return _Line(None, middle, np.array([math.cos(angle), math.sin(angle)]), length)
    # The mean across the wall, weighted by the way along it, leaves the area as it is.
    steps = np.diff(wall[:, axis])
    across = (wall[1:, 1 - axis] + wall[:-1, 1 - axis]) / 2
    reach = steps.sum()
    if abs(reach) > tolerance_m / 2:
        level = float((across * steps).sum() / reach)
        middle[1 - axis] = np.clip(level, wall[:, 1 - axis].min(), wall[:, 1 - axis].max())
    return _Line(axis, middle, np.eye(2)[axis], length)


def _joined_parallel(lines: list[_Line], tolerance_m: float) -> list[_Line]:
    """Make one wall of parallel ones that follow each other, or put a short wall between them."""
    result: list[_Line] = []
    for line in lines:
        result = _appended(result, line, tolerance_m)
    # Around the start of the ring too.
    while len(result) > 1 and result[0].axis is not None and result[0].axis == result[-1].axis:
        first, last = result[0], result[-1]
        if _offset(first, last) >= 2 * tolerance_m:
            result.append(_between(last, first))
            break
        result = [last.joined(first), *result[1:-1]]
    return result


def _appended(lines: list[_Line], line: _Line, tolerance_m: float) -> list[_Line]:
    if not lines or line.axis is None or lines[-1].axis != line.axis:
        return [*lines, line]
    if _offset(lines[-1], line) < 2 * tolerance_m:
        return [*lines[:-1], lines[-1].joined(line)]
    return [*lines, _between(lines[-1], line), line]


def _offset(one: _Line, other: _Line) -> float:
    across = 1 - (one.axis or 0)
    return float(abs(one.point[across] - other.point[across]))


def _between(one: _Line, other: _Line) -> _Line:
    """A wall across two parallel ones, where the first ends."""
    axis = 1 - (one.axis or 0)
    towards = np.sign(other.point - one.point)
    point = one.point + towards * one.along * one.length / 2
    return _Line(axis, point, np.eye(2)[axis], _offset(one, other))


def _meeting_points(lines: list[_Line]) -> FloatArray | None:
    """Corner i is where wall i begins, (n, 2); None where neighbours are parallel."""
    corners = []
    for before, after in zip([lines[-1], *lines[:-1]], lines, strict=True):
        matrix = np.column_stack([before.along, -after.along])
        if abs(np.linalg.det(matrix)) < 0.1:
            return None
        way = np.linalg.solve(matrix, after.point - before.point)
        corners.append(before.point + way[0] * before.along)
    return np.array(corners)
