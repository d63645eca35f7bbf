"""Collectives, memory traffic and products are counted in the text of compiled programs."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from electra_jax.training import hlo, partitioning

X = 'f32[8,128]{1,0}'
HALF = 'f32[16,128]{1,0}'  # of two chips together
GATHERED = 'f32[32,128]{1,0}'
PART = 'f32[2,128]{1,0}'
ALL = 'replica_groups={{0,1,2,3}}'
SUM = """
%sum (a: f32[], b: f32[]) -> f32[] {
  %a = f32[]{:T(128)} parameter(0)
  %b = f32[]{:T(128)} parameter(1)
  ROOT %add.1 = f32[]{:T(128)} add(%a, %b)
}
"""


def program(entry, others='', devices=4):
  return (
    f'HloModule jit_f, is_scheduled=true, num_partitions={devices}\n{SUM}{others}\n'
    'ENTRY %main (x: f32[8,128]) -> f32[8,128] {\n'
    f'  %x = f32[8,128]{{1,0:T(8,128)}} parameter(0)\n{entry}\n}}\n'
  )


def hbm_traffic(text) -> float:
  """Bytes that a program moves in a step."""
  return sum(x.per_step for x in hlo.memory_traffic(text))


def kinds(text, slices=1):
  return [(c.kind, c.group, c.payload, c.times, c.looped) for c in hlo.collectives(text, slices)]


@pytest.mark.parametrize(
  'line, expected',
  [
    (
      f'{X} all-reduce(%x), channel_id=1, {ALL}, to_apply=%sum',
      ('all-reduce', 4, 4096),
    ),
    (
      f'{X} all-reduce(%x), channel_id=1, replica_groups={{{{0,1}},{{2,3}}}}, to_apply=%sum',
      ('all-reduce', 2, 4096),
    ),
    (f'{X} all-reduce(%x), replica_groups={{}}, to_apply=%sum', ('all-reduce', 4, 4096)),
    (
      f'{GATHERED} all-gather(%x), replica_groups=[1,4]<=[4], dimensions={{0}}',
      ('all-gather', 4, 16384),
    ),
    (
      f'{HALF} all-gather(%x), replica_groups=[2,2]<=[2,2]T(1,0), dimensions={{0}}',
      ('all-gather', 2, 8192),
    ),
    (
      f"{HALF} all-gather(%x), replica_groups=mesh['a'=2,'b'=2] {{'b'}}, dimensions={{0}}",
      ('all-gather', 2, 8192),
    ),
    (
      f"{HALF} all-gather(%x), replica_groups=mesh['a'=1,'b'=2,'c'=1,'d'=2], "
      "device_ids=([2,2]T(1,0)) {'b'}, dimensions={0}",
      ('all-gather', 2, 8192),
    ),
    (
      f"{HALF} all-gather(%x), replica_groups=mesh['a'=4] {{'a':(1)2}}, dimensions={{0}}",
      ('all-gather', 2, 8192),
    ),
    (
      f'{PART} reduce-scatter(%x), {ALL}, dimensions={{0}}, to_apply=%sum',
      ('reduce-scatter', 4, 4096),
    ),
    (f'{X} all-to-all(%x), {ALL}, dimensions={{0}}', ('all-to-all', 4, 4096)),
    (
      f'({X}, {GATHERED}) all-gather-start(%x), {ALL}, dimensions={{0}}\n'
      f'  %d = {GATHERED} all-gather-done(%r)',
      ('all-gather', 4, 16384),
    ),
    (
      f'({X}, /*index=1*/{X}) all-reduce(%x, %x), {ALL}, to_apply=%sum',
      ('all-reduce', 4, 8192),
    ),
    (
      f'(f32[8,128]{{1,0:T(8,128)S(1)}}, {X}, u32[]{{:S(2)}}) collective-permute-start(%x), '
      f'source_target_pairs={{{{0,1}},{{1,2}},{{2,3}},{{3,0}}}}\n'
      f'  %d = {X} collective-permute-done(%r)',
      ('collective-permute', 4, 4096),
    ),
  ],
)
def test_each_form_of_a_collective_counts_once(line, expected):
  assert kinds(program(f'  %r = {line}')) == [(*expected, 1, False)]


def test_sent_bytes_are_those_of_a_ring():
  sent = {
    kind: hlo.Collective(kind, 'ICI', 4, 1000, 3.0, False, '', '').sent for kind in hlo.COLLECTIVES
  }
  assert (
    sent['all-reduce'] == 4500
    and sent['all-gather'] == sent['reduce-scatter'] == sent['all-to-all'] == 2250
  )
  assert sent['collective-permute'] == 3000


def test_groups_of_one_chip_have_no_collective():
  assert not kinds(
    program('  %r = f32[8,128]{1,0} all-reduce(%x), replica_groups={{0},{1}}, to_apply=%sum')
  )


def test_collectives_of_one_channel_count_separately():
  lines = [
    f'  %r.{i} = {PART} reduce-scatter(%x), channel_id=1, {ALL}, dimensions={{0}}, to_apply=%sum'
    for i in range(3)
  ]
  assert len(kinds(program('\n'.join(lines)))) == 3


def test_a_chained_collective_counts_once():
  part = """
%part.{0} (p: f32[8,128]) -> f32[32,128] {{
  %p = f32[8,128]{{1,0}} parameter(0)
  ROOT %g = f32[32,128]{{1,0}} all-gather(%p), channel_id=5, {1}, dimensions={{0}}, {2}
}}
"""
  call = '  %f.{0} = f32[32,128]{{1,0}} fusion(%x), kind=kCustom, calls=%part.{0}'
  chains = ['3', '3', '3', '4']
  text = program(
    '\n'.join(call.format(i) for i in range(4)),
    ''.join(
      part.format(i, ALL, f'frontend_attributes={{chain_id="{chain}"}}')
      for i, chain in enumerate(chains)
    ),
  )
  assert [c[:3] for c in kinds(text)] == 2 * [('all-gather', 4, 16384)]


def test_an_all_reduce_with_a_slice_is_a_reduce_scatter():
  others = """
%all-reduce-scatter (p: f32[8,128]) -> f32[2,128] {
  %p = f32[8,128]{1,0} parameter(0)
  %id = u32[] partition-id()
  %s = f32[8,128]{1,0} all-reduce(%p), channel_id=5, replica_groups={{0,1,2,3}}, to_apply=%sum
  ROOT %d = f32[2,128]{1,0} dynamic-slice(%s, %id, %id), dynamic_slice_sizes={2,128}
}
"""
  assert kinds(
    program('  %f = f32[2,128]{1,0} fusion(%x), kind=kCustom, calls=%all-reduce-scatter', others)
  ) == [('reduce-scatter', 4, 4096, 1, False)]


def test_an_asynchronous_collective_counts_once():
  others = """
%wrapped (p: f32[8,128]) -> f32[2,128] {
  %p = f32[8,128]{1,0} parameter(0)
  ROOT %s = f32[2,128]{1,0} reduce-scatter(%p), replica_groups={{0,1,2,3}}, to_apply=%sum
}
"""
  lines = (
    '  %a = ((f32[8,128]{1,0}), f32[2,128]{1,0}) async-start(%x), calls=%wrapped\n'
    '  %b = f32[2,128]{1,0} async-done(%a), calls=%wrapped'
  )
  assert kinds(program(lines, others)) == [('reduce-scatter', 4, 4096, 1, False)]


LOOP = """
%body (t: (s32[], f32[8,128])) -> (s32[], f32[8,128]) {{
  %t = (s32[], f32[8,128]) parameter(0)
  %v = f32[8,128]{{1,0}} get-tuple-element(%t), index=1
  %r = f32[8,128]{{1,0}} all-reduce(%v), replica_groups={{{{0,1,2,3}}}}, to_apply=%sum
  {inner}
}}

%condition (t: (s32[], f32[8,128])) -> pred[] {{
  %t = (s32[], f32[8,128]) parameter(0)
  %i = s32[] get-tuple-element(%t), index=0
  %n = s32[]{{:T(128)}} constant(12)
  ROOT %less = pred[] compare(%i, %n), direction=LT
}}
"""


def test_loops_count_as_often_as_they_run():
  loop = '  %w = (s32[], f32[8,128]) while(%x), condition=%condition, body=%body'
  assert kinds(program(loop, LOOP.format(inner=''))) == [('all-reduce', 4, 4096, 12, True)]
  known = loop + ', backend_config={"known_trip_count":{"n":"7"}}'
  assert kinds(program(known, LOOP.format(inner=''))) == [('all-reduce', 4, 4096, 7, True)]
  copied = '%c = f32[8,128]{1,0:T(8,128)S(1)} copy(%v)'
  # The reduction reads and writes, the copy into faster memory reads; the condition has few bytes.
  assert hbm_traffic(program(loop, LOOP.format(inner=copied))) == pytest.approx(
    12 * 4096 * 3, rel=1e-3
  )


def test_transfers_between_slices_are_collectives_over_dcn():
  lines = (
    f'  %t = token[] after-all()\n  %s = ({X}, u32[], token[]) send(%x, %t), channel_id=3, '
    'is_host_transfer=true, frontend_attributes={'
    '_xla_host_transfer_handler_name="xla_megascale_runtime",'
    '_xla_megascale_transfer_type="ALL_REDUCE"}\n'
    '  %d = token[] send-done(%s), channel_id=3'
  )
  (found,) = hlo.collectives(program(lines), slices=2)
  assert (found.kind, found.over, found.group, found.payload, found.sent) == (
    'all-reduce',
    'DCN',
    2,
    4096,
    4096,
  )


def test_slices_of_arrays_count_only_what_they_touch():
  others = """
%inner (p: f32[12,8,128], i: s32[]) -> f32[1,8,128] {
  %p = f32[12,8,128]{2,1,0} parameter(0)
  %i = s32[] parameter(1)
  ROOT %d = f32[1,8,128]{2,1,0} dynamic-slice(%p, %i, %i, %i), dynamic_slice_sizes={1,8,128}
}

%outer (q: f32[12,8,128], j: s32[]) -> f32[12,8,128] {
  %q = f32[12,8,128]{2,1,0} parameter(0)
  %j = s32[] parameter(1)
  %b = f32[12,8,128]{2,1,0} bitcast(%q)
  %s = f32[1,8,128]{2,1,0} fusion(%b, %j), kind=kLoop, calls=%inner
  ROOT %u = f32[12,8,128]{2,1,0} dynamic-update-slice(%q, %s, %j, %j, %j)
}
"""
  lines = (
    '  %big = f32[12,8,128]{2,1,0} parameter(1)\n  %i = s32[]{:S(6)} parameter(2)\n'
    '  %f = f32[12,8,128]{2,1,0} fusion(%big, %i), kind=kLoop, calls=%outer'
  )
  assert hbm_traffic(program(lines, others)) == 2 * 4096


def test_what_moves_most_comes_first_with_its_origin():
  lines = (
    '  %a = f32[8,128]{1,0} add(%x, %x), metadata={op_name="jit(f)/add"}\n'
    '  %n = f32[8,128]{1,0} negate(%a), metadata={op_name="jit(f)/neg"}'
  )
  found = hlo.memory_traffic(program(lines))
  assert [(x.bytes, x.times, x.opcode, x.origin) for x in found] == [
    (3 * 4096, 1, 'add', 'jit(f)/add'),
    (2 * 4096, 1, 'negate', 'jit(f)/neg'),
  ]
  assert hbm_traffic(program(lines)) == 5 * 4096


def test_copies_between_memories_count_the_side_in_main_memory():
  start = (
    '  %c = (f32[8,128]{{1,0{0}}}, f32[8,128]{{1,0{1}}}, u32[]{{:S(2)}}) copy-start(%x)\n'
    '  %d = f32[8,128]{{1,0{0}}} copy-done(%c)'
  )
  assert hbm_traffic(program(start.format(':T(8,128)S(1)', ':T(8,128)'))) == 4096
  assert hbm_traffic(program(start.format(':T(8,128)', ':T(8,128)'))) == 8192


#### A compiled program ####


@pytest.fixture(scope='module')
def compiled():
  """Compiles a sum over rows, and three products in a loop on split weights, for eight devices."""
  mesh = partitioning.make_mesh()
  rows, split = (
    NamedSharding(mesh, PartitionSpec('data')),
    NamedSharding(mesh, PartitionSpec(None, 'data')),
  )

  def f(x, weights):
    def layer(x, w):
      w = jax.lax.with_sharding_constraint(w, NamedSharding(mesh, PartitionSpec()))
      return jnp.tanh(x @ w), None

    x, _ = jax.lax.scan(layer, x, weights)
    return x, x.sum(0)

  shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((64, 32), (3, 32, 32))]
  lowered = jax.jit(
    f, in_shardings=(rows, split), out_shardings=(rows, NamedSharding(mesh, PartitionSpec()))
  ).lower(*shapes)
  return lowered, lowered.compile()


def test_collectives_of_a_compiled_program_are_found(compiled):
  found = hlo.collectives(compiled[1].as_text())
  total = {
    kind: sum(c.times * c.payload for c in found if c.kind == kind) for kind in hlo.COLLECTIVES
  }
  assert total.pop('all-gather') == 3 * 32 * 32 * 4 and total.pop('all-reduce') == 32 * 4
  assert not any(total.values()) and all(c.group == 8 and c.over == 'ICI' for c in found)


def test_product_flops_follow_from_the_shapes(compiled):
  assert hlo.product_flops(compiled[0].compiler_ir('hlo').as_hlo_text()) == 3 * 2 * 64 * 32 * 32


def test_the_largest_array_is_found(compiled):
  # The weights of one layer; a device has 8 x 32 of the rows.
  assert hlo.largest_array(compiled[1].as_text()) == 32 * 32


DESCRIBED = """HloModule step

%body (p: (s32[], bf16[4,8])) -> (s32[], bf16[4,8]) {
  %p = (s32[], bf16[4,8]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %x = bf16[4,8]{1,0} get-tuple-element(%p), index=1
  %attention_forward.1 = bf16[4,8]{1,0} custom-call(%x), custom_call_target="tpu_custom_call", \
frontend_attributes={kernel_metadata={
"direction":"forward",
"shape":"1,1,4,8"
}}, backend_config={}
  %splash.1 = bf16[4,8]{1,0} custom-call(%x), custom_call_target="tpu_custom_call", \
frontend_attributes={kernel_metadata={}}
  ROOT %next = (s32[], bf16[4,8]{1,0}) tuple(%i, %splash.1)
}

%condition (p: (s32[], bf16[4,8])) -> pred[] {
  %p = (s32[], bf16[4,8]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %n = s32[] constant(12)
  ROOT %less = pred[] compare(%i, %n), direction=LT
}

ENTRY %main (a: (s32[], bf16[4,8])) -> (s32[], bf16[4,8]) {
  %a = (s32[], bf16[4,8]{1,0}) parameter(0)
  ROOT %loop = (s32[], bf16[4,8]{1,0}) while(%a), condition=%condition, body=%body
}
"""


def test_kernels_that_describe_themselves_are_listed_and_are_no_traffic():
  """Their model counts it, with blocks that are read again; others move what they get."""
  (call,) = hlo.kernel_calls(DESCRIBED)
  assert call == ({'direction': 'forward', 'shape': '1,1,4,8'}, 12)
  # The other kernel reads and writes 64 bytes; the condition compares two integers.
  described = 12 * 2 * 64
  other = DESCRIBED.replace('kernel_metadata={}', 'kernel_metadata={"direction":"backward"}')
  assert hbm_traffic(DESCRIBED) - hbm_traffic(other) == described


def test_descriptions_of_other_kernels_are_not_ours():
  other = DESCRIBED.replace('"direction":"forward"', r'"xprof_metadata":"{\"q\": {\"k\": 1}}"')
  before, after = (hlo.kernel_calls(text) for text in (DESCRIBED, other))
  assert len(before) == 1 and after == []
