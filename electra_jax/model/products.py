"""Matrix products: their precision, and the product of dense layers with its gradients."""

import functools

import jax
import jax.numpy as jnp
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


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def product(x: jax.Array, kernel: jax.Array, precision: str) -> jax.Array:
  """Product of x and a kernel in the type of x, accumulated in float32.

  The gradient of the kernel is float32 too, so that its sum over devices is not rounded to
  bfloat16.

  Args:
    x: `[rows, in]`.
    kernel: `[in, out]`.
    precision: of a float32 product, a key of PRECISIONS.

  Returns:
    float32 `[rows, out]`.
  """
  return jax.lax.dot(
    x,
    kernel.astype(x.dtype),
    precision=precision_of(precision, x.dtype),
    preferred_element_type=jnp.float32,
  )


def _product_forward(
  x: jax.Array, kernel: jax.Array, precision: str
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
  return product(x, kernel, precision), (x, kernel)


def _product_backward(
  precision: str, saved: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
  x, kernel = saved
  gradient = gradient.astype(x.dtype)
  p = precision_of(precision, x.dtype)
  of_x = jax.lax.dot_general(
    gradient, kernel.astype(x.dtype), (((1,), (1,)), ((), ())), precision=p
  )
  of_kernel = jax.lax.dot_general(
    x, gradient, (((0,), (0,)), ((), ())), precision=p, preferred_element_type=jnp.float32
  )
  return of_x, of_kernel


product.defvjp(_product_forward, _product_backward)
