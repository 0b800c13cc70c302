// Attention backward: the probabilities are computed again from the stored log-sum-exp, block by block. All sums run in
// an order that depends on the shapes alone.
#include "attention_rows.h"

namespace ltx::cpu {
namespace {

using namespace attention_detail;

constexpr int64_t kQueryBlock = 64;
constexpr int64_t kKeyBlock = 128;
static_assert(kKeyBlock % kPanel == 0);

// Keys are cut into segments that threads work on at the same time, each with a dq of its own.
constexpr int64_t kSegment = 512;
constexpr int64_t kMaxSegments = 4;

// Pointers to the matrices of one head.
struct Head {
  const float *q, *dy;                   // (Lq, pitch), q times the scale
  const float *lse, *delta;              // (Lq); delta = sum over channels of y dy
  const float *k, *k_panels, *v_panels;  // as HeadLayout
  const float* mask;                     // (padded)
  float *dq, *dk, *dv;                   // rows as HeadLayout; dq is of this segment
};

// In place: scores to probabilities, and gradients of probabilities to gradients of scores.
void softmax_backward(float* scores, float* gradients, const float* mask, float lse, float delta, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    const float p = softmax_exp(scores[i] + mask[i] - lse);
    scores[i] = p;
    gradients[i] = p * (gradients[i] - delta);
  }
}

void attend_backward(const Head& head, const HeadLayout& queries, const HeadLayout& keys, int64_t first, int64_t last) {
  alignas(64) float p[kQueryBlock * kKeyBlock], ds[kQueryBlock * kKeyBlock];
  const int64_t pitch = keys.pitch;
  for (int64_t key = first; key < last; key += kKeyBlock) {
    const int64_t width = std::min(kKeyBlock, keys.padded - key), count = std::min(kKeyBlock, keys.length - key);
    for (int64_t row = 0; row < queries.length; row += kQueryBlock) {
      const int64_t rows = std::min(kQueryBlock, queries.length - row);
      const float *q = head.q + row * pitch, *dy = head.dy + row * pitch;
      for (int64_t panel = 0; panel < width; panel += kPanel) {
        const int64_t columns = keys.panel_width(key + panel), at = (key + panel) * pitch;
        small_gemm(rows, columns, keys.head_dim, q, pitch, 1, head.k_panels + at, columns, p + panel, kKeyBlock, false);
        small_gemm(rows, columns, keys.head_dim, dy, pitch, 1, head.v_panels + at, columns, ds + panel, kKeyBlock,
                   false);
      }
      for (int64_t i = 0; i < rows; ++i) {
        // A row without a key has the log-sum-exp -infinity; +infinity makes its probabilities zero.
        const float lse = head.lse[row + i] == -INFINITY ? INFINITY : head.lse[row + i];
        softmax_backward(p + i * kKeyBlock, ds + i * kKeyBlock, head.mask + key, lse, head.delta[row + i], width);
      }
      small_gemm(count, pitch, rows, p, 1, kKeyBlock, dy, pitch, head.dv + key * pitch, pitch, row > 0);
      small_gemm(count, pitch, rows, ds, 1, kKeyBlock, q, pitch, head.dk + key * pitch, pitch, row > 0);
      small_gemm(rows, pitch, count, ds, kKeyBlock, 1, head.k + key * pitch, pitch, head.dq + row * pitch, pitch,
                 key > first);
    }
  }
}

void sum_partials(const float* partials, int64_t count, int64_t channels, float* sum) {
  parallel(channels, 0.5 * count, [&](int64_t begin, int64_t end) {
    std::fill(sum + begin, sum + end, 0.0f);
    for (int64_t i = 0; i < count; ++i) {
      const float* row = partials + i * channels;
#pragma omp simd
      for (int64_t c = begin; c < end; ++c) sum[c] += row[c];
    }
  });
}

template <class T>
void attention_gradients(const Call& call) {
  const int64_t batch = call[0].dim(0), heads = call.integer(0), head_dim = call[0].dim(2) / heads;
  const HeadLayout queries{heads, head_dim, call[0].dim(1)}, keys{heads, head_dim, call[1].dim(1)};
  const double eps = call.scalar(1);
  const float scale = static_cast<float>(call.scalar(2));
  const auto optional = [&](int i) { return call[i] ? call[i].data<float>() : nullptr; };
  const Projection<T> q{call[0].data<T>(), optional(3), optional(10), optional(5), optional(6), scale};
  const Projection<T> k{call[1].data<T>(), optional(4), optional(11), optional(5), optional(6)};
  const Projection<T> v{call[2].data<T>(), nullptr, nullptr};
  const Projection<T> dy{call[12].data<T>(), nullptr, nullptr};
  const float *mask = optional(7), *lse = optional(9);
  const T* y = call[8].data<T>();
  T *dq = call[13].data<T>(), *dk = call[14].data<T>(), *dv = call[15].data<T>();
  float *dq_weight = optional(16), *dk_weight = optional(17);
  const int64_t channels = queries.channels(), q_size = queries.size(), k_size = keys.size();

  // Without queries or keys there is nothing to sum.
  if (!queries.length || !keys.length) {
    std::fill(dq, dq + call[0].size(), T(0.0f));
    std::fill(dk, dk + call[1].size(), T(0.0f));
    std::fill(dv, dv + call[2].size(), T(0.0f));
    if (dq_weight) std::fill(dq_weight, dq_weight + channels, 0.0f);
    if (dk_weight) std::fill(dk_weight, dk_weight + channels, 0.0f);
    return;
  }

  const int64_t q_partials = dq_weight ? batch * queries.chunks() : 0,
                k_partials = dk_weight ? batch * keys.chunks() : 0;
  float* partials = scratch<float>(2, (q_partials + k_partials) * channels + 1);
  const auto partial_of = [&](const float* wanted, int64_t offset, int64_t b, int64_t chunks, int64_t chunk) {
    return wanted ? partials + (offset + b * chunks + chunk) * channels : nullptr;
  };

  const int64_t segments = std::clamp(keys.length / kSegment, int64_t{1}, kMaxSegments);
  const int64_t blocks = (keys.length + kKeyBlock - 1) / kKeyBlock;
  const auto first_key = [&](int64_t segment) { return segment * blocks / segments * kKeyBlock; };
  int64_t floats = 0;
  const auto take = [&](int64_t n) { return std::exchange(floats, floats + round_to_lanes(n)); };
  const int64_t at_q = take(q_size), at_dy = take(q_size), at_dq = take(segments * q_size);
  const int64_t at_k = take(k_size), at_dk = take(k_size), at_dv = take(k_size);
  const int64_t at_k_panels = take(k_size), at_v_panels = take(k_size);
  const int64_t at_delta = take(heads * queries.length), at_mask = take(keys.padded);

  const std::vector<int64_t> counts = counted_keys(q, k, mask, false, batch, keys);
  const Phase pack{
      2 * queries.groups() + 2 * keys.groups() + 1, [&](int64_t b, float* work, float* line, int64_t unit) {
        if (unit < queries.groups()) return pack_group(q, true, eps, queries, b, unit, work + at_q, nullptr, line);
        if ((unit -= queries.groups()) < queries.groups()) {
          pack_group(dy, true, eps, queries, b, unit, work + at_dy, nullptr, line);
          const int64_t end = std::min((unit + 1) * kRowGroup, queries.length);
          for (int64_t i = unit * kRowGroup; i < end; ++i) {
            const T* row = y + (b * queries.length + i) * channels;
            const float* values = line;
            if constexpr (std::is_same_v<T, float>) {
              values = row;
            } else {
              convert(row, line, channels);
            }
            for (int64_t h = 0; h < heads; ++h)
              work[at_delta + h * queries.length + i] = dot_product(
                  values + h * head_dim, work + at_dy + h * queries.head_size() + i * queries.pitch, head_dim);
          }
          return;
        }
        const HeadLayout counted = keys.first(counts[b]);
        if ((unit -= queries.groups()) < keys.groups())
          return pack_group(k, true, eps, counted, b, unit, work + at_k, work + at_k_panels, line);
        // Only the panels of v are needed; its rows pass through the memory of dv.
        if ((unit -= keys.groups()) < keys.groups())
          return pack_group(v, true, eps, counted, b, unit, work + at_dv, work + at_v_panels, line);
        pack_mask(mask ? mask + b * keys.length : nullptr, counted, work + at_mask);
      }};
  const Phase core{heads * segments, [&](int64_t b, float* work, float*, int64_t unit) {
                     const HeadLayout counted = keys.first(counts[b]);
                     const int64_t h = unit / segments, segment = unit % segments;
                     const int64_t q_head = h * queries.head_size(), k_head = h * counted.head_size();
                     const Head head{work + at_q + q_head,
                                     work + at_dy + q_head,
                                     lse + (b * heads + h) * queries.length,
                                     work + at_delta + h * queries.length,
                                     work + at_k + k_head,
                                     work + at_k_panels + k_head,
                                     work + at_v_panels + k_head,
                                     work + at_mask,
                                     work + at_dq + segment * q_size + q_head,
                                     work + at_dk + k_head,
                                     work + at_dv + k_head};
                     attend_backward(head, queries, counted, first_key(segment),
                                     std::min(first_key(segment + 1), counts[b]));
                   }};
  const Phase unpack{queries.chunks() + 2 * keys.chunks(), [&](int64_t b, float* work, float* line, int64_t unit) {
                       if (unit < queries.chunks()) {
                         int64_t parts = segments;
                         while (first_key(parts - 1) >= counts[b]) --parts;
                         return unpack_chunk(q, scale, queries, b, unit, work + at_dq, parts, q_size, dq,
                                             partial_of(dq_weight, 0, b, queries.chunks(), unit), line);
                       }
                       const HeadLayout counted = keys.first(counts[b]);
                       if ((unit -= queries.chunks()) < keys.chunks())
                         return unpack_chunk(k, 1.0f, counted, b, unit, work + at_dk, 1, 0, dk,
                                             partial_of(dk_weight, q_partials, b, keys.chunks(), unit), line);
                       unpack_chunk(v, 1.0f, counted, b, unit - keys.chunks(), work + at_dv, 1, 0, dv, nullptr, line);
                     }};
  const double cost = 0.08 * channels * queries.length * keys.length + channels * (queries.length + keys.length);
  for_entries(batch, floats, 2 * channels, cost, pack, core, unpack);

  if (dq_weight) sum_partials(partials, q_partials, channels, dq_weight);
  if (dk_weight) sum_partials(partials + q_partials * channels, k_partials, channels, dk_weight);
}

}  // namespace

void attention_backward(const Call& call) {
  dispatch(call[0], [&](auto tag) { attention_gradients<decltype(tag)>(call); });
}

}  // namespace ltx::cpu
