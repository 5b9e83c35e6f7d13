"""All settings, each with its reason and unit.

A value comes from, in this order: the environment (``FAR_PAYMENTS__RELEASE_DELAY=60``), the YAML
file that ``FAR_CONFIG`` names (default ``config/far_mesh.yaml``), the default below.
"""

import os
from functools import lru_cache

from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    YamlConfigSettingsSource,
)

from market.settings.auth import AuthSettings
from market.settings.discovery import DiscoverySettings
from market.settings.generation import GenerationSettings
from market.settings.limits import LimitSettings
from market.settings.models import ModelSettings, WeightSettings
from market.settings.payments import PaymentsSettings
from market.settings.placement import PlacementSettings
from market.settings.relay import RelaySettings


class Settings(BaseSettings):
    model_config = SettingsConfigDict(
        env_prefix="FAR_", env_nested_delimiter="__", extra="ignore", validate_default=True
    )

    database_url: str = "postgresql+asyncpg:///far_mesh"
    redis_url: str = "redis://127.0.0.1:6379/0"
    public_url: str = "http://127.0.0.1:8000"
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
