"""How far apart two places are."""

from math import asin, cos, radians, sin, sqrt
from typing import NamedTuple

EARTH_RADIUS_KM = 6371.0088
MAX_DISTANCE_KM = 20_016.0
"""No two places are farther apart."""


class Coordinates(NamedTuple):
    """Degrees north and east."""

    latitude: float
    longitude: float


def distance_km(one: Coordinates, other: Coordinates) -> float:
    """Along the surface, by the haversine formula: within half a percent, since the Earth is not
    quite round."""
    latitudes = radians(one.latitude), radians(other.latitude)
    north = sin((latitudes[1] - latitudes[0]) / 2) ** 2
    east = sin(radians(other.longitude - one.longitude) / 2) ** 2
    root = sqrt(north + cos(latitudes[0]) * cos(latitudes[1]) * east)
    return 2 * EARTH_RADIUS_KM * asin(min(1.0, root))
