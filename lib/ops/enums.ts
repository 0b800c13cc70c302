/** The numbers that kernels take as scalars; native/runtime/enums.h holds the same values. */
export const Unary = {
  none: 0,
  silu: 1,
  gelu_tanh: 2,
  sigmoid: 3,
  exp: 4,
  square: 5,
  abs: 6,
  clamp: 7,
  sqrt: 8,
  relu: 9,
  tanh: 10,
  leaky_relu: 11,
  softplus: 12,
  reciprocal: 13,
  gelu: 14,
} as const;
export const Norm = { none: 0, pixel_norm: 1, rms_norm: 2, layer_norm: 3, group_norm: 4 } as const;
export const Reduce = { sum: 0, sum_squares: 1 } as const;
export const Loss = { l1: 0, l2: 1 } as const;
export const PatchOrder = { time_height_width: 0, time_width_height: 1 } as const;

export type UnaryKind = keyof typeof Unary;
export type NormKind = keyof typeof Norm;
export type LossKind = keyof typeof Loss;
