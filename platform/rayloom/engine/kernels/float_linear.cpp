// Linear layers with float32 weights where they lie: rows of input features, as the model has them.
//
// A tile is 4 rows times 4 output features: 16 dot products, each over 16 lanes of input features, that are added up
// across lanes at once in the end. Inputs of 16 rows and weights of 4 features stay in the first cache while they
// meet, weights of a band of features in the second while all rows pass. Every output is a sum of the same terms in the
// same order whatever rows are beside it. A matrix library packs weights anew in each call, which few rows do not
// pay for; and it adds in another order for 3 rows than for 30.
#include <algorithm>

#include "float_tiles.h"
#include "vectors.h"

namespace {

constexpr int TILE = 4, ROWS = 16, BAND = 128, DEPTH = 512;
constexpr int64_t WORTH = 1 << 19;

typedef float f4 __attribute__((vector_size(16)));

// Where the sum of row r and feature c goes before `fold`, so that it comes out at lane 4 r + c: its bits backwards.
constexpr int place_of(int r, int c) { return r >> 1 | (r & 1) << 1 | (c >> 1) << 2 | (c & 1) << 3; }

// Half the vectors: the lanes whose number has `DISTANCE` are added to those without; of a in these, of b in those.
template <int DISTANCE>
INLINE f16 folded(f16 a, f16 b) {
    const i16 lanes = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    const i16 upper = (lanes & DISTANCE) != 0;
    const f16 stay = upper ? b : a, cross = __builtin_shuffle(a, b, upper ? lanes - DISTANCE + 16 : lanes + DISTANCE);
    return stay + cross;
}

// The lanes of sixteen vectors, each added up: bit 0 of a vector's number becomes bit 3 of its lane, and so on.
INLINE f16 fold(f16* sums) {
    for (int i = 0; i < 8; i++) sums[i] = folded<8>(sums[2 * i], sums[2 * i + 1]);
    for (int i = 0; i < 4; i++) sums[i] = folded<4>(sums[2 * i], sums[2 * i + 1]);
    for (int i = 0; i < 2; i++) sums[i] = folded<2>(sums[2 * i], sums[2 * i + 1]);
    return folded<1>(sums[0], sums[1]);
}

// R rows from `x` on times 4 features, over whole vectors; `next` are weights that are wanted soon.
template <int R>
INLINE f16 multiply(const float* x, const float* const* w, int depth, const float* next) {
    f16 sums[16] = {};
    for (int k = 0; k + 16 <= depth; k += 16) {
        f16 features[TILE];
        for (int c = 0; c < TILE; c++) features[c] = load(w[c] + k);
        __builtin_prefetch(next + k);
        for (int r = 0; r < R; r++) {
            const f16 row = load(x + r * DEPTH + k);
            for (int c = 0; c < TILE; c++) sums[place_of(r, c)] += row * features[c];
        }
    }
    return fold(sums);
}

// What input features behind the last whole vector add.
f16 multiply_rest(const float* x, const float* const* w, int depth, int num_rows) {
    float sums[16] = {};
    for (int r = 0; r < num_rows; r++)
        for (int c = 0; c < TILE; c++)
            for (int k = depth / 16 * 16; k < depth; k++) sums[r * TILE + c] += x[r * DEPTH + k] * w[c][k];
    return load(sums);
}

// target = before + sums, of a tile's features in one row.
INLINE void add(const float* sums, const float* before, int features, float* target) {
    if (features == TILE) {
        f4 total;
        memcpy(&total, sums, sizeof(total));
        if (before) {
            f4 old;
            memcpy(&old, before, sizeof(old));
            total += old;
        }
        memcpy(target, &total, sizeof(total));
        return;
    }
    for (int c = 0; c < features; c++) target[c] = before ? sums[c] + before[c] : sums[c];
}

// Up to 16 rows from row0 on, copied next to each other in `x`, times 4 features from `feature` on, over input features
// start ... start + depth.
INLINE void strip(const Problem& p, const float* x, int row0, int feature, int start, int depth) {
    const float* w[TILE];
    for (int c = 0; c < TILE; c++) w[c] = p.weights + std::min(feature + c, p.width - 1) * p.stride + start;
    const int num_rows = std::min(ROWS, p.num_rows - row0), features = std::min(TILE, p.width - feature);
    for (int row = 0; row < num_rows; row += TILE) {
        const int count = std::min(TILE, num_rows - row), ahead = std::min(feature + TILE + row / TILE, p.width - 1);
        const float *rows = x + row * DEPTH, *next = p.weights + ahead * p.stride + start;
        f16 sums;
        switch (count) {
            case 1: sums = multiply<1>(rows, w, depth, next); break;
            case 2: sums = multiply<2>(rows, w, depth, next); break;
            case 3: sums = multiply<3>(rows, w, depth, next); break;
            default: sums = multiply<4>(rows, w, depth, next);
        }
        if (depth % 16) sums += multiply_rest(rows, w, depth, count);
        float lanes[16];
        store(lanes, sums);
        for (int r = 0; r < count; r++) {
            float* target = p.out + int64_t(row0 + row + r) * p.width + feature;
            add(lanes + r * TILE, start ? target : p.bias ? p.bias + feature : nullptr, features, target);
        }
    }
}

// All rows times the features from `first` to `last`.
void band(const Problem& p, int first, int last) {
    alignas(64) float x[ROWS * DEPTH];  // rows a power of two apart would share few lines of the first cache
    for (int start = 0; start < p.depth; start += DEPTH) {
        const int depth = std::min(DEPTH, p.depth - start);
        for (int row0 = 0; row0 < p.num_rows; row0 += ROWS) {
            for (int r = 0; r < std::min(ROWS, p.num_rows - row0); r++)
                memcpy(x + r * DEPTH, p.x + int64_t(row0 + r) * p.depth + start, depth * sizeof(float));
            for (int feature = first; feature < last; feature += TILE) strip(p, x, row0, feature, start, depth);
        }
    }
}

}  // namespace

// out = x W^T + bias (may be null).
extern "C" void linear_fp32(float* out, const float* x, const float* weights, int64_t stride, const float* bias,
                            int num_rows, int depth, int width) {
    const Problem p = {out, x, weights, bias, stride, num_rows, depth, width};
    if (multiply_by_tiles(p)) return;
#pragma omp parallel for schedule(static) num_threads(threads_for(int64_t(num_rows) * depth * width, WORTH))
    for (int first = 0; first < width; first += BAND) band(p, first, std::min(first + BAND, width));
}
