"""The peak that utilization refers to is that of the kind of device, or the config's."""

import types

import pytest

from electra_jax.training import progress


@pytest.fixture
def devices(monkeypatch):
  """Replaces the devices by four of a kind."""

  def replace(kind, platform='gpu'):
    device = types.SimpleNamespace(device_kind=kind, platform=platform)
    monkeypatch.setattr(progress.jax, 'devices', lambda: [device] * 4)
    monkeypatch.setattr(progress.jax, 'device_count', lambda: 4)

  return replace


@pytest.mark.parametrize(
  'kind, tera',
  [
    ('NVIDIA H200', 989),
    ('NVIDIA H20', 148),
    ('NVIDIA H100 80GB HBM3', 989),
    ('NVIDIA B200', 2250),
    ('NVIDIA GB200', 2500),
    ('AMD Instinct MI300X', 1307.4),
    ('TPU v5 lite', 197),
    ('TPU v5', 459),
    ('TPU7x', 1153.5),  # two devices per chip
    ('another one', 0),
  ],
)
def test_the_peak_is_that_of_the_longest_name_that_fits(devices, kind, tera):
  devices(kind)
  assert progress.peak_flops().flops == pytest.approx(4 * tera * 1e12)


def test_a_configured_peak_replaces_that_of_the_table(devices):
  devices('another one')
  assert progress.peak_flops(5e12) == (2e13, 'config.peak_flops')
  devices('cpu', platform='cpu')  # nothing is measured then
  assert progress.peak_flops(5e12) == (2e13, 'config.peak_flops')
