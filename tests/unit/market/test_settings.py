"""Settings come from YAML and the environment."""

from decimal import Decimal
from pathlib import Path

import pytest
from pydantic import ValidationError

from market.settings import Settings


def test_settings_come_from_yaml_and_the_environment_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "far_mesh.yaml"
    file.write_text(
        "models: [{id: m, payment_per_token: 0.0001, min_nodes: 3}]\n"
        "payments: {release_delay: 3600, platform_fee: '0.02'}\n"
    )
    monkeypatch.setenv("FAR_CONFIG", str(file))
    monkeypatch.setenv("FAR_PAYMENTS__RELEASE_DELAY", "60")
    settings = Settings()
    assert settings.models[0].payment_per_token == Decimal("0.0001")
    assert settings.models[0].min_nodes == 3
    assert settings.payments.release_delay == 60
    assert settings.payments.platform_fee == Decimal("0.02")


def test_a_setting_out_of_range_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAR_PAYMENTS__PLATFORM_FEE", "1.5")
    with pytest.raises(ValidationError, match="platform_fee"):
        Settings()


def test_the_committed_configuration_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    committed = Path(__file__).parents[3] / "config" / "far_mesh.yaml"
    monkeypatch.setenv("FAR_CONFIG", str(committed))
    assert [model.id for model in Settings().models] == ["far/pydoc-llama"]
