// What the two attention kernels do to rows of q, k and v outside the softmax: RMS norm and rotation and their
// adjoints, the way between token rows (L, heads * head_dim) and one float32 matrix a head, and the sharing of a call's
// batch entries among threads.
#pragma once
#include <cmath>
#include <type_traits>
#include <vector>

#include "common.h"
#include "small_gemm.h"
#include "vmath.h"

namespace ltx::cpu::attention_detail {

using gemm_detail::Lanes;
using gemm_detail::load_lanes;
using gemm_detail::store_lanes;

// Keys of one transposed panel: the columns that a tile of small_gemm computes at once.
constexpr int64_t kPanel = kTileColumns;
// Rows that are packed as one piece of work.
constexpr int64_t kRowGroup = 2 * kLanes;
// Rows whose weight gradients are summed into one partial result.
constexpr int64_t kChunk = 64;

// Lanes changed places with their neighbours.
inline Lanes swap_pairs(Lanes x) {
#if defined(__AVX512F__)
  return __builtin_shufflevector(x, x, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14);
#else
  return __builtin_shufflevector(x, x, 1, 0, 3, 2, 5, 4, 7, 6);
#endif
}
inline Lanes alternating_signs() {
  Lanes sign;
  for (int i = 0; i < kLanes; ++i) sign[i] = i % 2 ? 1.0f : -1.0f;
  return sign;
}

// y = (a cos - b sin, b cos + a sin) on channel pairs, or the adjoint of that map. y may be x.
template <bool kAdjoint>
void rotate(const float* x, const float* cos, const float* sin, float* y, int64_t n) {
  const Lanes sign = alternating_signs();
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    const Lanes v = load_lanes(x + i), c = load_lanes(cos + i), s = load_lanes(sin + i);
    store_lanes(y + i, kAdjoint ? v * c - sign * swap_pairs(v * s) : v * c + sign * (swap_pairs(v) * s));
  }
  for (; i + 1 < n; i += 2) {
    const float a = x[i], b = x[i + 1];
    y[i] = kAdjoint ? a * cos[i] + b * sin[i + 1] : a * cos[i] - b * sin[i];
    y[i + 1] = kAdjoint ? b * cos[i + 1] - a * sin[i] : b * cos[i + 1] + a * sin[i + 1];
  }
}

template <class From, class To>
void convert(const From* x, To* y, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) y[i] = static_cast<float>(x[i]);
}

inline float dot_product(const float* a, const float* b, int64_t n) {
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; ++i) sum += a[i] * b[i];
  return sum;
}

// Transposes kLanes rows of `columns` floats (a multiple of kLanes); rows of the result are `pitch` apart.
inline void transpose_rows(const float* x, int64_t columns, float* y, int64_t pitch) {
  for (int64_t column = 0; column < columns; column += kLanes) {
    Lanes rows[kLanes], mixed[kLanes];
    for (int i = 0; i < kLanes; ++i) rows[i] = load_lanes(x + i * columns + column);
    // log2(kLanes) perfect shuffles of the rows' elements.
    for (int step = 1; step < kLanes; step *= 2) {
#pragma GCC unroll 8
      for (int i = 0; i < kLanes / 2; ++i) {
        const Lanes a = rows[i], b = rows[i + kLanes / 2];
#if defined(__AVX512F__)
        mixed[2 * i] = __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
        mixed[2 * i + 1] = __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
#else
        mixed[2 * i] = __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11);
        mixed[2 * i + 1] = __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15);
#endif
      }
      for (int i = 0; i < kLanes; ++i) rows[i] = mixed[i];
    }
    for (int i = 0; i < kLanes; ++i) store_lanes(y + (column + i) * pitch, rows[i]);
  }
}

// How the token rows of one batch entry lie head by head: (heads, padded, pitch), where the rows behind `length` and
// the columns behind head_dim are zero. Transposed, a head is a row of panels (pitch, width) of kPanel keys each, the
// last of them narrower. An entry has `stored` rows in the operands; those behind `length` count for nothing.
struct HeadLayout {
  int64_t heads, head_dim, length;
  int64_t stored = length;
  int64_t pitch = round_to_lanes(head_dim);
  int64_t padded = round_to_lanes(length);
  int64_t channels() const { return heads * head_dim; }
  int64_t head_size() const { return padded * pitch; }
  int64_t size() const { return heads * head_size(); }
  int64_t groups() const { return (length + kRowGroup - 1) / kRowGroup; }
  int64_t chunks() const { return (stored + kChunk - 1) / kChunk; }
  int64_t panel_width(int64_t key) const { return std::min(kPanel, padded - key); }
  HeadLayout first(int64_t rows) const { return HeadLayout{heads, head_dim, rows, stored}; }
};

// One of q and k: what is applied to its rows before the heads are split.
template <class T>
struct Projection {
  const T* x;                                  // (B, L, D)
  const float* weight;                         // (D) or null: no norm
  float* rstd;                                 // (B, L) or null
  const float *cos = nullptr, *sin = nullptr;  // (L, D) or null: no rotation
  float factor = 1.0f;
};

// Packs the rows of one group of batch entry b: into `rows`, and into the transposed panels if these are asked for.
// known_rstd: rstd was stored by the forward pass. line: D floats.
template <class T>
void pack_group(const Projection<T>& p, bool known_rstd, double eps, const HeadLayout& at, int64_t b, int64_t group,
                float* rows, float* panels, float* line) {
  const int64_t d = at.channels(), begin = group * kRowGroup, end = std::min(begin + kRowGroup, at.length);
  if (begin >= end) return;
  for (int64_t i = begin; i < end; ++i) {
    const T* x = p.x + (b * at.stored + i) * d;
    const float* source = line;
    if constexpr (std::is_same_v<T, float>) source = x;
    if (source == line) convert(x, line, d);
    if (p.weight) {
      float rstd;
      if (known_rstd) {
        rstd = p.rstd[b * at.stored + i];
      } else {
        rstd = static_cast<float>(1.0 / std::sqrt(static_cast<double>(dot_product(source, source, d)) / d + eps));
        if (p.rstd) p.rstd[b * at.stored + i] = rstd;
      }
      const float factor = rstd * p.factor;
      const float* weight = p.weight;
#pragma omp simd
      for (int64_t c = 0; c < d; ++c) line[c] = source[c] * factor * weight[c];
      source = line;
    } else if (p.factor != 1.0f) {
      const float factor = p.factor;
#pragma omp simd
      for (int64_t c = 0; c < d; ++c) line[c] = source[c] * factor;
      source = line;
    }
    if (p.cos) {
      rotate<false>(source, p.cos + i * d, p.sin + i * d, line, d);
      source = line;
    }
    for (int64_t h = 0; h < at.heads; ++h) {
      float* out = rows + h * at.head_size() + i * at.pitch;
      std::memcpy(out, source + h * at.head_dim, at.head_dim * sizeof(float));
      std::memset(out + at.head_dim, 0, (at.pitch - at.head_dim) * sizeof(float));
    }
  }
  const int64_t padded_end = round_to_lanes(end);
  for (int64_t h = 0; h < at.heads; ++h) {
    float* head = rows + h * at.head_size();
    std::memset(head + end * at.pitch, 0, (padded_end - end) * at.pitch * sizeof(float));
    if (!panels) continue;
    for (int64_t i = begin; i < padded_end; i += kLanes) {
      const int64_t start = i / kPanel * kPanel;
      transpose_rows(head + i * at.pitch, at.pitch, panels + h * at.head_size() + start * at.pitch + (i - start),
                     at.panel_width(start));
    }
  }
}

// The adjoint of pack_group for one chunk of rows: dx from the gradient of the packed rows (`parts` arrays of
// part_stride floats that are summed) and, into partial (D), the chunk's share of dweight. line: 2 D floats.
template <class T>
void unpack_chunk(const Projection<T>& p, float factor, const HeadLayout& at, int64_t b, int64_t chunk,
                  const float* rows, int64_t parts, int64_t part_stride, T* dx, float* partial, float* line) {
  const int64_t d = at.channels(), begin = chunk * kChunk, stop = std::min(begin + kChunk, at.stored);
  const int64_t end = std::clamp(at.length, begin, stop);
  std::fill(dx + (b * at.stored + end) * d, dx + (b * at.stored + stop) * d, T(0.0f));
  if (partial) std::memset(partial, 0, d * sizeof(float));
  for (int64_t i = begin; i < end; ++i) {
    for (int64_t h = 0; h < at.heads; ++h) {
      const float* in = rows + h * at.head_size() + i * at.pitch;
      float* out = line + h * at.head_dim;
      const int64_t n = at.head_dim;
#pragma omp simd
      for (int64_t c = 0; c < n; ++c) out[c] = in[c] * factor;
      for (int64_t part = 1; part < parts; ++part) {
        const float* more = in + part * part_stride;
#pragma omp simd
        for (int64_t c = 0; c < n; ++c) out[c] += more[c] * factor;
      }
    }
    if (p.cos) rotate<true>(line, p.cos + i * d, p.sin + i * d, line, d);
    const int64_t row = b * at.stored + i;
    if (p.weight) {
      float* normed = line + d;
      const T* x = p.x + row * d;
      const float rstd = p.rstd[row];
      const float* weight = p.weight;
      float sum = 0;
#pragma omp simd reduction(+ : sum)
      for (int64_t c = 0; c < d; ++c) {
        normed[c] = static_cast<float>(x[c]) * rstd;
        sum += line[c] * weight[c] * normed[c];
      }
      const float mean = sum / static_cast<float>(d);
      if (partial) {
#pragma omp simd
        for (int64_t c = 0; c < d; ++c) partial[c] += line[c] * normed[c];
      }
#pragma omp simd
      for (int64_t c = 0; c < d; ++c) line[c] = rstd * (line[c] * weight[c] - normed[c] * mean);
    }
    convert(line, dx + row * d, d);
  }
}

// How many keys, from the first one on, count in every batch entry: those up to the last whose mask does not make every
// probability exactly 0. Norms bound the scores without a look at q and k: |score| <= D scale max|q_weight|
// max|k_weight|, so below the greatest mask less twice that bound softmax_exp gives 0. Text is padded behind its words,
// and their keys are most of what cross-attention would work on.
template <class T>
std::vector<int64_t> counted_keys(const Projection<T>& q, const Projection<T>& k, const float* mask, bool bias,
                                  int64_t batch, const HeadLayout& keys) {
  std::vector<int64_t> counts(static_cast<size_t>(batch), keys.length);
  if (!mask || bias || !q.weight || !k.weight || k.cos || !keys.length) return counts;
  const auto largest = [&](const float* weight) {
    float most = 0;
    for (int64_t c = 0; c < keys.channels(); ++c) most = std::max(most, std::fabs(weight[c]));
    return most;
  };
  const float bound = 1.01f * keys.channels() * std::fabs(q.factor) * largest(q.weight) * largest(k.weight);
  for (int64_t b = 0; b < batch; ++b) {
    const float* row = mask + b * keys.length;
    const float low = *std::max_element(row, row + keys.length) - 2 * bound - 90.0f;
    while (counts[b] > 1 && row[counts[b] - 1] < low) --counts[b];
  }
  return counts;
}

// The mask of one batch entry, with -infinity behind the last key.
inline void pack_mask(const float* mask, const HeadLayout& keys, float* packed) {
  if (mask) {
    std::memcpy(packed, mask, keys.length * sizeof(float));
  } else {
    std::memset(packed, 0, keys.length * sizeof(float));
  }
  std::fill(packed + keys.length, packed + keys.padded, -INFINITY);
}

// e^x for x that is not far above zero; below -87 exactly 0, because subnormal results are slow and masked keys common.
LTX_INLINE float softmax_exp(float x) {
  int32_t n;
  const float e = 1.0f + vmath::reduced_expm1(at_least(x, -87.0f), n);
  const float y = e * vmath::power_of_two(n);
  return x < -87.0f ? 0.0f : y;
}

// A step in the work on one batch entry: run(b, workspace, local, unit) for `units` units, in any order.
template <class Run>
struct Phase {
  int64_t units;
  Run run;
};
template <class Run>
Phase(int64_t, Run) -> Phase<Run>;

// Runs the phases one after another on every batch entry, each with a workspace of entry_floats. Many small entries
// are shared out whole, so that a thread's entry stays in its cache; of few or large ones the units are shared out.
// local: local_floats of a thread's own. nanoseconds: the rough cost of an entry.
template <class... Run>
void for_entries(int64_t batch, int64_t entry_floats, int64_t local_floats, double nanoseconds, Phase<Run>... phases) {
  constexpr int64_t kSmallEntry = int64_t{1} << 20, kWorkspace = int64_t{1} << 26;
  if (batch <= 0) return;
  const int threads = batch * nanoseconds < 20000 ? 1 : omp_get_max_threads();
  local_floats = round_to_lanes(local_floats) + kLanes;
  float* locals = scratch<float>(1, threads * local_floats);
  if (threads == 1 || (batch >= threads && entry_floats <= kSmallEntry)) {
    float* workspaces = scratch<float>(0, threads * entry_floats);
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t b = 0; b < batch; ++b) {
      const int id = omp_get_thread_num();
      const auto all = [&](auto& phase) {
        for (int64_t i = 0; i < phase.units; ++i)
          phase.run(b, workspaces + id * entry_floats, locals + id * local_floats, i);
      };
      (all(phases), ...);
    }
    return;
  }
  const int64_t together = std::clamp(kWorkspace / std::max<int64_t>(entry_floats, 1), int64_t{1}, batch);
  float* workspaces = scratch<float>(0, together * entry_floats);
  for (int64_t first = 0; first < batch; first += together) {
    const int64_t entries = std::min(together, batch - first);
    const auto shared = [&](auto& phase) {
      const int64_t total = entries * phase.units, piece = std::max<int64_t>(1, total / (threads * 16));
#pragma omp parallel for schedule(dynamic, piece) num_threads(threads)
      for (int64_t i = 0; i < total; ++i) {
        const int64_t entry = i / phase.units;
        phase.run(first + entry, workspaces + entry * entry_floats, locals + omp_get_thread_num() * local_floats,
                  i % phase.units);
      }
    };
    (shared(phases), ...);
  }
}

}  // namespace ltx::cpu::attention_detail
