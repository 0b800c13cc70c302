// Sums over rows that depend on the shape alone, not on the number of threads.
#pragma once
#include <algorithm>

#include "common.h"

namespace ltx::cpu {

// rows (of `columns` elements) are in runs of `run` rows. body(begin, end, sums) adds rows of one run to sums[width];
// finish(run index, sums, total) gets each run's sums once and may add to total[width], which is summed over all runs.
// Long runs are cut into slabs, whose sums meet in double; short ones are finished on the thread that summed them,
// unless in_order asks for finish to be called from the first run to the last on the calling thread. cost: nanoseconds
// an element. Both body and finish find their thread's number in omp_get_thread_num(). Sum is what is added up in:
// float, or double where terms may cancel.
template <class Sum = float, class Body, class Finish>
void sum_columns(int64_t rows, int64_t run, int64_t columns, int64_t width, double cost, bool in_order, double* total,
                 Body&& body, Finish&& finish) {
  if (total) std::fill_n(total, width, 0.0);
  if (!rows || !columns) return;
  const int threads = omp_get_max_threads();
  const int64_t chunk = std::clamp<int64_t>(8192 / columns, 64, 256);  // rows that are added up in one f32 chain
  const int64_t want = std::max<int64_t>(chunk, 131072 / columns), runs = rows / run;
  const auto accumulate = [&](int64_t begin, int64_t end, Sum* chain, Sum* sums) {
    std::fill_n(sums, width, Sum{0});
    if (end - begin <= chunk) return body(begin, end, sums);
    for (int64_t r = begin; r < end; r += chunk) {
      std::fill_n(chain, width, Sum{0});
      body(r, std::min(end, r + chunk), chain);
#pragma omp simd
      for (int64_t c = 0; c < width; ++c) sums[c] += chain[c];
    }
  };

  if (in_order || 2 * run > want) {
    const int64_t slabs = (run + want - 1) / want, rows_per_slab = (run + slabs - 1) / slabs;
    Sum* partial = scratch<Sum>(3, (runs * slabs + threads) * width);
    Sum* chains = partial + runs * slabs * width;
    parallel(runs * slabs, static_cast<double>(rows_per_slab * columns) * cost, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t first = i / slabs * run, offset = i % slabs * rows_per_slab;
        accumulate(first + std::min(run, offset), first + std::min(run, offset + rows_per_slab),
                   chains + omp_get_thread_num() * width, partial + i * width);
      }
    });
    for (int64_t i = 0; i < runs; ++i) {
      Sum* sums = partial + i * slabs * width;
      for (int64_t c = 0; c < width && slabs > 1; ++c) {
        double sum = 0;
        for (int64_t s = 0; s < slabs; ++s) sum += sums[s * width + c];
        sums[c] = static_cast<Sum>(sum);
      }
      finish(i, sums, total);
    }
    return;
  }

  const int64_t per_slab = std::max<int64_t>(1, want / run), slabs = (runs + per_slab - 1) / per_slab;
  double* totals = scratch<double>(3, slabs * width + threads * 2 * width);
  Sum* buffers = reinterpret_cast<Sum*>(totals + slabs * width);
  parallel(slabs, static_cast<double>(std::min(per_slab, runs) * run * columns) * cost,
           [&](int64_t begin, int64_t end) {
             Sum* sums = buffers + omp_get_thread_num() * 2 * width;
             for (int64_t s = begin; s < end; ++s) {
               double* slab_total = totals + s * width;
               std::fill_n(slab_total, width, 0.0);
               for (int64_t i = s * per_slab; i < std::min(runs, (s + 1) * per_slab); ++i) {
                 accumulate(i * run, (i + 1) * run, sums + width, sums);
                 finish(i, sums, slab_total);
               }
             }
           });
  for (int64_t s = 0; s < slabs && total; ++s) {
    for (int64_t c = 0; c < width; ++c) total[c] += totals[s * width + c];
  }
}

}  // namespace ltx::cpu
