// What the two attention ops share on the host's side: a call's sizes, and the passes over rows of q and k (RMS norm
// and rotation) in front of the softmax and behind it (attention_rows.cu).
#pragma once
#include "common.cuh"

namespace ltx::cuda {

constexpr float kLog2e = 1.4426950408889634f, kLn2 = 0.6931471805599453f;

struct AttentionSizes {
  int64_t batch;
  int heads, head_dim, queries, keys;
  float scale;
  LTX_HD int64_t width() const { return static_cast<int64_t>(heads) * head_dim; }  // D
};

inline AttentionSizes attention_sizes(const Call& call) {
  const int heads = static_cast<int>(call.integer(0));
  return {call[0].dim(0),
          heads,
          static_cast<int>(call[0].dim(2) / heads),
          static_cast<int>(call[0].dim(1)),
          static_cast<int>(call[1].dim(1)),
          static_cast<float>(call.scalar(2))};
}

// One of q and k: what is applied to its rows before the heads are split.
template <class T>
struct Projection {
  const T* x;              // (rows, D)
  const float* weight;     // (D) or null: no norm
  float* rstd;             // (rows) or null
  const float *cos, *sin;  // (length, D) or null: no rotation
  int64_t batch, length;
  LTX_HD int64_t rows() const { return batch * length; }
  LTX_HD bool plain() const { return !weight && !cos; }
};

// Of a call of either op, whose first operands are the same.
template <class T>
Projection<T> projection(const Call& call, int x, int weight, int rstd) {
  return {call[x].data<T>(),    data<float>(call[weight]), data<float>(call[rstd]),
          data<float>(call[5]), data<float>(call[6]),      call[x].dim(0),
          call[x].dim(1)};
}

template <class T>
struct Prepared {
  const T *q, *k;  // (B, Lq, D), (B, Lk, D)
};

// q and k normed and rotated, in scratch slots 0 and 1, in one launch; what needs neither is itself. known_rstd: the
// forward pass has stored it; otherwise it is written where asked for.
template <class T>
Prepared<T> prepare(const Call& call, const Projection<T>& q, const Projection<T>& k, int64_t width, bool known_rstd);

// The adjoint, in place: dq and dk hold the gradients of the prepared rows and become those of q and k; dq_weight,
// dk_weight (D) or null. Uses scratch slots 3 to 6.
template <class T>
void unprepare(const Call& call, const Projection<T>& q, const Projection<T>& k, int64_t width, T* dq, T* dk,
               float* dq_weight, float* dk_weight);

// Tensor-core kernels move 16 bytes at a time: whole chunks of 8 channels a head.
template <class... T>
bool fits_tensor_cores(const AttentionSizes& s, const T*... pointers) {
  return s.head_dim % 8 == 0 && s.head_dim <= 128 && (aligned16(pointers) && ...);
}

// Whether a warp alone does better than a block on one head's rows.
inline bool short_sequences(const AttentionSizes& s) { return s.queries <= 32 && s.keys <= 64; }

// Calls body with the head width, rounded up to one that kernels are made for, as a constant.
template <class Body>
void dispatch_head(int head_dim, Body&& body) {
  if (head_dim <= 32) return body(std::integral_constant<int, 32>{});
  if (head_dim <= 64) return body(std::integral_constant<int, 64>{});
  body(std::integral_constant<int, 128>{});
}

}  // namespace ltx::cuda
