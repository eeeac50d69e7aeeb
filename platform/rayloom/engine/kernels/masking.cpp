// Bit masks of allowed tokens over rows of scores.
#include <algorithm>
#include <limits>

#include "vectors.h"

namespace {

constexpr int64_t WORTH = 1 << 17;

const float LOWEST = -std::numeric_limits<float>::infinity();

// One word of a mask over up to 32 scores. Most words allow all or nothing.
INLINE void apply(uint32_t word, float* scores, int count) {
    const uint32_t all_of_them = count < 32 ? (1u << count) - 1 : ~0u;
    if ((word & all_of_them) == all_of_them) return;
    if ((word & all_of_them) == 0) {
        std::fill(scores, scores + count, LOWEST);
        return;
    }
    for (int i = 0; i < count; i++) scores[i] = word >> i & 1u ? scores[i] : LOWEST;
}

}  // namespace

// scores[rows[r]][v] = -inf where bit v of masks[r] is not set.
extern "C" void apply_masks(float* scores, int64_t stride, const int64_t* rows, const uint32_t* const* masks,
                            int num_rows, int width) {
#pragma omp parallel for schedule(static) num_threads(threads_for(int64_t(num_rows) * width, WORTH))
    for (int r = 0; r < num_rows; r++) {
        float* row = scores + rows[r] * stride;
        for (int v = 0; v < width; v += 32) apply(masks[r][v / 32], row + v, std::min(32, width - v));
    }
}
