"""Matrix products: their precision and form, and those of dense layers and attention.

XLA for CPUs uses the bfloat16 instructions of a processor (measured with AVX512-BF16, not with AMX)
only for products in one form: the result is float32, and the last axis of the left side, in memory
too, is that of the sum. Products in other forms are computed in float32 (benchmarks/README.md).
`ProductSettings.row_major` brings those of dense layers and of attention into that form.

It has no instructions for other work on bfloat16 arrays, and converts them to float32 and back. Of
the outputs that a scan stacks, that is the whole stack in each iteration; `saved_as` avoids it.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental.layout import Layout, with_layout_constraint
from jax.typing import DTypeLike

# By config.precision. DEFAULT is the fastest product of a platform: of float32 arrays, a single
# pass in bfloat16 on TPU, and TF32 on GPU. A CPU computes in float32 in any case.
PRECISIONS = {
  'float32': jax.lax.Precision.HIGHEST,
  'tensorfloat32': jax.lax.Precision.HIGH,
  'bfloat16': None,
}


def precision_of(name: str, dtype: DTypeLike) -> jax.lax.Precision | None:
  """The precision of a product; None for JAX's default.

  Args:
    name: a key of PRECISIONS.
    dtype: of the arrays. Those of 16 bits are multiplied exactly in one pass.
  """
  return PRECISIONS[name] if jnp.dtype(dtype) == jnp.float32 else None


def on_several_devices() -> bool:
  """Whether the mesh of the current trace has more than one device, so that arrays may be split."""
  mesh = jax.sharding.get_abstract_mesh()
  return not mesh.empty and mesh.size > 1


@dataclasses.dataclass(frozen=True)
class ProductSettings:
  """How products are computed.

  Attributes:
    precision: of products of float32 arrays, a key of PRECISIONS.
    row_major: whether products have the form for which XLA for CPUs has bfloat16 instructions.
      Ignored where an array is split over devices, since the partitioner of XLA would gather it.
    flat: whether dense layers multiply flat matrices `[batch * length, in]`. The numbers are those
      of a product that keeps the axes of rows and positions, but on a CPU its two gradients take
      half the time. On a TPU the kept axes can be in any order in memory, such as that of an
      attention kernel, so that nothing is transposed between the two.
    transposes: whether the narrower side of the gradient of a kernel is transposed in memory before
      the product. XLA's products on CPUs with AVX2 take up to twice as long where the sum is over
      the first axis of both sides (benchmarks/README.md). Ignored where an array is split over
      devices, and where `row_major` does the same.
  """

  precision: str = 'float32'
  row_major: bool = False
  flat: bool = True
  transposes: bool = False

  def here(self) -> 'ProductSettings':
    """The settings for the mesh of the current trace."""
    if not on_several_devices():
      return self
    return dataclasses.replace(self, row_major=False, transposes=False)

  def of(self, dtype: DTypeLike) -> jax.lax.Precision | None:
    """The precision of a product of arrays of this type."""
    return precision_of(self.precision, dtype)


def row_major(x: jax.Array) -> jax.Array:
  """The same array, in memory in the order of its axes: a transposed one is copied.

  In a program with this, XLA for CPUs also chooses the order of axes of the results, and JAX 0.10
  passes a result to the next program as if the order were the usual one, even where
  `out_shardings` names it. Results that are donated arguments, those of one axis and those that are
  read as NumPy arrays are right; any other must not depend on a transposed array.
  """
  ordered: jax.Array = with_layout_constraint(x, Layout(tuple(range(x.ndim))))
  return ordered


def saved_as(x: jax.Array, name: str, settings: ProductSettings) -> jax.Array:
  """Names an array, so that a rematerialization policy can keep it for the backward pass.

  With `row_major` a bfloat16 array is kept as integers of its bits.

  Args:
    x: the array.
    name: for the policy.
    settings: of the product that computed it.

  Returns:
    The same array.
  """
  if settings.here().row_major and x.dtype == jnp.bfloat16:
    return _kept_as_integers(x, name)
  named: jax.Array = checkpoint_name(x, name)
  return named


def _through_integers(x: jax.Array, name: str) -> jax.Array:
  bits = checkpoint_name(jax.lax.bitcast_convert_type(x, jnp.uint16), name)
  same: jax.Array = jax.lax.bitcast_convert_type(bits, x.dtype)
  return same


_kept_as_integers = jax.custom_jvp(_through_integers, nondiff_argnums=(1,))


@_kept_as_integers.defjvp
def _kept_tangent(
  name: str, primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[jax.Array, jax.Array]:
  # Not by the function itself, in which policies would not find the name.
  return _through_integers(primals[0], name), tangents[0]


def product(x: jax.Array, kernel: jax.Array, settings: ProductSettings) -> jax.Array:
  """Product of x and a kernel in the type of x, accumulated in float32.

  The gradient of the kernel is float32 too, so that its sum over devices is not rounded to
  bfloat16.

  Args:
    x: `[..., in]`.
    kernel: `[in, out]`.
    settings: how it is computed.

  Returns:
    float32 `[..., out]`.
  """
  return _product(x, kernel, settings.here())


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _product(x: jax.Array, kernel: jax.Array, settings: ProductSettings) -> jax.Array:
  return jax.lax.dot_general(
    x,
    kernel.astype(x.dtype),
    (((x.ndim - 1,), (0,)), ((), ())),
    precision=settings.of(x.dtype),
    preferred_element_type=jnp.float32,
  )


def _product_forward(
  x: jax.Array, kernel: jax.Array, settings: ProductSettings
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
  return _product(x, kernel, settings), (x, kernel)


def _product_backward(
  settings: ProductSettings, saved: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
  x, kernel = saved
  gradient = gradient.astype(x.dtype)
  if settings.row_major:
    of_x = _float32_dot(gradient, kernel.astype(x.dtype), 1).astype(x.dtype)
    return of_x, _kernel_gradient(x, gradient)
  p = settings.of(x.dtype)
  last, others = x.ndim - 1, tuple(range(x.ndim - 1))
  of_x = jax.lax.dot_general(
    gradient, kernel.astype(x.dtype), (((last,), (1,)), ((), ())), precision=p
  )
  if settings.transposes and x.ndim == 2:
    return of_x, _transposed_kernel_gradient(x, gradient, p)
  of_kernel = jax.lax.dot_general(
    x, gradient, ((others, others), ((), ())), precision=p, preferred_element_type=jnp.float32
  )
  return of_x, of_kernel


_product.defvjp(_product_forward, _product_backward)


def _transposed_kernel_gradient(
  x: jax.Array, gradient: jax.Array, precision: jax.lax.Precision | None
) -> jax.Array:
  """As `_kernel_gradient`, but XLA chooses the order of axes of the result."""

  def summed(left: jax.Array, right: jax.Array) -> jax.Array:
    # Without the barrier XLA would undo the transposition.
    found: jax.Array = jax.lax.dot_general(
      jax.lax.optimization_barrier(left.T),
      right,
      (((1,), (0,)), ((), ())),
      precision=precision,
      preferred_element_type=jnp.float32,
    )
    return found

  if x.shape[1] <= gradient.shape[1]:
    return summed(x, gradient)
  found: jax.Array = jax.lax.optimization_barrier(summed(gradient, x))
  return found.T


def _kernel_gradient(x: jax.Array, gradient: jax.Array) -> jax.Array:
  """The sum over rows of outer products of x and the gradient, with the narrower one transposed.

  Args:
    x: `[rows, in]`.
    gradient: of the output, of the type of x, `[rows, out]`.

  Returns:
    float32 `[in, out]`.
  """
  # Results, too, have an order of axes: XLA would compute a transposed one in another form.
  if x.shape[1] <= gradient.shape[1]:
    return row_major(_float32_dot(row_major(x.T), gradient, 0))
  return row_major(_float32_dot(row_major(gradient.T), x, 0)).T


def _float32_dot(x: jax.Array, y: jax.Array, summed: int) -> jax.Array:
  """Products of matrices `[..., m, n]` and `[..., n, k]`, or `[..., k, n]` where `summed` is 1.

  Returns:
    float32 `[..., m, k]`.
  """
  batch = tuple(range(x.ndim - 2))
  axes = ((x.ndim - 1,), (y.ndim - 2 + summed,))
  return jax.lax.dot_general(x, y, (axes, (batch, batch)), preferred_element_type=jnp.float32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def batched_product(x: jax.Array, y: jax.Array, summed: int) -> jax.Array:
  """Products of matrices, with gradients in the form of `ProductSettings.row_major`.

  Args:
    x: `[..., m, n]`.
    y: of the same type, `[..., n, k]`, or `[..., k, n]` where `summed` is 1.
    summed: axis of the matrices of y that is summed over.

  Returns:
    float32 `[..., m, k]`.
  """
  return _float32_dot(x, y, summed)


def _batched_forward(
  x: jax.Array, y: jax.Array, summed: int
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
  return batched_product(x, y, summed), (x, y)


def _batched_backward(
  summed: int, saved: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
  x, y = saved
  gradient = gradient.astype(x.dtype)
  of_x = _float32_dot(gradient, y, 1 - summed).astype(x.dtype)
  left, right = (gradient, x) if summed else (x, gradient)
  of_y = _float32_dot(row_major(left.swapaxes(-1, -2)), right, 0).astype(y.dtype)
  return of_x, of_y


batched_product.defvjp(_batched_forward, _batched_backward)
