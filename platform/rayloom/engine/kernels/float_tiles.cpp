// Linear layers with float32 weights on AMX, which multiplies bfloat16 only: a float32 is the sum of three bfloat16, and
// of the nine products of two such sums the six largest are taken (Henry, Tang and Heinecke, 2019). What is left out is
// smaller than float32's own rounding, and sums are float32: the result is as close as that of float32 products.
//
// Weights are split as they are read: in memory they stay float32, rows of input features as the model has them. They
// are the left operand, so that their rows need no turning; inputs are packed once per call. A block is 32 input
// features: lane j of a row holds features j + 16 and j. Every output is a sum of the same terms in the same order
// whatever rows are beside it.
#include <algorithm>

#include "buffers.h"
#include "tiles.h"
#include "vectors.h"

// out = x W^T + bias (may be null).
struct Problem {
    float* out;
    const float *x, *weights, *bias;
    int64_t stride;  // of the weights
    int num_rows, depth, width;
};

#if defined(__AMX_TILE__) && defined(__AMX_BF16__) && defined(__AVX512F__)
#include <immintrin.h>

namespace {

constexpr int BLOCK = 32, PAIR = 32, ROWS = 128, DEPTH = 1024, STEPS = DEPTH / BLOCK;
constexpr int TILE = 1024, SPLIT = 3 * TILE;  // bytes
constexpr int LEAD = 2;                       // blocks that are split ahead of their products
constexpr int64_t WORTH = 1 << 19;

// ---- one float32 is three bfloat16 ------------------------------------------------------------------------------

typedef u16 words;

INLINE words lanes(const float* p, __mmask16 mask) { return (words)_mm512_maskz_loadu_ps(mask, p); }
INLINE words minus(words a, words b) { return (words)((f16)a - (f16)b); }
INLINE words cut(words a) { return a & 0xffff0000u; }
INLINE words rounded(words a) { return cut(a + 0x8000u); }

// bfloat16 in the upper halves of both, in one vector.
INLINE words packed(words upper, words lower) { return upper | lower >> 16; }

INLINE void store(char* p, words a) { memcpy(p, &a, 64); }

// Which of a block's two vectors' lanes exist.
struct Lanes {
    __mmask16 first, second;
    explicit Lanes(int depth) : first(mask(depth)), second(mask(depth - 16)) {}
    static __mmask16 mask(int n) { return __mmask16((1u << std::clamp(n, 0, 16)) - 1); }
};

// Cutting is faster than rounding and loses nothing: three times eight bits are all that there are.
INLINE void split_weights(const float* w, const Lanes& lane, char* target) {
    words a = lanes(w, lane.first), b = lanes(w + 16, lane.second);
    for (int part = 0; part < 3; part++) {
        const words a1 = cut(a), b1 = cut(b);
        store(target + part * TILE, packed(a1, b1));
        a = minus(a, a1);
        b = minus(b, b1);
    }
}

// Inputs are rounded, so that what is left out of the products falls to either side.
INLINE void split_inputs(const float* x, const Lanes& lane, words* parts, int apart) {
    words a = lanes(x, lane.first), b = lanes(x + 16, lane.second);
    for (int part = 0; part < 3; part++) {
        const words a1 = rounded(a), b1 = rounded(b);
        parts[part * apart] = packed(a1, b1);
        a = minus(a, a1);
        b = minus(b, b1);
    }
}

template <int DISTANCE>
INLINE void swap_lanes(words* v) {
    const i16 lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    const i16 upper = (lane & DISTANCE) != 0;
    const i16 low = upper ? lane - DISTANCE + 16 : lane, high = upper ? lane + 16 : lane + DISTANCE;
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++) {
        if (i & DISTANCE) continue;
        const words a = v[i], b = v[i + DISTANCE];
        v[i] = __builtin_shuffle(a, b, low);
        v[i + DISTANCE] = __builtin_shuffle(a, b, high);
    }
}

INLINE void transpose(words* v) {
    swap_lanes<1>(v);
    swap_lanes<2>(v);
    swap_lanes<4>(v);
    swap_lanes<8>(v);
}

// Up to 16 rows of one block: three tiles.
void pack_inputs(const float* x, int64_t stride, int num_rows, const Lanes& lane, char* target) {
    words parts[3][16] = {};
    for (int r = 0; r < num_rows; r++) split_inputs(x + r * stride, lane, parts[0] + r, 16);
#pragma GCC unroll 3
    for (int part = 0; part < 3; part++) {
        transpose(parts[part]);
#pragma GCC unroll 16
        for (int i = 0; i < 16; i++) store(target + part * TILE + i * 64, parts[part][i]);
    }
}

// ---- products: two tiles of features times one or two of rows ----------------------------------------------------

struct Weights {
    const float* start;
    int64_t stride;
    const float* next;  // wanted soon
};

// Where split weights go: a place per block if more rows will want them, else a few places in turn.
struct Strip {
    char* data;
    int places;  // a power of two
    char* at(int step) const { return data + (step & (places - 1)) * 2 * SPLIT; }
};

// Rows FROM ... TO of a pair's block.
template <int FROM, int TO>
INLINE void split(const Weights& w, int step, const Lanes& lane, char* target) {
#pragma GCC unroll 32
    for (int r = FROM; r < TO; r++) {
        const int64_t place = r * w.stride + step * BLOCK;
        _mm_prefetch(w.next + place, _MM_HINT_T1);
        _mm_prefetch(w.next + place + 16, _MM_HINT_T1);
        split_weights(w.start + place, lane, target + r / 16 * SPLIT + r % 16 * 64);
    }
    asm volatile("" ::: "memory");  // tile loads do not tell the compiler that they read memory
}

#define LOAD_WEIGHTS(part)                               \
    do {                                                 \
        _tile_loadd(4, w + part * TILE, 64);             \
        _tile_loadd(5, w + SPLIT + part * TILE, 64);     \
    } while (0)
#define LOAD_INPUTS(part)                                       \
    do {                                                        \
        _tile_loadd(6, x + part * TILE, 64);                    \
        if (TWO) _tile_loadd(7, x + apart + part * TILE, 64);   \
    } while (0)

template <bool TWO>
INLINE void multiply() {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(2, 5, 6);
    if (!TWO) return;
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(3, 5, 7);
}

// Sums of a pair's 32 features in 16 or 32 rows over all blocks. MEANWHILE splits rows of a later block between the
// products, which leaves neither the tiles nor the vectors waiting.
template <bool TWO, bool SPLITTING>
INLINE void sum_up(const Weights& weights, const Strip& strip, const char* x, int64_t apart, int depth, char* sums) {
    const int steps = (depth + BLOCK - 1) / BLOCK;
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    if (SPLITTING)
        for (int k = 0; k < std::min(LEAD, steps); k++) split<0, PAIR>(weights, k, Lanes(depth - k * BLOCK), strip.at(k));
    for (int k = 0; k < steps; k++, x += SPLIT) {
        const char* w = strip.at(k);
        const int later = k + LEAD;
        const bool splitting = SPLITTING && later < steps;
        const Lanes lane(depth - later * BLOCK);
#define MEANWHILE(from, to) \
    if (splitting) split<from, to>(weights, later, lane, strip.at(later))
        LOAD_INPUTS(1);
        LOAD_WEIGHTS(1);
        multiply<TWO>();
        MEANWHILE(0, 6);
        LOAD_INPUTS(0);
        multiply<TWO>();
        MEANWHILE(6, 11);
        LOAD_WEIGHTS(2);
        multiply<TWO>();
        MEANWHILE(11, 16);
        LOAD_WEIGHTS(0);
        multiply<TWO>();
        MEANWHILE(16, 22);
        LOAD_INPUTS(1);
        multiply<TWO>();
        MEANWHILE(22, 27);
        LOAD_INPUTS(2);
        multiply<TWO>();
        MEANWHILE(27, 32);
    }
    _tile_stored(0, sums, 64);
    _tile_stored(1, sums + TILE, 64);
    _tile_stored(2, sums + 2 * TILE, 64);
    _tile_stored(3, sums + 3 * TILE, 64);
}

// ---- all rows, all features --------------------------------------------------------------------------------------

// A part of the rows and of the depth, packed.
struct Chunk {
    char* inputs;
    int row, num_rows, start, depth;
    int steps() const { return (depth + BLOCK - 1) / BLOCK; }
    int tiles() const { return (num_rows + 15) / 16; }
    int64_t apart() const { return int64_t(steps()) * SPLIT; }  // bytes between the tiles of different rows
};

// One tile of sums, to what earlier parts of the depth gave or to the bias.
void put(const Problem& p, const char* sums, int row, int feature, bool first) {
    if (feature >= p.width) return;
    words v[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++) memcpy(&v[i], sums + i * 64, 64);
    transpose(v);
    const __mmask16 mask = Lanes::mask(p.width - feature);
    const f16 bias = p.bias ? (f16)lanes(p.bias + feature, mask) : f16{};
    for (int r = 0; r < std::min(16, p.num_rows - row); r++) {
        float* target = p.out + int64_t(row + r) * p.width + feature;
        const f16 before = first ? bias : (f16)lanes(target, mask);
        _mm512_mask_storeu_ps(target, mask, (f16)v[r] + before);
    }
}

// The weights of a pair; of one that is not whole a copy, filled up with zeros.
Weights weights_of(const Problem& p, const Chunk& c, int feature) {
    static thread_local Buffer buffer;
    const float* start = p.weights + feature * p.stride + c.start;
    if (feature + PAIR <= p.width) return {start, p.stride, feature + 2 * PAIR <= p.width ? start + PAIR * p.stride : start};
    constexpr size_t bytes = size_t(PAIR) * DEPTH * sizeof(float);
    float* copy = reinterpret_cast<float*>(buffer.at_least(bytes));
    memset(copy, 0, bytes);
    for (int i = 0; i < p.width - feature; i++) memcpy(copy + i * DEPTH, start + i * p.stride, c.depth * sizeof(float));
    return {copy, DEPTH, copy};
}

void multiply_pair(const Problem& p, const Chunk& c, const Strip& strip, int feature) {
    const Weights w = weights_of(p, c, feature);
    alignas(64) char sums[4 * TILE];
    for (int tile = 0; tile < c.tiles(); tile += 2) {
        const char* x = c.inputs + tile * c.apart();
        const bool two = tile + 1 < c.tiles();
        if (tile == 0)
            two ? sum_up<true, true>(w, strip, x, c.apart(), c.depth, sums)
                : sum_up<false, true>(w, strip, x, c.apart(), c.depth, sums);
        else
            two ? sum_up<true, false>(w, strip, x, c.apart(), c.depth, sums)
                : sum_up<false, false>(w, strip, x, c.apart(), c.depth, sums);
        for (int half = 0; half < 2; half++)
            for (int next = 0; next < 1 + int(two); next++)
                put(p, sums + (2 * half + next) * TILE, c.row + (tile + next) * 16, feature + half * 16, c.start == 0);
    }
}

// One thread's part of a chunk, in a team that shares the packing.
void multiply_chunk(const Problem& p, const Chunk& c) {
    static thread_local Buffer buffer;
#pragma omp for schedule(static)
    for (int i = 0; i < c.tiles() * c.steps(); i++) {
        const int tile = i / c.steps(), at = i % c.steps() * BLOCK;
        const float* x = p.x + int64_t(c.row + tile * 16) * p.depth + c.start + at;
        pack_inputs(x, p.depth, std::min(16, c.num_rows - tile * 16), Lanes(c.depth - at), c.inputs + i * SPLIT);
    }
    const int places = c.tiles() > 2 ? STEPS : 2 * LEAD;
    const Strip strip = {buffer.at_least(size_t(places) * 2 * SPLIT), places};
#pragma omp for schedule(static)
    for (int feature = 0; feature < p.width; feature += PAIR) multiply_pair(p, c, strip, feature);
}

void multiply_all(const Problem& p) {
    static thread_local Buffer buffer;
    char* inputs = buffer.at_least(size_t(std::min(ROWS, (p.num_rows + 15) / 16 * 16)) / 16 * STEPS * SPLIT);
#pragma omp parallel num_threads(threads_for(int64_t(p.num_rows) * p.depth * p.width, WORTH))
    {
        const TileConfig config;
        _tile_loadconfig(&config);
        for (int row = 0; row < p.num_rows; row += ROWS)
            for (int start = 0; start < p.depth; start += DEPTH)
                multiply_chunk(p, {inputs, row, std::min(ROWS, p.num_rows - row), start, std::min(DEPTH, p.depth - start)});
        _tile_release();
    }
}

}  // namespace

// Whether this machine has AMX and lets us use it.
extern "C" int has_float_tiles() {
    static const bool given = request_tiles();
    return given;
}

#else

static void multiply_all(const Problem&) {}

extern "C" int has_float_tiles() { return 0; }

#endif

// out = x W^T + bias, where there is AMX: elsewhere nothing is done.
extern "C" void linear_fp32_tiles(float* out, const float* x, const float* weights, int64_t stride, const float* bias,
                                  int num_rows, int depth, int width) {
    multiply_all({out, x, weights, bias, stride, num_rows, depth, width});
}
