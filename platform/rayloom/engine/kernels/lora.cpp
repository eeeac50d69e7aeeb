// Low-rank changes of many adapters in one step: y += (x downᵀ) up for each row with its own adapter's matrices,
// straight from the rows and into the output, where these lie.
//
// A step of single tokens reads an adapter's matrices for a row or two, so memory sets the pace: they may be bfloat16
// or int8, and while one adapter's are used the next one's are fetched. Inputs and sums are float32, and a row's sums
// have one order however many rows are taken together: rows never influence each other's bits.
//
// Matrices are padded with zeros to whole pairs of vectors, ranks to multiples of 8, so that nothing is left
// over but the output's last features.
#include <algorithm>
#include <vector>
#if defined(__AVX512F__)
#include <immintrin.h>
#endif

#include "vectors.h"

// One layer of a fused product, or the only one. As `_Part` in adapter_kernel.py, like all that follow.
struct LoraPart {
    const void* downs;               // (adapters, max_rank, padded input features)
    const void* ups;                 // (adapters, max_rank, padded width)
    const float* scales;             // (adapters, max_rank): what the reduced inputs are multiplied with
    const int32_t* ranks;            // of each adapter, 0 where it leaves the layer alone
    int64_t max_rank, first, width;  // first: of the output's features
};

// Rows of one adapter: `count` places of the list of rows from `first` on, 1, 2, 4 or 8.
struct LoraItem {
    int32_t adapter, first, count;
};

// Layers with the same input.
struct LoraLayers {
    const LoraPart* parts;
    int64_t num_parts, in_features, width;  // width: of the whole output
    int64_t row_work, weight_bytes;         // multiply-adds that a row takes at most
};

struct LoraRows {
    const int32_t* rows;  // of the step, by adapter
    const LoraItem* items;
    int64_t num_items, num_rows;
};

namespace {

constexpr int64_t WORTH = 1 << 19;  // multiply-adds; a thread team costs some microseconds
constexpr int PAIR = 32;            // lanes of two vectors
constexpr int RANK_STEP = 8;        // ranks are padded to multiples

INLINE int64_t padded(int64_t width) { return (width + PAIR - 1) / PAIR * PAIR; }

// ---- pairs of vectors: two halves in order, or of bfloat16 the even and the odd places -----------------------------

INLINE i16 load_integers(const int8_t* p) {
#if defined(__AVX512F__)
    return (i16)_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#else
    int32_t lanes[16];
    for (int i = 0; i < 16; i++) lanes[i] = p[i];
    i16 integers;
    memcpy(&integers, lanes, 64);
    return integers;
#endif
}

INLINE void load_both(const float* p, f16& a, f16& b) { a = load(p), b = load(p + 16); }
INLINE void load_both(const bf16* p, f16& a, f16& b) { load_pairs(p, a, b); }
INLINE void load_both(const int8_t* p, f16& a, f16& b) {
    a = __builtin_convertvector(load_integers(p), f16), b = __builtin_convertvector(load_integers(p + 16), f16);
}

// Inputs are brought into the order of the weights; what comes of weights is brought back.
INLINE void sort_both(const void*, f16&, f16&) {}
INLINE void sort_both(const bf16*, f16& a, f16& b) {
    const f16 first = a, second = b;
    a = __builtin_shuffle(first, second, (i16){0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30});
    b = __builtin_shuffle(first, second, (i16){1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31});
}
INLINE void unsort_both(const void*, f16&, f16&) {}
INLINE void unsort_both(const bf16*, f16& a, f16& b) {
    const f16 even = a, odd = b;
    a = low_pairs(even, odd), b = high_pairs(even, odd);
}

template <typename T>
INLINE void copy_pair(const float* x, float* target) {
    f16 a = load(x), b = load(x + 16);
    sort_both(static_cast<const T*>(nullptr), a, b);
    store(target, a);
    store(target + 16, b);
}

template <typename T>
INLINE void copy_inputs(const float* x, int width, float* target) {
    int i = 0;
    for (; i + PAIR <= width; i += PAIR) copy_pair<T>(x + i, target + i);
    if (i == width) return;
    float lanes[PAIR] = {};
    std::copy(x + i, x + width, lanes);
    copy_pair<T>(lanes, target + i);
}

INLINE void add_to(float* y, int64_t features, f16 a, f16 b) {
    if (features >= PAIR) {
        store(y, load(y) + a);
        store(y + 16, load(y + 16) + b);
        return;
    }
    float lanes[PAIR];
    store(lanes, a);
    store(lanes + 16, b);
    for (int i = 0; i < features; i++) y[i] += lanes[i];
}

// ---- down to the rank, and up to the output ------------------------------------------------------------------------

// The next adapter's matrix lies `ahead` bytes further: its lines are fetched in the order in which this one is read.
template <typename T>
INLINE void fetch(const T* w, int64_t ahead) {
    const char* line = reinterpret_cast<const char*>(w) + ahead;
    for (int64_t at = 0; at < PAIR * int64_t(sizeof(T)); at += 64) __builtin_prefetch(line + at, 0, 2);
}

// Lane i of the result is the sum of vector i's lanes. There are 8 vectors or 16.
template <int COUNT>
INLINE f16 sums_of(f16* v) {
    const i16 eights = {0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23};
    const i16 fours = {0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27};
    const i16 twos = {0, 1, 4, 5, 8, 9, 12, 13, 16, 17, 20, 21, 24, 25, 28, 29};
    const i16 ones = {0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30};
    const auto fold = [](f16 a, f16 b, i16 lower, int width) {
        return __builtin_shuffle(a, b, lower) + __builtin_shuffle(a, b, lower + width);
    };
    for (int i = 0; i < COUNT / 2; i++) v[i] = fold(v[2 * i], v[2 * i + 1], eights, 8);
    for (int i = 0; i < COUNT / 4; i++) v[i] = fold(v[2 * i], v[2 * i + 1], fours, 4);
    for (int i = 0; i < COUNT / 8; i++) v[i] = fold(v[2 * i], v[2 * i + 1], twos, 2);
    return fold(v[0], v[COUNT / 8 - 1], ones, 1);
}

template <int ROWS, typename T>
INLINE void down(const float* x, int64_t width, const T* w, const float* scales, int rank, int64_t ahead,
                 float* reduced) {
    constexpr int RANKS = std::min(RANK_STEP, 16 / ROWS);
    for (int k = 0; k < rank; k += RANKS) {
        f16 sums[ROWS * RANKS] = {};
        for (int64_t i = 0; i < width; i += PAIR)
            for (int j = 0; j < RANKS; j++) {
                const T* at = w + (k + j) * width + i;
                f16 a, b;
                load_both(at, a, b);
                fetch(at, ahead);
                for (int r = 0; r < ROWS; r++) {
                    f16& sum = sums[r * RANKS + j];
                    sum += load(x + r * width + i) * a;
                    sum += load(x + r * width + i + 16) * b;
                }
            }
        float totals[16];
        store(totals, sums_of<ROWS * RANKS>(sums));
        for (int r = 0; r < ROWS; r++)
            for (int j = 0; j < RANKS; j++) reduced[r * rank + k + j] = totals[r * RANKS + j] * scales[k + j];
    }
}

template <int ROWS, int PAIRS, typename T>
INLINE void up_block(const float* reduced, int rank, const T* w, int64_t width, int64_t at, int64_t ahead,
                     float* const* y) {
    f16 first[ROWS][PAIRS] = {}, second[ROWS][PAIRS] = {};
    for (int k = 0; k < rank; k++)
        for (int p = 0; p < PAIRS; p++) {
            const T* weights = w + k * padded(width) + at + p * PAIR;
            f16 a, b;
            load_both(weights, a, b);
            fetch(weights, ahead);
            for (int r = 0; r < ROWS; r++) {
                first[r][p] += reduced[r * rank + k] * a;
                second[r][p] += reduced[r * rank + k] * b;
            }
        }
    for (int r = 0; r < ROWS; r++)
        for (int p = 0; p < PAIRS; p++) {
            unsort_both(w, first[r][p], second[r][p]);
            add_to(y[r] + at + p * PAIR, width - at - p * PAIR, first[r][p], second[r][p]);
        }
}

template <int ROWS, typename T>
INLINE void up(const float* reduced, int rank, const T* w, int64_t width, int64_t ahead, float* const* y) {
    constexpr int PAIRS = std::min(4, 8 / ROWS);
    int64_t at = 0;
    for (; at + (PAIRS - 1) * PAIR < width; at += PAIRS * PAIR)
        up_block<ROWS, PAIRS>(reduced, rank, w, width, at, ahead, y);
    for (; at < width; at += PAIR) up_block<ROWS, 1>(reduced, rank, w, width, at, ahead, y);
}

// ---- items ---------------------------------------------------------------------------------------------------------

struct Call {
    float* y;
    const float* x;
    const LoraLayers& layers;
    const int32_t* rows;
};

template <int ROWS, typename T>
void add(const Call& c, const LoraItem& item, const LoraItem& next, float* inputs, float* reduced) {
    const int32_t* rows = c.rows + item.first;
    const int64_t in_features = c.layers.in_features, width = padded(in_features);
    const int64_t apart = (next.adapter - item.adapter) * int64_t(sizeof(T));
    for (int r = 0; r < ROWS; r++) copy_inputs<T>(c.x + rows[r] * in_features, int(in_features), inputs + r * width);
    for (int p = 0; p < c.layers.num_parts; p++) {
        const LoraPart& part = c.layers.parts[p];
        const int rank = part.ranks[item.adapter];
        const int64_t down_size = part.max_rank * width, up_size = part.max_rank * padded(part.width);
        const T* downs = static_cast<const T*>(part.downs) + item.adapter * down_size;
        const T* ups = static_cast<const T*>(part.ups) + item.adapter * up_size;
        float* y[ROWS];
        for (int r = 0; r < ROWS; r++) y[r] = c.y + rows[r] * c.layers.width + part.first;
        if (!rank) continue;
        const float* scales = part.scales + item.adapter * part.max_rank;
        down<ROWS>(inputs, width, downs, scales, rank, apart * down_size, reduced);
        up<ROWS>(reduced, rank, ups, part.width, apart * up_size, y);
    }
}

template <typename T>
void add_item(const Call& c, const LoraItem& item, const LoraItem& next) {
    int rank = 0;
    for (int p = 0; p < c.layers.num_parts; p++) rank = std::max(rank, c.layers.parts[p].ranks[item.adapter]);
    static thread_local std::vector<float> room;
    const size_t num_inputs = item.count * padded(c.layers.in_features);
    if (room.size() < num_inputs + item.count * rank) room.resize(num_inputs + item.count * rank);
    float *inputs = room.data(), *reduced = inputs + num_inputs;
    if (item.count == 8)
        add<8, T>(c, item, next, inputs, reduced);
    else if (item.count == 4)
        add<4, T>(c, item, next, inputs, reduced);
    else if (item.count == 2)
        add<2, T>(c, item, next, inputs, reduced);
    else
        add<1, T>(c, item, next, inputs, reduced);
}

}  // namespace

extern "C" void lora_add(float* y, const float* x, const LoraLayers* layers, const LoraRows* rows) {
    const Call c = {y, x, *layers, rows->rows};
    const LoraItem *items = rows->items, *last = items + rows->num_items - 1;
#pragma omp parallel for schedule(static) num_threads(threads_for(rows->num_rows * layers->row_work, WORTH))
    for (int64_t i = 0; i < rows->num_items; i++) {
        const LoraItem &item = items[i], &next = std::min(items + i + 1, last)[0];
        if (layers->weight_bytes == 1)
            add_item<int8_t>(c, item, next);
        else if (layers->weight_bytes == 2)
            add_item<bf16>(c, item, next);
        else
            add_item<float>(c, item, next);
    }
}
