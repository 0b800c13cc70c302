// Attention forward: softmax(q k^T scale + mask + bias) v a head, with q and k normed and rotated on the way in,
// without storing the scores; and the rotation alone.
#include "attention_rows.h"

namespace ltx::cpu {
namespace {

using namespace attention_detail;

constexpr int64_t kQueryBlock = 48;
constexpr int64_t kKeyBlock = 128;
static_assert(kKeyBlock % kPanel == 0);

// Adds the mask to a row of scores and returns the greatest.
float masked_maximum(float* scores, const float* mask, int64_t n) {
  Lanes most = load_lanes(scores) + load_lanes(mask);
  store_lanes(scores, most);
  for (int64_t i = kLanes; i < n; i += kLanes) {
    const Lanes v = load_lanes(scores + i) + load_lanes(mask + i);
    store_lanes(scores + i, v);
    most = v > most ? v : most;
  }
  float lanes[kLanes];
  store_lanes(lanes, most);
  for (int half = kLanes / 2; half > 0; half /= 2) {
#pragma omp simd
    for (int i = 0; i < half; ++i) lanes[i] = lanes[i] > lanes[i + half] ? lanes[i] : lanes[i + half];
  }
  return lanes[0];
}

float exponentials(float* scores, float maximum, int64_t n) {
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; ++i) {
    const float p = softmax_exp(scores[i] - maximum);
    scores[i] = p;
    sum += p;
  }
  return sum;
}

// One block of queries of one head. mask: (padded keys); bias: a row of (keys) for every query, or null. out:
// (kQueryBlock, pitch). Returns through y (rows of `channels`) and lse.
template <class T>
void attend(const float* q, int64_t rows, const HeadLayout& keys, const float* k_panels, const float* v,
            const float* mask, const float* bias, float* out, T* y, float* lse) {
  alignas(64) float scores[kQueryBlock * kKeyBlock];
  float maximum[kQueryBlock], sum[kQueryBlock] = {};
  std::fill(maximum, maximum + rows, -INFINITY);
  const int64_t pitch = keys.pitch;
  for (int64_t key = 0; key < keys.length; key += kKeyBlock) {
    const int64_t width = std::min(kKeyBlock, keys.padded - key);
    for (int64_t panel = 0; panel < width; panel += kPanel) {
      const int64_t columns = keys.panel_width(key + panel);
      small_gemm(rows, columns, keys.head_dim, q, pitch, 1, k_panels + (key + panel) * pitch, columns, scores + panel,
                 kKeyBlock, false);
    }
    for (int64_t i = 0; i < rows; ++i) {
      float* row = scores + i * kKeyBlock;
      if (bias) {
        const float* more = bias + i * keys.length + key;
        const int64_t n = std::min(width, keys.length - key);
#pragma omp simd
        for (int64_t j = 0; j < n; ++j) row[j] += more[j];
      }
      const float most = std::max(maximum[i], masked_maximum(row, mask + key, width));
      // Until a key that is not masked comes, the row's maximum is -infinity and its sum zero.
      const float base = most == -INFINITY ? 0.0f : most;
      const float shrink = softmax_exp(maximum[i] - base);
      sum[i] = sum[i] * shrink + exponentials(row, base, width);
      maximum[i] = most;
      if (key > 0 && shrink != 1.0f) {
        float* acc = out + i * pitch;
        for (int64_t c = 0; c < pitch; c += kLanes) store_lanes(acc + c, load_lanes(acc + c) * shrink);
      }
    }
    small_gemm(rows, pitch, std::min(kKeyBlock, keys.length - key), scores, kKeyBlock, 1, v + key * pitch, pitch, out,
               pitch, key > 0);
  }
  const int64_t n = keys.head_dim;
  for (int64_t i = 0; i < rows; ++i) {
    T* to = y + i * keys.channels();
    const float* from = out + i * pitch;
    lse[i] = sum[i] > 0 ? maximum[i] + std::log(sum[i]) : -INFINITY;
    if (!(sum[i] != 0)) {
      std::fill(to, to + n, T(0.0f));
      continue;
    }
    const float inverse = 1.0f / sum[i];
#pragma omp simd
    for (int64_t c = 0; c < n; ++c) to[c] = from[c] * inverse;
  }
}

template <class T>
void attention_forward(const Call& call) {
  const int64_t batch = call[0].dim(0), heads = call.integer(0), head_dim = call[0].dim(2) / heads;
  const HeadLayout queries{heads, head_dim, call[0].dim(1)}, keys{heads, head_dim, call[1].dim(1)};
  const double eps = call.scalar(1);
  const auto optional = [&](int i) { return call[i] ? call[i].data<float>() : nullptr; };
  const Projection<T> q{call[0].data<T>(), optional(3), optional(11),
                        optional(5),       optional(6), static_cast<float>(call.scalar(2))};
  const Projection<T> k{call[1].data<T>(), optional(4), optional(12), optional(5), optional(6)};
  const Projection<T> v{call[2].data<T>(), nullptr, nullptr};
  const float *mask = optional(7), *bias = optional(8);
  T* y = call[9].data<T>();
  float* lse = call[10].data<float>();

  const int64_t at_k = queries.size(), at_panels = at_k + keys.size(), at_v = at_panels + keys.size();
  const int64_t at_mask = at_v + keys.size(), channels = queries.channels();
  const std::vector<int64_t> counts = counted_keys(q, k, mask, bias != nullptr, batch, keys);
  const Phase pack{queries.groups() + 2 * keys.groups() + 1, [&](int64_t b, float* work, float* line, int64_t unit) {
                     const HeadLayout counted = keys.first(counts[b]);
                     if (unit < queries.groups())
                       return pack_group(q, false, eps, queries, b, unit, work, nullptr, line);
                     if ((unit -= queries.groups()) < keys.groups())
                       return pack_group(k, false, eps, counted, b, unit, work + at_k, work + at_panels, line);
                     if ((unit -= keys.groups()) < keys.groups())
                       return pack_group(v, false, eps, counted, b, unit, work + at_v, nullptr, line);
                     pack_mask(mask ? mask + b * keys.length : nullptr, counted, work + at_mask);
                     if (k.rstd) std::fill_n(k.rstd + b * keys.length + counts[b], keys.length - counts[b], 0.0f);
                   }};
  const int64_t blocks = (queries.length + kQueryBlock - 1) / kQueryBlock;
  const Phase core{
      heads * blocks, [&](int64_t b, float* work, float* out, int64_t unit) {
        const int64_t h = unit / blocks, row = unit % blocks * kQueryBlock;
        const HeadLayout counted = keys.first(counts[b]);
        const int64_t head = h * counted.head_size();
        attend(work + h * queries.head_size() + row * queries.pitch, std::min(kQueryBlock, queries.length - row),
               counted, work + at_panels + head, work + at_v + head, work + at_mask,
               bias ? bias + (h * queries.length + row) * keys.length : nullptr, out,
               y + (b * queries.length + row) * channels + h * head_dim, lse + (b * heads + h) * queries.length + row);
      }};
  const double cost = 0.03 * channels * queries.length * keys.length + 0.5 * channels * (queries.length + keys.length);
  for_entries(batch, at_mask + keys.padded, std::max(channels, kQueryBlock * keys.pitch), cost, pack, core);
}

}  // namespace

void attention(const Call& call) {
  dispatch(call[0], [&](auto tag) { attention_forward<decltype(tag)>(call); });
}

void rope(const Call& call) {
  const Operand x = call[0], y = call[3];
  const int64_t length = x.dim(1), d = x.dim(2);
  const float *cos = call[1].data<float>(), *sin = call[2].data<float>();
  const bool inverse = call.integer(0) != 0;
  float* lines = scratch<float>(0, omp_get_max_threads() * (d + kLanes));
  dispatch(x, [&](auto tag) {
    using T = decltype(tag);
    parallel(x.dim(0) * length, 0.5 * d, [&](int64_t begin, int64_t end) {
      float* line = lines + omp_get_thread_num() * (d + kLanes);
      for (int64_t row = begin; row < end; ++row) {
        const float *c = cos + row % length * d, *s = sin + row % length * d;
        const T* from = x.data<T>() + row * d;
        T* to = y.data<T>() + row * d;
        const auto turn = [&](const float* in, float* out) {
          inverse ? rotate<true>(in, c, s, out, d) : rotate<false>(in, c, s, out, d);
        };
        if constexpr (std::is_same_v<T, float>) {
          turn(from, to);
        } else {
          convert(from, line, d);
          turn(line, line);
          convert(line, to, d);
        }
      }
    });
  });
}

}  // namespace ltx::cpu
