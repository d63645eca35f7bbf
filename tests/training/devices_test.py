"""The sentence on bfloat16 at the start of a run on a CPU."""

import jax
import pytest

from electra_jax.training import devices, partitioning


def layout(number: int) -> partitioning.Layout:
  return partitioning.make_layout(devices=jax.devices()[:number])


@pytest.mark.parametrize(
  ('flags', 'dtype', 'number', 'hint'),
  [
    ('fma avx512_bf16 avx2', 'auto', 1, True),
    ('fma avx512_bf16 avx2', 'float32', 1, False),
    ('fma avx512_bf16 avx2', 'auto', 2, False),
    ('fma avx2', 'auto', 1, False),
    ('avx512_bf16_like', 'auto', 1, False),
  ],
)
def test_bfloat16_is_named_where_it_was_measured_to_be_faster(
  flags, dtype, number, hint, tmp_path, monkeypatch
):
  path = tmp_path / 'cpuinfo'
  path.write_text(f'processor\t: 0\nflags\t\t: {flags}\n\nprocessor\t: 1\nflags\t\t: other\n')
  monkeypatch.setattr(devices, 'CPUINFO', path)
  assert bool(devices.hint_on_bfloat16(dtype, layout(number).mesh)) == hint


def test_other_systems_have_no_list_of_features(tmp_path, monkeypatch):
  monkeypatch.setattr(devices, 'CPUINFO', tmp_path / 'missing')
  assert devices.processor_features() == frozenset()
