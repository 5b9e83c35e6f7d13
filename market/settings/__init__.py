"""All settings, each with its reason and unit.

A value comes from, in this order: the environment (``FAR_PAYMENTS__RELEASE_DELAY=60``), the YAML
file that ``FAR_CONFIG`` names (default ``config/far_mesh.yaml``), the default below.
"""

import os
import re
from functools import lru_cache
from typing import Annotated

from pydantic import field_validator
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    YamlConfigSettingsSource,
)

from market.settings.auth import AuthSettings
from market.settings.discovery import DiscoverySettings
from market.settings.generation import GenerationSettings
from market.settings.limits import LimitSettings
from market.settings.lists import split
from market.settings.models import ModelSettings, WeightSettings
from market.settings.payments import PaymentsSettings
from market.settings.placement import PlacementSettings
from market.settings.relay import RelaySettings

ORIGIN = re.compile(
    r"\*|[a-z][a-z0-9+.-]*://(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(:([0-9]{1,5}|\*))?|null"
)
"""An origin as browsers write it (RFC 6454), in lower case; its port may be ``*``."""


class Settings(BaseSettings):
    model_config = SettingsConfigDict(
        env_prefix="FAR_", env_nested_delimiter="__", extra="ignore", validate_default=True
    )

    database_url: str = "postgresql+asyncpg:///far_mesh"
    redis_url: str = "redis://127.0.0.1:6379/0"
    public_url: str = "http://127.0.0.1:8000"
    cors_origins: Annotated[list[str], NoDecode] = []
    """Origins whose pages may call the API from a browser, such as ``https://app.example.org`` or
    ``http://localhost:*``; ``*`` for all. As text, separated by commas."""
    metrics_port: int = 0
    """Port on which a worker serves its metrics; 0 for none. The API has /metrics."""
    log_json: bool = True

    models: list[ModelSettings] = []
    weights: WeightSettings = WeightSettings()
    discovery: DiscoverySettings = DiscoverySettings()
    payments: PaymentsSettings = PaymentsSettings()
    auth: AuthSettings = AuthSettings()
    limits: LimitSettings = LimitSettings()
    relay: RelaySettings = RelaySettings()
    generation: GenerationSettings = GenerationSettings()
    placement: PlacementSettings = PlacementSettings()

    @field_validator("cors_origins", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return split(value)

    @field_validator("cors_origins")
    @classmethod
    def _are_origins(cls, origins: list[str]) -> list[str]:
        for origin in origins:
            if not ORIGIN.fullmatch(origin):
                raise ValueError(
                    f"{origin!r} is no origin: scheme://host or scheme://host:port, in lower case, "
                    "without a path"
                )
        return origins

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        yaml = YamlConfigSettingsSource(
            settings_cls, yaml_file=os.environ.get("FAR_CONFIG", "config/far_mesh.yaml")
        )
        return (init_settings, env_settings, yaml)


@lru_cache
def settings() -> Settings:
    """The process's settings, read once."""
    return Settings()
