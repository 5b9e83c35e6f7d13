"""Where callers are, by their address: a lookup in a file, so nobody else learns who calls."""

from dataclasses import dataclass
from pathlib import Path

import geoip2.database
from geoip2.errors import AddressNotFoundError
from maxminddb import InvalidDatabaseError

from market.geo.distance import Coordinates
from mesh.node_api import MAX_LABEL

TEST_ADDRESS = "192.0.2.1"
"""An address that documents use and nobody has."""


@dataclass(frozen=True, slots=True)
class GeoLocation:
    """``name``: for people, such as ``Berlin, DE``."""

    name: str
    coordinates: Coordinates


class GeoIp:
    """A MaxMind database of cities, or none: then no location is known."""

    def __init__(self, path: Path | None) -> None:
        """
        Raises:
            ValueError: the file is missing or damaged, or has no cities.
        """
        self._reader = None if path is None else _open(path)

    def find(self, address: str) -> GeoLocation | None:
        """Where an IP address is; none if that is not known, or it is no IP address."""
        if self._reader is None:
            return None
        try:
            found = self._reader.city(address)
        except (AddressNotFoundError, ValueError):
            return None
        latitude, longitude = found.location.latitude, found.location.longitude
        if latitude is None or longitude is None:
            return None
        names = (found.city.name, found.country.iso_code)
        return GeoLocation(
            ", ".join(filter(None, names))[:MAX_LABEL], Coordinates(latitude, longitude)
        )

    def approximate(self, address: str) -> Coordinates | None:
        """An IP address's location in whole degrees, about 100 km: enough to find nodes nearby, no
        street."""
        location = self.find(address)
        if location is None:
            return None
        return Coordinates(
            round(location.coordinates.latitude), round(location.coordinates.longitude)
        )

    def close(self) -> None:
        if self._reader is not None:
            self._reader.close()


def _open(path: Path) -> geoip2.database.Reader:
    try:
        reader = geoip2.database.Reader(path)
        reader.city(TEST_ADDRESS)
    except AddressNotFoundError:
        return reader
    except (InvalidDatabaseError, OSError, TypeError, ValueError) as error:
        raise ValueError(
            f"FAR_DISCOVERY__GEOIP_DATABASE: {path} is no MaxMind database of cities ({error})."
        ) from None
    return reader
